package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
)

const (
	applyPath  = "/api/v1/apply"
	exportPath = "/api/v1/export"

	maxApply   = 64 << 20 // bytes of a body of apply, from an administrator
	maxLookups = 1_000    // logins that one request may name instead of subs
	applyWait  = 20 * time.Second

	filesTime = 5 * time.Minute // how long such a request may take
)

var errApplying = &fault{Status: 429, Title: "Other files are being applied", Detail: "Nothing was done. One request at a time is taken; repeat this one.", RetryAfter: 10, Code: "too-many"}

// TimeFor is how long a request for a path below the issuer may take; 0: as long as
// any other.
func TimeFor(path string) time.Duration {
	switch path {
	case applyPath, exportPath:
		return filesTime
	case BackupPath:
		return BackupTime
	}
	return 0
}

// long gives a request of somebody known the time that the server's own limits do not.
func long(w http.ResponseWriter) {
	conn, end := http.NewResponseController(w), time.Now().Add(filesTime)
	_ = conn.SetReadDeadline(end) // without a network there are no limits
	_ = conn.SetWriteDeadline(end)
}

// apply lets one request at a time have its files in memory.
func (a *apiServer) apply(w http.ResponseWriter, r *http.Request, c caller) error {
	if !c.me.Admin { // who is slow to send keeps no administrator waiting
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSON))
		if err != nil {
			return err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	ctx, cancel := context.WithTimeout(r.Context(), applyWait)
	defer cancel()
	select {
	case a.applying <- struct{}{}:
		defer func() { <-a.applying }()
	case <-ctx.Done():
		return errApplying
	}
	if c.me.Admin {
		long(w)
	}
	status, body, err := a.applyFiles(r, c)
	if err == nil {
		writeJSON(w, status, "application/json", body)
	}
	return err
}

// applyFiles makes groups what files say, all of them or, with dryRun, none.
func (a *apiServer) applyFiles(r *http.Request, c caller) (int, any, error) {
	q, err := query(r, "dryRun", "prune")
	if err != nil {
		return 0, nil, err
	}
	var o groups.ApplyOptions
	if o.DryRun, err = flag(q, "dryRun"); err != nil {
		return 0, nil, err
	}
	if o.Prune, err = labelsOf(q["prune"]); err != nil {
		return 0, nil, err
	}
	for _, v := range o.Prune {
		if v == "" { // a slip must not delete what it does not name
			return 0, nil, badQuery("prune is written key=value.")
		}
	}
	var in api.Apply
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	files, err := a.files(r.Context(), c, in.Groups)
	if err != nil {
		return 0, nil, err
	}
	changes, err := a.groups.Apply(r.Context(), c.actor, files, o)
	if err != nil && len(changes) > 0 {
		return 0, nil, errors.Join(&fault{
			Status: 503, Title: "It was done in part", Code: api.CodeUncertain,
			Detail: fmt.Sprintf("%d changes were made before this went wrong. Apply the files again: what is done already is left alone.", len(changes)),
		}, err)
	}
	return http.StatusOK, wireApplied(changes, o.DryRun), err
}

func wireApplied(changes []groups.Applied, dryRun bool) api.Applied {
	return api.Applied{DryRun: dryRun, Changes: each(changes, func(ch groups.Applied) api.AppliedChange {
		return api.AppliedChange{Act: ch.Act, Group: ch.Group, Diff: ch.Diff, Member: maybe(ch.Member, wireRef)}
	})}
}

// files resolves the people whom files name by login. Administrators' subs are taken as
// they are: files hold them by the ten thousand, and people who left the directory among
// them. Owners' are those of members that are there already, or of people who can be
// found: what others read next to a sub is its name.
func (a *apiServer) files(ctx context.Context, c caller, in []api.File) ([]groups.File, error) {
	look := lookup{a: a, c: c, found: map[string]groups.Ref{}}
	out := make([]groups.File, 0, len(in))
	for _, f := range in {
		file := groups.File{Settings: groups.Settings{
			Name: f.Name, Description: f.Description, Clusters: f.Clusters, Labels: f.Labels, Requestable: f.Requestable,
		}}
		for _, o := range f.Owners {
			ref, err := look.ref(ctx, f.Name, o)
			if err != nil {
				return nil, err
			}
			file.Owners = append(file.Owners, ref)
		}
		if f.Members != nil {
			file.Members = make([]groups.Member, 0, len(f.Members))
		}
		for _, m := range f.Members {
			ref, err := look.ref(ctx, f.Name, m.Who)
			if err != nil {
				return nil, err
			}
			file.Members = append(file.Members, groups.Member{Ref: ref, Begin: instant(m.Begin), End: instant(m.End), Reason: m.Reason})
		}
		out = append(out, file)
	}
	return out, nil
}

// lookup finds each login of a request once.
type lookup struct {
	a     *apiServer
	c     caller
	found map[string]groups.Ref
}

// ref is who w names, for the group of that name.
func (l *lookup) ref(ctx context.Context, group string, w api.Who) (groups.Ref, error) {
	ref, ok := oneOf(w.Person, w.DirectoryGroup, w.Group)
	switch {
	case !ok:
		return ref, &fault{
			Status: 422, Title: "Who is missing", Code: "invalid",
			Detail: fmt.Sprintf("Group %q: name one person, one directoryGroup or one group for each owner and member.", group),
		}
	case ref.Kind == groups.KindPerson:
		return l.person(ctx, group, w)
	}
	return ref, nil
}

func (l *lookup) person(ctx context.Context, group string, w api.Who) (groups.Ref, error) {
	if l.a.isSub(w.Person) && l.trusted(ctx, group, w.Person) {
		return groups.Ref{Kind: groups.KindPerson, ID: w.Person, Name: w.Name}, nil
	}
	key := strings.ToLower(w.Person)
	if ref, known := l.found[key]; known {
		return ref, nil
	}
	switch {
	case !l.c.me.Admin && !l.a.groups.RightsOn(l.c.actor, group).Members:
		return groups.Ref{}, fmt.Errorf("change group %q: %w", group, groups.ErrForbidden)
	case len(l.found) >= maxLookups:
		return groups.Ref{}, &fault{Status: 422, Title: "Too many people have to be looked up", Code: "invalid", Detail: fmt.Sprintf("At most %d are looked up at once. Administrators can name the others by their sub.", maxLookups)}
	}
	p, err := l.a.idp.FindPerson(ctx, w.Person)
	if err != nil {
		if f := explain(err); f.Status == http.StatusUnprocessableEntity {
			f.Detail = fmt.Sprintf("Group %q names %q. %s", group, w.Person, f.Detail)
			return groups.Ref{}, &f
		}
		return groups.Ref{}, fmt.Errorf("find %q for group %q: %w", w.Person, group, err)
	}
	ref := groups.Ref{Kind: groups.KindPerson, ID: p.Sub(), Name: p.Username}
	l.found[key] = ref
	return ref, nil
}

// trusted reports whether a person is taken without a look-up. Whoever may not change the
// group is refused later.
func (l *lookup) trusted(ctx context.Context, group, sub string) bool {
	if l.c.me.Admin || !l.a.groups.RightsOn(l.c.actor, group).Members {
		return true
	}
	g, err := l.a.groups.Get(ctx, l.c.actor, group)
	if err == nil && slices.ContainsFunc(g.Owners, func(o groups.Ref) bool { return o.Kind == groups.KindPerson && o.ID == sub }) {
		return true
	}
	_, err = l.a.groups.Member(ctx, l.c.actor, group, groups.KindPerson, sub)
	return err == nil
}

// export writes one group a line as it reads them. After the first line an error can
// only be told by breaking the answer off.
func (a *apiServer) export(w http.ResponseWriter, r *http.Request, c caller) error {
	q, err := query(r, filterNames...)
	if err != nil {
		return err
	}
	f, err := a.filter(r.Context(), c, q)
	if err != nil {
		return err
	}
	long(w)
	enc, begun := json.NewEncoder(w), false
	w.Header().Set("Content-Type", "application/jsonl")
	err = a.groups.Export(r.Context(), c.actor, f, func(file groups.File) error {
		begun = true
		return enc.Encode(wireFile(file))
	})
	if err != nil && begun {
		a.log.WithError(err).WithField("request", audit.OriginOf(r.Context()).RequestID).Error("an export was broken off")
		panic(http.ErrAbortHandler)
	}
	if err == nil && !begun {
		w.WriteHeader(http.StatusOK)
	}
	return err
}
