package directory

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/testenv"
)

// BenchmarkGroupsSamba finds the groups of a person who is in 200 directly and
// in 200 more through those, 5 deep; by each strategy, and with an ldapsearch of
// the same on a connection of its own.
func BenchmarkGroupsSamba(b *testing.B) {
	s := testenv.StartSamba(b)
	var ldif strings.Builder
	ldif.WriteString("dn: OU=Groups,DC=corp,DC=example\nobjectClass: organizationalUnit\n\n" + testenv.UserLDIF("CN=Jane,"+s.BaseDN, "jane", pw))
	for i := range 200 {
		ldif.WriteString(adGroup(fmt.Sprintf("direct-%03d", i), "-2147483646", "Jane"))
	}
	for i := range 40 {
		below := fmt.Sprintf("direct-%03d", i)
		for depth := 1; depth <= 5; depth++ {
			name := fmt.Sprintf("nested-%02d-%d", i, depth)
			ldif.WriteString(adGroup(name, "-2147483640", below+",OU=Groups"))
			below = name
		}
	}
	s.AddLDIF(b, ldif.String())
	const want = 402 // with the primary group, Domain Users, and what that is in
	for _, c := range []struct {
		name   string
		nested Nested
		forget bool // which groups SIDs stand for
	}{
		{"inChain", NestedInChain, false}, {"tokenGroups", NestedTokenGroups, false}, {"tokenGroups, SIDs not known", NestedTokenGroups, true}, {"walk", NestedWalk, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			cfg := sambaConfig(s)
			cfg.Groups.Nested = c.nested
			d, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			jane, err := d.Find(b.Context(), "jane")
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if c.forget {
					d.sids.entries = nil
				}
				if found, err := d.Groups(b.Context(), jane); err != nil || len(found) != want {
					b.Fatalf("%d groups, %v", len(found), err)
				}
			}
		})
	}
	b.Run("ldapsearch", func(b *testing.B) {
		filter := "(&(objectCategory=group)(member:" + inChainRule + ":=CN=Jane," + s.BaseDN + "))"
		for b.Loop() {
			cmd := exec.CommandContext(b.Context(), "ldapsearch", "-LLL", "-x", "-H", s.TLSURL, "-D", s.BindDN, "-w", s.BindPassword, "-b", s.BaseDN, filter, "sAMAccountName", "memberOf", "objectSid")
			cmd.Env = append(cmd.Environ(), "LDAPTLS_CACERT="+s.CAFile)
			if out, err := cmd.Output(); err != nil || strings.Count(string(out), "sAMAccountName: ") != want-2 {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	})
}
