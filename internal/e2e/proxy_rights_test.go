package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// atNode is how many connections of one opened the node has under way.
const atNode = 4

// opened is what somebody has open through the proxy, by name.
type opened map[string]*running

// open opens one of everything, and waits until each works.
func (m *member) open() opened {
	m.t.Helper()
	o := opened{
		"watch":             m.begin(nil, nil, "get", "pods", "-w"),
		"logs":              m.begin(nil, nil, "logs", "-f", "web"),
		"exec by WebSocket": m.begin(upgradesBy["WebSocket"], nil, "exec", "web", "--", "tick"),
		"exec by SPDY":      m.begin(upgradesBy["SPDY"], nil, "exec", "web", "--", "tick"),
		"attach":            m.begin(upgradesBy["WebSocket"], nil, "attach", "web"),
		"port-forward":      m.begin(upgradesBy["WebSocket"], nil, "port-forward", "pod/web", ":80"),
		"port-forward SPDY": m.begin(upgradesBy["SPDY"], nil, "port-forward", "pod/web", ":80"),
	}
	for name, says := range map[string]string{"watch": "Running", "logs": "line 11", "exec by WebSocket": "tick 1", "exec by SPDY": "tick 1", "attach": "tick 1",
		"port-forward": "Forwarding", "port-forward SPDY": "Forwarding"} {
		o[name].says(says)
	}
	return o
}

// closed wants all of it closed by the server, on both sides, and tells how long after
// since. Others have left connections to the node open.
func (o opened) closed(t *testing.T, w *proxyWorld, left int, since time.Time, why string) {
	t.Helper()
	var last time.Duration
	var told []string
	for _, name := range slices.Sorted(maps.Keys(o)) {
		took := o[name].ends(since)
		last = max(last, took)
		told = append(told, fmt.Sprintf("%s %.1f s", name, took.Seconds()))
	}
	eventually(t, 2*time.Minute, "the node has nothing left of it", func() error {
		if now := w.kubelet.Running(); len(now) != left {
			return fmt.Errorf("%q is under way, in place of %d", now, left)
		}
		return nil
	})
	t.Logf("%s: closed within %.1f s: %s", why, last.Seconds(), strings.Join(told, ", "))
}

func (o opened) goesOn() {
	for _, r := range o {
		r.goesOn()
	}
}

func (o opened) stop() {
	for _, r := range o {
		r.stop()
	}
}

// wants what m gets for a list of pods, now.
func (m *member) wants(code int) error {
	m.t.Helper()
	a := m.ask(m.client(), http.MethodGet, "/api/v1/namespaces/team/pods")
	if a.status != code {
		return fmt.Errorf("%s: %d in place of %d: %.200s", m.name, a.status, code, a.body)
	}
	return nil
}

// testProxyRights ends every right that lets somebody in. What they ask for next is
// refused, what they have open is closed, and others' goes on.
func testProxyRights(t *testing.T, w *proxyWorld) {
	others := w.alice.open()
	defer others.stop()
	carol := w.signIn("carol", "pw-carol")
	carol.must("groups", "create", "platform")
	t.Run("a local group", func(t *testing.T) { rightsOfGroup(t, w.in(t), carol) })
	t.Run("a session", func(t *testing.T) { rightsOfSession(t, w.in(t)) })
	t.Run("a group of the directory", func(t *testing.T) {
		rightsOfDirectory(t, w.in(t), "dn: cn=devs,ou=groups,dc=example,dc=org\nchangetype: modify\ndelete: member\nmember: uid=dave,ou=people,dc=example,dc=org\n", 403)
	})
	t.Run("an account", func(t *testing.T) {
		rightsOfDirectory(t, w.in(t), "dn: uid=dave,ou=people,dc=example,dc=org\nchangetype: modify\nadd: pwdAccountLockedTime\npwdAccountLockedTime: 000001010000Z\n", 401)
	})
	t.Run("a required group", func(t *testing.T) { rightsOfRequired(t, w.in(t), carol) })
	others.goesOn()
	t.Run("a policy", func(t *testing.T) { rightsOfPolicy(t, w.in(t)) })
	t.Run("a cluster", func(t *testing.T) { rightsOfCluster(t, w.in(t)) })
	t.Run("a key", func(t *testing.T) { rightsOfKey(t, w.in(t), carol) })
}

func rightsOfGroup(t *testing.T, w *proxyWorld, carol admin) {
	carol.must("groups", "add", "platform", "bob")
	bob := w.member("bob")
	open := bob.open()
	since := time.Now()
	carol.must("groups", "remove", "platform", "bob")
	if err := bob.wants(403); err != nil {
		t.Errorf("the next request: %v", err)
	}
	open.closed(t, w, atNode, since, "out of a local group")
	if err := wantStatus(bob.ask(w.client(), http.MethodGet, "/api/v1/namespaces/team/pods"), 403, `User "bob" cannot list`); err != nil {
		t.Errorf("bob is still signed in: %v", err)
	}
}

func rightsOfSession(t *testing.T, w *proxyWorld) {
	refresh, token := w.session("alice")
	second := w.member("alice")
	second.IDToken = token
	second.kubeconfig()
	open := second.open()
	since := time.Now()
	w.endSession(refresh)
	if err := second.wants(401); err != nil {
		t.Errorf("the next request: %v", err)
	}
	open.closed(t, w, atNode, since, "the session ended")
	if err := w.alice.wants(200); err != nil {
		t.Errorf("alice's other session: %v", err)
	}
}

// rightsOfDirectory makes dave a developer, changes the directory and has his session
// refresh.
func rightsOfDirectory(t *testing.T, w *proxyWorld, ldif string, next int) {
	w.slapd.AddLDIF(t, "dn: cn=devs,ou=groups,dc=example,dc=org\nchangetype: modify\nreplace: member\nmember: uid=alice,ou=people,dc=example,dc=org\nmember: uid=dave,ou=people,dc=example,dc=org\n")
	dave := w.member("dave")
	open := dave.open()
	w.slapd.AddLDIF(t, ldif)
	if err := dave.wants(200); err != nil {
		t.Errorf("before the refresh: %v", err)
	}
	open.goesOn()
	since := time.Now()
	if tk := w.token(refresh("kubernetes", dave.RefreshToken)); (tk.status == 200) != (next == 403) {
		t.Errorf("the refresh: %d %s", tk.status, tk.Error)
	}
	if err := dave.wants(next); err != nil {
		t.Errorf("the next request: %v", err)
	}
	open.closed(t, w, atNode, since, "the refresh found it changed")
}

func rightsOfRequired(t *testing.T, w *proxyWorld, carol admin) {
	carol.must("groups", "add", "platform", "bob")
	bob := w.memberAt("staging", "staging", "bob")
	open := bob.open()
	since := time.Now()
	carol.must("groups", "remove", "platform", "bob")
	if err := bob.wants(401); err != nil {
		t.Errorf("the next request: %v", err)
	}
	open.closed(t, w, atNode, since, "without a required group")
}

// reload has the server take its configuration, and waits for it.
func (p *proxied) reload(took func() error) {
	p.t.Helper()
	if err := p.Signal(syscall.SIGHUP); err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, 2*time.Minute, "the configuration is taken", took)
}

func rightsOfPolicy(t *testing.T, w *proxyWorld) {
	open, other := w.alice.open(), w.memberAt("staging", "staging", "alice").open()
	defer other.stop()
	const rules = "    policy:\n"
	w.reconfigure(rules, rules+"    - {name: frozen, effect: deny, when: \"user == 'alice' && namespace == 'team'\", reason: \"team is frozen\"}\n")
	since := time.Now()
	w.reload(func() error { return w.alice.wants(403) })
	open.closed(t, w, atNode, since, "the policy refuses it") // and what others opened
	other.goesOn()
	if err := wantStatus(w.alice.ask(w.client(), http.MethodGet, "/api/v1/namespaces/team/pods"), 403, "team is frozen", "frozen"); err != nil {
		t.Error(err)
	}
	w.reconfigure("name: frozen, effect: deny", "name: frozen, dryRun: true, effect: deny")
	w.reload(func() error { return w.alice.wants(200) })
	if own := w.trailOf(`"dryRun":"frozen"`, 1); len(own) == 0 || own[0].Outcome != "done" {
		t.Errorf("a rule in dry run is not in the trail: %+v", own)
	}
}

// rightsOfCluster takes the proxy of prod away, and gives it back.
func rightsOfCluster(t *testing.T, w *proxyWorld) {
	open, other := w.alice.open(), w.memberAt("staging", "staging", "alice").open()
	defer other.stop()
	before := w.readConfig()
	start, end := strings.Index(before, "  apiServer:"), strings.Index(before, "- name: staging")
	w.write("tabard.yaml", before[:start]+before[end:])
	since := time.Now()
	w.reload(func() error { return w.alice.wants(404) })
	open.closed(t, w, atNode, since, "the cluster is not proxied any more")
	other.goesOn()
	w.write("tabard.yaml", before)
	w.reload(func() error { return w.alice.wants(200) })
}

// rightsOfKey ends every token there is.
func rightsOfKey(t *testing.T, w *proxyWorld, carol admin) {
	alice := w.member("alice")
	open := alice.open()
	since := time.Now()
	carol.must("keys", "rotate", "--emergency", "--yes")
	if err := alice.wants(401); err != nil {
		t.Errorf("the next request: %v", err)
	}
	open.closed(t, w, 0, since, "the key is gone")
	alice.tokens = w.mustRefresh("kubernetes", alice.RefreshToken)
	if err := alice.wants(200); err != nil {
		t.Errorf("after a refresh: %v", err)
	}
}
