package web

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
)

const (
	mergePatch  = "application/merge-patch+json"
	editRetries = 10 // of a change of labels that names no version
)

// paged is query of a listing: it reads cursor and limit, which is some unless it was
// given and at most most.
func paged(r *http.Request, some, most int, known ...string) (url.Values, groups.Page, error) {
	q, err := query(r, known...)
	p := groups.Page{Cursor: q.Get("cursor"), Limit: some}
	if err == nil && q.Has("limit") {
		if p.Limit, err = strconv.Atoi(q.Get("limit")); err != nil || p.Limit < 1 || p.Limit > most {
			err = badQuery(fmt.Sprintf("limit is a number from 1 to %d.", most))
		}
	}
	return q, p, err
}

// flag reads a parameter that is true or false.
func flag(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "":
		return false, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, badQuery(name + " is true or false.")
}

var filterNames = []string{"q", "label", "cluster", "owner", "member", "mine"}

// filter reads what narrows a listing of groups.
func (a *apiServer) filter(ctx context.Context, c caller, q url.Values) (groups.Filter, error) {
	f := groups.Filter{Query: q.Get("q"), Cluster: q.Get("cluster")}
	var err error
	if f.Labels, err = labelsOf(q["label"]); err != nil {
		return f, err
	}
	if f.Mine, err = flag(q, "mine"); err != nil {
		return f, err
	}
	if owner := q.Get("owner"); owner != "" {
		if f.Owner, err = a.subOf(ctx, c, owner); err != nil {
			return f, err
		}
	}
	if q.Has("member") {
		kind, id, _ := strings.Cut(q.Get("member"), ":")
		f.Member, err = a.memberRef(ctx, c, kind, id)
	}
	return f, err
}

// labelsOf reads labels as k=v; k alone and k= stand for any value.
func labelsOf(pairs []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, pair := range pairs {
		k, v, _ := strings.Cut(pair, "=")
		if _, twice := labels[k]; k == "" || twice {
			return nil, badQuery("A label is written key=value or key, each key once.")
		}
		labels[k] = v
	}
	return labels, nil
}

// memberRef is the member to filter by.
func (a *apiServer) memberRef(ctx context.Context, c caller, kind, id string) (*groups.Ref, error) {
	ref := &groups.Ref{Kind: groups.Kind(kind), ID: id}
	var err error
	switch {
	case id == "":
		return nil, badQuery("member is written person:SUB, directoryGroup:NAME or group:NAME.")
	case ref.Kind == groups.KindPerson:
		ref.ID, err = a.subOf(ctx, c, id)
	case ref.Kind == groups.KindGroup:
		var g groups.Group
		g, err = a.groups.Get(ctx, c.actor, id)
		ref.ID = g.ID
	case ref.Kind != groups.KindDirectoryGroup:
		return nil, badQuery("member is written person:SUB, directoryGroup:NAME or group:NAME.")
	}
	return ref, err
}

// subOf is the sub of a person named by sub or login. Only administrators learn who a
// login is.
func (a *apiServer) subOf(ctx context.Context, c caller, loginOrSub string) (string, error) {
	switch {
	case a.isSub(loginOrSub) || loginOrSub == c.actor.Sub:
		return loginOrSub, nil
	case strings.EqualFold(loginOrSub, c.actor.Name):
		return c.actor.Sub, nil
	case !c.me.Admin:
		return "", fmt.Errorf("look somebody up: %w", groups.ErrForbidden)
	}
	p, err := a.idp.FindPerson(ctx, loginOrSub)
	if err != nil {
		return "", err
	}
	return p.Sub(), nil
}

func (a *apiServer) listGroups(r *http.Request, c caller) (int, any, error) {
	q, p, err := paged(r, 0, 1000, append([]string{"limit", "cursor"}, filterNames...)...)
	if err != nil {
		return 0, nil, err
	}
	f, err := a.filter(r.Context(), c, q)
	if err != nil {
		return 0, nil, err
	}
	found, next, err := a.groups.List(r.Context(), c.actor, f, p)
	return http.StatusOK, api.GroupList{Groups: each(found, wireGroup), Next: next}, err
}

func (a *apiServer) createGroup(r *http.Request, c caller) (int, any, error) {
	var in api.Settings
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	_, anything, err := entityTags(r.Header.Values("If-None-Match"))
	if err != nil {
		return 0, nil, err
	}
	set := groups.Settings{Name: in.Name, Description: in.Description, Clusters: in.Clusters, Labels: in.Labels, Requestable: in.Requestable}
	if set.Owners, err = a.owners(r.Context(), c, in.Owners, groups.Group{}); err != nil {
		return 0, nil, err
	}
	g, err := a.groups.Create(r.Context(), c.actor, set)
	if errors.Is(err, groups.ErrExists) && anything {
		if current, getErr := a.groups.Get(r.Context(), c.actor, in.Name); getErr == nil {
			err = &groups.MismatchError{Current: current}
		}
	}
	return http.StatusCreated, a.named(g), asked(err, in)
}

// named is g with a warning for each other group that people could take it for.
func (a *apiServer) named(g groups.Group) api.Group {
	out := wireGroup(g)
	if g.Name == "" { // it was refused
		return out
	}
	for _, other := range a.groups.Lookalikes(g.Name) {
		if other != g.Name {
			out.Warnings = append(out.Warnings, fmt.Sprintf("%q looks like %q, another group: people could take one for the other.", g.Name, other))
		}
	}
	return out
}

func (a *apiServer) getGroup(r *http.Request, c caller) (int, any, error) {
	g, err := a.groups.Get(r.Context(), c.actor, r.PathValue("name"))
	if err != nil {
		return 0, nil, err
	}
	out := wireGroup(g)
	has, err := noneMatch(r, out.ETag)
	if has {
		return http.StatusNotModified, out, err
	}
	return http.StatusOK, out, err
}

func (a *apiServer) listContaining(r *http.Request, c caller) (int, any, error) {
	g, err := a.groups.Get(r.Context(), c.actor, r.PathValue("name"))
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, api.GroupNames{Groups: sorted(a.groups.Containing(c.actor, g.Name))}, nil
}

func (a *apiServer) deleteGroup(r *http.Request, c caller) (int, any, error) {
	q, err := query(r, "contained")
	if err != nil {
		return 0, nil, err
	}
	contained, err := flag(q, "contained")
	if err != nil {
		return 0, nil, err
	}
	name := r.PathValue("name")
	revision, err := a.revision(r, c, name)
	if err == nil {
		err = a.groups.Delete(r.Context(), c.actor, name, revision, contained)
	}
	return http.StatusNoContent, nil, err
}

// editGroup applies a JSON merge patch (RFC 7396) to a group's settings. Labels are
// merged with those that are there, so that a change of them is always made for one
// version of the group.
func (a *apiServer) editGroup(r *http.Request, c caller) (int, any, error) {
	var patch map[string]json.RawMessage
	if err := decode(r, &patch, mergePatch); err != nil {
		return 0, nil, err
	}
	if patch == nil {
		return 0, nil, badJSON("A merge patch is an object: {\"description\": \"…\"}.")
	}
	name := r.PathValue("name")
	revision, err := a.revision(r, c, name)
	if err != nil {
		return 0, nil, asked(err, patch)
	}
	current, err := a.groups.Get(r.Context(), c.actor, name)
	if err != nil {
		return 0, nil, err
	}
	for try := 0; ; try++ {
		change, merged, err := a.change(r.Context(), c, current, patch)
		if err != nil {
			return 0, nil, err
		}
		seen := revision
		if seen == 0 && merged {
			seen = current.Revision
		}
		g, err := a.groups.Edit(r.Context(), c.actor, name, seen, change)
		var mismatch *groups.MismatchError
		if errors.As(err, &mismatch) && revision == 0 {
			if current = mismatch.Current; try < editRetries {
				continue
			}
			return 0, nil, fmt.Errorf("merge labels: %w", groups.ErrConflict)
		}
		out := wireGroup(g)
		if err == nil && change.Name != nil && *change.Name != name {
			out = a.named(g)
		}
		return http.StatusOK, out, asked(err, patch)
	}
}

// change reads patch; merged says that it was merged with what is current.
func (a *apiServer) change(ctx context.Context, c caller, current groups.Group, patch map[string]json.RawMessage) (ch groups.Change, merged bool, err error) {
	for key, raw := range patch {
		null := bytes.Equal(raw, []byte("null"))
		switch key {
		case "name":
			if null {
				return ch, false, badJSON("name: a group always has one.")
			}
			err = member(key, raw, &ch.Name)
		case "description":
			ch.Description = new(string)
			err = member(key, raw, ch.Description)
		case "requestable":
			ch.Requestable = new(bool)
			err = member(key, raw, ch.Requestable)
		case "clusters":
			ch.Clusters = &[]string{}
			err = member(key, raw, ch.Clusters)
		case "owners":
			ch.Owners = &[]groups.Ref{}
			var refs []api.Ref
			if err = member(key, raw, &refs); err == nil {
				*ch.Owners, err = a.owners(ctx, c, refs, current)
			}
		case "labels":
			merged = !null
			ch.Labels, err = mergeLabels(current.Labels, raw)
		default:
			err = badJSON(fmt.Sprintf("unknown field %.40q", key))
		}
		if err != nil {
			return ch, false, err
		}
	}
	return ch, merged, nil
}

// member reads one member of a merge patch; null leaves v as it is.
func member(key string, raw json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return badJSON(key + ": " + strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// mergeLabels applies a merge patch to labels: null takes one away.
func mergeLabels(labels map[string]string, raw json.RawMessage) (*map[string]string, error) {
	var patch map[string]*string
	if err := member("labels", raw, &patch); err != nil {
		return nil, err
	}
	out := map[string]string{}
	if patch != nil {
		maps.Copy(out, labels)
	}
	for k, v := range patch {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = *v
		}
	}
	return &out, nil
}

// owners resolves refs as requests name them. Those that are owners already are kept
// as they are, so that somebody who left the directory is in nobody's way. Nobody is
// looked up for who may not change them: groups refuses it.
func (a *apiServer) owners(ctx context.Context, c caller, refs []api.Ref, current groups.Group) ([]groups.Ref, error) {
	if len(refs) > maxLookups {
		return nil, errTooLarge
	}
	may := c.me.Admin || a.groups.RightsOn(c.actor, current.Name).Admin
	out := make([]groups.Ref, 0, len(refs))
	for _, in := range refs {
		same := func(r groups.Ref) bool { return string(r.Kind) == in.Kind && r.ID == in.ID }
		if i := slices.IndexFunc(current.Owners, same); i >= 0 {
			out = append(out, current.Owners[i])
			continue
		}
		if !may {
			out = append(out, groups.Ref{Kind: groups.KindPerson, ID: "unresolved"})
			continue
		}
		ref, err := a.resolve(ctx, c, groups.Kind(in.Kind), in.ID, in.Name)
		if err != nil {
			return nil, fmt.Errorf("owner %q: %w", cmp.Or(in.ID, in.Name), err)
		}
		out = append(out, ref)
	}
	return out, nil
}

// resolve finds out who is named. A local group may be named by its name or its id.
func (a *apiServer) resolve(ctx context.Context, c caller, kind groups.Kind, id, name string) (groups.Ref, error) {
	switch kind {
	case groups.KindPerson:
		p, err := a.idp.FindPerson(ctx, cmp.Or(id, name))
		return groups.Ref{Kind: kind, ID: p.Sub(), Name: p.Username}, err
	case groups.KindDirectoryGroup:
		return groups.Ref{Kind: kind, ID: cmp.Or(id, name), Name: cmp.Or(id, name)}, nil
	case groups.KindGroup:
		if id != "" {
			return groups.Ref{Kind: kind, ID: id, Name: name}, nil
		}
		g, err := a.groups.Get(ctx, c.actor, name)
		return groups.Ref{Kind: kind, ID: g.ID, Name: g.Name}, err
	}
	return groups.Ref{}, &fault{Status: 422, Title: "That cannot be saved", Code: "invalid", Detail: "A kind is person, directoryGroup or group."}
}
