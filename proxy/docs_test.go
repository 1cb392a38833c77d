package proxy

import (
	"bytes"
	"os"
	"regexp"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What docs/policy.md shows compiles, and its examples come out.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	rules, examples := 0, 0
	for _, b := range blocks {
		var c struct{ Proxy Config }
		d := yaml.NewDecoder(bytes.NewReader(b[1]))
		d.KnownFields(true)
		if err := d.Decode(&c); err != nil {
			t.Fatal(err)
		}
		p, err := compilePolicy("policy", c.Proxy.Policy)
		if err != nil {
			t.Error(err)
		}
		if err := p.check("examples", c.Proxy.Examples); err != nil {
			t.Error(err)
		}
		if _, err := compileAudit("audit", c.Proxy.Audit); err != nil {
			t.Error(err)
		}
		examples += len(c.Proxy.Examples)
		for _, r := range c.Proxy.Policy {
			rules, examples = rules+1, examples+len(r.Examples)
		}
	}
	if rules < 10 || examples < 25 {
		t.Errorf("%d rules and %d examples were found", rules, examples)
	}
}
