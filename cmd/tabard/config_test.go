package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// minimal is the smallest configuration that works; tests change it.
const minimal = `issuer: https://id.corp.example
listen: 127.0.0.1:0
store: {bolt: {path: tabard.db}}
admins: ["corp:ops"]
directories:
- name: corp
  type: ldap
  urls: [ldaps://127.0.0.1:1]
  bindDN: cn=tabard,dc=corp
  bindPassword: p4ss-w0rd!x9
clusters:
- {name: prod, clientID: kubernetes}
`

const secret = "p4ss-w0rd!x9" // of minimal

// write puts a configuration into a folder of its own and returns its path.
func writeConfig(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tabard.yaml")
	writeFile(t, path, text, 0o600)
	return path
}

// writeFile puts a file there whole: a server that watches it never reads a half.
func writeFile(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	err := os.WriteFile(path+"~", []byte(text), mode)
	if err == nil {
		err = os.Rename(path+"~", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// command runs tabard and returns its exit code and output.
func command(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestConfigMistakes(t *testing.T) {
	for _, tc := range []struct {
		name string
		old  string // of minimal, replaced by
		new  string
		want []string // lines, without the file's path
	}{
		{"unknown key", "admins:", "admin:", []string{":4:1: admin: is not a key: use admins, audit, brand, clients, clusters, directories, issuer, keys, listen, metrics, sessions, store, throttle, tls, tokens, trustedProxies"}},
		{"wrong case", "bindDN:", "binddn:", []string{":9:3: directories[0].binddn: is not a key: write bindDN"}},
		{"duplicate key", "admins:", "issuer: https://x.example\nadmins:", []string{":4:1: issuer: is there twice: keep one"}},
		{"second document", "clusters:", "---\nclusters:", []string{":12:1: a second document begins here: a configuration is one document"}},
		{"wrong types", "admins: [\"corp:ops\"]", "admins: corp:ops\ntokens: [5m]\nsessions: {idleTimeout: 5}\nbrand: 5\ntls: x", []string{
			":4:9: admins: must be a list", ":5:9: tokens: must be a mapping of keys to values",
			":6:25: sessions.idleTimeout: must be a duration such as 90s, 5m or 8h", ":7:8: brand: must be text: put it in quotes", ":8:6: tls: must be a mapping of keys to values"}},
		{"password on the bad line", "bindPassword: " + secret, "bindPassword: {" + secret + ": 1}", []string{":10:17: directories[0].bindPassword: must be a single value; put text that holds a colon in quotes"}},
		{"number as password", "bindPassword: " + secret, "bindPassword: 9741", []string{":10:17: directories[0].bindPassword: must be text: put it in quotes"}},
		{"no colon after a key", "bindPassword: " + secret, "bindPassword " + secret, []string{":10: is not YAML: could not find expected colon"}},
		{"no YAML", "bindPassword: " + secret, "bindPassword: \"" + secret, []string{":10: is not YAML: found unexpected end of stream"}},
		{"not text", "admins:", "\xff:", []string{": is not UTF-8 text"}},
		{"empty value", "  type: ldap", "  type:", []string{":7:8: directories[0].type: has no value: give it one or leave the key out"}},
		{"anchor", "name: corp", "name: &x corp", []string{":6:9: directories[0].name: anchors, aliases and tags are not read: write the value out"}},
		{"later versions", "clientID: kubernetes}", "clientID: kubernetes, requireSecondFactor: true}", []string{":12:38: clusters[0].requireSecondFactor: is not in this version yet: leave it out"}},
		{"account without a proxy", "- {name: prod, clientID: kubernetes}", "- {name: prod, clientID: kubernetes, apiServer: {url: https://10.0.0.1:6443, tokenFile: tabard.yaml}}\n- {name: two, clientID: two, apiServer: {inCluster: true}}", []string{
			":12:78: clusters[0].apiServer.tokenFile: is for the proxy, which this cluster does not have: set clusters[].proxy, or leave it out",
			":13:42: clusters[1].apiServer.inCluster: is for the proxy, which this cluster does not have: set clusters[].proxy, or leave it out"}},
		{"proxy of a bad issuer", minimal, strings.NewReplacer("https://id", "http://id", "kubernetes}", "kubernetes, apiServer: {inCluster: true}, proxy: {}}").Replace(minimal), []string{
			":1:1: issuer: must be an https URL such as https://id.corp.example, because API servers accept no other"}},
		{"files of the proxy", "- {name: prod, clientID: kubernetes}", "- name: prod\n  clientID: kubernetes\n  apiServer: {url: https://10.0.0.1:6443, caFile: a, tokenFile: b}\n  proxy:\n    passthrough: {tokenFile: c}\n- {name: two, clientID: two, apiServer: {url: https://10.0.0.2, certFile: tabard.yaml, keyFile: tabard.yaml}, proxy: {}}", []string{
			":14:43: clusters[0].apiServer.caFile: DIR/a does not exist: create it or correct the path",
			":14:54: clusters[0].apiServer.tokenFile: DIR/b does not exist: create it or correct the path",
			":16:19: clusters[0].proxy.passthrough.tokenFile: DIR/c does not exist: create it or correct the path",
			":17:65: clusters[1].apiServer.certFile: certFile and keyFile do not fit together (failed to find any PEM data in certificate input): both must be PEM, and the key the certificate's own"}},
		{"types in the proxy", "- {name: prod, clientID: kubernetes}", "- name: prod\n  clientID: kubernetes\n  apiServer: {url: https://10.0.0.1:6443, inCluster: 1, exec: {command: x, args: y, env: [z], shell: true}}\n  proxy:\n    host: a\n    policy: [{name: x, effect: deny, when: true, examples: [{now: today, want: match}]}]\n    limits: {rate: fast, burst: 1.5, timeout: 60, maxBody: 1MB}", []string{
			":14:54: clusters[0].apiServer.inCluster: must be true or false", ":14:82: clusters[0].apiServer.exec.args: must be a list",
			":14:90: clusters[0].apiServer.exec.env: must be a mapping of keys to values", ":14:95: clusters[0].apiServer.exec.shell: is not a key: use args, command, env",
			":16:5: clusters[0].proxy.host: is not a key: use audit, examples, hosts, limits, passthrough, policy",
			":17:44: clusters[0].proxy.policy[0].when: must be text: put it in quotes", ":17:67: clusters[0].proxy.policy[0].examples[0].now: must be a time with its zone, such as 2027-01-31T18:00:00Z",
			":18:20: clusters[0].proxy.limits.rate: must be a number", ":18:33: clusters[0].proxy.limits.burst: must be a whole number", ":18:47: clusters[0].proxy.limits.timeout: must be a duration such as 90s, 5m or 8h", ":18:60: clusters[0].proxy.limits.maxBody: is not a size such as 16KiB"}},
		{"API server", "clientID: kubernetes}", "clientID: kubernetes, apiServer: {url: http://10.0.0.1:6443, caFile: nowhere}}", []string{
			":12:50: clusters[0].apiServer.url: must be an https URL without user, query or fragment, e.g. https://10.0.0.1:6443", ":12:77: clusters[0].apiServer.caFile: DIR/nowhere does not exist: create it or correct the path"}},
		{"webhook without callers", "clientID: kubernetes}", "clientID: kubernetes, webhook: {}}", []string{":12:38: clusters[0].webhook.callers: is missing: name a file with a secret that the API server sends"}},
		{"webhook's callers", "clientID: kubernetes}", "clientID: kubernetes, webhook: {callers: [{tokenFile: nowhere}, {token: short}, {token: x, tokenFile: y}, {}]}}", []string{
			":12:59: clusters[0].webhook.callers[0].tokenFile: DIR/nowhere does not exist: create it or correct the path",
			":12:80: clusters[0].webhook.callers[1]: the token has fewer than 16 bytes: make one with `openssl rand -base64 32`",
			":12:97: clusters[0].webhook.callers[2].token: contradicts tokenFile: leave one out", ":12:96: clusters[0].webhook.callers[2]: the token has fewer than 16 bytes: make one with `openssl rand -base64 32`",
			":12:122: clusters[0].webhook.callers[3].tokenFile: is missing"}},
		{"etcd without members", "store: {bolt: {path: tabard.db}}", "store: {etcd: {endpoints: []}}\naudit: {dir: audit}", []string{":3:16: store.etcd.endpoints: is missing: name the client URLs of etcd's members, such as https://etcd1.corp.example:2379"}},
		{"two stores, no trail", "store: {bolt: {path: tabard.db}}", "store: {bolt: {path: tabard.db}, etcd: {endpoints: ['https://e1']}}", []string{":3:34: store.etcd: contradicts store.bolt: leave one out; `tabard backup` and `tabard restore` move the records"}},
		{"etcd without a trail", "store: {bolt: {path: tabard.db}}", "store: {etcd: {endpoints: ['https://e1']}}", []string{": audit.dir: is missing: with store.etcd, name the folder of this machine that keeps this server's part of the audit trail"}},
		{"etcd in the clear", "store: {bolt: {path: tabard.db}}", "audit: {dir: audit}\nstore: {etcd: {prefix: tabard, endpoints: ['http://127.0.0.1:2379', 'http://10.0.0.1', 'https://e3', 'http://u:" + secret + "@127.0.0.1', 'e5:2379']}}", []string{
			":4:16: store.etcd.prefix: must end in a slash, such as /tabard/",
			":4:69: store.etcd.endpoints[1]: must be https: groups, sessions and signing keys would cross the network in the clear (insecurePlaintext: true allows it)",
			":4:88: store.etcd.endpoints[2]: must be https like the others, or all http",
			":4:102: store.etcd.endpoints[3]: must be scheme, host and port alone; a password goes to passwordFile",
			":4:137: store.etcd.endpoints[4]: must be a URL such as https://etcd1.corp.example:2379"}},
		{"etcd's files", "store: {bolt: {path: tabard.db}}", "audit: {dir: audit}\nstore: {etcd: {endpoints: ['https://e1'], caFile: nowhere, certFile: nowhere, keyFile: nowhere, username: tabard, passwordFile: nowhere}}", []string{
			":4:43: store.etcd.caFile: DIR/nowhere does not exist: create it or correct the path",
			":4:60: store.etcd.certFile: DIR/nowhere does not exist: create it or correct the path",
			":4:79: store.etcd.keyFile: DIR/nowhere does not exist: create it or correct the path",
			":4:115: store.etcd.passwordFile: DIR/nowhere does not exist: create it or correct the path"}},
		{"halves for etcd", "store: {bolt: {path: tabard.db}}", "audit: {dir: audit}\nstore: {etcd: {endpoints: ['https://e1'], certFile: tabard.yaml, username: tabard}}", []string{
			":4:43: store.etcd.certFile: certFile and keyFile come together", ":4:9: store.etcd.passwordFile: is missing beside username"}},
		{"password for nobody", "store: {bolt: {path: tabard.db}}", "audit: {dir: audit}\nstore: {etcd: {endpoints: ['http://localhost'], caFile: tabard.yaml, password: " + secret + "}}", []string{
			":4:49: store.etcd.caFile:  holds no certificate in PEM form",
			":4:16: store.etcd.endpoints: caFile and certFile are for https endpoints: write https", ":4:9: store.etcd.username: is missing beside the password"}},
		{"the trail", "admins:", "audit: {keyFile: audit/key.pem, fileSize: 7, retain: {age: 5s}, sinks: [{name: a}, {name: a, stdout: {}}, {name: b, webhook: {url: 'http://10.0.0.1', secretFile: nowhere}, syslog: {address: 'tls://x:1', caFile: nowhere}}]}\nadmins:", []string{
			":4:9: audit.keyFile: is in audit.dir: whoever can change the trail would hold the key that proves it",
			":4:33: audit.fileSize: must be between 1MiB and 1GiB", ":4:55: audit.retain.age: must be at least 1h, or 0s for no limit",
			":4:73: audit.sinks[0]: needs exactly one of file, stdout, syslog and webhook", ":4:85: audit.sinks[1].name: is the name of another sink",
			":4:107: audit.sinks[2]: needs exactly one of file, stdout, syslog and webhook", ":4:127: audit.sinks[2].webhook.url: must be an https URL, or http on 127.0.0.1, without user and password",
			":4:151: audit.sinks[2].webhook.secretFile: DIR/nowhere does not exist: create it or correct the path", ":4:204: audit.sinks[2].syslog.caFile: DIR/nowhere does not exist: create it or correct the path"}},
		{"size", "admins:", "tokens: {maxSize: 16MB}\nadmins:", []string{":4:19: tokens.maxSize: is not a size such as 16KiB"}},
		{"several at once", minimal, "issuer: http://id.corp.example/\nlisten: :8443\ntrustedProxies: [10.0.0.0]\ndirectories:\n- {name: Corp, type: ldap, urls: [ldap://x], bindDN: cn=t}\n", []string{
			": store.bolt.path: is missing: name the file that keeps groups, sessions and keys",
			": tls: is missing: set certFile and keyFile, or listen on 127.0.0.1 behind a proxy that has TLS",
			":1:1: issuer: must be an https URL such as https://id.corp.example, because API servers accept no other",
			":3:18: trustedProxies[0]: is not a network such as 10.0.0.0/8",
			`:5:4: directories[0].name: "Corp" is not a name: use lower-case letters, digits and hyphens`,
			":5:3: directories[0].bindPasswordFile: is missing: set bindPasswordFile or bindPassword",
			":5:35: directories[0].urls[0]: would send passwords in the clear: use ldaps:// or startTLS: true (or insecurePlaintext: true, if you must)"}},
		{"slash after issuer", "corp.example\n", "corp.example/\n", []string{":1:1: issuer: must not end in a slash: API servers compare it letter by letter"}},
		{"query in issuer", "corp.example\n", "corp.example?x\n", []string{":1:1: issuer: must have no query and no fragment"}},
		{"half of TLS", "admins:", "tls: {certFile: tls.crt}\nadmins:", []string{":4:1: tls: needs both certFile and keyFile", ":4:7: tls.certFile: DIR/tls.crt does not exist: create it or correct the path"}},
		{"a client's keys", "clientID: kubernetes}", "clientID: kubernetes}\nclients:\n- {id: ci, cluster: prod, jwksFile: nowhere, groups: [ci, 'system:masters']}\n- {id: pod, cluster: prod, serviceAccount: {jwksFile: nowhere, issuer: https://k.example, subject: x}}", []string{
			":14:27: clients[0].jwksFile: DIR/nowhere does not exist: create it or correct the path", `:14:59: clients[0].groups[1]: "system:masters" may not be in a token`,
			":15:45: clients[1].serviceAccount.jwksFile: DIR/nowhere does not exist: create it or correct the path",
			":15:91: clients[1].serviceAccount.subject: must be system:serviceaccount:NAMESPACE:NAME"}},
		{"people called as clients are", "bindPassword: " + secret, "bindPassword: " + secret + "\n  users: {usernamePrefix: 'Client:x'}", []string{":11:11: directories[0].users.usernamePrefix: may not begin with client:, which is for clients' own tokens"}},
		{"missing secret", "bindPassword: " + secret, "bindPasswordFile: nowhere", []string{":10:3: directories[0].bindPasswordFile: DIR/nowhere does not exist: create it or correct the path"}},
		{"secret twice", "bindPassword: " + secret, "bindPassword: " + secret + "\n  bindPasswordFile: nowhere", []string{":10:3: directories[0].bindPassword: contradicts bindPasswordFile: leave one out", ":11:3: directories[0].bindPasswordFile: contradicts bindPassword: leave one out"}},
		{"room's mistake", "clientID: kubernetes", "clientID: tabard", []string{`:12:16: clusters[0].clientID: "tabard" is already the id of the built-in client`}},
		{"keys", "admins:", "keys: {rotateEvery: 1h, publishAhead: 2h}\nadmins:", []string{":4:1: keys: publishAhead (2h0m0s) must be shorter than rotateEvery (1h0m0s)"}},
		{"empty file", minimal, "# nothing\n", []string{": is empty: begin with `tabard config example`"}},
		{"a list", minimal, "- a\n", []string{":1:1: must be a mapping of keys to values"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !strings.Contains(minimal, tc.old) {
				t.Fatalf("minimal does not hold %q", tc.old)
			}
			path := writeConfig(t, strings.Replace(minimal, tc.old, tc.new, 1))
			code, _, stderr := command(t, "config", "check", path)
			got := strings.Split(strings.TrimSpace(strings.ReplaceAll(stderr, path, "")), "\n")
			for i := range tc.want {
				tc.want[i] = strings.ReplaceAll(tc.want[i], "DIR", filepath.Dir(path))
			}
			slices.Sort(got)
			slices.Sort(tc.want)
			if code != exitFailed || !slices.Equal(got, tc.want) {
				t.Errorf("exit %d\ngot  %s\nwant %s", code, strings.Join(got, "\n     "), strings.Join(tc.want, "\n     "))
			}
			said := strings.ReplaceAll(stderr, filepath.Dir(path), "") // which has digits of its own
			if strings.Contains(said, secret) || strings.Contains(said, "9741") {
				t.Errorf("the secret is in the error:\n%s", stderr)
			}
		})
	}
}

func TestConfigGood(t *testing.T) {
	code, stdout, stderr := command(t, "config", "check", writeConfig(t, minimal))
	if code != exitDone || stdout != "ok\nissuer https://id.corp.example on 127.0.0.1:0, 1 directory, 1 cluster, 0 further clients\n" || stderr != "" {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

func TestSecretFiles(t *testing.T) {
	for _, tc := range []struct {
		name, content string
		mode          os.FileMode
		want, err     string
	}{
		{"newline", "pw\n", 0o600, "pw", ""},
		{"windows", "pw\r\n", 0o600, "pw", ""},
		{"spaces stay", " pw \n\n", 0o600, " pw \n", ""},
		{"empty", "\n", 0o600, "", "is empty"},
		{"too large", strings.Repeat("x", maxSecret+1), 0o600, "", "is larger than 64 KiB: is it the right file?"},
		{"folder", "", os.ModeDir, "", "is not a regular file"},
		{"pipe", "", os.ModeNamedPipe, "", "is not a regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := writeConfig(t, strings.Replace(minimal, "bindPassword: "+secret, "bindPasswordFile: pw", 1))
			file := filepath.Join(filepath.Dir(path), "pw")
			var err error
			switch tc.mode {
			case os.ModeDir:
				err = os.Mkdir(file, 0o700)
			case os.ModeNamedPipe:
				err = syscall.Mkfifo(file, 0o600)
			default:
				err = os.WriteFile(file, []byte(tc.content), tc.mode)
			}
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := loadConfig(path)
			if tc.err != "" {
				if want := path + ":10:3: directories[0].bindPasswordFile: " + file + " " + tc.err; fmt.Sprint(err) != want {
					t.Errorf("got  %v\nwant %s", err, want)
				}
				return
			}
			if err != nil || cfg.Directories[0].BindPassword != tc.want || len(cfg.warnings) != 0 {
				t.Errorf("got %q, %v, %q", cfg.Directories[0].BindPassword, err, cfg.warnings)
			}
		})
	}
}

func TestConfigWarnings(t *testing.T) {
	text := strings.Replace(minimal, "bindPassword: "+secret, "bindPasswordFile: pw", 1)
	text = strings.Replace(text, "admins: [\"corp:ops\"]", "metrics: {listen: ':9090'}\ntls: {certFile: c.pem, keyFile: k.pem}", 1)
	path := writeConfig(t, text)
	dir := filepath.Dir(path)
	writeFile(t, filepath.Join(dir, "pw"), secret, 0o644)
	cert, key := testenv.NewCA(t, dir).Issue(t, "other.example")
	for from, to := range map[string]string{cert: "c.pem", key: "k.pem"} {
		if err := os.Rename(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	code, _, stderr := command(t, "config", "check", path)
	want := []string{
		"warning: metrics.listen is not on loopback: whoever reaches :9090 can read metrics and profiles",
		"warning: admins is empty: nobody can change groups but with --config while the server is stopped",
		"warning: tls.certFile: the certificate is for other.example, localhost, 127.0.0.1, ::1 and not for the issuer's host id.corp.example: get one that names it, unless a proxy in front has its own",
		"warning: directories[0].bindPasswordFile: every account of this machine can read " + filepath.Join(dir, "pw") + ": run chmod o-rwx on it",
	}
	if got := strings.Split(strings.TrimSpace(stderr), "\n"); code != exitDone || !slices.Equal(got, want) {
		t.Errorf("exit %d\ngot  %s\nwant %s", code, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
	writeFile(t, filepath.Join(dir, "k.pem"), "no key", 0o600)
	_, _, stderr = command(t, "config", "check", path)
	if !strings.Contains(stderr, path+":5:1: tls: certFile and keyFile do not fit together (") {
		t.Errorf("a damaged key: %s", stderr)
	}
}

func TestCertificateTimes(t *testing.T) {
	dir := t.TempDir()
	cert, _ := testenv.NewCA(t, dir).Issue(t, "id.corp.example")
	leaf := parseCert(t, cert)
	for _, tc := range []struct {
		at   time.Time
		want string
	}{
		{time.Now(), ""},
		{leaf.NotBefore.Add(-time.Second), "which is in the future: is this machine's clock right?"},
		{leaf.NotAfter.Add(time.Second), "renew it"},
	} {
		got := strings.Join(certTrouble(leaf, "https://id.corp.example", tc.at), "|")
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("at %s: %q", tc.at, got)
		}
	}
}

func TestOpenConfigWithSecret(t *testing.T) {
	path := writeConfig(t, minimal)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, stderr := command(t, "config", "check", path)
	if want := "warning: directories[0].bindPassword: every account of this machine can read " + path + ": run chmod o-rwx on it\n"; stderr != want {
		t.Errorf("got %s", stderr)
	}
}

func TestFileTrouble(t *testing.T) {
	for err, want := range map[error]string{
		&os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}: "may not be read: give the account that Tabard runs as the right to",
		&os.PathError{Op: "open", Path: "x", Err: os.ErrNotExist}:   "does not exist: create it or correct the path",
		&os.PathError{Op: "read", Path: "x", Err: io.ErrNoProgress}: "cannot be read: " + io.ErrNoProgress.Error(),
	} {
		if got := fileTrouble(err); got != want {
			t.Errorf("%v: got %s", err, got)
		}
	}
}

// TestExample checks that the example passes as it is, with its files there.
func TestExample(t *testing.T) {
	deployed, err := os.ReadFile("../../deploy/tabard.example.yaml")
	if err != nil || !bytes.Equal(deployed, exampleConfig) {
		t.Fatalf("deploy/tabard.example.yaml is not what `tabard config example` prints (%v)", err)
	}
	_, printed, _ := command(t, "config", "example")
	path := writeConfig(t, printed)
	dir := filepath.Dir(path)
	ca := testenv.NewCA(t, dir)
	cert, key := ca.Issue(t, "id.corp.example")
	for from, to := range map[string]string{cert: "tls.crt", key: "tls.key", ca.File: "corp-ca.pem"} {
		if err := os.Rename(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "bind-password"), "x\n", 0o600)
	writeFile(t, filepath.Join(dir, "headlamp-secret"), "a long enough secret for a client\n", 0o600)
	code, stdout, stderr := command(t, "config", "check", path)
	if code != exitDone || !strings.HasPrefix(stdout, "ok\n") || stderr != "" {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// TestExampleOfProxy: what the example shows of the proxy passes as well.
func TestExampleOfProxy(t *testing.T) {
	_, shown, _ := strings.Cut(string(exampleConfig), "\n  #proxy:")
	shown, _, ok := strings.Cut("\n  #proxy:"+shown, "\n  #tokens:")
	path := writeConfig(t, strings.Replace(minimal, "- {name: prod, clientID: kubernetes}\n",
		"- name: prod\n  clientID: kubernetes\n  apiServer: {url: https://10.0.0.1:6443, inCluster: true}"+strings.ReplaceAll(shown, "\n  #", "\n  ")+"\n", 1))
	writeFile(t, filepath.Join(filepath.Dir(path), "prod-review-token"), "x", 0o600)
	if code, stdout, stderr := command(t, "config", "check", path); !ok || code != exitDone || stderr != "" {
		t.Errorf("exit %d: %s%s\n%s", code, stdout, stderr, shown)
	}
}

// TestSchema holds the keys of the example, commented ones included, against
// those of the schema, both ways.
func TestSchema(t *testing.T) {
	full := regexp.MustCompile(`(?m)^(\s*)#(\S|  \S|    \S)`).ReplaceAll(exampleConfig, []byte("$1$2"))
	d := decode(full, &Config{})
	if len(d.mistakes) > 0 {
		t.Fatal(&configError{"example", d.mistakes})
	}
	inExample := map[string]bool{}
	for key := range d.at {
		if !strings.HasSuffix(key, "]") {
			inExample[documented(listIndex.ReplaceAllString(key, "[]"))] = true
		}
	}
	_, printed, _ := command(t, "config", "schema")
	var schema map[string]any
	if err := json.Unmarshal([]byte(printed), &schema); err != nil {
		t.Fatal(err)
	}
	inSchema := map[string]bool{}
	schemaKeys(t, schema, "", inSchema)
	if !maps.Equal(inExample, inSchema) {
		for k := range inSchema {
			if !inExample[k] {
				t.Errorf("%s is not in the example", k)
			}
		}
		for k := range inExample {
			if !inSchema[k] {
				t.Errorf("%s is not in the schema", k)
			}
		}
	}
}

// documented is where the example shows a key: what holds for a rule's examples and a
// policy's is shown once.
func documented(key string) string {
	return strings.Replace(key, "proxy.policy[].examples[].", "proxy.examples[].", 1)
}

func schemaKeys(t *testing.T, s map[string]any, path string, into map[string]bool) {
	if s["type"] == "object" && s["additionalProperties"] != false && !strings.HasSuffix(path, ".env") {
		t.Errorf("%s takes unknown keys", path)
	}
	properties, _ := s["properties"].(map[string]any)
	for name, p := range properties {
		into[documented(join(path, name))] = true
		schemaKeys(t, p.(map[string]any), join(path, name), into)
	}
	if items, ok := s["items"].(map[string]any); ok {
		schemaKeys(t, items, path+"[]", into)
	}
}

func TestDecodeValues(t *testing.T) {
	var cfg Config
	d := decode([]byte("issuer: >-\n  https://id\ntokens: {maxSize: 2048, idTokenLifetime: 1h30m}\nadmins:\n- a\n- 'b'\ndirectories: [{startTLS: true, groups: {maxDepth: 3}}]\n"), &cfg)
	if len(d.mistakes) > 0 {
		t.Fatal(&configError{"x", d.mistakes})
	}
	if cfg.Issuer != "https://id" || cfg.Tokens.MaxSize != 2048 || cfg.Tokens.IDTokenLifetime != 90*time.Minute ||
		!reflect.DeepEqual(cfg.Admins, []string{"a", "b"}) || !cfg.Directories[0].StartTLS || cfg.Directories[0].Groups.MaxDepth != 3 {
		t.Errorf("%+v", cfg)
	}
}

// FuzzConfig: whatever is put into a configuration, decoding neither panics nor
// shows a value.
func FuzzConfig(f *testing.F) {
	at := strings.Index(minimal, secret)
	for _, s := range []string{"", "{", "\"", "[", "- ", "&a ", "*a", "!!binary ", "|\n", ">", "\t", ": ", "#", "? ", "<<: ", "---\n", "%TAG", "\x00", "\n"} {
		f.Add(at, s)
		f.Add(at+len(secret), s)
	}
	f.Fuzz(func(t *testing.T, at int, s string) {
		if at < 0 || at > len(minimal) || len(s) > 1000 {
			return
		}
		d := decode([]byte(minimal[:at]+s+minimal[at:]), &Config{})
		if msg := (&configError{"f", d.mistakes}).Error(); strings.Contains(msg, secret) {
			t.Errorf("the secret is in %q", msg)
		}
	})
}

// TestConfigFlow reads the one-line forms that the documentation uses: a URL with a
// port in a list within a mapping is one value, as YAML 1.2 says.
func TestConfigFlow(t *testing.T) {
	var cfg Config
	d := decode([]byte("clients:\n- {id: a, cluster: c, redirectURIs: [http://127.0.0.1:5556/callback, https://h:8443/x]}\n"), &cfg)
	if len(d.mistakes) > 0 {
		t.Fatal(d.mistakes)
	}
	if got := cfg.Clients[0].RedirectURIs; !slices.Equal(got, []string{"http://127.0.0.1:5556/callback", "https://h:8443/x"}) {
		t.Errorf("%q", got)
	}
}
