package web

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tabard-id/tabard/groups"
)

// askedError is the refusal of a change with what was asked, for the answer.
type askedError struct {
	error
	sent any // JSON
}

// Unwrap returns the refusal.
func (e *askedError) Unwrap() error { return e.error }

// asked puts sent beside a refusal for a version that is not the current one.
func asked(err error, sent any) error {
	var mismatch *groups.MismatchError
	if errors.As(err, &mismatch) {
		return &askedError{err, sent}
	}
	return err
}

// etag is the strong entity tag of a group's revision.
func etag(revision int64) string { return `"` + strconv.FormatInt(revision, 10) + `"` }

// entityTags reads a list of entity tags (RFC 9110, sections 8.8.3 and 5.6.1), with
// W/ before the weak ones; anything is true for the one member "*".
func entityTags(values []string) (tags []string, anything bool, err error) {
	bad := &fault{Status: 400, Title: "The condition could not be read", Code: "bad-condition", Detail: `If-Match and If-None-Match hold * or entity tags in double quotes, as the header ETag has them.`}
	rest := strings.Join(values, ",")
	if strings.Trim(rest, " \t") == "*" {
		return nil, true, nil
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			break
		}
		opaque, weak := strings.CutPrefix(rest, "W/")
		if !strings.HasPrefix(opaque, `"`) {
			return nil, false, bad
		}
		end := strings.IndexFunc(opaque[1:], func(r rune) bool { return r == '"' || r <= ' ' || r == 0x7f })
		if end < 0 || opaque[1+end] != '"' {
			return nil, false, bad
		}
		tag := opaque[:end+2]
		rest = strings.TrimLeft(opaque[end+2:], " \t")
		if rest != "" && rest[0] != ',' {
			return nil, false, bad
		}
		if weak {
			tag = "W/" + tag
		}
		tags = append(tags, tag)
	}
	if len(values) > 0 && len(tags) == 0 {
		return nil, false, bad
	}
	return tags, false, nil
}

// revision is the one that r's If-Match asks of the group of that name, 0 for none:
// weak tags match nothing (RFC 9110, section 13.1.1). Who may change the group, and
// whether it is there, is left to the change itself.
func (a *apiServer) revision(r *http.Request, c caller, name string) (int64, error) {
	values := r.Header.Values("If-Match")
	tags, anything, err := entityTags(values)
	if err != nil || anything || len(values) == 0 {
		return 0, err
	}
	if len(tags) == 1 {
		n, err := strconv.ParseInt(strings.Trim(tags[0], `"`), 10, 64)
		if err == nil && n > 0 && tags[0] == etag(n) {
			return n, nil
		}
	}
	g, err := a.groups.Get(r.Context(), c.actor, name)
	if err != nil {
		return 0, err
	}
	if slices.Contains(tags, etag(g.Revision)) {
		return g.Revision, nil
	}
	return 0, &groups.MismatchError{Current: g}
}

// noneMatch reports whether r's If-None-Match holds the tag, weak or strong: the
// caller has what it would get.
func noneMatch(r *http.Request, tag string) (bool, error) {
	tags, anything, err := entityTags(r.Header.Values("If-None-Match"))
	return anything || slices.Contains(tags, tag) || slices.Contains(tags, "W/"+tag), err
}
