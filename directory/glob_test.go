package directory

import (
	"regexp"
	"strings"
	"testing"
)

func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{{"*", ""}, {"a*b?c", "axxbyc"}, {"**a", "a"}, {"a", "b"}, {"?", "é"}, {"*a*a*a*b", strings.Repeat("a", 40)}, {"", ""}, {".+", "xx"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		pattern, name = strings.ToValidUTF8(pattern, "?"), strings.ToValidUTF8(name, "?")
		quoted := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern))
		oracle, err := regexp.Compile("(?s)^" + quoted + "$")
		if err != nil {
			return // longer than the oracle can
		}
		if got, want := Glob(pattern, name), oracle.MatchString(name); got != want {
			t.Errorf("%q against %q: %v, want %v", pattern, name, got, want)
		}
	})
}
