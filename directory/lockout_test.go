package directory

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestLockoutForms(t *testing.T) {
	for name, c := range map[string]struct {
		form   lockoutForm
		values map[string]string
		want   Lockout
		read   bool
	}{
		"domain":               {lockoutAD, map[string]string{"lockoutThreshold": "5", "lockOutObservationWindow": "-18000000000", "lockoutDuration": "-36000000000"}, Lockout{5, 30 * time.Minute, time.Hour}, true},
		"until unlocked":       {lockoutAD, map[string]string{"lockoutThreshold": "5", "lockOutObservationWindow": "-18000000000", "lockoutDuration": "0"}, Lockout{5, 30 * time.Minute, 0}, true},
		"without end":          {lockoutAD, map[string]string{"lockoutThreshold": "5", "lockOutObservationWindow": "-9223372036854775808", "lockoutDuration": "-9223372036854775808"}, Lockout{5, never, never}, true},
		"does not lock":        {lockoutAD, map[string]string{"lockoutThreshold": "0", "lockOutObservationWindow": "-18000000000"}, Lockout{}, true},
		"nothing may be read":  {lockoutAD, nil, Lockout{}, false},
		"fine-grained":         {lockoutPSO, map[string]string{"msDS-LockoutThreshold": "3", "msDS-LockoutObservationWindow": "-18000000000", "msDS-LockoutDuration": "-18000000000"}, Lockout{3, 30 * time.Minute, 30 * time.Minute}, true},
		"ppolicy":              {lockoutPpolicy, map[string]string{"pwdLockout": "TRUE", "pwdMaxFailure": "4", "pwdFailureCountInterval": "600", "pwdLockoutDuration": "60"}, Lockout{4, 10 * time.Minute, time.Minute}, true},
		"ppolicy never forget": {lockoutPpolicy, map[string]string{"pwdLockout": "TRUE", "pwdMaxFailure": "4"}, Lockout{4, never, 0}, true},
		"ppolicy off":          {lockoutPpolicy, map[string]string{"pwdLockout": "FALSE", "pwdMaxFailure": "4"}, Lockout{}, true},
		"ppolicy without":      {lockoutPpolicy, map[string]string{"pwdLockout": "TRUE"}, Lockout{}, false},
		"389":                  {lockout389, map[string]string{"passwordLockout": "on", "passwordMaxFailure": "3", "passwordResetFailureCount": "600", "passwordLockoutDuration": "3600"}, Lockout{3, 10 * time.Minute, time.Hour}, true},
		"389 off":              {lockout389, map[string]string{"passwordLockout": "off", "passwordMaxFailure": "3"}, Lockout{}, true},
		"FreeIPA":              {lockoutIPA, map[string]string{"krbPwdMaxFailure": "6", "krbPwdFailureCountInterval": "60", "krbPwdLockoutDuration": "600"}, Lockout{6, time.Minute, 10 * time.Minute}, true},
		"nonsense":             {lockoutIPA, map[string]string{"krbPwdMaxFailure": "x"}, Lockout{}, false},
		"nonsense window":      {lockoutIPA, map[string]string{"krbPwdMaxFailure": "6", "krbPwdFailureCountInterval": "-5"}, Lockout{6, never, 0}, true},
	} {
		e := &ldap.Entry{}
		for a, v := range c.values {
			e.Attributes = append(e.Attributes, ldap.NewEntryAttribute(a, []string{v}))
		}
		if got, ok := c.form.read(e); got != c.want || ok != c.read {
			t.Errorf("%s: %+v, %v, want %+v, %v", name, got, ok, c.want, c.read)
		}
	}
}

func TestStricter(t *testing.T) {
	a, b := Lockout{5, time.Hour, time.Hour}, Lockout{3, time.Minute, 0}
	for _, c := range []struct{ a, b, want Lockout }{
		{a, b, Lockout{3, time.Hour, 0}}, {b, a, Lockout{3, time.Hour, 0}}, {a, Lockout{}, a}, {Lockout{}, a, a}, {Lockout{}, Lockout{}, Lockout{}},
	} {
		if got := stricter(c.a, c.b); got != c.want {
			t.Errorf("%+v and %+v: %+v", c.a, c.b, got)
		}
	}
}

func lockoutOf389(t *testing.T, s *testenv.DS389) {
	s.AddLDIF(t, "dn: cn=config\nchangetype: modify\nreplace: passwordLockout\npasswordLockout: on\n-\nreplace: passwordMaxFailure\npasswordMaxFailure: 7\n\n")
	cfg := Config{Name: "corp", Type: TypeLDAP, URLs: []string{s.TLSURL}, CAFile: s.CAFile, BindDN: s.AdminDN, BindPassword: s.AdminPassword}
	got, err := open(t, cfg).Lockout(t.Context())
	if err != nil || got != (Lockout{7, 10 * time.Minute, time.Hour}) {
		t.Errorf("as administrator: %+v, %v", got, err)
	}
	cfg.BindDN, cfg.BindPassword = s.BindDN, s.BindPassword
	if got, err := open(t, cfg).Lockout(t.Context()); !errors.Is(err, errNoPolicy) {
		t.Errorf("as somebody who may not read it: %+v, %v", got, err)
	}
}

// The policy is remembered, also when the directory is down for a while, and
// nobody who goes away keeps others from it.
func TestLockoutIsRemembered(t *testing.T) {
	s := testenv.StartSlapd(t)
	d := open(t, slapdConfig(s))
	_, err := d.Lockout(t.Context())
	wantErr(t, "no policy", err, errNoPolicy)
	s.AddLDIF(t, "dn: cn=policy,dc=example,dc=org\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\npwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 4\npwdFailureCountInterval: 60\n\n")
	_, err = d.Lockout(t.Context())
	wantErr(t, "no policy, remembered", err, errNoPolicy)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, what := range []string{"new", "kept", "old"} {
		if what == "new" || what == "old" {
			d.policy.until = time.Now()
		}
		if what == "old" {
			s.Stop()
		}
		if got, err := d.Lockout(gone); err != nil || got != (Lockout{4, time.Minute, 0}) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}
