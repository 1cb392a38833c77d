package web

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/testenv"
)

// visit signs login in and opens the page at path.
func (h *house) visit(b *testenv.Browser, login, path string) {
	h.t.Helper()
	b.Navigate(h.URL + path)
	b.Type("#username", login)
	b.Type("#password", password)
	b.Press("Enter")
	b.WaitFor(`document.getElementById("password") === null`)
}

// tab strikes the Tab key until what the selector matches has the focus, and wants it
// to be seen.
func tab(t *testing.T, b *testenv.Browser, selector string) {
	t.Helper()
	quoted, err := json.Marshal(selector)
	must(t, err)
	for range 80 {
		b.Press("Tab")
		if b.Eval(`document.activeElement.matches(`+string(quoted)+`)`) == true {
			if b.Eval(`getComputedStyle(document.activeElement).outlineStyle`) == "none" {
				t.Errorf("%s has the focus and does not show it", selector)
			}
			return
		}
	}
	t.Fatalf("the Tab key does not lead to %s at %s", selector, b.URL())
}

const refused = `document.activeElement.getAttribute("role") === "alert"`

func told(words string) string {
	return fmt.Sprintf(`document.activeElement.getAttribute("role") === "status" && document.activeElement.textContent.includes(%q)`, words)
}

// Everything can be done by keyboard, and after each act the focus is on what it did.
func TestChromiumByKeyboard(t *testing.T) {
	h := newHouse(t)
	b := testenv.Chromium(t)
	h.visit(b, "carol", "/groups")
	tab(t, b, "#name")
	b.Type(":focus", "platform")
	tab(t, b, "details button")
	b.Press("Enter")
	b.WaitFor(told("Group created"))

	tab(t, b, "#who")
	b.Type(":focus", "nobody")
	b.Press("Enter")
	b.WaitFor(refused)
	tab(t, b, "#who")
	b.Type(":focus", "bob")
	tab(t, b, "#reason")
	b.Type(":focus", "<img src=x onerror=1>")
	b.Press("Enter")
	b.WaitFor(told("Member added"))

	tab(t, b, ".tools a[href$=edit]")
	b.Press("Enter")
	b.WaitFor(`document.title.startsWith("Settings of")`)
	tab(t, b, "[name=cluster]")
	b.Press("Space")
	tab(t, b, "#labels")
	b.Type(":focus", "team=core")
	tab(t, b, ".acts .primary")
	b.Press("Enter")
	b.WaitFor(told("Settings saved"))

	tab(t, b, "td.act .danger-text")
	b.Press("Enter")
	b.WaitFor(`document.title.startsWith("Remove bob")`)
	tab(t, b, "button.danger")
	b.Press("Enter")
	b.WaitFor(told("Member removed"))
	tab(t, b, ".tools .danger-text")
	b.Press("Enter")
	b.WaitFor(`document.title.startsWith("Delete platform")`)
	tab(t, b, "button.danger")
	b.Press("Enter")
	b.WaitFor(told("Group deleted"))
	for _, e := range b.ConsoleErrors() {
		if !strings.Contains(e, "422") { // the form that was refused
			t.Error(e)
		}
	}
}

// The pages do all that they do without a script.
func TestChromiumWithoutScript(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", 0))
	b := testenv.Chromium(t)
	b.SetJavaScript(false)
	h.visit(b, "carol", "/groups/platform/edit")
	b.Type("#who", "alice")
	b.Click("button[name=do]")
	b.WaitFor(`document.querySelector("input[name=owner]:checked") !== null`)
	b.Type("#name", "platform 2")
	b.Press("Enter") // saves: the first button of the form is not "Add owner"
	b.WaitFor(`document.title.startsWith("Rename platform")`)
	b.Click("button.danger")
	b.WaitFor(`document.querySelector("h1").textContent === "platform 2"`)
	if facts := b.Text(".facts"); !strings.Contains(facts, "alice") || !strings.Contains(facts, "Formerly") {
		t.Errorf("after the rename: %s", facts)
	}
	b.Click("input[value=directoryGroup]")
	b.Type("#who", "corp:devs")
	b.Click("section button.primary")
	b.WaitFor(`document.querySelectorAll("tbody tr").length === 2`)
	b.Click(".tools a")
	b.WaitFor(`document.title.startsWith("Everyone in")`)
	b.Click(".more")
	b.WaitFor(`document.querySelector(".opened ul") !== null`)

	b.Navigate(h.URL + "/groups/platform%202/edit")
	theirs := "theirs"
	_, err := h.groups.Edit(t.Context(), operator(), "platform 2", 0, groups.Change{Description: &theirs})
	must(t, err)
	b.Type("#description", "mine")
	b.Click(".acts .primary")
	b.WaitFor(`document.querySelector(".differ") !== null`)
	if both := b.Text(".differ"); !strings.Contains(both, "theirs") || !strings.Contains(both, "mine") {
		t.Errorf("the versions: %s", both)
	}
	b.Click(".acts .primary")
	b.WaitFor(`document.querySelector(".lead").textContent === "mine"`)
	for _, e := range b.ConsoleErrors() {
		if !strings.Contains(e, "412") {
			t.Error(e)
		}
	}
}

// As one types, people and local groups are offered; what is picked goes into the form.
func TestChromiumPickList(t *testing.T) {
	h := newHouse(t)
	h.create("platform")
	h.make(groups.Settings{Name: "oncall", Description: "carries the pager"})
	b := testenv.Chromium(t)
	h.visit(b, "carol", "/groups/platform")
	const options = `Array.from(document.getElementById("found").options, o => o.value + "|" + o.label).join("\n")`
	for _, page := range []string{"/groups/platform", "/groups/platform/edit"} {
		b.Navigate(h.URL + page)
		b.Type("#who", "al")
		b.WaitFor(options + ` === "alice|Alice Ångström · corp"`)
		b.WaitFor(`document.getElementById("found-hint").textContent.startsWith("1 found")`)
		b.Type("#who", "nobody")
		b.WaitFor(options + ` === ""`)
		b.Eval(`(f => { (f.elements.kind.length && f.elements.kind[0].type === "radio" ? f.elements.kind[2].click() : (f.elements.kind.value = "group", f.elements.kind.dispatchEvent(new Event("change", { bubbles: true })))) })(document.getElementById("who").form)`)
		b.Type("#who", "pag")
		b.WaitFor(options + ` === "oncall|carries the pager"`)
	}
	b.Navigate(h.URL + "/groups/platform")
	b.Type("#who", "al")
	b.WaitFor(options + ` !== ""`)
	b.Type("#who", "alice")
	b.Press("Enter")
	b.WaitFor(told("Member added"))
	if errs := b.ConsoleErrors(); len(errs) > 0 {
		t.Error(errs)
	}
	h.corp.down.Store(true)
	h.lab.down.Store(true) // one that answers would be enough
	b.Type("#who", "car")
	b.WaitFor(`document.getElementById("found-hint").textContent.startsWith("Nothing can be looked up")`)
}

// No page is wider than its screen, whatever people type, and none breaks its policy.
func TestChromiumPagesFit(t *testing.T) {
	h := newHouse(t)
	long := strings.Repeat("m", 128)
	labels := map[string]string{}
	for i := range 32 {
		labels[fmt.Sprintf("example.com/%s%02d", strings.Repeat("l", 60), i)] = strings.Repeat("v", 60)
	}
	m := directoryGroup("corp:" + long)
	m.Reason, m.End = strings.Repeat("w", 512), time.Now().Add(time.Hour)
	later := directoryGroup("corp:devs")
	later.Begin = time.Now().Add(time.Hour)
	h.make(groups.Settings{Name: long, Description: strings.Repeat("d", 512), Labels: labels, Owners: []groups.Ref{personRef("carol"), {Kind: groups.KindDirectoryGroup, ID: m.ID, Name: m.ID}}}, m, later, person("carol", 0))
	h.create("outer", localGroup(long))
	b := testenv.Chromium(t)
	h.visit(b, "carol", "/groups")
	for _, width := range []int{1280, 800, 610, 390, 320} {
		b.SetViewport(width, 800, width < 600, width%20 == 0)
		for _, path := range []string{
			"/", "/groups", "/groups?label=team%3Dx&q=" + long, "/groups/" + long, "/groups/" + long + "/edit", "/groups/" + long + "/everyone?open=corp:devs",
			"/groups/" + long + "/delete", "/groups/" + long + "/remove?kind=directoryGroup&id=corp:" + long, "/groups/outer/everyone", "/explain",
		} {
			b.Navigate(h.URL + path)
			if over := b.Eval(`document.documentElement.scrollWidth > innerWidth`); over != false {
				t.Errorf("at %d %.60s is wider than the screen", width, path)
			}
			if over := b.Eval(`innerWidth > 600 && Array.from(document.querySelectorAll("th, td")).filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent).join("; ")`); over != false && over != "" {
				t.Errorf("at %d a cell of %.60s is too narrow for %.200s", width, path, over)
			}
			if small := b.Eval(`Array.from(document.querySelectorAll("main :is(button, .button, .act a, .chip, .tag)"), e => e.getBoundingClientRect()).some(r => r.height > 1 && r.height < 24)`); small != false {
				t.Errorf("at %d %.60s has a target under 24 px", width, path)
			}
		}
	}
	if errs := b.ConsoleErrors(); len(errs) > 0 {
		t.Error(errs)
	}
}
