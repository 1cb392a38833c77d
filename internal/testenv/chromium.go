package testenv

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	browserCallTimeout = 3 * time.Minute
	browserPoll        = 25 * time.Millisecond
)

// Browser is a headless Chromium with one page and an empty profile. A method
// that does not succeed ends the test. It accepts any server certificate.
type Browser struct {
	*Process

	t       testing.TB
	conn    *cdp
	session string

	mu     sync.Mutex
	errors []string
}

// Chromium starts a browser that ends with the test.
func Chromium(t testing.TB) *Browser {
	t.Helper()
	b := &Browser{t: t}
	path := Path(t, "chromium")
	fromUs, toBrowser := pipe(t)
	fromBrowser, toUs := pipe(t)
	args := []string{
		"--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--ignore-certificate-errors",
		"--user-data-dir=" + profile(t), "--remote-debugging-pipe", "about:blank",
	}
	b.Process = Start(t, Command{Path: path, Args: args, ExtraFiles: []*os.File{fromUs, toUs}})
	// Only Chromium may hold these ends, so that its end is the pipes' end.
	fromUs.Close()
	toUs.Close()
	b.conn = newCDP(fromBrowser, toBrowser, b.event)
	t.Cleanup(func() {
		b.Stop()
		<-b.conn.done
	})
	b.attach()
	return b
}

// profile makes a folder that is removed when the browser is gone: some of its processes
// write there for a moment longer than it lives, which t.TempDir would report.
func profile(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chromium")
	if err != nil {
		t.Fatalf("make a folder for Chromium: %v", err)
	}
	t.Cleanup(func() {
		for range 1200 {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("remove Chromium's folder: %v", err)
	})
	return dir
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatalf("make a pipe to Chromium: %v", err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// attach opens the page and turns on the events that ConsoleErrors gathers.
func (b *Browser) attach() {
	b.t.Helper()
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", struct{}{}, nil)
	}
}

// tryCall sends one command of the DevTools protocol to the page.
func (b *Browser) tryCall(method string, params, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), browserCallTimeout)
	defer cancel()
	return b.conn.call(ctx, b.session, method, params, result)
}

func (b *Browser) call(method string, params, result any) {
	b.t.Helper()
	if err := b.tryCall(method, params, result); err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
}

// Navigate opens url and waits until it has loaded.
func (b *Browser) Navigate(url string) {
	b.t.Helper()
	var answer struct{ ErrorText string }
	b.call("Page.navigate", map[string]any{"url": url}, &answer)
	if answer.ErrorText != "" {
		b.t.Fatalf("chromium: open %s: %s", url, answer.ErrorText)
	}
	b.WaitFor("true")
}

// Eval returns the value of a JavaScript expression, awaited when it is a
// promise: nil, bool, float64, string, []any or map[string]any.
func (b *Browser) Eval(js string) any {
	b.t.Helper()
	v, err := b.tryEval(js)
	if err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
	return v
}

func (b *Browser) tryEval(js string) (any, error) {
	var answer struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	params := map[string]any{"expression": js, "returnByValue": true, "awaitPromise": true}
	if err := b.tryCall("Runtime.evaluate", params, &answer); err != nil {
		return nil, fmt.Errorf("evaluate %s: %w", js, err)
	}
	if d := answer.ExceptionDetails; d != nil {
		return nil, fmt.Errorf("evaluate %s: %s %s", js, d.Text, d.Exception.Description)
	}
	return answer.Result.Value, nil
}

// Text returns the text of the first element that the CSS selector matches.
func (b *Browser) Text(selector string) string {
	b.t.Helper()
	b.waitForElement(selector)
	text, _ := b.Eval(element(selector) + ".innerText").(string)
	return text
}

// WaitFor waits until a page has loaded on which the JavaScript expression js is true,
// for at most 3 minutes. Before that its styles and its buttons may be missing.
func (b *Browser) WaitFor(js string) {
	b.t.Helper()
	deadline := time.Now().Add(browserCallTimeout)
	for {
		v, err := b.tryEval(`document.readyState === "complete" && Boolean(` + js + ")") // fails while a page is being replaced
		if v == true {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("chromium: waited for %s at %s: %v", js, b.URL(), err)
		}
		time.Sleep(browserPoll)
	}
}

// Click presses the left mouse button in the middle of the first element that
// the CSS selector matches, once it is there.
func (b *Browser) Click(selector string) {
	b.t.Helper()
	b.waitForElement(selector)
	at, _ := b.Eval(`(e => { e.scrollIntoView({block: "center", behavior: "instant"}); const r = e.getBoundingClientRect();
		return [r.x + r.width / 2, r.y + r.height / 2] })(` + element(selector) + `)`).([]any)
	for _, event := range []string{"mousePressed", "mouseReleased"} {
		b.call("Input.dispatchMouseEvent", map[string]any{"type": event, "x": at[0], "y": at[1], "button": "left", "clickCount": 1}, nil)
	}
}

// Type puts text into the field that the CSS selector matches, in place of
// what it held, as an input method does.
func (b *Browser) Type(selector, text string) {
	b.t.Helper()
	b.waitForElement(selector)
	b.Eval(`(e => { e.focus(); e.select() })(` + element(selector) + `)`)
	b.call("Input.insertText", map[string]any{"text": text}, nil)
}

// Press strikes one key, with what has the focus: Tab, Enter, Escape, Space,
// ArrowUp or ArrowDown.
func (b *Browser) Press(key string) {
	b.t.Helper()
	code, text, name := 0, "", key
	switch key {
	case "Tab":
		code = 9
	case "Enter":
		code, text = 13, "\r"
	case "Escape":
		code = 27
	case "Space":
		code, text, name = 32, " ", " "
	case "ArrowUp":
		code = 38
	case "ArrowDown":
		code = 40
	default:
		b.t.Fatalf("chromium: unknown key %q", key)
	}
	params := map[string]any{"type": "keyDown", "key": name, "code": key, "windowsVirtualKeyCode": code, "text": text}
	b.call("Input.dispatchKeyEvent", params, nil)
	params["type"] = "keyUp"
	delete(params, "text")
	b.call("Input.dispatchKeyEvent", params, nil)
}

// URL is where the page is now.
func (b *Browser) URL() string {
	b.t.Helper()
	var history struct {
		CurrentIndex int
		Entries      []struct{ URL string }
	}
	b.call("Page.getNavigationHistory", struct{}{}, &history)
	return history.Entries[history.CurrentIndex].URL
}

// Screenshot writes the whole page to path as PNG.
func (b *Browser) Screenshot(path string) {
	b.t.Helper()
	var shot struct{ Data []byte }
	b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &shot)
	if err := os.WriteFile(path, shot.Data, 0o644); err != nil {
		b.t.Fatalf("write the screenshot: %v", err)
	}
}

// SetViewport sets the page's size in CSS pixels, whether it is a phone with a
// touch screen, and whether the person prefers dark colours.
func (b *Browser) SetViewport(width, height int, mobile, dark bool) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}, nil)
	b.call("Emulation.setTouchEmulationEnabled", map[string]any{"enabled": mobile}, nil)
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// SetJavaScript turns the page's own scripts on or off; Eval works either way.
func (b *Browser) SetJavaScript(enabled bool) {
	b.t.Helper()
	b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": !enabled}, nil)
}

// ConsoleErrors returns what went wrong in the page so far, in order:
// violations of its Content-Security-Policy ("security: …"), failed requests
// ("network: …"), uncaught exceptions and console.error ("javascript: …").
func (b *Browser) ConsoleErrors() []string {
	b.Eval("0") // what happened before it has been reported when it answers
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.errors)
}

func (b *Browser) event(method string, params json.RawMessage) {
	if line := consoleError(method, params); line != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.errors = append(b.errors, line)
	}
}

// consoleError is the line for an event that reports an error, or "".
func consoleError(method string, params json.RawMessage) string {
	var p struct {
		Type  string
		Args  []struct{ Value any }
		Entry struct{ Source, Level, Text, URL string }

		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	if err := json.Unmarshal(params, &p); err != nil {
		return fmt.Sprintf("unreadable event %s: %v", method, err)
	}
	switch {
	case method == "Log.entryAdded" && p.Entry.Level == "error":
		return fmt.Sprintf("%s: %s %s", p.Entry.Source, p.Entry.Text, p.Entry.URL)
	case method == "Runtime.exceptionThrown":
		return fmt.Sprintf("javascript: %s %s", p.ExceptionDetails.Text, p.ExceptionDetails.Exception.Description)
	case method == "Runtime.consoleAPICalled" && p.Type == "error":
		return fmt.Sprintf("javascript: %v", p.Args)
	}
	return ""
}

func (b *Browser) waitForElement(selector string) {
	b.t.Helper()
	b.WaitFor(element(selector))
}

// element is the JavaScript expression for the first match of a CSS selector.
func element(selector string) string {
	quoted, _ := json.Marshal(selector) // a string always encodes
	return "document.querySelector(" + string(quoted) + ")"
}
