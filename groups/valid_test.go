package groups

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"golang.org/x/text/unicode/norm"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

var names = []struct {
	name string
	ok   bool
}{
	{"platform", true},
	{"Platform Team", true},
	{"zoë", true},
	{"команда-α", true},
	{"רשת", true},
	{"🚀", true},
	{`*"\%00{}[]?`, true},
	{"a:b", true},
	{"corp", true}, // the prefix is "corp:"
	{"corporate", true},
	{"systems", true},
	{"system", true},
	{"x-system:y", true},
	{strings.Repeat("x", 128), true},
	{strings.Repeat("🚀", 128), true},
	{"", false},
	{" ", false},
	{strings.Repeat("x", 129), false},
	{strings.Repeat("x", 10<<10), false},
	{"a\x00b", false},
	{"a\nb", false},
	{"a\x1b[31mb", false},
	{"a\x7fb", false},
	{"a\u0085b", false},
	{"system:masters", false},
	{"System:masters", false},
	{"SYSTEM:", false},
	{"ſystem:masters", false}, // ſ is a small s
	{" system:masters", false},
	{"corp:devs", false},
	{"Corp:devs", false},
	{"corp:", false},
	{"lab-devs", false},
	{"LAB-devs", false},
	{norm.NFD.String("zoë"), false},
	{"a/b", false},
	{".", false},
	{"..", false},
	{".a", true},
	{"/", false},
	{"a,b", false},
	{" a", false},
	{"a ", false},
	{"a\u00a0b", false},     // no-break space
	{"a\u2003b", false},     // em space
	{"\u202egnp", false},    // right-to-left override
	{"abc\u200f", false},    // right-to-left mark
	{"a\u200bb", false},     // zero width space
	{"a\u3164", false},      // Hangul filler: a letter that shows as nothing
	{"a\u034f", false},      // grapheme joiner
	{"☸\ufe0f", false},      // variation selector
	{"\xff\xfe", false},     // not UTF-8
	{"a\xc0\xafb", false},   // an overlong slash
	{"a\ufeffb", false},     // byte order mark
	{"a\U000e0041b", false}, // tag
}

func TestName(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	for _, tt := range names {
		g, err := h.Create(t.Context(), admin, Settings{Name: tt.name, Description: "what it is for"})
		switch {
		case tt.ok && err != nil:
			t.Errorf("%.40q: %v, want it accepted", tt.name, err)
		case tt.ok:
			got, err := h.Get(t.Context(), admin, tt.name)
			if err != nil || got.Name != tt.name || g.Name != tt.name || got.Revision != g.Revision || !got.Created.Equal(g.Created) || got.Description != g.Description {
				t.Errorf("%.40q: created %v, got %v, %v", tt.name, g, got, err)
			}
		case !errors.Is(err, ErrInvalid):
			t.Errorf("%.40q: %v, want ErrInvalid", tt.name, err)
		}
	}
}

// FuzzName: whatever is accepted, nobody takes it for something else.
func FuzzName(f *testing.F) {
	for _, tt := range names {
		f.Add(tt.name)
	}
	s := &Service{cfg: Config{Reserved: []string{"corp:", "lab-"}}}
	f.Fuzz(func(t *testing.T, name string) {
		if s.validName(name) != nil {
			return
		}
		for _, p := range []string{"system:", "corp:", "lab-"} {
			if len(name) >= len(p) && strings.EqualFold(name[:len(p)], p) {
				t.Errorf("%q begins with %s", name, p)
			}
		}
		if !utf8.ValidString(name) || !norm.NFC.IsNormalString(name) || strings.TrimSpace(name) != name {
			t.Errorf("%q is not clean text", name)
		}
		for _, r := range name {
			if !unicode.IsPrint(r) || r == ',' {
				t.Errorf("%q holds %U", name, r)
			}
		}
		roundTrip(t, name, strings.Repeat("x", maxID))
	})
}

// roundTrip reads a group and a membership back from their keys.
func roundTrip(t *testing.T, name, id string) {
	t.Helper()
	x := newIndex(logrus.New())
	op, err := putRecord("g", record{Settings: Settings{Name: name}})
	must(t, err)
	for key, value := range map[string][]byte{op.Key: op.Value, nameKey(name): []byte("g"), memberKey("g", KindDirectoryGroup, id): append(make([]byte, spanSize), "{}"...)} {
		if err := store.CheckKey(key); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		x.apply(store.Event{Entry: store.Entry{Key: key, Value: value, Revision: 1}}, false)
	}
	if g := x.named(name); g == nil || g.Name != name || !x.has(g, Ref{Kind: KindDirectoryGroup, ID: id}) {
		t.Errorf("%q with member %q reads back as %v", name, id, x.contents())
	}
}

// FuzzMembership: whatever a value holds, the index and the listings agree on when it
// counts, and what was written is read back.
func FuzzMembership(f *testing.F) {
	for _, m := range []Member{person("alice"), until(person("bob"), time.Unix(4102444800, 1000)), from(directoryGroup("corp:x"), time.Unix(1, 0))} {
		value, err := encodeMember(m)
		must(f, err)
		f.Add(value, int64(5))
		f.Add(value[:17], int64(-5))
	}
	f.Add([]byte("{}"), int64(0))
	f.Add(append(make([]byte, 16), "{x}"...), int64(0))
	f.Add(append(bytes.Repeat([]byte{0xff}, 16), "{}"...), int64(0))
	f.Fuzz(func(t *testing.T, value []byte, now int64) {
		now = max(now, -now, 1) % (1 << 55) // to the year 3111
		s, spanErr := decodeSpan(value)
		m, err := decodeMember(Ref{Kind: KindPerson, ID: "corp.1"}, value)
		if s.counts(now) != m.CountsAt(time.UnixMicro(now)) && (spanErr == nil || m.CountsAt(time.UnixMicro(now))) && now > 2000 {
			t.Errorf("%x at %d: the index says %t, a listing %t", value, now, s.counts(now), m.CountsAt(time.UnixMicro(now)))
		}
		if spanErr != nil && s.counts(now) {
			t.Errorf("%x is damaged, and counts", value)
		}
		if err != nil {
			return
		}
		again, encErr := encodeMember(m)
		if encErr != nil { // a time that JSON reads and does not write
			return
		}
		back, err := decodeMember(Ref{Kind: KindPerson, ID: "corp.1"}, again)
		if err != nil || !back.Begin.Equal(m.Begin) || !back.End.Equal(m.End) || back.Reason != m.Reason || back.Name != m.Name {
			t.Errorf("%+v reads back as %+v, %v", m, back, err)
		}
	})
}

func TestMember(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	longest := strings.Repeat("🚀", maxName)
	h.group(longest)
	with := func(change func(*Member)) Member {
		m := person("alice")
		change(&m)
		return m
	}
	for _, tt := range []struct {
		what string
		m    Member
		ok   bool
	}{
		{"a person", person("alice"), true},
		{"a directory group", directoryGroup("corp:devs"), true},
		{"of the other directory", directoryGroup("lab-devs"), true},
		{"with slashes", directoryGroup("corp:a/b/c"), true},
		{"the longest id", with(func(m *Member) { m.ID = strings.Repeat("x", maxID) }), true},
		{"the longest directory group", directoryGroup("corp:" + strings.Repeat("x", maxID-5)), true},
		{"an end ahead", with(func(m *Member) { m.End = time.Now().Add(time.Hour) }), true},
		{"an end ahead in another zone", with(func(m *Member) { m.End = time.Now().Add(time.Hour).In(time.FixedZone("", 3601)) }), true},
		{"a begin ahead", with(func(m *Member) { m.Begin = time.Now().Add(time.Hour) }), true},
		{"a begin ahead and an end", with(func(m *Member) { m.Begin, m.End = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour) }), true},
		{"an end before its begin", with(func(m *Member) { m.Begin, m.End = time.Now().Add(2*time.Hour), time.Now().Add(time.Hour) }), false},
		{"an end as it begins", with(func(m *Member) { m.Begin = time.Now().Add(time.Hour); m.End = m.Begin }), false},
		{"the longest reason", with(func(m *Member) { m.Reason = strings.Repeat("x", maxText) }), true},
		{"no prefix", directoryGroup("devs"), false},
		{"an unknown prefix", directoryGroup("other:devs"), false},
		{"a prefix in other case", directoryGroup("Corp:devs"), false},
		{"a prefix alone", directoryGroup("corp:"), false},
		{"a group in NFD", directoryGroup(norm.NFD.String("corp:zoë")), false},
		{"a group with a space behind", directoryGroup("corp:devs "), false},
		{"no kind", Member{Ref: Ref{ID: "corp.1"}}, false},
		{"a kind with a slash", Member{Ref: Ref{Kind: "person/x", ID: "corp.1"}}, false},
		{"no id", Member{Ref: Ref{Kind: KindPerson}}, false},
		{"an id too long", with(func(m *Member) { m.ID = strings.Repeat("x", maxID+1) }), false},
		{"an id with a line feed", with(func(m *Member) { m.ID = "corp.1\n" }), false},
		{"an id that is not UTF-8", with(func(m *Member) { m.ID = "corp.\xff" }), false},
		{"an end just past", with(func(m *Member) { m.End = time.Now().Add(-time.Millisecond) }), false},
		{"an end in 1970", with(func(m *Member) { m.End = time.Unix(0, 0) }), false},
		{"an end that JSON has no form for", with(func(m *Member) { m.End = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }), false},
		{"a name too long", with(func(m *Member) { m.Name = strings.Repeat("x", 2<<20) }), false},
		{"a name with an escape", with(func(m *Member) { m.Name = "\x1b[2J" }), false},
		{"a reason too long", with(func(m *Member) { m.Reason = strings.Repeat("x", maxText+1) }), false},
		{"a reason with an escape", with(func(m *Member) { m.Reason = "see\x1b]0;owned\a" }), false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			before := len(h.inStore())
			_, err := h.Add(t.Context(), admin, longest, 0, tt.m)
			if tt.ok {
				must(t, err)
				_, err := h.Remove(t.Context(), admin, longest, 0, tt.m.Kind, tt.m.ID)
				must(t, err)
			} else if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v, want ErrInvalid", err)
			}
			if after := len(h.inStore()); after != before {
				t.Errorf("%d records, were %d", after, before)
			}
		})
	}
}

func TestDescription(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	for _, d := range []string{strings.Repeat("x", maxText+1), "\x1b[2J", "\xff"} {
		if _, err := h.Create(t.Context(), admin, Settings{Name: "a", Description: d}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %v, want ErrInvalid", d, err)
		}
	}
	_, err := h.Create(t.Context(), admin, Settings{Name: "a", Description: strings.Repeat("x", maxText)})
	must(t, err)
}

func TestEmptyPrefix(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	if _, err := Open(t.Context(), h.bolt, h.trail, Config{Reserved: []string{"corp:", ""}}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("opened with an empty prefix: %v", err)
	}
}
