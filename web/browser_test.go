package web

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/testenv"
)

// open shows h's sign-in page for a client at redirect.
func (h *house) open(b *testenv.Browser, redirect string) {
	h.t.Helper()
	sealed, binding := h.authorize("kubernetes", redirect)
	b.Navigate(h.URL + "/start?binding=" + url.QueryEscape(binding) + "&request=" + url.QueryEscape(sealed))
	b.WaitFor(`document.title.startsWith("Sign in to use prod")`)
}

// start stands in for the provider's /authorize.
func (h *house) start(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/start" {
			next.ServeHTTP(w, r)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: idp.SignInCookie, Value: r.FormValue("binding"), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		http.Redirect(w, r, "/sign-in?request="+url.QueryEscape(r.FormValue("request")), http.StatusSeeOther)
	})
}

// client starts an application that waits for its code, and returns its redirect
// URI: the address to listen on may go by another name there.
func client(t *testing.T, address, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		testenv.Skip(t, fmt.Sprintf("this machine cannot listen on %s: %v", address, err))
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "<title>client</title>code %d", len(r.FormValue("code")))
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	return "http://" + host + ":" + port + "/callback"
}

// The policy of the page holds for the redirect after the post too: each kind of
// address that a client can have must be let through, by Chromium itself.
func TestChromiumSignsInToEachKindOfClient(t *testing.T) {
	clients := []string{client(t, "127.0.0.1:0", "localhost"), client(t, "127.0.0.1:0", "127.0.0.1"), client(t, "[::1]:0", "[::1]")}
	h := newHouse(t, clients...)
	h.Config.Handler = h.start(h.Config.Handler)
	b := testenv.Chromium(t)
	for _, redirect := range clients {
		for _, script := range []bool{true, false} {
			b.SetJavaScript(script)
			h.open(b, redirect)
			b.Type("#username", "alice")
			b.Type("#password", "wrong")
			b.Click("button.primary")
			b.WaitFor(`document.activeElement.getAttribute("role") === "alert"`)
			if got := b.Eval(`document.getElementById("username").value + "|" + document.getElementById("password").value`); got != "alice|" {
				t.Errorf("%s: the form holds %v", redirect, got)
			}
			b.Type("#password", password)
			b.Click("button.primary")
			b.WaitFor(`document.title === "client"`)
			if text := b.Text("body"); !strings.HasPrefix(text, "code ") || text == "code 0" {
				t.Errorf("%s got %q", redirect, text)
			}
		}
	}
	for _, e := range b.ConsoleErrors() {
		if !strings.Contains(e, "422") && !strings.Contains(e, "favicon") {
			t.Error(e)
		}
	}
}

// Nothing on the sign-in page moves between tries, on a desk or on a phone.
func TestChromiumSignInStaysInPlace(t *testing.T) {
	h := newHouse(t)
	b := testenv.Chromium(t)
	const place = `JSON.stringify(["username","password"].map(id => document.getElementById(id).getBoundingClientRect()).concat(document.querySelector("button.primary").getBoundingClientRect()))`
	for _, width := range []int{1280, 390, 320} {
		b.SetViewport(width, 800, width < 600, false)
		b.Navigate(h.URL + "/sign-in")
		before := b.Eval(place)
		b.Type("#username", "alice")
		b.Type("#password", "wrong")
		b.Click("button.primary")
		b.WaitFor(`document.querySelector("[role=alert]") !== null`)
		if after := b.Eval(place); after != before {
			t.Errorf("at %d: was %v, is %v", width, before, after)
		}
		if wide := b.Eval(`document.documentElement.scrollWidth > innerWidth`); wide != false {
			t.Errorf("at %d the page is wider than the screen", width)
		}
	}
}

// A whole visit by mouse and keyboard: the browser's own Origin, Sec-Fetch-Site and
// cookie rules have to let our forms through, and no page may break its policy.
func TestChromiumManagesGroups(t *testing.T) {
	h := newHouse(t)
	b := testenv.Chromium(t)
	for _, width := range []int{1280, 390} {
		b.SetViewport(width, 800, width < 600, width < 600)
		b.Navigate(h.URL + "/groups")
		if width == 1280 {
			b.Type("#username", "carol")
			b.Type("#password", password)
			b.Press("Enter")
		}
		b.WaitFor(`document.querySelector("h1").textContent.startsWith("Groups")`)
		b.Type("#name", "platform")
		b.Click("details button.primary")
		b.WaitFor(`document.activeElement.getAttribute("role") === "status"`)
		b.Type("#who", "bob")
		b.Type("#reason", "<img src=x onerror=1>")
		b.Click("section button.primary")
		b.WaitFor(`document.querySelector("tbody") !== null`)
		if wide := b.Eval(`document.documentElement.scrollWidth > innerWidth`); wide != false {
			t.Errorf("at %d the page is wider than the screen", width)
		}
		b.Click("td.act .danger-text")
		b.WaitFor(`document.querySelector("button.danger") !== null`)
		b.Click("button.danger")
		b.WaitFor(`document.querySelector(".empty") !== null`)
		b.Click(".tools .danger-text")
		b.WaitFor(`document.querySelector("button.danger") !== null`)
		b.Click("button.danger")
		b.WaitFor(`document.querySelector(".banner.good") !== null`)
	}
	b.Navigate(h.URL + "/sign-out")
	b.Click("main button.primary")
	b.WaitFor(`document.title.startsWith("Signed out")`)
	if errs := b.ConsoleErrors(); len(errs) > 0 {
		t.Error(errs)
	}
}

// What the script adds: the password can be seen and is hidden again before it is
// sent, and a chosen theme stays.
func TestChromiumScript(t *testing.T) {
	h := newHouse(t)
	b := testenv.Chromium(t)
	b.Navigate(h.URL + "/sign-in")
	b.Type("#password", "wrong")
	b.Click("#reveal")
	if kind := b.Eval(`document.getElementById("password").type`); kind != "text" {
		t.Errorf("after Show the field is a %v", kind)
	}
	b.Click("#theme")
	b.Type("#username", "alice")
	b.Click("button.primary")
	b.WaitFor(`document.querySelector("[role=alert]") !== null`)
	if theme := b.Eval(`document.documentElement.dataset.theme + "|" + document.getElementById("theme").textContent`); theme != "dark|Light theme" {
		t.Errorf("theme %v", theme)
	}
	if kind := b.Eval(`document.getElementById("password").type`); kind != "password" {
		t.Errorf("the next try begins with a %v", kind)
	}
}

// broken is the words of a table that go on in the next line though they are short,
// the links and buttons that stick out of their table, and what touches it or the head.
const broken = `Array.from(document.querySelectorAll("table"), table => {
	const found = [], words = document.createTreeWalker(table, NodeFilter.SHOW_TEXT), edge = table.getBoundingClientRect().right
	for (let n; n = words.nextNode();) if (!n.parentElement.closest("thead, dl, .sr")) for (const m of n.data.matchAll(/[^\s\/<>()\[\]-]+/g)) {
		const r = document.createRange()
		r.setStart(n, m.index)
		r.setEnd(n, m.index + m[0].length)
		if (m[0].length < 20 && new Set(Array.from(r.getClientRects(), l => l.top)).size > 1) found.push(m[0])
	}
	return found.concat(Array.from(table.querySelectorAll(".act a, .act button")).filter(e => e.getBoundingClientRect().right > edge).map(e => "out: " + e.textContent))
}).flat().concat(Array.from(document.querySelectorAll("main > table + form, .head + .lead"))
	.filter(e => Array.from(e.previousElementSibling.querySelectorAll("td, .button")).some(b => e.getBoundingClientRect().top - b.getBoundingClientRect().bottom < 8))
	.map(e => "touched: " + e.textContent)).join("; ")`

// Short values stay in one piece and nothing sticks out of a table, on a desk, in half
// a window and on a phone.
func TestChromiumTablesRead(t *testing.T) {
	h := newHouse(t)
	searchable(t, h, append(someEvents(),
		audit.Event{Act: "group.member.remove", Who: "corp.id-carol", Name: "carol", On: "platform", Outcome: audit.Done, Address: "192.168.100.200"},
		audit.Event{Act: "token.exchange", Outcome: audit.Denied, Reason: strings.Repeat("the account has no such group ", 8), Address: "2001:db8:85a3:8d3:1319:8a2e:370:7348"},
		audit.Event{Act: "group.create", Who: "corp.id-carol", Name: "carol", On: strings.Repeat("m", 128), Outcome: audit.Done, Address: "127.0.0.1"})...)
	m := person("bob", 2*time.Hour)
	m.Reason = "carries the pager this week and looks after the deployment"
	h.create("platform", m, directoryGroup("corp:devs"), person("alice", 0))
	h.as("carol")
	b := testenv.Chromium(t)
	h.visit(b, "carol", "/sessions")
	for _, width := range []int{1280, 1060, 1000, 960, 800, 700, 390} {
		b.SetViewport(width, 900, width < 600, false)
		for _, path := range []string{"/audit", "/groups/platform", "/groups/platform/everyone", "/sessions", "/sessions?everyone", "/explain"} {
			b.Navigate(h.URL + path)
			if found := b.Eval(broken); found != "" {
				t.Errorf("at %d %s breaks %v", width, path, found)
			}
			if wide := b.Eval(`document.documentElement.scrollWidth > innerWidth`); wide != false {
				t.Errorf("at %d %s is wider than the screen", width, path)
			}
			if dir := os.Getenv("TABARD_SHOTS"); dir != "" {
				b.Screenshot(filepath.Join(dir, strings.NewReplacer("/", "-", "?", "-").Replace(path[1:])+fmt.Sprintf("-%d.png", width)))
			}
		}
	}
}
