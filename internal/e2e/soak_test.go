package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// soak is how long a test under load takes: short, or what the variable name says.
func soak(t *testing.T, name string, short time.Duration) (d time.Duration, long bool) {
	t.Helper()
	said := os.Getenv(name)
	if said == "" {
		return short, false
	}
	d, err := time.ParseDuration(said)
	if err != nil || d <= 0 {
		t.Fatalf("%s=%s: want a duration such as 10m", name, said)
	}
	return d, true
}

// reconfigure replaces parts of the configuration, each of which must be there.
func (s *server) reconfigure(oldnew ...string) {
	s.t.Helper()
	b, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(oldnew); i += 2 {
		if !bytes.Contains(b, []byte(oldnew[i])) {
			s.t.Fatalf("the configuration has no %q", oldnew[i])
		}
	}
	s.write("tabard.yaml", strings.NewReplacer(oldnew...).Replace(string(b)))
}

// auditSays counts the lines of the trail that hold all of words.
func (s *server) auditSays(words ...string) (n int) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "audit", "*.jsonl*"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("the trail's files: %v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
	lines:
		for line := range strings.Lines(string(b)) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			n++
		}
	}
	return n
}

// try asks the token endpoint where the server may die meanwhile.
func (s *server) try(c *http.Client, form url.Values) (tokens, error) {
	resp, err := c.PostForm(s.issuer+"/token", form)
	if err != nil {
		return tokens{}, err
	}
	defer resp.Body.Close()
	tk := tokens{status: resp.StatusCode}
	if err := json.NewDecoder(resp.Body).Decode(&tk); err != nil {
		return tokens{}, fmt.Errorf("token endpoint: %d: %w", resp.StatusCode, err)
	}
	return tk, nil
}

// tryUntil is try until the server answers; what it refuses for good is an error.
func (s *server) tryUntil(c *http.Client, form url.Values, within time.Duration) (tk tokens, err error) {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		tk, err = s.try(c, form)
		switch {
		case err == nil && tk.status == http.StatusOK:
			return tk, nil
		case err == nil && tk.status < 500:
			return tk, fmt.Errorf("refused: %+v", tk)
		case err == nil:
			err = fmt.Errorf("%+v", tk)
		}
	}
	return tk, fmt.Errorf("not within %s: %w", within, err)
}

// decodePart decodes one of the first two parts of a JWT, whose signature is not
// looked at.
func decodePart(token string, part int, into any) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%d parts", len(parts))
	}
	return json.NewDecoder(base64.NewDecoder(base64.RawURLEncoding, strings.NewReader(parts[part]))).Decode(into)
}

// kid is the key that signed a token.
func kid(token string) (string, error) {
	var h struct{ Kid string }
	err := decodePart(token, 0, &h)
	return h.Kid, err
}

// expiry is when a token ends.
func expiry(token string) (time.Time, error) {
	var c struct{ Exp int64 }
	err := decodePart(token, 1, &c)
	return time.Unix(c.Exp, 0), err
}

// kidsOf are the keys of a JWKS.
func kidsOf(t testing.TB, jwks string) (kids []string) {
	t.Helper()
	var set struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal([]byte(jwks), &set); err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		kids = append(kids, k.Kid)
	}
	return kids
}
