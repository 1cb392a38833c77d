package testenv

import (
	"fmt"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testPage = `<!doctype html><title>form</title>
<style nonce="n">body { background: white } @media (prefers-color-scheme: dark) { body { background: black } }</style>
<form method="post"><input name="username" value="old"><input name="password" type="password"><button>Sign in</button></form>
<p id="scripted">off</p><script nonce="n">document.getElementById("scripted").innerText = "on"; console.error("complaint", 7)</script>
<script>document.title = "the policy failed"</script>`

func formServer(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "script-src 'nonce-n'; style-src 'nonce-n'")
		if r.Method == http.MethodPost {
			fmt.Fprintf(w, "<p id=got>%s/%s</p>", r.FormValue("username"), r.FormValue("password"))
			return
		}
		fmt.Fprint(w, testPage)
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestChromiumFillsAForm(t *testing.T) {
	srv, b := formServer(t), Chromium(t)
	b.Navigate(srv.URL + "/form")
	if b.URL() != srv.URL+"/form" || b.Eval("document.title") != "form" || b.Text("#scripted") != "on" {
		t.Errorf("at %s, title %v, script %s", b.URL(), b.Eval("document.title"), b.Text("#scripted"))
	}
	b.Type("[name=username]", "jörg")
	b.Type("[name=password]", `p"w`)
	b.Click("button")
	if got := b.Text("#got"); got != `jörg/p"w` {
		t.Errorf("the server got %q", got)
	}
	errs := strings.Join(b.ConsoleErrors(), "\n")
	if !strings.Contains(errs, "security: ") || !strings.Contains(errs, "complaint") {
		t.Errorf("console errors: %s", errs)
	}
}

func TestChromiumWithoutJavaScript(t *testing.T) {
	srv, b := formServer(t), Chromium(t)
	b.SetJavaScript(false)
	b.Navigate(srv.URL)
	if got := b.Text("#scripted"); got != "off" {
		t.Errorf("the page's script ran: %s", got)
	}
	b.Type("[name=username]", "bob")
	b.Press("Tab")
	if got := b.Eval("document.activeElement.name"); got != "password" {
		t.Errorf("after Tab the focus is on %v", got)
	}
	b.Press("Enter")
	if got := b.Text("#got"); got != "bob/" {
		t.Errorf("the server got %q", got)
	}
}

func TestChromiumViewport(t *testing.T) {
	srv, b := formServer(t), Chromium(t)
	for _, c := range []struct {
		width, height int
		mobile, dark  bool
		background    string
	}{
		{390, 844, true, true, "rgb(0, 0, 0)"},
		{1280, 800, false, false, "rgb(255, 255, 255)"},
	} {
		b.SetViewport(c.width, c.height, c.mobile, c.dark)
		b.Navigate(srv.URL)
		if got := b.Eval("getComputedStyle(document.body).backgroundColor"); got != c.background {
			t.Errorf("%+v: background %v", c, got)
		}
		path := filepath.Join(t.TempDir(), "page.png")
		b.Screenshot(path)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		shot, err := png.DecodeConfig(f)
		if err != nil || !c.mobile && shot.Width != c.width {
			t.Errorf("%+v: screenshot %+v, %v", c, shot, err)
		}
	}
}
