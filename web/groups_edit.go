package web

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/tabard-id/tabard/groups"
)

// settingsForm is the settings as typed.
type settingsForm struct {
	Name, Description string
	Owners            []groups.Ref
	Clusters          []string
	Labels            string // "key=value", one a line
	// Base names the settings that the form was made from. It is not the group's
	// revision, which every new member moves: that is nothing to ask about here.
	Base string
	// Kind and Who are an owner to add.
	Kind, Who string
}

// settingsPage is the form, and what became of the last try.
type settingsPage struct {
	Group         groups.Group // as it is now
	Rights        groups.Rights
	Form          settingsForm
	Owners        []party
	Clusters      []clusterBox
	Effect        string        // of a new name
	Differ        []settingPair // after someone else's change
	Error, Detail string
	Did           string // an owner was put into the form
}

// clusterBox is one cluster to tick.
type clusterBox struct {
	Name    string
	Checked bool
	Unknown bool // the configuration has no such cluster
}

// settingPair is one setting where two versions differ.
type settingPair struct{ What, Now, Typed string }

// baseOf names settings.
func baseOf(set groups.Settings) (string, error) {
	text, err := json.Marshal(set) // maps are sorted
	if err != nil {
		return "", fmt.Errorf("name the settings: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12]), nil
}

// formOf is the form that shows set.
func formOf(set groups.Settings) (f settingsForm, err error) {
	f = settingsForm{Name: set.Name, Description: set.Description, Owners: set.Owners, Clusters: set.Clusters, Labels: labelLines(set.Labels)}
	f.Base, err = baseOf(set)
	return f, err
}

func labelLines(labels map[string]string) string {
	lines := make([]string, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		lines = append(lines, key+"="+labels[key])
	}
	return strings.Join(lines, "\n")
}

// labels reads the lines back; blank ones are nothing.
func (f settingsForm) labels() (map[string]string, error) {
	out := map[string]string{}
	for line := range strings.Lines(f.Labels) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if _, twice := out[key]; twice {
			return nil, &fault{Status: 422, Title: "A label is there twice", Detail: "Label " + key + " has two lines. Keep the one that is right."}
		}
		out[key] = value
	}
	return out, nil
}

// editable returns the group for whoever may change something of it.
func (s *Site) editable(r *http.Request, v visitor) (groups.Group, groups.Rights, error) {
	g, err := s.groups.Get(r.Context(), v.actor, r.PathValue("name"))
	if err != nil {
		return g, groups.Rights{}, err
	}
	rights := s.groups.RightsOn(v.actor, g.Name)
	if !rights.Members && !rights.Admin {
		return g, rights, fmt.Errorf("settings of %q: %w", g.Name, groups.ErrForbidden)
	}
	return g, rights, nil
}

func (s *Site) showSettings(w http.ResponseWriter, r *http.Request, v visitor) error {
	g, rights, err := s.editable(r, v)
	if err != nil {
		return err
	}
	form, err := formOf(g.Settings)
	if err != nil {
		return err
	}
	return s.renderSettings(w, http.StatusOK, v, settingsPage{Group: g, Rights: rights, Form: form})
}

func (s *Site) renderSettings(w http.ResponseWriter, status int, v visitor, data settingsPage) error {
	data.Owners = s.parties(v, data.Form.Owners)
	known := s.idp.ClusterNames()
	for _, name := range known {
		data.Clusters = append(data.Clusters, clusterBox{Name: name, Checked: slices.Contains(data.Form.Clusters, name)})
	}
	for _, name := range data.Form.Clusters {
		if !slices.Contains(known, name) {
			data.Clusters = append(data.Clusters, clusterBox{name, true, true})
		}
	}
	data.Effect = strings.Join(s.renameWords(v, data.Group), " ")
	p := s.pageFor(v, "groups", "Settings of "+data.Group.Name, data)
	p.Crumbs, p.Scripts = s.crumbs(data.Group.Name), []string{"pick.js"}
	return s.render(w, status, "groupedit", p)
}

// renameWords names the effect of another name.
func (s *Site) renameWords(v visitor, g groups.Group) []string {
	words := []string{"With another name, bindings in clusters that name " + g.Name + " stop giving anything until they name the new one."}
	var kept []string
	if g.Members > 0 {
		kept = append(kept, many(g.Members, "member"))
	}
	if len(g.Owners) > 0 {
		kept = append(kept, many(len(g.Owners), "owner"))
	}
	if len(kept) > 0 {
		words = append(words, "It keeps "+listed(kept)+".")
	}
	if in := len(s.groups.Containing(v.actor, g.Name)); in > 0 {
		words = append(words, "It stays a member of "+many(in, "group")+".")
	}
	return words
}

// readSettings takes the form from a post. Who is no administrator changes the
// description alone, whatever else was sent.
func readSettings(r *http.Request, g groups.Group, rights groups.Rights) (settingsForm, error) {
	get := func(key string) string { return strings.TrimSpace(r.PostForm.Get(key)) }
	f, err := formOf(g.Settings)
	if err != nil {
		return f, err
	}
	f.Base, f.Description = get("base"), get("description")
	if !rights.Admin {
		return f, nil
	}
	f.Name, f.Labels, f.Clusters = get("name"), strings.ReplaceAll(r.PostForm.Get("labels"), "\r\n", "\n"), r.PostForm["cluster"]
	f.Kind, f.Who = get("kind"), get("who")
	return f, nil
}

// readOwners fills in the owners that are ticked, and the one that was typed. Those who
// were not owners before are looked up again: the form's word is not taken for a name.
func (s *Site) readOwners(ctx context.Context, a groups.Actor, f *settingsForm, ticked []string, before []groups.Ref) error {
	f.Owners = nil
	for _, key := range ticked {
		if i := slices.IndexFunc(before, func(o groups.Ref) bool { return party{Ref: o}.Key() == key }); i >= 0 {
			f.Owners = append(f.Owners, before[i])
			continue
		}
		kind, typed, _ := strings.Cut(key, " ")
		owner, err := s.findOwner(ctx, a, groups.Kind(kind), typed)
		if err != nil {
			return err
		}
		f.Owners = append(f.Owners, owner)
	}
	if f.Who == "" {
		return nil
	}
	owner, err := s.findOwner(ctx, a, groups.Kind(f.Kind), f.Who)
	if err != nil {
		return err
	}
	f.Who = ""
	if !slices.ContainsFunc(f.Owners, func(o groups.Ref) bool { return party{Ref: o}.Key() == party{Ref: owner}.Key() }) {
		f.Owners = append(f.Owners, owner)
	}
	return nil
}

// findOwner is findParty with the id of a local group.
func (s *Site) findOwner(ctx context.Context, a groups.Actor, kind groups.Kind, typed string) (groups.Ref, error) {
	ref, err := s.findParty(ctx, kind, typed)
	if err != nil || kind != groups.KindGroup {
		return ref, err
	}
	g, err := s.groups.Get(ctx, a, typed)
	if errors.Is(err, groups.ErrNotFound) {
		return ref, &fault{Status: 422, Title: "No such group", Detail: "There is no local group " + typed + ". A directory's group is another kind."}
	}
	ref.ID = g.ID
	return ref, err
}

// saveSettings writes what was typed. It asks first about a new name, and where
// someone else has changed the settings since the form was made.
func (s *Site) saveSettings(w http.ResponseWriter, r *http.Request, v visitor) error {
	g, rights, err := s.editable(r, v)
	if err != nil {
		return err
	}
	data := settingsPage{Group: g, Rights: rights}
	if data.Form, err = readSettings(r, g, rights); err != nil {
		return err
	}
	var change groups.Change
	if rights.Admin {
		err = s.readOwners(r.Context(), v.actor, &data.Form, r.PostForm["owner"], g.Owners)
	}
	if err == nil && r.PostForm.Get("do") == "owner" {
		return s.renderSettings(w, http.StatusOK, v, withOwnerAdded(data))
	}
	if err == nil {
		change, err = data.Form.change(g.Settings)
	}
	if err != nil {
		return s.refuseSettings(w, v, data, err)
	}
	return s.writeSettings(w, r, v, data, change)
}

// writeSettings is saveSettings once the form is read.
func (s *Site) writeSettings(w http.ResponseWriter, r *http.Request, v visitor, data settingsPage, change groups.Change) error {
	g := data.Group
	if base, err := baseOf(g.Settings); err != nil || base != data.Form.Base {
		return s.differing(w, v, data, g, err)
	}
	if change == (groups.Change{}) {
		return s.see(w, r, groupPath(g.Name)+"?did=same")
	}
	if change.Name != nil && r.PostForm.Get("sure") != *change.Name {
		return s.confirmRename(w, v, data)
	}
	saved, err := s.edit(r.Context(), v.actor, g, data.Form.Base, change)
	var other *groups.MismatchError
	if errors.As(err, &other) {
		return s.differing(w, v, data, other.Current, nil)
	} else if err != nil {
		return s.refuseSettings(w, v, data, err)
	}
	if change.Name != nil {
		return s.see(w, r, groupPath(saved.Name)+"?did=renamed")
	}
	return s.see(w, r, groupPath(saved.Name)+"?did=saved")
}

func withOwnerAdded(data settingsPage) settingsPage {
	data.Did = "The owner is in the list below. Nothing is saved yet."
	return data
}

// edit writes change to g. A member who came or went meanwhile is no reason to ask:
// while the settings are those of base, it tries again with the newer revision.
func (s *Site) edit(ctx context.Context, a groups.Actor, g groups.Group, base string, change groups.Change) (groups.Group, error) {
	const tries = 5
	for try := 1; ; try++ {
		saved, err := s.groups.Edit(ctx, a, g.Name, g.Revision, change)
		var other *groups.MismatchError
		if !errors.As(err, &other) || try == tries {
			return saved, err
		}
		if now, baseErr := baseOf(other.Current.Settings); baseErr != nil || now != base {
			return saved, err
		}
		g = other.Current
	}
}

// change is what makes set what was typed.
func (f settingsForm) change(set groups.Settings) (c groups.Change, err error) {
	labels, err := f.labels()
	if err != nil {
		return c, err
	}
	if f.Name != set.Name {
		c.Name = &f.Name
	}
	if f.Description != set.Description {
		c.Description = &f.Description
	}
	if !slices.Equal(f.Owners, set.Owners) {
		c.Owners = &f.Owners
	}
	if !slices.Equal(f.Clusters, set.Clusters) {
		c.Clusters = &f.Clusters
	}
	if !maps.Equal(labels, set.Labels) {
		c.Labels = &labels
	}
	return c, nil
}

// refuseSettings shows the form again with what is wrong.
func (s *Site) refuseSettings(w http.ResponseWriter, v visitor, data settingsPage, err error) error {
	f := explain(err)
	if !correctable(f) {
		return err
	}
	data.Error, data.Detail = f.Title, f.Detail
	return s.renderSettings(w, f.Status, v, data)
}

// differing shows both versions; what was typed stays in the form, which is now made
// from the present one, so that saving goes over it knowingly.
func (s *Site) differing(w http.ResponseWriter, v visitor, data settingsPage, now groups.Group, err error) error {
	if err != nil {
		return err
	}
	typed := data.Form
	if !data.Rights.Admin { // all but the description is as it is now
		if typed, err = formOf(now.Settings); err != nil {
			return err
		}
		typed.Description = data.Form.Description
	}
	if typed.Base, err = baseOf(now.Settings); err != nil {
		return err
	}
	data.Group, data.Form = now, typed
	for _, p := range []settingPair{
		{"Name", now.Name, typed.Name},
		{"What it is for", now.Description, typed.Description},
		{"Owners", ownerLines(now.Owners), ownerLines(typed.Owners)},
		{"Clusters", cmp.Or(strings.Join(now.Clusters, "\n"), "all"), cmp.Or(strings.Join(typed.Clusters, "\n"), "all")},
		{"Labels", labelLines(now.Labels), strings.TrimSpace(typed.Labels)},
	} {
		if p.Now != p.Typed {
			data.Differ = append(data.Differ, p)
		}
	}
	data.Error, data.Detail = "Someone else changed this group meanwhile", "Nothing of yours is saved yet. Below is what differs; what you typed is still in the form. Change it as needed; saving it goes over the present version."
	if len(data.Differ) == 0 {
		data.Detail = "It is now as you typed it: there is nothing left to save."
	}
	return s.renderSettings(w, http.StatusPreconditionFailed, v, data)
}

func ownerLines(owners []groups.Ref) string {
	return strings.Join(each(owners, func(o groups.Ref) string { return party{Ref: o}.Shown() }), "\n")
}

// confirmRename names the effect of a new name, and the names it looks like.
func (s *Site) confirmRename(w http.ResponseWriter, v visitor, data settingsPage) error {
	f, g := data.Form, data.Group
	effects := s.renameWords(v, g)
	if alike := s.groups.Lookalikes(f.Name); len(alike) > 0 {
		effects = append(effects, lookalikeWords(f.Name, alike)...)
	}
	hidden := url.Values{
		"name": {f.Name}, "description": {f.Description}, "labels": {f.Labels}, "cluster": f.Clusters, "base": {f.Base}, "sure": {f.Name},
	}
	for _, o := range f.Owners {
		hidden.Add("owner", party{Ref: o}.Key())
	}
	edit := s.url(groupPath(g.Name) + "/edit")
	return s.confirm(w, http.StatusOK, v, g.Name, "Rename "+g.Name, confirmation{
		Heading: "Rename " + g.Name + " to " + f.Name + "?", Effects: effects, Hidden: hidden, Danger: true,
		Action: edit, Button: "Rename and save", Cancel: "Back to the settings", CancelURL: edit,
	})
}
