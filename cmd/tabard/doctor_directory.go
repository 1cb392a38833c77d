package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
)

// directory tries one directory: its hosts, what is in it, and how it locks accounts.
func (d *doctor) directory(ctx context.Context, c directory.Config) {
	check := "directory " + c.Name
	dir, err := directory.New(c, d.cfg.Directories...)
	if err != nil {
		d.say(check, resultFail, "%s", err)
		return
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	checks, usable := dir.Check(ctx)
	for _, c := range checks {
		d.say(check, string(c.Grade), "%s", c.Detail)
	}
	if !usable {
		return
	}
	d.lockout(ctx, check, dir)
	if takesNames(c) {
		d.duplicates(ctx, check, dir)
	}
	if d.user != "" {
		d.measure(ctx, check, dir, c)
	}
}

// lockout tells when the directory locks accounts, which the throttle has to know.
func (d *doctor) lockout(ctx context.Context, check string, dir *directory.Directory) {
	l, err := dir.Lockout(ctx)
	switch {
	case err != nil:
		d.say(check, resultWarn, "after how many wrong passwords it locks accounts is not known, so the throttle takes its own numbers: %s", err)
	case l.Threshold == 0:
		d.say(check, resultOK, "it never locks accounts")
	case l.Duration == 0:
		d.say(check, resultOK, "it locks an account after %d wrong passwords within %s, until somebody unlocks it", l.Threshold, l.Window)
	default:
		d.say(check, resultOK, "it locks an account for %s after %d wrong passwords within %s", l.Duration, l.Threshold, l.Window)
	}
}

// takesNames says whether two groups of c may have one name in a token: by cn, which
// is unique only in its organizational unit, or by a rule of c.
func takesNames(c directory.Config) bool {
	byCN := c.Type == directory.TypeLDAP && c.Groups.Name == "" || strings.EqualFold(c.Groups.Name, "cn")
	return byCN || len(c.Groups.Rename) > 0
}

const maxShown = 10 // names in one line

func (d *doctor) duplicates(ctx context.Context, check string, dir *directory.Directory) {
	twice, err := dir.DuplicateNames(ctx)
	switch {
	case err != nil:
		d.say(check, resultWarn, "whether two groups have one name is not known: %s", err)
	case len(twice) == 0:
		d.say(check, resultOK, "every group has a name of its own")
	default:
		d.say(check, resultWarn, "%s of several groups, so whoever may create one of those gets the rights of the others: rename them, narrow groups.baseDN, or set groups.name: %s",
			count(len(twice), "name is that", "names are those"), strings.Join(twice[:min(len(twice), maxShown)], ", "))
	}
}

// measure looks the user's groups up in every way that the directory knows.
func (d *doctor) measure(ctx context.Context, check string, dir *directory.Directory, c directory.Config) {
	all, err := dir.Measure(ctx, d.user)
	if errors.Is(err, directory.ErrNotFound) {
		return
	}
	d.found = true
	if err != nil {
		d.say(check, resultFail, "look %s up: %s", d.user, err)
		return
	}
	set := cmp.Or(c.Groups.Nested, directory.NestedWalk)
	if c.Type == directory.TypeActiveDirectory {
		set = cmp.Or(c.Groups.Nested, directory.NestedInChain)
	}
	for _, m := range all {
		result, more := resultOK, ""
		if m.Recommended {
			more = ", recommended"
		}
		if m.Strategy == set {
			more += ", as groups.nested has it"
			if m.Error != "" || lacks(m, all) {
				result = resultFail
			}
		}
		if m.Error != "" {
			d.say(check, result, "groups of %s by %s%s: %s", d.user, m.Strategy, more, m.Error)
			continue
		}
		d.say(check, result, "groups of %s by %s%s: %d, with %s in %s", d.user, m.Strategy, more, m.Groups,
			count(m.Queries, "search", "searches"), m.Took.Round(100*time.Microsecond))
	}
}

// lacks says whether another way finds groups that m does not.
func lacks(m directory.Measurement, all []directory.Measurement) bool {
	return slices.ContainsFunc(all, func(other directory.Measurement) bool { return other.Groups > m.Groups })
}
