package deploy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// pages returns the documentation by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../docs/*.md")
	if err != nil || len(paths) < 5 {
		t.Fatalf("found %d pages (%v)", len(paths), err)
	}
	found := map[string]string{}
	for _, p := range append(paths, "../README.md") {
		found[p] = read(t, p)
	}
	return found
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

func TestYAMLInDocs(t *testing.T) {
	blocks := 0
	for path, text := range pages(t) {
		for _, block := range fence.FindAllStringSubmatch(text, -1) {
			if block[1] != "yaml" {
				continue
			}
			blocks++
			for d := yaml.NewDecoder(strings.NewReader(block[2])); ; {
				var v any
				err := d.Decode(&v)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Errorf("%s: %v\n%s", path, err, block[2])
					break
				}
			}
		}
	}
	if blocks < 3 {
		t.Errorf("found only %d blocks", blocks)
	}
}

var (
	// span is what a person types within a sentence.
	span = regexp.MustCompile("`((?:kubectl )?tabard [^`]+)`")
	// typed is a line of a block that a person types.
	typed = regexp.MustCompile(`(?m)^(?:\$ |sudo )*((?:kubectl )?tabard [^\n]+)`)
	// shell ends a command.
	shell = regexp.MustCompile(` (#|\||>|<|&&|;).*`)
	// family is the command in the help of one that only holds others.
	family = regexp.MustCompile(`Use "(.*) \[command\] --help"`)
	word   = regexp.MustCompile(`^[a-z][a-z-]*$`)
	flag   = regexp.MustCompile(`--[a-z][a-z-]*`)
)

// TestCommandsInDocs holds the commands that the documentation names to what the
// programs say about themselves.
func TestCommandsInDocs(t *testing.T) {
	lines := 0
	for path, text := range pages(t) {
		var found [][]string
		for _, block := range fence.FindAllStringSubmatch(text, -1) {
			if block[1] == "sh" || block[1] == "console" {
				found = append(found, typed.FindAllStringSubmatch(strings.ReplaceAll(block[2], "\\\n", " "), -1)...)
			}
		}
		found = append(found, span.FindAllStringSubmatch(strings.ReplaceAll(fence.ReplaceAllString(text, ""), "\n", " "), -1)...)
		for _, line := range found {
			lines++
			if err := understood(line[1]); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if lines < 10 {
		t.Errorf("found only %d commands", lines)
	}
}

// understood says whether the command and its flags exist.
func understood(line string) error {
	args := strings.Fields(shell.ReplaceAllString(strings.Replace(line, "kubectl tabard", "kubectl-tabard", 1), ""))
	program := args[0]
	if _, err := os.Stat(filepath.Join(binDir, program)); err != nil {
		return fmt.Errorf("%s: there is no program %s", line, program)
	}
	words := args[1:]
	for i, w := range words {
		if !word.MatchString(w) {
			words = words[:i]
			break
		}
	}
	help, err := command(slices.Concat([]string{program}, words, []string{"--help"})...)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, help)
	}
	help = strings.ReplaceAll(help, "kubectl tabard", "kubectl-tabard")
	// Help that offers commands is of the last word that is one.
	if m := family.FindStringSubmatch(help); m != nil && len(words) >= len(strings.Fields(m[1])) {
		return fmt.Errorf("%s: there is no such command %q", line, words[len(strings.Fields(m[1]))-1])
	}
	for _, f := range flag.FindAllString(strings.Join(args, " "), -1) {
		if !regexp.MustCompile(f + `\b[^-]`).MatchString(help) {
			return fmt.Errorf("%s: there is no flag %s", line, f)
		}
	}
	return nil
}

func TestCommandsThatAreNot(t *testing.T) {
	for line, want := range map[string]string{
		"tabard serve --config tabard.yaml":                        "",
		"tabard groups add platform bob --until 8h --reason \"x\"": "",
		"tabard config check FILE":                                 "",
		"tabard swerve --config tabard.yaml":                       `no such command "swerve"`,
		"tabard groups increase platform":                          `no such command "increase"`,
		"tabard serve --conf tabard.yaml":                          "no flag --conf",
		"tabard serve --config tabard.yaml --port 1":               "no flag --port",
		"tabard groups":                                            "",
		"kubectl tabard get-token --cluster prod":                  "",
		"kubectl tabard get-tokens":                                `no such command "get-tokens"`,
		"kubectl tabard-not get-token":                             "no program kubectl-tabard-not",
	} {
		err := understood(line)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestLinksInDocs follows the links to files.
func TestLinksInDocs(t *testing.T) {
	links := 0
	for path, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
	}
	if links < 5 {
		t.Errorf("found only %d links", links)
	}
}
