package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tabard-id/tabard/idp"
)

// frames sends one HTTP/2 request as header fields in their order, some data and
// trailers, and returns the status: 0 where the stream or connection was reset.
func (w *world) frames(t *testing.T, fields []string, data string, trailers []string) int {
	t.Helper()
	conn, err := tls.Dial("tcp", w.front.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(conn, http2.ClientPreface)
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(fields), EndHeaders: true, EndStream: data == "" && trailers == nil})
	if data != "" {
		_ = fr.WriteData(1, trailers == nil, []byte(data))
	}
	if trailers != nil {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(trailers), EndHeaders: true, EndStream: true})
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return 0
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			var code int
			_, _ = fmt.Sscan(f.PseudoValue("status"), &code)
			return code
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
	}
}

// block encodes "name: value" lines.
func block(fields []string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range fields {
		name, value, _ := strings.Cut(f[1:], ":")
		_ = enc.WriteField(hpack.HeaderField{Name: f[:1] + name, Value: strings.TrimPrefix(value, " ")})
	}
	return b.Bytes()
}

func TestHostileFrames(t *testing.T) {
	up := startRecording(t)
	up.answer = answerReviews
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	good := []string{":method: GET", ":scheme: https", ":authority: id.example", ":path: /k8s/clusters/prod/api/v1/pods", "authorization: Bearer alice-token"}
	plus := func(more ...string) []string { return slices.Concat(good, more) }
	instead := func(field string) []string {
		name, _, _ := strings.Cut(field[1:], ":")
		fields := slices.Clone(good)
		for i := range fields {
			if strings.HasPrefix(fields[i], ":"+name+":") {
				fields[i] = field
			}
		}
		return fields
	}
	for _, c := range []struct {
		name     string
		fields   []string
		data     string
		trailers []string
		status   int
		passes   bool
	}{
		{name: "nothing hostile", fields: good, status: 200, passes: true},
		{name: "spellings", fields: plus("impersonate_user: admin", "impersonate-role: admin", "x-remote-user: admin", "audit-id: 1", "x_forwarded_for: ::1"), status: 200, passes: true},
		{name: "cookies in pieces", fields: plus("cookie: a=b", "cookie: c=d"), status: 200, passes: true},
		{name: "te", fields: plus("te: trailers"), status: 200, passes: true},
		{name: "te of another kind", fields: plus("te: gzip"), status: 400},
		{name: "--as", fields: plus("impersonate-user: admin"), status: 403},
		{name: "a group alone", fields: plus("impersonate-group: system:masters"), status: 400},
		{name: "upper case", fields: plus("Impersonate-User: admin"), status: 0},
		{name: "a fullwidth letter", fields: plus("impersonate-ｕser: admin"), status: 0},
		{name: "a space in a name", fields: plus("impersonate-user : admin"), status: 0},
		{name: "a line end in a name", fields: plus("x\r\nimpersonate-user: admin"), status: 0},
		{name: "a line end in a value", fields: plus("x: a\r\nimpersonate-user: admin"), status: 0},
		{name: "connection", fields: plus("connection: impersonate-user"), status: 400},
		{name: "upgrade", fields: plus("upgrade: websocket"), status: 400},
		{name: "keep-alive", fields: plus("keep-alive: 1"), status: 400},
		{name: "proxy-connection", fields: plus("proxy-connection: impersonate-user"), status: 400},
		{name: "transfer-encoding", fields: plus("transfer-encoding: chunked"), status: 400},
		{name: "two authorizations", fields: plus("authorization: Bearer bob-token"), status: 401},
		{name: "another host beside the authority", fields: plus("host: " + prodHost), status: 200, passes: true},
		{name: "another authority", fields: instead(":authority: " + prodHost), status: 200},
		{name: "user information in the authority", fields: instead(":authority: admin@" + prodHost), status: 0},
		{name: "a path in the authority", fields: instead(":authority: " + prodHost + "/x"), status: 200, passes: true}, // it is no host that there is
		{name: "two authorities", fields: slices.Concat([]string{":authority: " + prodHost}, good), status: 0},
		{name: "two paths", fields: slices.Concat([]string{":path: /healthz"}, good), status: 0},
		{name: "an unknown pseudo header", fields: slices.Concat([]string{":impersonate-user: admin"}, good), status: 0},
		{name: "a pseudo header late", fields: plus(":path: /k8s/clusters/test/api"), status: 0},
		{name: "an absolute path", fields: instead(":path: https://" + prodHost + "/api"), status: 0},
		{name: "no slash", fields: instead(":path: k8s/clusters/prod/api"), status: 0},
		{name: "a request line in the path", fields: instead(":path: /k8s/clusters/prod/api HTTP/1.1\r\nImpersonate-User: admin"), status: 0},
		{name: "a space in the path", fields: instead(":path: /k8s/clusters/prod/api HTTP/1.0"), status: 400},
		{name: "a space in the query", fields: instead(":path: /k8s/clusters/prod/api?a=b HTTP/1.0"), status: 400},
		{name: "dot segments", fields: instead(":path: /k8s/clusters/prod/api/../../test"), status: 400},
		{name: "CONNECT", fields: []string{":method: CONNECT", ":authority: " + prodHost, "authorization: Bearer alice-token"}, status: 400},
		{name: "extended CONNECT", fields: slices.Concat([]string{":protocol: websocket"}, instead(":method: CONNECT")), status: 0},
		{name: "a method with a space", fields: instead(":method: GET /x"), status: 0},
		{name: "trailers", fields: plus("trailer: impersonate-user"), data: "{}", trailers: []string{"impersonate-user: admin"}, status: 200, passes: true},
		{name: "a token in the trailers", fields: plus("trailer: authorization"), data: "{}", trailers: []string{"authorization: Bearer bob-token"}, status: 0},
		{name: "a pseudo header in the trailers", fields: good, data: "{}", trailers: []string{":path: /k8s/clusters/test/api"}, status: 0},
		{name: "a length that is not so", fields: plus("content-length: 5"), data: "{}", status: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			up.take()
			got := w.frames(t, c.fields, c.data, c.trailers)
			refused := got == 0 || got == 400 || got == 405 || got == 418 // where the library refuses, how it does is its own affair
			if c.status == 0 && !refused || c.status > 0 && got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
			seen := up.take()
			for _, r := range seen {
				checkWho(t, r)
			}
			if c.passes && (len(seen) != 1 || !strings.HasPrefix(seen[0].head[0], "GET /api/v1/pods ")) {
				t.Errorf("the API server saw %v", seen)
			}
			if c.status >= 400 || c.status == 0 {
				for _, r := range seen {
					if !strings.HasSuffix(r.req.URL.Path, "/selfsubjectaccessreviews") {
						t.Errorf("came to the API server:\n%s", r.raw)
					}
				}
			}
		})
	}
}

// TestBodiesAreFramedAnew: whatever the client's framing, the API server gets one that
// leaves no doubt, and what follows is a request of its own.
func TestBodiesAreFramedAnew(t *testing.T) {
	up := startRecording(t)
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	const head = "POST /k8s/clusters/prod/api/v1/namespaces/a/pods HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer alice-token\r\n"
	const smuggled = "POST /k8s/clusters/prod/api/v1/smuggled HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nImpersonate-User: admin\r\n\r\n"
	for name, raw := range map[string]string{
		"a length and chunks":   head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + smuggled,
		"chunks and a length":   head + "Transfer-Encoding: chunked\r\nContent-Length: 400\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + smuggled,
		"trailers":              head + "Trailer: Impersonate-User, Authorization\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nImpersonate-User: admin\r\nAuthorization: Bearer bob-token\r\n\r\n" + smuggled,
		"a chunk's extension":   head + "Transfer-Encoding: chunked\r\n\r\n2;impersonate-user=admin\r\n{}\r\n0\r\n\r\n" + smuggled,
		"the same length twice": head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + smuggled,
		"a length":              head + "Content-Length: 2\r\n\r\n{}" + smuggled,
	} {
		t.Run(name, func(t *testing.T) {
			up.take()
			answers := w.exchange(t, raw, 2)
			if len(answers) == 0 || answers[0].StatusCode != 200 {
				t.Fatalf("answers: %v", answers)
			}
			if len(answers) == 2 && answers[1].StatusCode != 401 {
				t.Errorf("what followed was answered %d", answers[1].StatusCode)
			}
			got := up.take()
			if len(got) != 1 || got[0].body != "{}" || strings.Contains(got[0].raw, "admin") || strings.Contains(got[0].raw, "bob") {
				t.Fatalf("the API server saw %+v", got)
			}
			checkWho(t, got[0])
		})
	}
}

// TestUpgradesAreSentAsTheyAre: with who asks, and without what Connection names besides.
func TestUpgradesAreSentAsTheyAre(t *testing.T) {
	up := startRecording(t)
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	for _, protocol := range []string{"websocket", "SPDY/3.1"} {
		raw := aliceHead + "Connection: Upgrade, Impersonate-User, Authorization, Audit-Id\nUpgrade: " + protocol + "\nImpersonate_User: admin\nX-Drop: 1\nConnection: X-Drop\n\n"
		if answers := w.exchange(t, strings.ReplaceAll(raw, "\n", "\r\n"), 1); len(answers) != 1 || answers[0].StatusCode != 200 {
			t.Fatalf("answers: %v", answers)
		}
		got := up.take()
		if len(got) != 1 || !slices.Equal(got[0].header("Connection"), []string{"Upgrade"}) || !slices.Equal(got[0].header("Upgrade"), []string{protocol}) || got[0].header("X-Drop") != nil {
			t.Fatalf("the API server saw %+v", got)
		}
		got[0].head = slices.DeleteFunc(got[0].head, func(line string) bool { return strings.HasPrefix(line, "Upgrade:") })
		checkWho(t, got[0])
	}
}

// answerJSON answers one path with an object, and all else with {}.
func answerJSON(path, object string) func(net.Conn, receivedRequest) {
	return func(conn net.Conn, r receivedRequest) {
		if !strings.HasSuffix(r.req.URL.Path, path) {
			okAnswer(conn, r)
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(object), object)
	}
}

// TestAsAnother: who may be another is that other to the API server, which is told who
// is behind it.
func TestAsAnother(t *testing.T) {
	up := startRecording(t)
	up.answer = answerJSON("/selfsubjectaccessreviews", `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":true}}`)
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	r := w.request(t, "GET", "/api/v1/nodes/a", nil)
	r.Header["Impersonate-User"], r.Header["Impersonate-Group"] = []string{"bob"}, []string{"a", "b"}
	r.Header["Impersonate-Extra-Scopes"] = []string{"x", "y"}
	if res := do(t, w.client(t, "HTTP/2.0"), r); res.StatusCode != 200 {
		t.Fatalf("status %d", res.StatusCode)
	}
	got := up.take()
	last := got[len(got)-1]
	for name, want := range map[string][]string{
		"Impersonate-User": {"bob"}, "Impersonate-Group": {"a", "b"}, "Impersonate-Uid": nil, "Impersonate-Extra-Scopes": {"x", "y"},
		"Impersonate-Extra-Tabard.dev%2fimpersonator": {"alice"}, "Impersonate-Extra-Tabard.dev%2fimpersonator-Uid": {"corp.1"},
		"Impersonate-Extra-Tabard.dev%2fsid": {"s1"}, "Impersonate-Extra-Tabard.dev%2faddress": {"127.0.0.1"},
		"Impersonate-Extra-Authentication.kubernetes.io%2fcredential-Id": {"JTI=j1"},
	} {
		if !slices.Equal(last.header(name), want) {
			t.Errorf("%s: %q, want %q", name, last.header(name), want)
		}
	}
}

// TestForeignTokens: one that is not ours goes on as it is, with nothing of ours.
func TestForeignTokens(t *testing.T) {
	const foreign = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMifQ.c2ln" // iss: https://kubernetes.default.svc
	up := startRecording(t)
	up.answer = answerJSON("/tokenreviews", `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{"authenticated":true,"user":{"username":"system:serviceaccount:a:b","groups":["system:serviceaccounts"]}}}`)
	w := newWorld(t, "https://"+up.Addr().String(), up.ca, func(c *ClusterConfig) {
		c.Proxy.Passthrough = &PassthroughConfig{TokenFile: c.APIServer.TokenFile + "-reviewer"}
		if err := os.WriteFile(c.Proxy.Passthrough.TokenFile, []byte("the-reviewer"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Proxy.Policy = []Rule{{Name: "no-secrets", Effect: "deny", When: "'system:serviceaccounts' in groups && resource == 'secrets'"}}
	})
	c := w.client(t, "HTTP/1.1")
	get := func(path, token string, more http.Header) *http.Response {
		r := w.request(t, "GET", path, nil)
		r.Header.Set("Authorization", "Bearer "+token)
		for name, values := range more {
			r.Header[name] = values
		}
		return do(t, c, r)
	}
	if res := get("/api/v1/pods", foreign, http.Header{"Impersonate_user": {"admin"}}); res.StatusCode != 200 {
		t.Fatalf("status %d", res.StatusCode)
	}
	got := slices.DeleteFunc(up.take(), func(r receivedRequest) bool { return strings.HasSuffix(r.req.URL.Path, "/tokenreviews") })
	if len(got) != 1 || !slices.Equal(got[0].header("Authorization"), []string{"Bearer " + foreign}) || strings.Contains(strings.ToLower(got[0].raw), "impersonate") {
		t.Fatalf("the API server saw %+v", got)
	}
	status(t, get("/api/v1/secrets", foreign, nil), 403)
	status(t, get("/api/v1/pods", foreign, http.Header{"Impersonate-User": {"admin"}}), 403)
	w.people.end("s1", idp.ErrRefused)
	const ours = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUifQ.c2ln" // iss: the issuer's
	status(t, get("/api/v1/pods", ours, nil), 401)
	if got := up.take(); len(got) > 0 {
		t.Errorf("came to the API server:\n%s", got[0].raw)
	}
	r := w.request(t, "GET", "", nil)
	r.URL.Path = "/k8s/clusters/test/api"
	r.Header.Set("Authorization", "Bearer "+foreign)
	status(t, do(t, c, r), 401) // a cluster without passthrough
}
