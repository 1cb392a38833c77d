package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	pageSize  = 500             // entries that a listing asks for at a time
	longWait  = 5 * time.Minute // for what moves many groups at once
	maxAnswer = 64 << 20        // bytes of what applying answers
	maxLine   = 16 << 20        // bytes of one exported group
)

// GroupFilter narrows a listing of groups. Empty fields let all through.
type GroupFilter struct {
	Query   string   // in the name or description
	Labels  []string // key=value, or key for any value; all of them
	Cluster string   // that it counts on
	Owner   string   // sub or login of a person who owns it
	Member  string   // kind:id of a direct member, such as directoryGroup:corp:devs
	Mine    bool     // those that the caller owns
}

func (f GroupFilter) query() url.Values {
	q := parameters(map[string]string{"q": f.Query, "cluster": f.Cluster, "owner": f.Owner, "member": f.Member})
	if len(f.Labels) > 0 {
		q["label"] = f.Labels
	}
	if f.Mine {
		q.Set("mine", "true")
	}
	return q
}

// Groups yields the local groups that pass f by name, page after page as they are
// wanted. An error is the last that it yields.
func (c *Client) Groups(ctx context.Context, f GroupFilter) iter.Seq2[Group, error] {
	return pages(f.query(), func(q url.Values) ([]Group, string, error) {
		list, err := answer[GroupList](ctx, c, http.MethodGet, "/api/v1/groups?"+q.Encode(), nil)
		return list.Groups, list.Next, err
	})
}

// Members yields the members of a group: of one kind unless kind is "", with query in
// their name, id or reason.
func (c *Client) Members(ctx context.Context, group, kind, query string) iter.Seq2[Member, error] {
	return pages(parameters(map[string]string{"kind": kind, "q": query}), func(q url.Values) ([]Member, string, error) {
		list, err := answer[MemberList](ctx, c, http.MethodGet, groupPath(group)+"/members?"+q.Encode(), nil)
		return list.Members, list.Next, err
	})
}

// pages yields what get returns, one page after the other.
func pages[T any](q url.Values, get func(url.Values) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q.Set("limit", strconv.Itoa(pageSize))
		q.Del("cursor")
		for {
			page, next, err := get(q)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, one := range page {
				if !yield(one, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			q.Set("cursor", next)
		}
	}
}

// Group returns one local group, without its members.
func (c *Client) Group(ctx context.Context, name string) (Group, error) {
	return answer[Group](ctx, c, http.MethodGet, groupPath(name), nil)
}

// Containing returns the names of the groups that a group is a member of.
func (c *Client) Containing(ctx context.Context, name string) ([]string, error) {
	list, err := answer[GroupNames](ctx, c, http.MethodGet, groupPath(name)+"/containing", nil)
	return list.Groups, err
}

// Everyone returns who gets a group, nested, at most limit of them; with people also
// who is in the directory groups on the way.
func (c *Client) Everyone(ctx context.Context, name string, limit int, people bool) (Everyone, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}, "people": {strconv.FormatBool(people)}}
	return answerTo[Everyone](ctx, c, request{method: http.MethodGet, path: groupPath(name) + "/everyone?" + q.Encode(), most: maxAnswer})
}

// CreateGroup makes a local group without members.
func (c *Client) CreateGroup(ctx context.Context, set Settings) (Group, error) {
	return answer[Group](ctx, c, http.MethodPost, "/api/v1/groups", set)
}

// EditGroup applies a JSON merge patch (RFC 7396) to a group's settings: a field that is
// null is cleared, one that is absent stays. Unless etag is "" the group has to be at that
// version: otherwise the error is a *Problem with CodeMismatch.
func (c *Client) EditGroup(ctx context.Context, name, etag string, patch map[string]any) (Group, error) {
	return answerTo[Group](ctx, c, request{method: http.MethodPatch, path: groupPath(name), in: patch, contentType: "application/merge-patch+json", ifMatch: etag})
}

// DeleteGroup deletes a local group with all its memberships. Unless contained is set, it
// is a *Problem with CodeContained when other groups contain it. etag is as in EditGroup.
func (c *Client) DeleteGroup(ctx context.Context, name, etag string, contained bool) error {
	path := groupPath(name)
	if contained {
		path += "?contained=true"
	}
	return c.send(ctx, request{method: http.MethodDelete, path: path, ifMatch: etag}, func(resp *http.Response) error { return decode(resp, nil) })
}

// AddMember adds m to a local group, or replaces its begin, end and reason, and returns
// the group. etag is as in EditGroup.
func (c *Client) AddMember(ctx context.Context, group, etag string, m AddMember) (Group, error) {
	return answerTo[Group](ctx, c, request{method: http.MethodPost, path: groupPath(group) + "/members", in: m, ifMatch: etag})
}

// RemoveMember takes a member, told by its kind and id, out of a local group, and returns
// the group. etag is as in EditGroup.
func (c *Client) RemoveMember(ctx context.Context, group, etag, kind, id string) (Group, error) {
	return answerTo[Group](ctx, c, request{method: http.MethodDelete, path: memberPath(group, kind, id), ifMatch: etag})
}

// Apply makes groups what files say; with dryRun it only tells what would change. Groups
// with the labels of prune (key=value) that no file names are deleted.
func (c *Client) Apply(ctx context.Context, files []File, dryRun bool, prune []string) (Applied, error) {
	q := url.Values{"dryRun": {strconv.FormatBool(dryRun)}}
	if len(prune) > 0 {
		q["prune"] = prune
	}
	if files == nil {
		files = []File{}
	}
	return answerTo[Applied](ctx, c, request{method: http.MethodPost, path: "/api/v1/apply?" + q.Encode(), in: Apply{files}, deadline: longWait, most: maxAnswer})
}

// Export calls fn for each group that passes f, with its members, by name.
func (c *Client) Export(ctx context.Context, f GroupFilter, fn func(File) error) error {
	rq := request{method: http.MethodGet, path: "/api/v1/export?" + f.query().Encode(), deadline: longWait}
	return c.send(ctx, rq, func(resp *http.Response) error {
		if err := refused(resp); err != nil {
			return err
		}
		return readLines(resp.Body, fn)
	})
}

// readLines decodes one group a line.
func readLines(r io.Reader, fn func(File) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var f File
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return fmt.Errorf("the server's answer is not what this version expects: %w", err)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("the export broke off, so that groups are missing: %w", err)
	}
	return nil
}

// HasCode reports whether err is a Problem with that code.
func HasCode(err error, code string) bool {
	var p *Problem
	return errors.As(err, &p) && p.Code == code
}

func groupPath(name string) string { return "/api/v1/groups/" + url.PathEscape(name) }

func memberPath(group, kind, id string) string {
	return groupPath(group) + "/members/" + url.PathEscape(kind) + "/" + url.PathEscape(id)
}
