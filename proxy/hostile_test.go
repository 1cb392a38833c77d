package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hostile is a request as bytes, and what becomes of it.
type hostile struct {
	name   string
	raw    string // ends in an empty line; \n is sent as \r\n
	status int
	passes bool   // it comes to the API server, as alice and nobody else
	target string // in the request line there; the request's own when ""
}

const aliceHead = "GET /k8s/clusters/prod/api/v1/pods HTTP/1.1\nHost: id.example\nAuthorization: Bearer alice-token\n"

// with adds header lines to a good request, which then passes.
func with(name, lines string) hostile {
	return hostile{name: name, raw: aliceHead + lines + "\n", status: 200, passes: true, target: "/api/v1/pods"}
}

// without is with for requests that are refused.
func without(name, lines string, status int) hostile {
	return hostile{name: name, raw: aliceHead + lines + "\n", status: status}
}

// path is a good request for another path.
func path(raw string, status int) hostile {
	h := hostile{name: "path " + raw, raw: "GET " + raw + " HTTP/1.1\nHost: id.example\nAuthorization: Bearer alice-token\n\n", status: status}
	if status == 200 {
		h.passes, h.target = true, strings.TrimPrefix(raw, "/k8s/clusters/prod")
	}
	return h
}

func hostileRequests() []hostile {
	const at = "/k8s/clusters/prod"
	return slices.Concat([]hostile{
		with("nothing hostile", ""),

		// Impersonation that is none to Kubernetes, but might be to what is in front of it.
		with("underscores", "Impersonate_User: admin\nImpersonate_Group: system:masters\nImpersonate-User_: x\n"),
		with("mixed", "Impersonate_Extra-foo: x\nimpersonate_Uid: 0\n"),
		with("a prefix alone", "Impersonate-: admin\nImpersonate: admin\nImpersonate-Role: cluster-admin\nimPERSONATE-Anything: x\n"),
		with("front proxy", "X-Remote-User: admin\nX-Remote-Group: system:masters\nX-Remote-Uid: 0\nX-Remote-Extra-Scopes: all\nx_remote_user: admin\n"),
		with("where from", "X-Forwarded-For: 10.0.0.1\nX-Forwarded-User: admin\nX-Forwarded-Host: evil\nX-Forwarded-Proto: http\nX-Real-Ip: 10.0.0.1\nForwarded: for=10.0.0.1\nX_Forwarded_For: 10.0.0.1\n"),
		with("credentials of other kinds", "Cookie: __Host-session=1\ncookie: token=2\nProxy-Authorization: Basic eDp5\nProxy-Connection: keep-alive\nX-Auth-Request-User: me\n"),
		with("an audit id", "Audit-ID: chosen\naudit-id: twice\nAUDIT_ID: thrice\n"),

		// Connection.
		with("Connection: Impersonate-User", "Connection: Impersonate-User, Impersonate-Group, Impersonate-Uid, Impersonate-Extra-Tabard.dev%2fsid\n"),
		with("Connection: Authorization", "Connection: Authorization\nConnection: keep-alive, Audit-Id, Host\n"),
		with("Connection: everything", "Connection: close, Content-Length, Transfer-Encoding, User-Agent, Accept\nAccept: */*\n"),
		with("hop by hop", "Keep-Alive: timeout=5\nTE: trailers, chunked\nTrailer: Impersonate-User\nConnection: TE, Keep-Alive, Trailer\n"),
		without("Impersonate-User beside Connection", "Connection: Impersonate-User\nImpersonate-User: admin\n", 403),

		// Impersonation in earnest, which nobody may here.
		without("--as", "Impersonate-User: admin\n", 403),
		without("--as, another case", "iMPERSONATE-uSER: admin\n", 403),
		without("--as a service account", "Impersonate-User: system:serviceaccount:kube-system:default\n", 403),
		without("--as with group", "Impersonate-User: alice\nImpersonate-Group: system:masters\n", 403),
		without("two users", "Impersonate-User: alice\nImpersonate-User: admin\n", 400),
		without("two uids", "Impersonate-User: alice\nImpersonate-Uid: 1\nImpersonate-UID: 2\n", 400),
		without("a group alone", "Impersonate-Group: system:masters\n", 400),
		without("a uid alone", "Impersonate-Uid: 0\n", 400),
		without("an extra alone", "Impersonate-Extra-Scopes: all\n", 400),
		without("an empty user", "Impersonate-User:\nImpersonate-Group: system:masters\n", 400),
		without("an empty user alone", "Impersonate-User: \n", 400),
		without("our own extra", "Impersonate-User: alice\nImpersonate-Extra-tabard.dev%2Fsid: s9\n", 400),
		without("our own extra, encoded otherwise", "Impersonate-User: alice\nImpersonate-Extra-%54abard.dev%2Fsid: s9\n", 400),
		without("the credential id", "Impersonate-User: alice\nImpersonate-Extra-Authentication.kubernetes.io%2Fcredential-id: JTI=9\n", 400),
		without("an extra badly encoded", "Impersonate-User: alice\nImpersonate-Extra-%zz: 1\n", 400),
		without("an extra twice by encoding", "Impersonate-User: alice\nImpersonate-Extra-a: 1\nImpersonate-Extra-%61: 2\n", 400),

		// Header names that HTTP does not know.
		without("a fullwidth letter", "Impersonate-Ｕser: admin\n", 400),
		without("a soft hyphen", "Impersonate\u00ad-User: admin\n", 400),
		without("a hyphen of Unicode", "Impersonate\u2010User: admin\n", 400),
		without("a long s", "Imperſonate-User: admin\n", 400),
		without("a dotless i", "ımpersonate-User: admin\n", 400),
		without("a space before the colon", "Impersonate-User : admin\n", 400),
		without("a tab before the colon", "Impersonate-User\t: admin\n", 400),
		without("a NUL in a name", "Impersonate-User\x00: admin\n", 400),
		without("a NUL in a value", "X-A: b\x00c\n", 400),
		without("a bare CR", "X-A: b\rImpersonate-User: admin\n", 400),
		without("no name", ": admin\n", 400),
		without("a line that is none", "Impersonate-User\n", 400),
		without("a leading space", " Impersonate-User: admin\n", 401), // folds into Authorization
		with("a folded line", "X-A: b\n Impersonate-User: admin\n"),

		// Authorization.
		without("twice", "Authorization: Bearer alice-token\n", 401),
		without("twice, another", "Authorization: Bearer bob-token\n", 401),
		{name: "none", raw: "GET " + at + "/api HTTP/1.1\nHost: h\n\n", status: 401},
		{name: "basic", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Basic YWxpY2U6eA==\n\n", status: 401},
		{name: "no scheme", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: alice-token\n\n", status: 401},
		{name: "two tokens", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer bob-token, Bearer alice-token\n\n", status: 401},
		{name: "two words", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token x\n\n", status: 401},
		{name: "two spaces", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer  alice-token\n\n", status: 401},
		{name: "empty", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer \n\n", status: 401},
		{name: "in the query", raw: "GET " + at + "/api?access_token=alice-token&token=alice-token HTTP/1.1\nHost: h\n\n", status: 401},
		{name: "in a cookie", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nCookie: Authorization=Bearer alice-token\n\n", status: 401},
		{name: "for another cluster", raw: "GET /k8s/clusters/test/api HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\n\n", status: 401},
		{name: "as a subprotocol", raw: aliceHead + "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\nSec-WebSocket-Version: 13\nSec-WebSocket-Protocol: v5.channel.k8s.io, Base64url.bearer.authorization.k8s.io.Ym9i\n\n", status: 400},

		// Upgrades.
		without("h2c", "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n", 400),
		without("h2c in a list", "Connection: Upgrade\nUpgrade: websocket, h2c\n", 400),
		without("h2c in a second header", "Connection: Upgrade\nUpgrade: websocket\nUpgrade: h2c\n", 400),
		without("TLS", "Connection: Upgrade\nUpgrade: TLS/1.3\n", 400),
		without("an older SPDY", "Connection: Upgrade\nUpgrade: SPDY/3\n", 400),
		without("no Connection", "Upgrade: websocket\n", 400),
		without("empty", "Connection: Upgrade\nUpgrade:\n", 400),
		without("a space inside", "Connection: Upgrade\nUpgrade: web socket\n", 400),

		// What is asked of whom.
		{name: "absolute-form", raw: "GET http://id.example" + at + "/api HTTP/1.1\nHost: id.example\nAuthorization: Bearer alice-token\n\n", status: 400},
		{name: "absolute-form to another host", raw: "GET https://" + prodHost + "/api HTTP/1.1\nHost: id.example\nAuthorization: Bearer alice-token\n\n", status: 400},
		{name: "CONNECT", raw: "CONNECT " + prodHost + ":443 HTTP/1.1\nHost: " + prodHost + "\nAuthorization: Bearer alice-token\n\n", status: 400},
		{name: "TRACE", raw: "TRACE " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\n\n", status: 405},
		{name: "a lower-case method", raw: "get " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\n\n", status: 405},
		{name: "a made-up method", raw: "WATCH " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\n\n", status: 405},
		{name: "two hosts", raw: "GET " + at + "/api HTTP/1.1\nHost: id.example\nHost: " + prodHost + "\nAuthorization: Bearer alice-token\n\n", status: 400},
		{name: "no host", raw: "GET " + at + "/api HTTP/1.1\nAuthorization: Bearer alice-token\n\n", status: 400},
		{name: "a host with a slash", raw: "GET " + at + "/api HTTP/1.1\nHost: " + prodHost + "/x\nAuthorization: Bearer alice-token\n\n", status: 400},
		{name: "HTTP/0.9", raw: "GET " + at + "/api\n\n", status: 400},
		{name: "HTTP/3", raw: "GET " + at + "/api HTTP/3.0\nHost: h\nAuthorization: Bearer alice-token\n\n", status: 505},
		{name: "another cluster by host", raw: "GET /api HTTP/1.1\nHost: " + prodHost + "\nAuthorization: Bearer alice-test-token\n\n", status: 401},
		{name: "by host", raw: "GET /api/v1/pods HTTP/1.1\nHost: " + strings.ToUpper(prodHost) + ":8443\nAuthorization: Bearer alice-token\nImpersonate_User: admin\n\n", status: 200, passes: true, target: "/api/v1/pods"},
		{name: "by host with a dot", raw: "GET /api/v1/pods HTTP/1.1\nHost: " + prodHost + ".\nAuthorization: bearer alice-token\n\n", status: 200, passes: true, target: "/api/v1/pods"},
		{name: "a path of another cluster at a host", raw: "GET /k8s/clusters/test/api HTTP/1.1\nHost: " + prodHost + "\nAuthorization: Bearer alice-token\n\n", status: 200, passes: true, target: "/k8s/clusters/test/api"},

		// Framing.
		{name: "two lengths", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nContent-Length: 2\nContent-Length: 3\n\n{}x", status: 400},
		{name: "a list of lengths", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nContent-Length: 2, 3\n\n{}x", status: 400},
		{name: "a signed length", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nContent-Length: +2\n\n{}", status: 400},
		{name: "a negative length", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nContent-Length: -2\n\n{}", status: 400},
		{name: "chunked, spelled xchunked", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nTransfer-Encoding: xchunked\n\n0\n\n", status: 501},
		{name: "chunked after identity", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nTransfer-Encoding: identity, chunked\n\n0\n\n", status: 501},
		{name: "chunked twice", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n", status: 501},
		{name: "a bad chunk", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nTransfer-Encoding: chunked\n\nzz\n{}\n0\n\n", status: 400},
		{name: "an upgrade with a body", raw: "POST " + at + "/api/v1/namespaces/a/pods/b/exec HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nConnection: Upgrade\nUpgrade: SPDY/3.1\nContent-Length: 2\n\n{}", status: 400},
		{name: "an upgrade with a body in chunks", raw: "GET " + at + "/api/v1/namespaces/a/services/b/proxy/ HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nConnection: Upgrade\nUpgrade: websocket\nTransfer-Encoding: chunked\n\n2\n{}\n0\n\n", status: 400},
		{name: "a body too large", raw: "POST " + at + "/api/v1/pods HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\nContent-Length: 1048577\n\n", status: 413},
		{name: "a line too long", raw: aliceHead + "X-A: " + strings.Repeat("a", 70<<10) + "\n\n", status: 431},
		{name: "too many lines", raw: aliceHead + strings.Repeat("X-A: a\n", 250) + "\n", status: 431},
		{name: "a path too long", raw: "GET " + at + "/api/" + strings.Repeat("a", 40<<10) + " HTTP/1.1\nHost: h\nAuthorization: Bearer alice-token\n\n", status: 414},
		{name: "a token too long", raw: "GET " + at + "/api HTTP/1.1\nHost: h\nAuthorization: Bearer " + strings.Repeat("a", 40<<10) + "\n\n", status: 401},
	}, hostilePaths(at))
}

func hostilePaths(at string) []hostile {
	const pod = "/api/v1/namespaces/ns/pods/p/proxy/"
	return []hostile{
		path(at+"/api/v1/namespaces/ns/pods/", 200),
		path(at+"/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", 200),
		path(at+"/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", 200),
		path(at+"/api/v1/pods?labelSelector=a%3Db&x=%2e%2e%2f", 200),
		path(at+"/../test/api", 400),
		path(at+"/./api", 400),
		path(at+"/api/v1/namespaces/a/../b/pods", 400),
		path(at+"/api/v1/namespaces/a/..", 400),
		path(at+"/api/v1/namespaces/a/.", 400),
		path(at+"/api/v1/namespaces/%2e%2e/secrets", 400),
		path(at+"/api/v1/namespaces/.%2E/secrets", 400),
		path(at+"/api/v1/namespaces/%2e/secrets", 400),
		path(at+"/api/v1/namespaces/a%2fsecrets", 400),
		path(at+"/api/v1/namespaces/a%2Fsecrets", 400),
		path(at+"/api/v1/namespaces/a%5csecrets", 400),
		path(at+`/api/v1/namespaces/a\secrets`, 400),
		path(at+"/api/v1/namespaces/a%252fsecrets", 400),
		path(at+"/api/v1/namespaces/a%00", 400),
		path(at+"/api/v1/namespaces/a%0d%0aHost:x", 400),
		path(at+"/api/v1/namespaces/a%7f", 400),
		path(at+"/api/v1/namespaces/ä", 400),
		path(at+"/api/v1/namespaces/a#b", 400),
		path(at+"/api/v1/namespaces/a%zz", 400),
		path(at+"/api/v1/namespaces/a%2", 400),
		path(at+"//api/v1/secrets", 400),
		path(at+"/api//v1/secrets", 400),
		path(at+"/api/v1/pods//", 400),
		path(at+"//", 400),
		path(at+"/api/v1/pods?a=ü", 400),
		path(at+pod+"a%2fb//c?d", 200),
		path(at+pod+"%25/%0a", 200),
		path(at+pod+"../../secrets", 400),
		path(at+pod+"%2e%2e/x", 400),
		path(at+pod+"a%2f..%2fb", 400),
		path(at+pod+"a%5c..%5cb", 400),
		path(at+pod+`a\..\b`, 400),
		path(at+"/api/v1/namespaces/ns/services/https:s:443/proxy/a%2Fb", 200),
		path(at+"/api/v1/nodes/n/proxy/../x", 400),
		path(at+"/api/v1/nodes/n/proxy/logs/a%20b", 200),
		path(at+"/api/v1/namespaces/ns/configmaps/c/proxy/a%2fb", 400), // no such proxy
		path(at+"/apis/x/v1/namespaces/ns/pods/p/proxy/a%2fb", 400),
		path(at+"/api/v1/%70ods/p/proxy/a%2fb", 400),
		path("/k8s/clusters/nowhere/api", 404),
		path("/k8s/clusters/pro%64/api", 404),
		path("/k8s/clusters/Prod/api", 404),
		path("/k8s/clusters/", 404),
		path("/k8s/clusters", 404),
		path("/k8s/clusters//prod/api", 404),
		path("/k8s/clusters/../clusters/prod/api", 404),
		path("/k8s/clusters/prod%2fapi", 404),
		path("//k8s/clusters/prod/api", 418), // the pages' own
		path("/k8s/./clusters/prod/api", 418),
		path("/k8s/%63lusters/prod/api", 418),
	}
}

// answerReviews answers SelfSubjectAccessReviews with no, and all else with {}.
func answerReviews(conn net.Conn, r receivedRequest) {
	if !strings.HasSuffix(r.req.URL.Path, "/selfsubjectaccessreviews") {
		okAnswer(conn, r)
		return
	}
	const no = `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{},"status":{"allowed":false}}`
	fmt.Fprintf(conn, "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(no), no)
}

func TestHostileRequests(t *testing.T) {
	up := startRecording(t)
	up.answer = answerReviews
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	for _, h := range hostileRequests() {
		t.Run(h.name, func(t *testing.T) {
			up.take()
			answers := w.exchange(t, strings.ReplaceAll(h.raw, "\n", "\r\n"), 1)
			if len(answers) != 1 || answers[0].StatusCode != h.status {
				t.Fatalf("answers: %v, want one %d", answers, h.status)
			}
			got := slices.DeleteFunc(up.take(), func(r receivedRequest) bool {
				checkWho(t, r) // the question whether she may be another is hers too
				return strings.HasSuffix(r.req.URL.Path, "/selfsubjectaccessreviews")
			})
			if !h.passes {
				if len(got) > 0 {
					t.Errorf("came to the API server:\n%s", got[0].raw)
				}
				checkRefusal(t, answers[0])
				return
			}
			if len(got) != 1 {
				t.Fatalf("%d requests came to the API server, want 1", len(got))
			}
			if want := "GET " + h.target + " HTTP/1.1"; got[0].head[0] != want {
				t.Errorf("request line %q, want %q", got[0].head[0], want)
			}
		})
	}
}

// checkRefusal: what the proxy refuses itself is a Status, which net/http's own refusals
// are not.
func checkRefusal(t *testing.T, res *http.Response) {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		return
	}
	var s metav1.Status
	if err := json.Unmarshal(b, &s); err != nil || s.Kind != "Status" || int(s.Code) != res.StatusCode || s.Message == "" {
		t.Errorf("the refusal is no Status: %s %v", b, err)
	}
	if (res.StatusCode == http.StatusUnauthorized) != (res.Header.Get("WWW-Authenticate") != "") {
		t.Error("WWW-Authenticate goes with 401 alone")
	}
}

// checkWho: the API server saw alice, by the proxy's account, and nobody else in any
// spelling.
func checkWho(t *testing.T, r receivedRequest) {
	t.Helper()
	want := map[string][]string{
		"impersonate-user": {"alice"}, "impersonate-uid": {"corp.1"},
		"impersonate-group":                {"corp:dev", "oncall, with comma", "team ü"},
		"impersonate-extra-tabard.dev/sid": {"s1"}, "impersonate-extra-tabard.dev/address": {"127.0.0.1"},
		"impersonate-extra-authentication.kubernetes.io/credential-id": {"JTI=j1"},
	}
	got := map[string][]string{}
	for _, line := range r.head[1:] {
		name, value, _ := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.ReplaceAll(name, "_", "-")), strings.TrimSpace(value)
		switch {
		case strings.HasPrefix(name, "impersonate"):
			name, err := url.PathUnescape(name)
			if err != nil {
				t.Errorf("header %q: %v", line, err)
			}
			got[name] = append(got[name], value)
		case name == "audit-id":
			if _, err := uuid.Parse(value); err != nil || len(r.header("Audit-Id")) != 1 {
				t.Errorf("the audit id %q is not ours", value)
			}
		case slices.Contains([]string{"cookie", "forwarded", "te", "trailer", "keep-alive", "upgrade", "x-real-ip", "http2-settings"}, name),
			strings.HasPrefix(name, "x-remote"), strings.HasPrefix(name, "x-forwarded"), strings.HasPrefix(name, "proxy-"):
			t.Errorf("the header %q came through", line)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("impersonated:\n%q\nwant\n%q", got, want)
	}
	if a := r.header("Authorization"); !slices.Equal(a, []string{"Bearer " + accountToken}) {
		t.Errorf("Authorization: %q", a)
	}
	if h := r.header("Host"); len(h) != 1 || !strings.HasPrefix(h[0], "127.0.0.1:") {
		t.Errorf("Host: %q", h)
	}
	if n := len(r.header("Transfer-Encoding")) + len(r.header("Content-Length")); n > 1 {
		t.Errorf("%d headers say how long the body is", n)
	}
}
