package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// secretShapes are what no line of the audit trail may hold: a JWT, and a code,
// cookie, refresh token or other id with its secret behind a dot.
var secretShapes = []*regexp.Regexp{
	regexp.MustCompile(`eyJ[\w-]{8,}\.[\w-]+`),
	regexp.MustCompile(`[\w-]{22}\.([\w-]+\.\d+\.)?[\w-]{43}`),
	regexp.MustCompile(`-----BEGIN`),
}

// holdsPassword says whether text holds the password of somebody: pw- alone is in some
// random ids and tokens.
func holdsPassword(text string) bool {
	return slices.ContainsFunc([]string{"alice", "bob", "carol", "dave", "jörg"}, func(who string) bool { return strings.Contains(text, "pw-"+who) })
}

// secretsIn returns what of a trail's folder is secret, shortened: the words given, and
// everything of a secret's shape.
func secretsIn(t testing.TB, dir string, words ...string) (found []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.IsDir() {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if w != "" && strings.Contains(string(b), w) {
				found = append(found, filepath.Base(f)+": "+w)
			}
		}
		for _, shape := range secretShapes {
			if s := shape.FindString(string(b)); s != "" {
				found = append(found, filepath.Base(f)+": "+s[:12]+"…")
			}
		}
	}
	return found
}

// checkTrail looks through a server's trail when the test is over and the server gone.
func (s *server) checkTrail() {
	s.t.Helper()
	for _, found := range secretsIn(s.t, filepath.Join(s.dir, "audit"), s.slapd.BindPassword, "headlamp-secret-for-tests", "pw-alice", "pw-bob", "pw-carol") {
		s.t.Errorf("the audit trail holds a secret: %s", found)
	}
}

func TestSecretsAreFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for line, secret := range map[string]bool{
		`{"seq":1,"act":"login","session":"AAAAAAAAAAAAAAAAAAAAAA","prev":"` + strings.Repeat("0", 64) + `"}`: false,
		`{"reason":"typed pw-alice"}`:                                                 true,
		`{"on":"AAAAAAAAAAAAAAAAAAAAAA.` + strings.Repeat("b", 43) + `"}`:             true,
		`{"on":"AAAAAAAAAAAAAAAAAAAAAA.abcdefgh.12.` + strings.Repeat("b", 43) + `"}`: true,
		`{"on":"eyJhbGciOiJSUzI1NiJ9.e30.c2ln"}`:                                      true,
	} {
		if err := os.WriteFile(filepath.Join(dir, "audit.jsonl"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if found := secretsIn(t, dir, "pw-alice"); (len(found) > 0) != secret {
			t.Errorf("%s: found %v", line, found)
		}
	}
}
