package e2e

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// hostile is one request as bytes. These stand for what only a test knows:
//
//	$T alice's token     $H the server's host and port     $P the path of the cluster prod
//	$M a name that no other request has     $G the first lines of a good request for it
type hostile struct {
	name string
	raw  string // with \n for the ends of lines
	want int    // status; 0: none, the connection or the stream just ends
	as   string // who the API server must have seen ask for $M; "": nobody. It may also be perhaps
}

const (
	goodHead = "GET $P/api/v1/namespaces/team/configmaps/$M HTTP/1.1\nHost: $H\nAuthorization: Bearer $T\n"
	noToken  = "GET $P/api/v1/namespaces/team/configmaps/$M HTTP/1.1\nHost: $H\n"
	postHead = "POST $P/api/v1/namespaces/team/configmaps/$M HTTP/1.1\nHost: $H\nAuthorization: Bearer $T\nContent-Type: application/json\n"
	smuggled = "GET $P/api/v1/namespaces/team/configmaps/$M-smuggled HTTP/1.1\nHost: $H\nImpersonate-User: carol\n\n"
	asked    = "alice" // who asks in all of them
	perhaps  = "alice, or nobody"
)

// stopped is a good request with more lines, which nobody gets.
func stopped(want int, names ...string) (all []hostile) {
	for _, lines := range names {
		all = append(all, hostile{lines, "$G" + lines + "\n\n", want, ""})
	}
	return all
}

// harmless is a good request with lines that change nothing: there is no such object.
func harmless(names ...string) (all []hostile) {
	for _, lines := range names {
		all = append(all, hostile{lines, "$G" + lines + "\n\n", 404, asked})
	}
	return all
}

// target is a good request for another target.
func target(uri string, want int, as string) hostile {
	return hostile{"target " + uri, "GET " + uri + " HTTP/1.1\nHost: $H\nAuthorization: Bearer $T\n\n", want, as}
}

func hostileHeaders() []hostile {
	return slices.Concat(
		stopped(403, "Impersonate-User: carol", "impersonate-user: carol", "IMPERSONATE-USER: carol", "iMpErSoNaTe-uSeR: carol",
			"Impersonate-User: system:admin", "Impersonate-User: alice, carol",
			"Impersonate-User: alice\nImpersonate-Group: system:masters", "Impersonate-User: alice\nImpersonate-Group: x,system:masters",
			"Impersonate-User: system:serviceaccount:kube-system:tabard-proxy"),
		stopped(400, "Impersonate-Group: system:masters", "impersonate-GROUP: corp:ops", "Impersonate-Uid: 0", "Impersonate-Extra-Scopes: all",
			"Impersonate-User: alice\nImpersonate-Extra-Tabard.dev%2fsid: x", "Impersonate-User: alice\nImpersonate-User: carol", "Impersonate-User:",
			"Impersonate-User: alice\nImpersonate-Extra-%zz: x", "Impersonate-User : carol", "Impersonate-User\t: carol", "Impersonat\u0435-User: carol",
			"\uff29mpersonate-User: carol", "Impersonate-User\x00: carol", "X-A: a\rImpersonate-User: carol", "X-A: a\x00Impersonate-User: carol"),
		harmless("Impersonate_User: carol", "Impersonate-Foo: carol", "X-A: b\n Impersonate-User: carol",
			"X-Remote-User: admin\nX-Remote-Group: system:masters", "X_Remote_User: admin", "X-Remote-Extra-Scopes: all", "X-Forwarded-User: admin", "X-Forwarded-For: 10.9.8.7\nForwarded: for=10.9.8.7",
			"X-Original-Url: /api/v1/secrets\nX-Rewrite-Url: /api/v1/secrets", "X-Http-Method-Override: DELETE", "Proxy-Authorization: Bearer admin", "Cookie: __Host-tabard=x; token=y",
			"Audit-Id: $M-forged", "Connection: Impersonate-User", "Connection: impersonate-group, impersonate-uid", "Connection: Authorization",
			"Connection: close, Impersonate-Extra-Tabard.dev%2fsid, Audit-Id", "Connection: Content-Security-Policy", "Proxy-Connection: Impersonate-User", "Keep-Alive: Impersonate-User", "Te: trailers\nConnection: te"),
		stopped(400, "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Connection: upgrade\nUpgrade: H2C", "Connection: Upgrade\nUpgrade: websocket, h2c",
			"Connection: Upgrade\nUpgrade: websocket\nUpgrade: h2c", "Connection: Upgrade\nUpgrade: TLS/1.0", "Upgrade: websocket",
			"Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\nSec-WebSocket-Version: 13\nSec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.$B"),
	)
}

func hostileTargets() []hostile {
	at := "$P/api/v1/namespaces/team/configmaps/$M"
	return []hostile{
		target("$P/../prod/api/v1/namespaces/team/configmaps/$M", 400, ""), target("$P/api/v1/namespaces/other/../team/configmaps/$M", 400, ""),
		target("$P/api/v1/namespaces/other/%2e%2e/team/configmaps/$M", 400, ""), target("$P/api/v1/namespaces/other/%2E./team/configmaps/$M", 400, ""),
		target("$P/./api/v1/namespaces/team/configmaps/$M", 400, ""), target("$P//api/v1/namespaces/team/configmaps/$M", 400, ""),
		target("$P/api/v1/namespaces/team/configmaps%2f$M", 400, ""), target("$P/api/v1/namespaces/team%2Fconfigmaps/$M", 400, ""), target("$P/api/v1/namespaces/team/configmaps%5c$M", 400, ""),
		target("$P/api/v1/namespaces/team/configmaps\\$M", 400, ""), target("$P/api/v1/namespaces/team/configmaps/$M%00", 400, ""), target("$P/api/v1/namespaces/team/configmaps/$M%0d%0aX:y", 400, ""),
		target("$P/api/v1/namespaces/team/configmaps/%252e%252e/$M", 400, ""), target("$P/api/v1/namespaces/team/configmaps/$M%", 400, ""), target("$P/api/v1/namespaces/team/configmaps/$M%zz", 400, ""),
		target("$P/api/v1/namespaces/team/pods/web/proxy/../../$M", 400, ""), target("$P/api/v1/namespaces/team/pods/web/proxy/a/%2e%2e/%2e%2e/$M", 400, ""), target("$P/api/v1/namespaces/team/pods/web/proxy/a%2f..%2f..%2f$M", 400, ""),
		target("$P/api/v1/namespaces/team;x=y/configmaps/$M", 403, asked), target("$P/api/v1/namespaces/team/configmaps/$M?watch=%00&x=../..", 404, asked), target("$P/api/v1/namespaces/team/configmaps/$M?%20impersonate-user=carol", 404, asked),
		target("/k8s/clusters/prod%2f..%2fstaging/api/v1/namespaces/team/configmaps/$M", 404, ""), target("/K8S/clusters/prod/api/v1/namespaces/team/configmaps/$M", 404, ""),
		target("/k8s/clusters/PROD/api/v1/namespaces/team/configmaps/$M", 404, ""), target("/k8s/clusters/../clusters/prod/api/v1/namespaces/team/configmaps/$M", 404, ""),
		target("/x/../k8s/clusters/prod/api/v1/namespaces/team/configmaps/$M", 404, ""), target("/k8s/clusters/%70rod/api/v1/namespaces/team/configmaps/$M", 404, ""),
		target("https://$H"+at, 400, ""), target("https://"+proxyHost+"/api/v1/namespaces/team/configmaps/$M", 400, ""), target("http://127.0.0.1/api/v1/namespaces/team/configmaps/$M", 404, ""),
		target("api/v1/namespaces/team/configmaps/$M", 400, ""), target(at+"#x", 400, ""), target(at+" x", 400, ""), target(at+"/\u00e9", 400, ""), target("$P/api/v1/"+strings.Repeat("a", 40<<10)+"/$M", 414, ""),
		target("$P/api/v1/namespaces/team/secrets/$M", 403, ""), target("$P/api/v1/watch/namespaces/team/secrets/$M", 403, ""), target("$P/api/v1/proxy/namespaces/team/secrets/$M", 403, ""),
		target("$P/api/v1/namespaces/team/Secrets/$M", 404, asked), target("$P/api/v1/namespaces/team/secret%73/$M", 403, ""), target("$P/api/v1/namespaces/team/configmaps/%c0%ae%c0%ae/$M", 404, asked),
		{"CONNECT", "CONNECT " + proxyHost + ":443 HTTP/1.1\nHost: " + proxyHost + "\nAuthorization: Bearer $T\n\n", 400, ""},
		{"TRACE", "TRACE " + at + " HTTP/1.1\nHost: $H\nAuthorization: Bearer $T\n\n", 405, ""},
		{"a method of ours", "WATCH " + at + " HTTP/1.1\nHost: $H\nAuthorization: Bearer $T\n\n", 405, ""},
		{"HTTP/2 without ALPN", "PRI * HTTP/2.0\n\nSM\n\n", 404, ""},
		{"two hosts", "GET " + at + " HTTP/1.1\nHost: $H\nHost: " + proxyHost + "\nAuthorization: Bearer $T\n\n", 400, ""},
		{"no host", "GET " + at + " HTTP/1.1\nAuthorization: Bearer $T\n\n", 400, ""},
		{"a host with a path", "GET " + at + " HTTP/1.1\nHost: " + proxyHost + "/x\nAuthorization: Bearer $T\n\n", 400, ""},
		{"a host with a user", "GET /api/v1/namespaces/team/configmaps/$M HTTP/1.1\nHost: " + proxyHost + "@$H\nAuthorization: Bearer $T\n\n", 400, ""},
		{"by host", "GET /api/v1/namespaces/team/configmaps/$M HTTP/1.1\nHost: " + strings.ToUpper(proxyHost) + ".:8443\nAuthorization: Bearer $T\n\n", 404, asked},
		{"another cluster below a host", "GET /k8s/clusters/staging/api/v1/namespaces/team/configmaps/$M HTTP/1.1\nHost: " + proxyHost + "\nAuthorization: Bearer $T\n\n", 403, asked},
		{"HTTP/1.0", strings.Replace(strings.Replace(goodHead, "HTTP/1.1", "HTTP/1.0", 1), "Host: $H\n", "", 1) + "\n", 404, asked},
	}
}

func hostileBodies() []hostile {
	chunked := postHead + "Transfer-Encoding: chunked\n"
	create := strings.Replace(chunked, "/$M ", "?fieldManager=$M ", 1) // the API server reads the body before it answers
	return []hostile{
		{"length and chunks", chunked + "Content-Length: 4\n\n0\n\n" + smuggled, 405, asked},
		{"two lengths", postHead + "Content-Length: 2\nContent-Length: 200\n\n{}" + smuggled, 400, ""},
		{"a signed length", postHead + "Content-Length: +2\n\n{}" + smuggled, 400, ""},
		{"a length in hex", postHead + "Content-Length: 0x2\n\n{}" + smuggled, 400, ""},
		{"a list of lengths", postHead + "Content-Length: 2, 2\n\n{}" + smuggled, 400, ""},
		{"xchunked", postHead + "Transfer-Encoding: xchunked\n\n0\n\n" + smuggled, 501, ""},
		{"chunked with a blank before the colon", postHead + "Transfer-Encoding : chunked\n\n0\n\n" + smuggled, 400, ""},
		{"identity and chunked", postHead + "Transfer-Encoding: identity, chunked\n\n0\n\n" + smuggled, 501, ""},
		{"chunked twice", postHead + "Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n" + smuggled, 501, ""},
		{"a chunk's length too large", create + "\nfffffffffffffffff\n{}\n0\n\n" + smuggled, 400, perhaps},
		{"a chunk's length with a sign", create + "\n+2\n{}\n0\n\n" + smuggled, 400, perhaps},
		{"a request as the body of a GET", goodHead + "Content-Length: $L\n\n" + smuggled, 404, asked},
		{"trailers", chunked + "Trailer: Impersonate-User, Authorization\n\n2\n{}\n0\nImpersonate-User: carol\nAuthorization: Bearer x\n\n", 405, asked},
		{"trailers nobody announced", chunked + "\n2\n{}\n0\nImpersonate-User: carol\n\n", 405, asked},
		{"an expectation", goodHead + "Expect: 200-maybe\n\n", 417, ""},
		{"too long a line", goodHead + "X-A: " + strings.Repeat("a", 80<<10) + "\n\n", 431, ""},
		{"too many lines", goodHead + strings.Repeat("X-A: a\n", 400) + "\n", 431, ""},
	}
}

// hostileTokens are requests with something else in place of alice's token.
func hostileTokens(w *proxyWorld) []hostile {
	bearers := map[string]string{
		"another cluster's": w.login("staging", "alice", "pw-alice").IDToken, "the API's own": w.login("tabard", "alice", "pw-alice").IDToken,
		"an access token": w.alice.AccessToken, "a refresh token": w.alice.RefreshToken, "the API server's own": strings.TrimSpace(w.k.Kubectl(w.t, "create", "token", "robot", "-n", "team")),
		"a fourth part": w.alice.IDToken + ".x", "no signature": w.alice.IDToken[:strings.LastIndexByte(w.alice.IDToken, '.')+1], "a comma": w.alice.IDToken + "," + w.carol.IDToken, "two words": w.alice.IDToken + " x", "two blanks": " " + w.alice.IDToken,
		"alg none": forge(w, map[string]any{"alg": "none"}, nil, false), "alg None, signed": forge(w, map[string]any{"alg": "None"}, nil, true),
		"HS256 with our public key": forge(w, map[string]any{"alg": "HS256"}, nil, false), "a key of its own": forge(w, map[string]any{"jwk": map[string]any{"kty": "oct", "k": "AAAA"}, "alg": "HS256"}, nil, false),
		"a key from elsewhere": forge(w, map[string]any{"jku": "https://127.0.0.1/keys", "kid": "elsewhere"}, nil, true), "a kid that is a path": forge(w, map[string]any{"kid": "../../keys"}, nil, true),
		"a kid that is a query": forge(w, map[string]any{"kid": "' OR 1=1"}, nil, true), "no kid": forge(w, map[string]any{"kid": nil}, nil, true), "a critical header": forge(w, map[string]any{"crit": []string{"x"}, "x": 1}, nil, true),
		"another person": forge(w, nil, map[string]any{"preferred_username": "carol", "sub": claims(w.t.(*testing.T), w.carol.IDToken)["sub"]}, true), "another session": forge(w, nil, map[string]any{"sid": claims(w.t.(*testing.T), w.carol.IDToken)["sid"]}, true),
		"no end": forge(w, nil, map[string]any{"exp": 99999999999}, true), "not JSON": "e30." + base64.RawURLEncoding.EncodeToString([]byte("{")) + ".AAAA",
	}
	all := []hostile{
		{"no token", noToken + "\n", 401, ""}, {"basic", noToken + "Authorization: Basic YWxpY2U6cHctYWxpY2U=\n\n", 401, ""}, {"no scheme", noToken + "Authorization: $T\n\n", 401, ""},
		{"two tokens", "$GAuthorization: Bearer $T\n\n", 401, ""}, {"in the query", strings.Replace(noToken, " HTTP/1.1", "?access_token=$T&token=$T HTTP/1.1", 1) + "\n", 401, ""},
		{"in a cookie", noToken + "Cookie: Authorization=Bearer $T; id_token=$T\n\n", 401, ""}, {"in another header", noToken + "X-Authorization: Bearer $T\nProxy-Authorization: Bearer $T\n\n", 401, ""},
		{"in lower case", noToken + "authorization: bearer $T\n\n", 404, asked}, {"after another request", noToken + "\n" + noToken + "\n", 401, ""},
	}
	ended, token := w.session("alice")
	w.endSession(ended)
	bearers["an ended session's"] = token
	for name, bearer := range bearers {
		all = append(all, hostile{name, noToken + "Authorization: Bearer " + bearer + "\n\n", 401, ""})
	}
	end, err := expiry(w.short)
	if err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(time.Until(end.Add(time.Second)))
	return append(all, hostile{"expired", strings.Replace(noToken, "$P", "/k8s/clusters/closed", 1) + "Authorization: Bearer " + w.short + "\n\n", 401, ""})
}

// forge changes alice's token: its header, its claims or both. signed keeps her token's
// signature; else it is an HMAC by our public key.
func forge(w *proxyWorld, header, change map[string]any, signed bool) string {
	parts := strings.Split(w.alice.IDToken, ".")
	for i, changes := range []map[string]any{header, change} {
		var part map[string]any
		if err := decodePart(w.alice.IDToken, i, &part); err != nil {
			w.t.Fatal(err)
		}
		for k, v := range changes {
			if part[k] = v; v == nil {
				delete(part, k)
			}
		}
		b, err := json.Marshal(part)
		if err != nil {
			w.t.Fatal(err)
		}
		if changes != nil {
			parts[i] = base64.RawURLEncoding.EncodeToString(b)
		}
	}
	if signed {
		return strings.Join(parts, ".")
	}
	mac := hmac.New(sha256.New, []byte(get(w.t, w.client(), w.issuer+"/keys").body))
	mac.Write([]byte(parts[0] + "." + parts[1]))
	return parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// testProxyHostile sends what somebody who is up to no good would. Each has an answer, and
// the API server's audit log says who it saw: alice, exactly as she is, or nobody.
func testProxyHostile(t *testing.T, w *proxyWorld) {
	h1 := slices.Concat(hostileHeaders(), hostileTargets(), hostileBodies(), hostileTokens(w))
	h2 := hostileFrames()
	for i, h := range h1 {
		mark := fmt.Sprintf("h1-%03d", i)
		if got, err := w.sendRaw(h.bytes(w, mark)); got != h.want {
			t.Errorf("%s %.200q: want %d, got %d, %v", mark, h.name, h.want, got, err)
		}
	}
	for i, h := range h2 {
		mark := fmt.Sprintf("h2-%03d", i)
		if got, err := w.sendFrames(h, mark); got != h.want {
			t.Errorf("%s %.200q: want %d, got %d, %v", mark, h.name, h.want, got, err)
		}
	}
	for i, h := range h1 { // an event may come a moment after its answer
		if h.as == asked {
			w.seen(fmt.Sprintf("h1-%03d", i), 1)
		}
	}
	for i, h := range h2 { // the last one is a good one
		if h.as == asked {
			w.seen(fmt.Sprintf("h2-%03d", i), 1)
		}
	}
	log := w.k.AuditLog(t)
	want := w.alice.self(t, "corp:devs", "corp:all-devs")
	for i, h := range h1 {
		h.check(t, log, fmt.Sprintf("h1-%03d", i), want)
	}
	for i, h := range h2 {
		h.check(t, log, fmt.Sprintf("h2-%03d", i), want)
	}
	t.Logf("%d requests over HTTP/1.1, %d over HTTP/2", len(h1), len(h2))
	for _, e := range log {
		if strings.Contains(string(e.AuditID), "forged") {
			t.Errorf("a client chose the Audit-Id of %s", e.RequestURI)
		}
	}
}

// bytes is the request, with the ends of lines that HTTP/1.1 has.
func (h hostile) bytes(w *proxyWorld, mark string) []byte {
	raw := strings.ReplaceAll(h.raw, "$G", goodHead)
	head, body, _ := strings.Cut(raw, "\n\n")
	r := strings.NewReplacer("$T", w.alice.IDToken, "$H", strings.TrimPrefix(w.issuer, "https://"), "$P", "/k8s/clusters/prod", "$M", mark,
		"$B", base64.RawURLEncoding.EncodeToString([]byte(w.carol.IDToken)), "\n", "\r\n")
	body = r.Replace(body)
	return []byte(strings.Replace(r.Replace(head), "$L", fmt.Sprint(len(body)), 1) + "\r\n\r\n" + body)
}

// sendRaw sends bytes and returns the first answer's status, 0 when there is none.
func (p *proxied) sendRaw(raw []byte) (int, error) {
	c, err := p.dialRaw("http/1.1")
	if err != nil {
		return -1, err
	}
	defer c.Close()
	if _, err := c.Write(raw); err != nil {
		return -1, err
	}
	if bytes.HasPrefix(raw, []byte("PRI ")) {
		_ = c.CloseWrite()
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, errors.Join(err, res.Body.Close())
}

// check looks up who the API server saw ask for what has mark in its name.
func (h hostile) check(t *testing.T, log []auditv1.Event, mark string, want userInfo) {
	t.Helper()
	seen := 0
	for _, e := range log {
		if !strings.Contains(e.RequestURI, mark) {
			continue
		}
		seen++
		who := e.ImpersonatedUser
		if h.as == "" || strings.Contains(e.RequestURI, "smuggled") {
			t.Errorf("%s %.200q: the API server got %s %s for %+v", mark, h.name, e.Verb, e.RequestURI, who)
			continue
		}
		if e.User.Username != proxyAccount || who == nil {
			t.Errorf("%s %.200q: the API server saw %+v for %+v", mark, h.name, e.User, who)
			continue
		}
		groups := slices.Sorted(slices.Values(who.Groups))
		if who.Username != want.Username || who.UID != want.UID || !slices.Equal(groups, want.Groups) || fmt.Sprint(who.Extra["tabard.dev/address"]) != "[127.0.0.1]" ||
			fmt.Sprint(who.Extra["tabard.dev/sid"]) != fmt.Sprint(want.Extra["tabard.dev/sid"]) || len(who.Extra) != len(want.Extra) {
			t.Errorf("%s %.200q: the API server saw %+v", mark, h.name, who)
		}
	}
	if h.as == asked && seen == 0 {
		t.Errorf("%s %.200q: the API server did not get it", mark, h.name)
	}
}
