package e2e

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// hostileFrames are requests over HTTP/2: header fields, one a line, name and value apart
// by the first ": ". What follows an empty line is the body, and what follows another
// one the trailers. The last is a good one.
func hostileFrames() []hostile {
	const (
		pseudo = ":method: GET\n:scheme: https\n:authority: $H\n"
		at     = ":path: $P/api/v1/namespaces/team/configmaps/$M\n"
		good   = pseudo + at + "authorization: Bearer $T\n"
		post   = ":method: POST\n:scheme: https\n:authority: $H\n" + at + "authorization: Bearer $T\n"
		create = ":method: POST\n:scheme: https\n:authority: $H\n:path: $P/api/v1/namespaces/team/configmaps?fieldManager=$M\nauthorization: Bearer $T\ncontent-type: application/json\n"
		host   = ":method: GET\n:scheme: https\n:authority: " + proxyHost + "\n:path: /api/v1/namespaces/team/configmaps/$M\nauthorization: Bearer $T\n"
	)
	all := []hostile{
		{"no token", pseudo + at, 401, ""},
		{"two tokens", good + "authorization: Bearer $T\n", 401, ""},
		{"another person", good + "impersonate-user: carol\n", 403, ""},
		{"upper case", good + "Impersonate-User: carol\n", 0, ""},
		{"a group alone", good + "impersonate-group: system:masters\n", 400, ""},
		{"two persons", good + "impersonate-user: alice\nimpersonate-user: carol\n", 400, ""},
		{"an underscore", good + "impersonate_user: carol\n", 404, asked},
		{"a line end in a value", good + "x-a: b\rimpersonate-user: carol\n", 0, ""},
		{"a blank in a name", good + "impersonate-user : carol\n", 0, ""},
		{"a connection header", good + "connection: impersonate-user\n", 400, ""},
		{"keep-alive", good + "keep-alive: impersonate-user\n", 400, ""},
		{"an upgrade", good + "connection: upgrade\nupgrade: h2c\n", 400, ""},
		{"an upgrade alone", good + "upgrade: websocket\n", 400, ""},
		{"transfer-encoding", post + "transfer-encoding: chunked\n\n0", 400, ""},
		{"te", good + "te: gzip\n", 400, ""},
		{"a pseudo header after others", pseudo + "authorization: Bearer $T\n" + at, 0, ""},
		{"two paths", good + ":path: /api/v1/secrets\n", 0, ""},
		{"an unknown pseudo header", pseudo + at + ":impersonate-user: carol\nauthorization: Bearer $T\n", 0, ""},
		{"an absolute path", pseudo + ":path: https://" + proxyHost + "/api/v1/namespaces/team/configmaps/$M\nauthorization: Bearer $T\n", 404, ""},
		{"no slash", pseudo + ":path: api/v1/namespaces/team/configmaps/$M\nauthorization: Bearer $T\n", 0, ""},
		{"dot segments", pseudo + ":path: $P/api/v1/namespaces/other/../team/configmaps/$M\nauthorization: Bearer $T\n", 400, ""},
		{"an encoded slash", pseudo + ":path: $P/api/v1/namespaces/team%2fconfigmaps/$M\nauthorization: Bearer $T\n", 400, ""},
		{"extended CONNECT", ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: $H\n" + at + "authorization: Bearer $T\n", 0, ""},
		{"CONNECT", ":method: CONNECT\n:authority: " + proxyHost + ":443\nauthorization: Bearer $T\n", 400, ""},
		{"another host header", good + "host: " + proxyHost + "\n", 404, asked},
		{"by authority", host, 404, asked},
		{"cookies", good + "cookie: a=b\ncookie: token=$T\n", 404, asked},
		{"a wrong length", create + "content-length: 9\n\n{}", 400, perhaps},
		{"trailers", create + "trailer: impersonate-user\n\n{}\n\nimpersonate-user: carol\n", 422, asked},
		{"a token in trailers", create + "\n{}\n\nauthorization: Bearer x\n", 422, asked},
		{"a pseudo header in trailers", create + "\n{}\n\n:path: /api/v1/secrets\n", 0, perhaps},
		{"a large header", good + "x-a: " + strings.Repeat("a", 80<<10) + "\n", 0, ""},
	}
	return append(all, hostile{"a good one", good, 404, asked})
}

// sendFrames sends a request over HTTP/2 and returns the answer's status, 0 when the
// stream or the connection ends without one.
func (w *proxyWorld) sendFrames(h hostile, mark string) (int, error) {
	c, err := w.dialRaw("h2")
	if err != nil {
		return -1, err
	}
	defer c.Close()
	raw := strings.NewReplacer("$T", w.alice.IDToken, "$H", strings.TrimPrefix(w.issuer, "https://"), "$P", "/k8s/clusters/prod", "$M", mark).Replace(h.raw)
	head, rest, hasBody := strings.Cut(raw, "\n\n")
	body, trailers, hasTrailers := strings.Cut(rest, "\n\n")
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		return -1, err
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		return -1, err
	}
	if err := writeBlock(f, head, !hasBody); err != nil {
		return -1, err
	}
	if hasBody {
		_ = f.WriteData(1, !hasTrailers, []byte(body)) // the server may have had enough
	}
	if hasTrailers {
		_ = writeBlock(f, trailers, true)
	}
	return readStatus(f)
}

// writeBlock writes header fields in frames of a size that everybody takes.
func writeBlock(f *http2.Framer, lines string, end bool) error {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for line := range strings.SplitSeq(strings.TrimSuffix(lines, "\n"), "\n") {
		at := strings.Index(line[1:], ": ") + 1
		if err := e.WriteField(hpack.HeaderField{Name: line[:at], Value: line[at+2:]}); err != nil {
			return err
		}
	}
	first := block.Next(16 << 10)
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: end, EndHeaders: block.Len() == 0}); err != nil {
		return err
	}
	for block.Len() > 0 {
		next := block.Next(16 << 10)
		if err := f.WriteContinuation(1, block.Len() == 0, next); err != nil {
			return err
		}
	}
	return nil
}

func readStatus(f *http2.Framer) (int, error) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return 0, err
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			code, err := strconv.Atoi(frame.PseudoValue("status"))
			if err != nil || code >= 200 {
				return code, err
			}
		case *http2.RSTStreamFrame:
			return 0, fmt.Errorf("stream reset: %s", frame.ErrCode)
		case *http2.GoAwayFrame:
			return 0, fmt.Errorf("sent away: %s", frame.ErrCode)
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		}
	}
}
