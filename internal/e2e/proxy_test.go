package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// proxyWorld is a proxied cluster and its people: alice is a developer, bob nobody, and
// carol an operator. The pod web runs in team.
type proxyWorld struct {
	*proxied
	alice, bob, carol *member
	short             string // carol's token for closed, which lives for 10 s
}

func startProxyWorld(t *testing.T) *proxyWorld {
	t.Helper()
	p := startProxied(t, options{tokens: "{idTokenLifetime: 10m}"})
	p.kubelet.AddPod(t, "team", "web")
	return &proxyWorld{p, p.member("alice"), p.member("bob"), p.member("carol"), p.login("closed", "carol", "pw-carol").IDToken}
}

func (w *proxyWorld) in(t *testing.T) *proxyWorld {
	own := &proxyWorld{proxied: w.proxied.in(t), short: w.short}
	for from, to := range map[*member]**member{w.alice: &own.alice, w.bob: &own.bob, w.carol: &own.carol} {
		m := *from
		m.proxied = own.proxied
		*to = &m
	}
	return own
}

// TestProxy has the real kubectl at a real API server through the proxy.
func TestProxy(t *testing.T) {
	w := startProxyWorld(t)
	for _, one := range []struct {
		name string
		test func(*testing.T, *proxyWorld)
	}{
		{"whoami", testProxyWhoami}, {"kubeconfig", testProxyKubeconfig}, {"read", testProxyRead}, {"change", testProxyChange}, {"watch", testProxyWatch},
		{"logs", testProxyLogs}, {"exec", testProxyExec}, {"terminal", testProxyTerminal}, {"cp", testProxyCopy},
		{"port-forward", testProxyPortForward}, {"kubectl-proxy", testProxyKubectlProxy}, {"top", testProxyTop},
		{"helm", testProxyHelm}, {"k9s", testProxyK9s}, {"websocket-watch", testProxyWebSocketWatch},
		{"as", testProxyAs}, {"passthrough", testProxyPassthrough},
		{"hostile", testProxyHostile}, {"rights", testProxyRights},
		{"trail", testProxyTrail},
	} {
		t.Run(one.name, func(t *testing.T) { one.test(t, w.in(t)) })
	}
}

// userInfo is what the API server says of who asks.
type userInfo struct {
	Username, UID string
	Groups        []string
	Extra         map[string][]string
}

func (m *member) whoami(args ...string) userInfo {
	m.t.Helper()
	var review struct{ Status struct{ UserInfo userInfo } }
	if err := json.Unmarshal([]byte(m.must(append([]string{"auth", "whoami", "-o", "json"}, args...)...)), &review); err != nil {
		m.t.Fatal(err)
	}
	slices.Sort(review.Status.UserInfo.Groups)
	return review.Status.UserInfo
}

// self is what whoami has to say of m, who has groups at prod.
func (m *member) self(t *testing.T, groups ...string) userInfo {
	c := claims(t, m.IDToken)
	groups = append(groups, "system:authenticated")
	slices.Sort(groups)
	return userInfo{m.name, c["sub"].(string), groups, map[string][]string{
		"authentication.kubernetes.io/credential-id": {"JTI=" + c["jti"].(string)},
		"tabard.dev/sid":     {c["sid"].(string)},
		"tabard.dev/address": {"127.0.0.1"},
	}}
}

func testProxyWhoami(t *testing.T, w *proxyWorld) {
	for _, one := range []struct {
		m      *member
		groups []string
	}{{w.alice, []string{"corp:devs", "corp:all-devs"}}, {w.bob, nil}, {w.carol, []string{"corp:ops", "corp:cluster-operators"}}} {
		if got, want := one.m.whoami(), one.m.self(t, one.groups...); !reflect.DeepEqual(got, want) {
			t.Errorf("the API server sees %+v, not %+v", got, want)
		}
	}
	w.bob.refused([]string{`User "bob" cannot list resource "pods" in API group "" in the namespace "team"`}, "get", "pods")
	w.alice.refused([]string{"secrets are for operators", "ask for group corp:ops", "no-secrets"}, "get", "secrets")
	other := *w.alice
	other.IDToken = w.login("staging", "alice", "pw-alice").IDToken
	if err := wantStatus(other.ask(w.client(), http.MethodGet, "/api"), http.StatusUnauthorized); err != nil {
		t.Errorf("a token for another cluster: %v", err)
	}
	for path, want := range map[string]int{"/k8s/clusters/nowhere/api": 404, "/k8s/clusters": 404, "/k8s/clusters/": 404} {
		if err := wantStatus(get(t, w.client(), w.issuer+path), want); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// testProxyKubeconfig goes by the file that people are given, with the plugin.
func testProxyKubeconfig(t *testing.T, w *proxyWorld) {
	alice := w.person()
	alice.login("alice")
	config := w.clusterPrints("kubeconfig", "staging", "--issuer-ca", w.caFile)
	if err := os.WriteFile(alice.kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := alice.do("", "kubectl", "get", "pods", "-n", "team", "-o", "name"); err != nil || out != "pod/web\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// testProxyRead reads in every form that kubectl has, and large lists.
func testProxyRead(t *testing.T, w *proxyWorld) {
	var list strings.Builder
	for i := range 40 {
		fmt.Fprintf(&list, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: big-%02d, namespace: team}\ndata: {text: %q}\n", i, strings.Repeat(fmt.Sprintf("line %d of %d ", i, 40), 900))
	}
	if _, err := w.k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: w.k.AdminKubeconfig, Stdin: list.String()}, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if out := w.alice.must("get", "pods"); !regexp.MustCompile(`web +1/1 +Running`).MatchString(out) {
		t.Errorf("the table: %s", out)
	}
	if out := w.alice.must("get", "pod", "web", "-o", "yaml"); !strings.Contains(out, "nodeName: stub") {
		t.Errorf("yaml: %s", out)
	}
	if out := w.alice.must("get", "configmaps", "--chunk-size=7", "-o", "name"); strings.Count(out, "configmap/big-") != 40 {
		t.Errorf("a list in chunks: %s", out)
	}
	if n := len(w.seen("limit=7", 6)); n < 6 {
		t.Errorf("the API server sent %d chunks", n)
	}
	var whole struct{ Items []json.RawMessage }
	direct := w.k.Kubectl(t, "get", "configmaps", "-n", "team", "-o", "json")
	if out := w.alice.must("get", "configmaps", "-o", "json"); json.Unmarshal([]byte(out), &whole) != nil || len(whole.Items) < 40 || out != direct {
		t.Errorf("the list differs from the administrator's: %d items, %d bytes in place of %d", len(whole.Items), len(out), len(direct))
	}
	a := w.alice.ask(w.client(), http.MethodGet, "/api/v1/namespaces/team/configmaps", "Accept-Encoding", "gzip", "Accept", "application/json")
	z, err := gzip.NewReader(strings.NewReader(a.body))
	if err != nil || a.header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("no gzip: %v, %v", err, a.header)
	}
	if err := json.NewDecoder(z).Decode(&whole); err != nil || len(whole.Items) < 40 {
		t.Errorf("in gzip: %d items, %v", len(whole.Items), err)
	}
	if got := a.header.Get("Content-Security-Policy") + "; " + a.header.Get("X-Content-Type-Options"); got != "sandbox; nosniff" {
		t.Errorf("under the issuer's host: %s", got)
	}
	if out := w.alice.must("api-resources", "-o", "name"); !strings.Contains(out, "deployments.apps") {
		t.Errorf("api-resources: %s", out)
	}
	if out := w.alice.must("auth", "can-i", "create", "pods"); out != "yes\n" {
		t.Errorf("can-i: %s", out)
	}
	if out, err := w.bob.kubectl(nil, "", "auth", "can-i", "create", "pods"); out != "no\n" || err == nil {
		t.Errorf("bob: can-i: %s, %v", out, err)
	}
	if out := w.alice.must("get", "--raw", "/version"); !strings.Contains(out, "v1.36") {
		t.Errorf("raw: %s", out)
	}
}

func testProxyChange(t *testing.T, w *proxyWorld) {
	object := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: made}\ndata: {colour: %s}\n"
	if out, err := w.alice.kubectl(nil, fmt.Sprintf(object, "red"), "apply", "--server-side", "-f", "-"); err != nil || !strings.Contains(out, "serverside-applied") {
		t.Fatalf("apply: %s %v", out, err)
	}
	if _, err := w.alice.kubectl(nil, fmt.Sprintf(object, "blue"), "apply", "--server-side", "--field-manager=other", "-f", "-"); err == nil || !strings.Contains(err.Error(), "conflict") {
		t.Errorf("a conflict of field managers: %v", err)
	}
	if out, err := w.alice.kubectl(nil, fmt.Sprintf(object, "green"), "apply", "-f", "-"); err != nil || !strings.Contains(out, "configured") {
		t.Errorf("apply on the client's side: %s %v", out, err)
	}
	w.alice.must("patch", "configmap", "made", "--type=merge", "-p", `{"data":{"shape":"round"}}`)
	if out := w.alice.must("get", "configmap", "made", "-o", "jsonpath={.data.colour} {.data.shape}"); out != "green round" {
		t.Errorf("after all changes: %s", out)
	}
	w.alice.must("wait", "--for=condition=Ready", "pod/web", "--timeout=30s")
	w.alice.must("delete", "configmap", "made")
	w.alice.refused([]string{"NotFound"}, "get", "configmap", "made")
	w.bob.refused([]string{`User "bob" cannot delete`}, "delete", "pod", "web")
	for _, e := range w.seen("/configmaps/made", 4) {
		if e.User.Username != proxyAccount || e.ImpersonatedUser == nil || e.ImpersonatedUser.Username != "alice" {
			t.Errorf("the API server saw %+v as %+v", e.User, e.ImpersonatedUser)
		}
		if own := w.trailOf(string(e.AuditID), 1); len(own) == 0 || own[0].Name != "alice" || own[0].Act != "k8s.request" || own[0].Detail["name"] != "made" || own[0].Address != "127.0.0.1" {
			t.Errorf("the Audit-Id %s of %s is not in our trail: %+v", e.AuditID, e.Verb, own)
		}
	}
}

func testProxyWatch(t *testing.T, w *proxyWorld) {
	watch := w.alice.begin(nil, nil, "get", "configmaps", "-w", "--output-watch-events", "-l", "watched=yes")
	time.Sleep(time.Second) // an empty list writes nothing
	w.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seen, namespace: team, labels: {watched: \"yes\"}}\n")
	watch.says("ADDED")
	w.k.Kubectl(t, "annotate", "configmap", "seen", "-n", "team", "touched=yes")
	watch.says("MODIFIED")
	w.k.Kubectl(t, "delete", "configmap", "seen", "-n", "team")
	watch.says("DELETED")
	watch.goesOn()
}

func testProxyLogs(t *testing.T, w *proxyWorld) {
	if out := w.alice.must("logs", "web", "--tail=2"); out != "web line 8\nweb line 9\n" {
		t.Errorf("logs: %q", out)
	}
	follow := w.alice.begin(nil, nil, "logs", "-f", "web")
	follow.says("web line 15")
	follow.goesOn()
	w.bob.refused([]string{`User "bob" cannot get`}, "logs", "web")
}

// upgradesBy are the ways in which kubectl asks for a connection of its own.
var upgradesBy = map[string][]string{
	"WebSocket": {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true", "KUBECTL_PORT_FORWARD_WEBSOCKETS=true"},
	"SPDY":      {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"},
}

func testProxyExec(t *testing.T, w *proxyWorld) {
	for name, env := range upgradesBy {
		if out, err := w.alice.kubectl(env, "", "exec", "web", "--", "echo", "hello", "there"); err != nil || out != "hello there\n" {
			t.Errorf("%s: echo: %q %v", name, out, err)
		}
		text := strings.Repeat("all of it comes back\n", 20_000)
		if out, err := w.alice.kubectl(env, text, "exec", "-i", "web", "--", "cat"); err != nil || out != text {
			t.Errorf("%s: cat gives %d bytes of %d, %v", name, len(out), len(text), err)
		}
		if _, err := w.alice.kubectl(env, "", "exec", "web", "--", "exit", "42"); err == nil || !strings.Contains(err.Error(), "exit code 42") {
			t.Errorf("%s: exit 42: %v", name, err)
		}
		if out, err := w.alice.kubectl(env, "typed", "attach", "-i", "web"); err != nil || !strings.Contains(out, "typed") {
			t.Errorf("%s: attach: %q %v", name, out, err)
		}
		if _, err := w.bob.kubectl(env, "", "exec", "web", "--", "echo"); err == nil || !strings.Contains(err.Error(), `User "bob" cannot`) {
			t.Errorf("%s: bob: %v", name, err)
		}
	}
	for _, e := range w.seen("/pods/web/exec", 12) {
		if e.ImpersonatedUser == nil || e.ImpersonatedUser.Username != "alice" && e.ImpersonatedUser.Username != "bob" {
			t.Errorf("an exec came as %+v for %+v", e.User, e.ImpersonatedUser)
		}
	}
}

// testProxyTerminal gives kubectl a terminal, whose size has to reach the container.
func testProxyTerminal(t *testing.T, w *proxyWorld) {
	for name, env := range upgradesBy {
		person, program := testenv.OpenTerminal(t, 33, 101)
		out := w.alice.onTerminal(env, person, program, "exec", "-it", "web", "--", "size")
		if !strings.Contains(out, "33 101") {
			t.Errorf("%s: the size is %q", name, out)
		}
	}
	if sizes := w.kubelet.Sizes(); len(sizes) != 2 || sizes[0].Width != 101 || sizes[0].Height != 33 {
		t.Errorf("sizes that the container was told: %v", sizes)
	}
}

func testProxyCopy(t *testing.T, w *proxyWorld) {
	there := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), there, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, env := range upgradesBy {
		if _, err := w.alice.kubectl(env, "", "cp", filepath.Join(dir, "there"), "web:/data/"+name); err != nil || !bytes.Equal(w.kubelet.File("/data/"+name), there) {
			t.Errorf("%s: cp there: %v, %d bytes", name, err, len(w.kubelet.File("/data/"+name)))
		}
		back := filepath.Join(dir, name)
		if _, err := w.alice.kubectl(env, "", "cp", "web:/data/"+name, back); err != nil {
			t.Errorf("%s: cp back: %v", name, err)
		}
		if b, err := os.ReadFile(back); err != nil || !bytes.Equal(b, there) {
			t.Errorf("%s: %d bytes came back, %v", name, len(b), err)
		}
	}
}

func testProxyPortForward(t *testing.T, w *proxyWorld) {
	pod := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(rw, "the pod got %d bytes", n)
	}))
	defer pod.Close()
	port := pod.Listener.Addr().(*net.TCPAddr).Port
	for name, env := range upgradesBy {
		forward := w.alice.begin(env, nil, "port-forward", "--address=127.0.0.1", "pod/web", fmt.Sprintf(":%d", port))
		forward.says("Forwarding from 127.0.0.1:")
		at := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(forward.out.String())
		for range 3 {
			res, err := http.Post("http://"+at+"/", "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, &forward.out)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if string(b) != "the pod got 100000 bytes" || err != nil {
				t.Errorf("%s: %q %v", name, b, err)
			}
		}
		forward.goesOn()
		forward.stop()
	}
}

func testProxyKubectlProxy(t *testing.T, w *proxyWorld) {
	local := w.alice.begin(nil, nil, "proxy", "--port=0", "--append-server-path") // the cluster's URL has one
	local.says("Starting to serve on 127.0.0.1:")
	at := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(local.out.String())
	if a := get(t, http.DefaultClient, "http://"+at+"/api/v1/namespaces/team/pods/web"); a.status != http.StatusOK || !strings.Contains(a.body, `"nodeName":"stub"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// testProxyAs has carol, who may be anybody, be somebody; alice may be nobody else.
func testProxyAs(t *testing.T, w *proxyWorld) {
	got := w.carol.whoami("--as=dave", "--as-group=corp:devs", "--as-group=with,comma", "--as-uid=dave-1")
	want := w.carol.self(t, "corp:devs", "with,comma")
	want.Username, want.UID = "dave", "dave-1"
	want.Extra["tabard.dev/impersonator"], want.Extra["tabard.dev/impersonator-uid"] = []string{"carol"}, []string{claims(t, w.carol.IDToken)["sub"].(string)}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("carol as dave: the API server sees %+v, not %+v", got, want)
	}
	if out := w.carol.must("get", "pods", "--as=dave", "--as-group=corp:devs", "-o", "name"); out != "pod/web\n" {
		t.Errorf("carol as a developer: %s", out)
	}
	w.carol.refused([]string{`User "dave" cannot list`}, "get", "pods", "--as=dave")
	w.carol.refused([]string{"userextras"}, "get", "pods", "--as=dave", "--as-user-extra=scopes=few") // the proxy's account may not
	w.alice.refused([]string{"impersonate", "carol"}, "get", "pods", "--as=carol")
	w.alice.refused([]string{"impersonate"}, "get", "pods", "--as=alice", "--as-group=system:masters")
	if own := w.trailOf(`"as":"carol"`, 1); len(own) == 0 || own[0].Outcome != "denied" || own[0].Name != "alice" {
		t.Errorf("what alice tried is not in the trail: %+v", own)
	}
}

// testProxyPassthrough: staging lets in what the API server itself knows, prod does not.
func testProxyPassthrough(t *testing.T, w *proxyWorld) {
	w.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot, namespace: team}\n")
	robot := *w.alice
	robot.name, robot.IDToken = "robot", strings.TrimSpace(w.k.Kubectl(t, "create", "token", "robot", "-n", "team"))
	if err := wantStatus(robot.ask(w.client(), http.MethodGet, "/api/v1/namespaces/team/pods"), http.StatusUnauthorized); err != nil {
		t.Errorf("a service account at prod: %v", err)
	}
	robot.url = w.issuer + "/k8s/clusters/staging"
	if err := wantStatus(robot.ask(w.client(), http.MethodGet, "/api/v1/namespaces/team/pods/robots"), http.StatusForbidden, "system:serviceaccount:team:robot"); err != nil {
		t.Errorf("a service account at staging: %v", err)
	}
	if err := wantStatus(robot.ask(w.client(), http.MethodGet, "/api/v1/namespaces/team/pods/robots", "Impersonate-User", "carol"), http.StatusForbidden); err != nil {
		t.Errorf("a service account that would be carol: %v", err)
	}
	for _, e := range w.seen("pods/robots", 1) {
		if e.User.Username != "system:serviceaccount:team:robot" || e.ImpersonatedUser != nil {
			t.Errorf("the API server saw %+v as %+v", e.User, e.ImpersonatedUser)
		}
	}
}

// testProxyTrail looks at all that the API server saw in this test. Whatever came by the
// proxy's account came for somebody, but for what asks about the API server's health.
func testProxyTrail(t *testing.T, w *proxyWorld) {
	people := []string{"alice", "bob", "carol", "dave"}
	n := 0
	for _, e := range w.k.AuditLog(t) {
		switch {
		case e.User.Username != proxyAccount:
			continue
		case e.ImpersonatedUser == nil && slices.Contains([]string{"/readyz", "/livez", "/healthz", "/version"}, strings.TrimSuffix(e.RequestURI, "?timeout=1s")):
			continue
		case e.ImpersonatedUser == nil && e.ResponseStatus.Code == http.StatusForbidden:
			continue // the API server did not let the account be that person, see testProxyAs
		case e.ImpersonatedUser == nil || !slices.Contains(people, e.ImpersonatedUser.Username):
			t.Errorf("%s %s came for %+v", e.Verb, e.RequestURI, e.ImpersonatedUser)
			continue
		}
		n++
		for _, g := range e.ImpersonatedUser.Groups {
			if strings.HasPrefix(g, "system:") && g != "system:authenticated" {
				t.Errorf("%s %s came with %s", e.Verb, e.RequestURI, g)
			}
		}
	}
	t.Logf("%d events by the proxy's account", n)
	if n < 200 {
		t.Errorf("there are only %d events by the proxy's account", n)
	}
	if out, err := w.run(w.dir, "", "audit", "verify", "--config", w.config); err != nil {
		t.Errorf("the trail's chain: %v\n%s", err, out)
	}
}
