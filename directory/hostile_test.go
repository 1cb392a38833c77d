package directory

import (
	"testing"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestPaddedNames: white space that a directory takes for a part of a name does not make
// its bearer somebody else, nor a group another group.
func TestPaddedNames(t *testing.T) {
	s := testenv.StartSlapd(t)
	const ogham, line = "\u1680", "\u2028"
	s.AddLDIF(t, testenv.SampleLDIF()+
		person("mallory", "alice"+ogham, "mail: mallory@example.org")+person("trudy", line+"alice", "mail: trudy@example.org")+
		groupOfNames("cluster-operators"+ogham, "uid=dave,ou=people")+groupOfNames(line+"ops", "uid=dave,ou=people"))
	d := open(t, slapdConfig(s))
	for _, login := range []string{"mallory@example.org", "trudy@example.org"} {
		p, err := d.Find(t.Context(), login)
		wantErr(t, login+" as "+p.Username, err, ErrUnusable)
	}
	wantGroups(t, d, "dave")
	if p := mustFind(t, d, "alice"); p.Email != "alice@example.org" {
		t.Errorf("alice is %+v", p)
	}
}
