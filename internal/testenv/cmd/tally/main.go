// Tally runs `go test -json` with the arguments after --, prints what a person wants
// to read (packages, failures, skips) and ends with the line "N passed, N
// failed, N skipped". It exits 1 when go test fails, and where CI=true is set
// also when a test was skipped. With -summary FILE that line is also written to FILE.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	summary := flag.String("summary", "", "file to write the last line to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Args(), *summary); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, summary string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	// The go command passes an interrupt on and lets tests stop their processes.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("read from go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	t := newTally(os.Stdout)
	readErr := t.read(out)
	testErr := cmd.Wait()
	fmt.Println(t)
	if summary != "" {
		if err := os.WriteFile(summary, []byte(t.String()+"\n"), 0o644); err != nil {
			return fmt.Errorf("write the summary: %w", err)
		}
	}
	return errors.Join(readErr, testErr, t.verdict(os.Getenv("CI") == "true"))
}

// tally counts tests, subtests included, and holds back the output of each
// until it is known whether the test passed.
type tally struct {
	out                     io.Writer
	passed, failed, skipped int
	output                  map[string]map[string]string // package → test → text
	failedIn                map[string]bool              // packages with a failed test
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, output: map[string]map[string]string{}, failedIn: map[string]bool{}}
}

func (t *tally) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.passed, t.failed, t.skipped)
}

// verdict is an error when the counts alone say that the run failed.
func (t *tally) verdict(ci bool) error {
	switch {
	case t.failed > 0:
		return errors.New("a test failed")
	case t.passed == 0:
		return errors.New("no test ran")
	case ci && t.skipped > 0:
		return errors.New("a test was skipped, which CI=true forbids")
	}
	return nil
}

// event is one line of `go test -json`; see `go doc test2json`.
type event struct{ Action, Package, Test, Output string }

func (t *tally) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		var e event
		if json.Unmarshal([]byte(line), &e) == nil {
			t.add(e)
		} else {
			fmt.Fprint(t.out, line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from go test: %w", err)
		}
	}
}

func (t *tally) add(e event) {
	switch {
	case e.Action == "build-output":
		fmt.Fprint(t.out, e.Output)
	case e.Action == "output":
		t.keep(e)
	case e.Test == "":
		t.endPackage(e)
	case e.Action == "pass":
		t.passed++
		delete(t.output[e.Package], e.Test)
	case e.Action == "fail":
		t.failed++
		t.failedIn[e.Package] = true
		t.show(e.Package, e.Test)
	case e.Action == "skip":
		t.skipped++
		t.show(e.Package, e.Test)
	}
}

func (t *tally) keep(e event) {
	if t.output[e.Package] == nil {
		t.output[e.Package] = map[string]string{}
	}
	if strings.HasPrefix(e.Output, "=== ") {
		return // RUN, PAUSE, CONT: nobody reads them
	}
	t.output[e.Package][e.Test] += e.Output
}

func (t *tally) show(pkg, test string) {
	fmt.Fprint(t.out, t.output[pkg][test])
	delete(t.output[pkg], test)
}

// endPackage prints the package's own lines, and what tests wrote that a crash
// left without an end. A package that failed without a failed test, because it
// crashed or does not compile, counts as one.
func (t *tally) endPackage(e event) {
	if e.Action != "pass" && e.Action != "fail" && e.Action != "skip" {
		return
	}
	if e.Action == "fail" {
		if !t.failedIn[e.Package] {
			t.failed++
		}
		for test := range t.output[e.Package] {
			if test != "" {
				t.show(e.Package, test)
			}
		}
	}
	for line := range strings.Lines(t.output[e.Package][""]) {
		if line != "PASS\n" && !strings.Contains(line, "[no test files]") {
			fmt.Fprint(t.out, line)
		}
	}
	delete(t.output, e.Package)
}
