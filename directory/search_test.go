package directory

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-ldap/ldap/v3"
	"github.com/jimlambrt/gldap"

	"github.com/tabard-id/tabard/internal/testenv"
)

// windows is a server that answers as Windows' Active Directory does and no
// other server here: with ranges, referrals and size limits.
type windows struct {
	url    string
	binds  atomic.Int32
	values int    // of member
	step   int    // values in one answer
	breaks string // how the answers are wrong, if they are
}

func startWindows(t *testing.T, w *windows) *windows {
	t.Helper()
	s, err := gldap.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	mux, err := gldap.NewMux()
	if err != nil {
		t.Fatal(err)
	}
	mux.Bind(w.bind)
	mux.Search(w.search)
	s.Router(mux)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testenv.FreePort(t)))
	done := make(chan error, 1)
	go func() { done <- s.Run(address) }()
	waitFor(t, "the server", s.Ready)
	t.Cleanup(func() {
		w.binds.Load() // orders gldap's count of connections before its wait for them
		s.Stop()
		<-done
	})
	w.url = "ldap://" + address
	return w
}

func (w *windows) config() Config {
	return Config{Name: "corp", Type: TypeActiveDirectory, URLs: []string{w.url}, InsecurePlaintext: true, BindDN: "cn=tabard", BindPassword: "secret"}
}

func (w *windows) bind(out *gldap.ResponseWriter, r *gldap.Request) {
	w.binds.Add(1)
	code := gldap.ResultSuccess
	if m, err := r.GetSimpleBindMessage(); err != nil || m.UserName == "cn=elsewhere" {
		code = gldap.ResultReferral
	}
	res := r.NewBindResponse(gldap.WithResponseCode(code))
	out.Write(res)
}

func (w *windows) search(out *gldap.ResponseWriter, r *gldap.Request) {
	code := gldap.ResultSuccess
	m, err := r.GetSearchMessage()
	switch {
	case err != nil:
		code = gldap.ResultOperationsError
	case m.BaseDN == "":
		out.Write(r.NewSearchResponseEntry("", gldap.WithAttributes(map[string][]string{"defaultNamingContext": {"DC=corp"}})))
	case m.BaseDN == "DC=elsewhere":
		code = gldap.ResultReferral
	case m.BaseDN == "DC=many":
		for i := range 3 {
			out.Write(r.NewSearchResponseEntry(fmt.Sprintf("CN=%d,DC=many", i)))
		}
		code = gldap.ResultSizeLimitExceeded
	default:
		w.group(out, r, m.Attributes)
	}
	out.Write(r.NewSearchDoneResponse(gldap.WithResponseCode(code)))
}

// group sends step of the members, from the one that attributes ask for.
func (w *windows) group(out *gldap.ResponseWriter, r *gldap.Request, attributes []string) {
	from := 0
	for _, a := range attributes {
		if low, ok := strings.CutPrefix(a, "member;range="); ok {
			from, _ = strconv.Atoi(strings.TrimSuffix(low, "-*"))
		}
	}
	to, high := from+w.step, strconv.Itoa(from+w.step-1)
	if to >= w.values {
		to, high = w.values, "*"
	}
	var members []string
	for i := from; i < to; i++ {
		members = append(members, "CN="+strconv.Itoa(i))
	}
	name := fmt.Sprintf("member;range=%d-%s", from, high)
	switch {
	case w.breaks == "repeats" && from > 0:
		name = "member;range=0-" + high
	case w.breaks == "ends" && from > 0:
		members = nil
	case w.breaks == "backwards":
		name = "member;range=0--1"
	}
	out.Write(r.NewSearchResponseEntry("CN=g,DC=corp", gldap.WithAttributes(map[string][]string{"cn": {"g"}, "member": {}, name: members})))
}

func TestRanges(t *testing.T) {
	q := query{base: "DC=corp", scope: ldap.ScopeWholeSubtree, filter: "(cn=g)", attributes: []string{"cn", "member"}, limit: 10}
	for _, tc := range []struct{ values, step int }{{1, 1500}, {1500, 1500}, {1501, 1500}, {20_000, 1500}, {7, 1}} {
		d := open(t, startWindows(t, &windows{values: tc.values, step: tc.step}).config())
		ctx, cancel := d.budget(t.Context())
		found, err := d.search(ctx, q)
		cancel()
		if err != nil || len(found) != 1 {
			t.Fatalf("%+v: %v", tc, err)
		}
		got := found[0].GetEqualFoldAttributeValues("member")
		var want []string
		for i := range tc.values {
			want = append(want, "CN="+strconv.Itoa(i))
		}
		if !slices.Equal(got, want) || len(found[0].GetEqualFoldRawAttributeValues("member")) != tc.values || found[0].GetEqualFoldAttributeValue("cn") != "g" {
			t.Errorf("%+v: %d values", tc, len(got))
		}
	}
	for name, w := range map[string]*windows{
		"repeats":   {values: 10, step: 3, breaks: "repeats"},
		"ends":      {values: 10, step: 3, breaks: "ends"},
		"too many":  {values: maxValues + 100_000, step: 50_000},
		"backwards": {values: 10, step: 3, breaks: "backwards"},
	} {
		d := open(t, startWindows(t, w).config())
		ctx, cancel := d.budget(t.Context())
		found, err := d.search(ctx, q)
		cancel()
		if err == nil || found != nil {
			t.Errorf("%s: %d entries, %v: want an error and no part of an answer", name, len(found), err)
		}
	}
}

// TestReferral: whoever answers with a referral must not be sent a password by
// us at the place it names; and half an answer is none.
func TestReferral(t *testing.T) {
	w := startWindows(t, &windows{})
	d := open(t, w.config())
	ctx, cancel := d.budget(t.Context())
	defer cancel()
	if _, err := d.schema(ctx); err != nil {
		t.Fatal(err)
	}
	before := w.binds.Load()
	found, err := d.search(ctx, query{base: "DC=elsewhere", filter: "(cn=x)", limit: 1})
	if resultCode(err) != ldap.LDAPResultReferral || found != nil {
		t.Errorf("search: %v, %v", found, err)
	}
	wantErr(t, "bind", d.Bind(t.Context(), "cn=elsewhere", "x"), ErrUnavailable)
	if n := w.binds.Load() - before; n != 1 {
		t.Errorf("%d binds, want the one that was referred", n)
	}
	for _, limit := range []int{10, maxGroups} {
		found, err = d.search(ctx, query{base: "DC=many", filter: "(cn=x)", limit: limit})
		if resultCode(err) != ldap.LDAPResultSizeLimitExceeded || found != nil {
			t.Errorf("size limit: %d entries, %v", len(found), err)
		}
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"member;range=0-1499", "member;range=1500-*", "member", ";range=", "m;range=-1-5", "m;range=0-9223372036854775807", "m;range=5-3"} {
		f.Add(s, 0)
		f.Add(s, 1500)
	}
	f.Fuzz(func(t *testing.T, s string, first int) {
		name, next, ok := parseRange(s, first)
		switch {
		case !ok && (name != s || next != 0):
			t.Errorf("parseRange(%q, %d) = %q, %d, though there is none", s, first, name, next)
		case ok && (next != 0 && next <= first || len(name) >= len(s)):
			t.Errorf("parseRange(%q, %d) = %q, %d, which leads nowhere", s, first, name, next)
		}
	})
}
