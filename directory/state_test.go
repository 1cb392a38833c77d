package directory

import (
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestLocksOfOpenLDAP: the server takes a lock away at the next bind only.
func TestLocksOfOpenLDAP(t *testing.T) {
	t.Parallel()
	s := testenv.StartSlapd(t)
	policy := func(name, lasts string) string {
		return "dn: cn=" + name + ",dc=example,dc=org\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\npwdAttribute: userPassword\n" +
			"pwdLockout: TRUE\npwdMaxFailure: 2\n" + lasts + "\n"
	}
	short, forever := "pwdPolicySubentry: cn=short,dc=example,dc=org", "pwdPolicySubentry: cn=forever,dc=example,dc=org"
	s.AddLDIF(t, testenv.SampleLDIF()+policy("short", "pwdLockoutDuration: 8\n")+policy("forever", "")+
		person("short", "short", short)+person("forever", "forever", forever)+
		person("past", "past", short, "pwdAccountLockedTime: 20200101000000Z")+
		person("past-reset", "past-reset", short, "pwdAccountLockedTime: 20200101000000Z", "pwdReset: TRUE")+
		person("admin", "admin", short, "pwdAccountLockedTime: 000001010000Z"))
	d := open(t, slapdConfig(s))
	for login, want := range map[string]State{"past": Active, "past-reset": MustChange, "admin": Locked} {
		if p := mustFind(t, d, login); p.State != want {
			t.Errorf("%s is %s, want %s", login, p.State, want)
		}
	}
	for _, login := range []string{"short", "forever"} {
		p := mustFind(t, d, login)
		began := time.Now()
		for range 2 {
			wantErr(t, "wrong password of "+login, d.Bind(t.Context(), p.DN, "no"), ErrInvalidCredentials)
		}
		again, err := d.Lookup(t.Context(), p.ID)
		over := login == "short" && time.Since(began) > 7*time.Second // it is kept in whole seconds
		if err != nil || again.State != Locked && !over {
			t.Errorf("%s is %s, %v", login, again.State, err)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for mustFind(t, d, "short").State == Locked {
		if time.Now().After(deadline) {
			t.Fatal("short is locked for good")
		}
		time.Sleep(100 * time.Millisecond)
	}
	p := mustFind(t, d, "short")
	if err := d.Bind(t.Context(), p.DN, "pw"); err != nil {
		t.Errorf("the first right password after a lock: %v", err)
	}
	if p := mustFind(t, d, "forever"); p.State != Locked {
		t.Errorf("forever is %s", p.State)
	}
}

// TestPeopleMove: a person stays the same whatever becomes of name, place and
// password, and is gone when the entry is.
func TestPeopleMove(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF()+"dn: ou=leavers,dc=example,dc=org\nobjectClass: organizationalUnit\n\n"+groupOfNames("alices", "uid=alice,ou=people", "uid=eve,ou=leavers"))
	d := open(t, slapdConfig(s))
	was := mustFind(t, d, "alice")
	s.AddLDIF(t, "dn: uid=alice,ou=people,dc=example,dc=org\nchangetype: moddn\nnewrdn: uid=eve\ndeleteoldrdn: 1\nnewsuperior: ou=leavers,dc=example,dc=org\n\n"+
		"dn: uid=eve,ou=leavers,dc=example,dc=org\nchangetype: modify\nreplace: userPassword\nuserPassword: new\n\n")
	is, err := d.Lookup(t.Context(), was.ID)
	if err != nil || is.Username != "eve" || is.DN != "uid=eve,ou=leavers,dc=example,dc=org" || is.Sub() != was.Sub() {
		t.Errorf("%+v, %v", is, err)
	}
	wantGroups(t, d, "eve", "corp:alices")
	_, err = d.Find(t.Context(), "alice")
	wantErr(t, "the old name", err, ErrNotFound)
	s.AddLDIF(t, "dn: uid=eve,ou=leavers,dc=example,dc=org\nchangetype: delete\n\n")
	_, err = d.Lookup(t.Context(), was.ID)
	wantErr(t, "deleted", err, ErrNotFound)
	s.AddLDIF(t, person("alice again", "alice"))
	if again := mustFind(t, d, "alice"); again.ID == was.ID {
		t.Error("a new entry of the old name is the old person")
	}
}
