package idp

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/testenv"
)

// onServer is a house with one real directory and two nodes.
func onServer(t testing.TB, cfg directory.Config) (*house, *directory.Directory, []*Service) {
	t.Helper()
	h := newHouse(t)
	d, err := directory.New(cfg)
	h.must(err)
	t.Cleanup(d.Close)
	parts := h.Parts
	parts.Directories = []Directory{d}
	var nodes []*Service
	for range 2 {
		s, err := New(h.ctx, h.cfg, parts)
		h.must(err)
		nodes = append(nodes, s)
	}
	h.Service = nodes[0]
	return h, d, nodes
}

// hammer tries wrong passwords until nothing is tried any more, and shows that the
// directory has not locked the account, though it would have for one more than
// threshold-1.
func hammer(t *testing.T, cfg directory.Config, login, password string, want directory.Lockout) {
	h, d, nodes := onServer(t, cfg)
	if got, err := d.Lockout(h.ctx); err != nil || got != want {
		t.Fatalf("lockout is %+v, %v, want %+v", got, err, want)
	}
	all(30, func(i int) { nodes[i%2].SignIn(h.ctx, Credentials{Login: login, Password: "wrong"}, nil) })
	wantErr(t, h.guess(login, "wrong"), ErrTooMany)
	wantErr(t, h.guess(login, password), ErrTooMany)
	p, err := d.Find(h.ctx, login)
	h.must(err)
	if p.State != directory.Active {
		t.Errorf("%s is %s", login, p.State)
	}
	h.clock.pass(want.Window + want.Window/10 + tryLife)
	wantErr(t, h.guess(login, password), nil)

	for range want.Threshold { // the directory does lock
		if err := d.Bind(h.ctx, p.DN, "wrong"); !errors.Is(err, directory.ErrInvalidCredentials) {
			t.Fatal(err)
		}
	}
	if p, err = d.Find(h.ctx, login); err != nil || p.State != directory.Locked {
		t.Errorf("past the threshold %s is %s, %v", login, p.State, err)
	}
}

func TestThrottleOnActiveDirectory(t *testing.T) {
	s := testenv.StartSamba(t)
	const pw = "Passw0rd-Person1"
	s.AddLDIF(t, testenv.UserLDIF("CN=Jane,CN=Users,"+s.BaseDN, "jane", pw)+
		"dn: "+s.BaseDN+"\nchangetype: modify\nreplace: lockoutThreshold\nlockoutThreshold: 5\n-\n"+
		"replace: lockOutObservationWindow\nlockOutObservationWindow: -24000000000\n-\n"+
		"replace: lockoutDuration\nlockoutDuration: -36000000000\n\n")
	cfg := directory.Config{Name: "corp", Type: directory.TypeActiveDirectory, URLs: []string{s.TLSURL}, CAFile: s.CAFile, BindDN: s.BindDN, BindPassword: s.BindPassword}
	hammer(t, cfg, "jane", pw, directory.Lockout{Threshold: 5, Window: 40 * time.Minute, Duration: time.Hour})
}

const ppolicy = `dn: cn=policy,dc=example,dc=org
objectClass: organizationalRole
objectClass: pwdPolicy
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 4
pwdFailureCountInterval: 1800
pwdLockoutDuration: 600

dn: cn=lax,dc=example,dc=org
objectClass: organizationalRole
objectClass: pwdPolicy
pwdAttribute: userPassword
pwdLockout: FALSE

`

func slapdConfig(s *testenv.Slapd) directory.Config {
	return directory.Config{Name: "corp", Type: directory.TypeLDAP, URLs: []string{s.TLSURL}, CAFile: s.CAFile, BindDN: s.BindDN, BindPassword: s.BindPassword}
}

func TestThrottleOnOpenLDAP(t *testing.T) {
	s := testenv.StartSlapd(t, "ppolicy_default cn=policy,dc=example,dc=org")
	s.AddLDIF(t, testenv.SampleLDIF()+ppolicy)
	hammer(t, slapdConfig(s), "alice", "pw-alice", directory.Lockout{Threshold: 4, Window: 30 * time.Minute, Duration: 10 * time.Minute})
}

// BenchmarkRefusalTiming shows how long a person waits for a refusal, by what is
// wrong, as medians of tries taken in turn: whoever measures must not learn which
// names exist. Run it with -benchtime 1000x.
func BenchmarkRefusalTiming(b *testing.B) {
	s := testenv.StartSlapd(b)
	s.AddLDIF(b, testenv.SampleLDIF()+"dn: uid=off,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: off\ncn: off\nsn: off\nuserPassword: pw-off\npwdAccountLockedTime: 000001010000Z\n\n")
	h, _, _ := onServer(b, slapdConfig(s))
	names := map[string]string{"unknown": "nobody", "wrong": "alice", "disabled": "off"}
	took := map[string][]time.Duration{}
	refuse := func(kind, login string, want error) {
		start := time.Now()
		err := h.guess(login, "wrong")
		took[kind] = append(took[kind], time.Since(start))
		wantErr(b, err, want)
	}
	for b.Loop() {
		for name, login := range names { // in random order
			refuse(name, login, ErrCredentials)
		}
		h.clock.pass(17 * time.Minute)
	}
	for range 3 {
		for _, login := range names {
			h.guess(login, "wrong")
		}
	}
	for range b.N {
		for name, login := range names {
			refuse(name+"-throttled", login, ErrTooMany)
		}
	}
	for kind, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), kind+"-µs")
	}
}

// BenchmarkSignIn is a whole sign-in, as far as the code, by people of a directory
// in memory: with a store that other nodes may share, and alone.
func BenchmarkSignIn(b *testing.B) {
	for name, alone := range map[string]bool{"shared": false, "alone": true} {
		b.Run(name, func(b *testing.B) {
			h := newHouse(b)
			h.Alone = alone
			for b.Loop() {
				h.code("alice", "kubernetes")
			}
		})
	}
}
