package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	const good = `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"noise of TestA\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok p 0.1s\n"}
{"Action":"pass","Package":"p"}
`
	const skipped = `{"Action":"output","Package":"q","Test":"TestB","Output":"slapd is not installed\n"}
{"Action":"skip","Package":"q","Test":"TestB"}
`
	const failed = `{"Action":"output","Package":"q","Test":"TestC","Output":"want 1\n"}
{"Action":"fail","Package":"q","Test":"TestC"}
{"Action":"fail","Package":"q"}
`
	const crashed = `{"Action":"output","Package":"r","Test":"TestD","Output":"panic: oh\n"}
{"Action":"output","Package":"r","Output":"FAIL r 0.1s\n"}
{"Action":"fail","Package":"r"}
`
	const unbuilt = `{"ImportPath":"s","Action":"build-output","Output":"undefined: x\n"}
not JSON
`
	for _, c := range []struct {
		name, in, counts string
		shown            []string
		ok, okInCI       bool
	}{
		{"pass", good, "1 passed, 0 failed, 0 skipped", []string{"ok p 0.1s\n"}, true, true},
		{"skip", good + skipped, "1 passed, 0 failed, 1 skipped", []string{"slapd is not installed"}, true, false},
		{"fail", good + failed, "1 passed, 1 failed, 0 skipped", []string{"want 1\n"}, false, false},
		{"crash", good + crashed, "1 passed, 1 failed, 0 skipped", []string{"panic: oh\n", "FAIL r"}, false, false},
		{"no test", unbuilt, "0 passed, 0 failed, 0 skipped", []string{"undefined: x\n", "not JSON\n"}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			ty := newTally(&out)
			if err := ty.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			if ty.String() != c.counts || (ty.verdict(false) == nil) != c.ok || (ty.verdict(true) == nil) != c.okInCI {
				t.Errorf("%s, verdict %v, in CI %v", ty, ty.verdict(false), ty.verdict(true))
			}
			for _, want := range c.shown {
				if !strings.Contains(out.String(), want) {
					t.Errorf("not shown: %q in %q", want, out.String())
				}
			}
			if strings.Contains(out.String(), "noise") {
				t.Errorf("shows the output of a test that passed: %q", out.String())
			}
		})
	}
}
