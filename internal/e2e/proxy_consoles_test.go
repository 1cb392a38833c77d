package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/tabard-id/tabard/internal/testenv"
)

// withConsoles is somebody with Helm and k9s, and the kubeconfig that people are given for
// prod, which has the plugin get their tokens. It names the cluster by its path, as its
// host has no record in DNS.
func (w *proxyWorld) withConsoles(name string) *person {
	w.t.Helper()
	p := w.person()
	for _, program := range []string{"helm", "k9s"} {
		if err := os.Symlink(testenv.Binary(w.t, program), filepath.Join(p.home, "bin", program)); err != nil {
			w.t.Fatal(err)
		}
	}
	p.login(name)
	given := w.clusterPrints("kubeconfig", "prod", "--issuer-ca", w.caFile)
	byPath := regexp.MustCompile(`https://`+regexp.QuoteMeta(proxyHost)+`:\d+`).ReplaceAllLiteralString(given, w.url)
	err := errors.Join(os.WriteFile(p.kubeconfig, []byte(byPath), 0o600), os.Mkdir(filepath.Join(p.home, "k9s"), 0o700),
		os.WriteFile(filepath.Join(p.home, "k9s", "config.yaml"), []byte("k9s: {skipLatestRevCheck: true}\n"), 0o600)) // it would ask the internet
	if err != nil || byPath == given {
		w.t.Fatalf("%v; the kubeconfig is\n%s", err, given)
	}
	p.env = append(p.env, "XDG_DATA_HOME="+p.home+"/data", "XDG_STATE_HOME="+p.home+"/state", "XDG_RUNTIME_DIR="+p.home, "TMPDIR="+p.home,
		"K9S_CONFIG_DIR="+p.home+"/k9s", "K9S_LOGS_DIR="+p.home+"/k9s")
	return p
}

// chart is a Helm chart of one object, whose value is colour.
var chart = map[string]string{
	"Chart.yaml":               "apiVersion: v2\nname: palette\nversion: 1.0.0\n",
	"values.yaml":              "colour: none\n",
	"templates/configmap.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {colour: {{ .Values.colour }}}\n",
	"templates/NOTES.txt":      "The colour is {{ .Values.colour }}.\n",
}

func writeChart(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "palette")
	err := os.MkdirAll(filepath.Join(dir, "templates"), 0o700)
	for name, text := range chart {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// testProxyHelm is the life of a release, which Helm keeps in Secrets: the policy of prod
// leaves those to operators, so developers keep theirs in ConfigMaps.
func testProxyHelm(t *testing.T, w *proxyWorld) {
	dir := writeChart(t)
	carol, alice, bob := w.withConsoles("carol"), w.withConsoles("alice"), w.withConsoles("bob")
	for _, refused := range []struct {
		p     *person
		words []string
	}{
		{alice, []string{`rule "no-secrets" of Tabard's policy`, "secrets are for operators", "ask for group corp:ops"}},
		{bob, []string{`User "bob" cannot get resource "configmaps"`, `in the namespace "team"`}},
	} {
		out, err := refused.p.do("", "helm", "install", "palette", dir, "-n", "team")
		for _, word := range refused.words {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("want a refusal with %q, got %v\n%s", word, err, out)
			}
		}
	}
	alice.env = append(alice.env, "HELM_DRIVER=configmap")
	alice.mustDo("", "helm", "-n", "team", "install", "blues", dir, "--set", "colour=blue")
	if out := alice.mustDo("", "helm", "-n", "team", "list", "-q"); out != "blues\n" {
		t.Errorf("alice's releases: %q", out)
	}
	testRelease(t, w, carol, dir)
}

func testRelease(t *testing.T, w *proxyWorld, p *person, dir string) {
	helm := func(args ...string) string {
		t.Helper()
		return p.mustDo("", append([]string{"helm", "-n", "team"}, args...)...)
	}
	object := func(want string) {
		t.Helper()
		if got := w.k.Kubectl(t, "get", "configmap", "palette", "-n", "team", "--ignore-not-found", "-o", "jsonpath={.data.colour}"); got != want {
			t.Errorf("the colour is %q in place of %q", got, want)
		}
	}
	if out := helm("install", "palette", dir, "--set", "colour=red", "--wait"); !strings.Contains(out, "STATUS: deployed") || !strings.Contains(out, "The colour is red.") {
		t.Errorf("install: %s", out)
	}
	object("red")
	helm("upgrade", "palette", dir, "--set", "colour=green", "--wait")
	object("green")
	helm("rollback", "palette", "1", "--wait")
	object("red")
	if out := helm("list", "-q"); out != "palette\n" {
		t.Errorf("list: %q", out)
	}
	helm("uninstall", "palette", "--wait")
	object("")
	if out := helm("list", "-q"); out != "" {
		t.Errorf("after uninstall: %s", out)
	}
}

// testProxyK9s looks at the screen, as people do.
func testProxyK9s(t *testing.T, w *proxyWorld) {
	w.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: paint, namespace: team}\ndata: {colour: ultramarine}\n---\n" +
		"apiVersion: v1\nkind: Secret\nmetadata: {name: recipe, namespace: team}\n")
	s := w.withConsoles("alice").k9s(t)
	s.shows(`pods\(team\)`)
	s.shows(`web .*1/1 +Running`)
	w.kubelet.AddPod(t, "team", "later")
	s.shows(`later .*1/1 +Running`)
	w.k.Kubectl(t, "delete", "pod", "later", "-n", "team")
	s.hides(`later .*Running`)

	s.types("l")          // logs of web, on which the cursor is
	s.shows(`line \d\d+`) // from 10 on they come one by one
	s.types("\x1b")
	s.shows(`web .*1/1 +Running`)

	s.command("configmaps")
	s.shows(`configmaps\(team\)`)
	s.types("/paint\r")
	s.shows(`\(team\)\[1\] </paint>`)
	s.hides(`> paint`) // what was typed
	s.types("y")
	s.shows(`colour: ultramarine`)
	s.types("\x1b")
	s.hides(`ultramarine`)

	s.command("secrets") // the policy's, whom k9s does not ask: it shows none
	s.shows(`secrets\(team\)\[0\]`)
	s.command("q")
	s.ends()

	bob := w.withConsoles("bob")
	s = bob.k9s(t)
	s.shows(`contexts\(all\)\[1\]`) // in place of pods
	eventually(t, screenTime, "the reason in k9s' log", func() error {
		log, err := os.ReadFile(filepath.Join(bob.home, "k9s", "k9s.log"))
		if denied := `access denied for user on resource \"\":v1/pods in namespace \"team\"`; err == nil && !strings.Contains(string(log), denied) {
			err = fmt.Errorf("no %s:\n%s", denied, log)
		}
		return err
	})
	s.command("q")
	s.ends()
}

// k9s starts k9s for the namespace team.
func (p *person) k9s(t *testing.T) *screen {
	t.Helper()
	return onScreen(t, p.command(context.Background(), "k9s", "-n", "team")) // it ends with the test
}

// command gives k9s one of its commands.
func (s *screen) command(name string) {
	s.t.Helper()
	s.hides(`🐶`) // of the last command
	s.types(":")
	s.shows(`🐶 > `)
	s.types(name)
	s.shows(`🐶 > ` + name)
	s.types("\r")
}

// testProxyWebSocketWatch watches as browsers do by way of Headlamp's server, which adds the
// token. Headlamp's own is in no Go module that is served.
func testProxyWebSocketWatch(t *testing.T, w *proxyWorld) {
	dial := func(m *member) (*websocket.Conn, error) {
		config, err := websocket.NewConfig(strings.Replace(w.url, "https:", "wss:", 1)+"/api/v1/namespaces/team/configmaps?watch=1&labelSelector=by%3Dbrowser", "http://localhost:4466")
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(w.ca.Cert)
		config.TlsConfig, config.Protocol = &tls.Config{RootCAs: pool}, []string{"base64.binary.k8s.io"}
		config.Header = http.Header{"Authorization": {"Bearer " + m.IDToken}, "Cookie": {"headlamp-auth-prod.0=" + m.IDToken}}
		return config.DialContext(t.Context())
	}
	conn, err := dial(w.alice)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: watched, namespace: team, labels: {by: browser}}\n")
	var event string
	if err := errors.Join(conn.SetDeadline(time.Now().Add(time.Minute)), websocket.Message.Receive(conn, &event)); err != nil || !strings.Contains(event, `"ADDED"`) || !strings.Contains(event, `"watched"`) {
		t.Errorf("%v: %s", err, event)
	}
	if _, err := dial(w.bob); err == nil || !strings.Contains(err.Error(), "bad status") {
		t.Errorf("bob: %v", err)
	}
}
