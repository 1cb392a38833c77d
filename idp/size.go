package idp

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// largeToken is the size, in bytes, from which a token is worth a warning: what stands
// between a client and an API server often takes no more in its headers.
const largeToken = 8 << 10

// sizeAdvice says what makes a token with the groups in names large, and what to do.
func (s *Service) sizeAdvice(c *Client, names []string) string {
	fix := "narrow groups.include of the directories"
	if c.rules != nil {
		fix = fmt.Sprintf("narrow clusters[%s].groups.include", c.Cluster)
	}
	return fmt.Sprintf("%s: %s", s.contributors(names), fix)
}

// source is where some of a token's groups come from.
type source struct {
	name   string
	groups []string
	bytes  int
}

// contributors tells where the groups in names come from, largest first, each with
// its first names.
func (s *Service) contributors(names []string) string {
	sources := map[string]*source{}
	for _, n := range names {
		from := "local groups"
		for _, p := range s.cfg.DirectoryPrefixes {
			if strings.HasPrefix(n, p) {
				from = p + "*"
			}
		}
		if sources[from] == nil {
			sources[from] = &source{name: from}
		}
		sources[from].groups = append(sources[from].groups, n)
		sources[from].bytes += len(n) + 3 // quotes and comma
	}
	sorted := slices.SortedFunc(maps.Values(sources), func(a, b *source) int { return cmp.Or(b.bytes-a.bytes, strings.Compare(a.name, b.name)) })
	var told []string
	for _, src := range sorted[:min(len(sorted), 5)] {
		first := strings.Join(src.groups[:min(len(src.groups), 3)], ", ")
		if len(src.groups) > 3 {
			first += ", …"
		}
		told = append(told, fmt.Sprintf("%d of %s with %d bytes (%s)", len(src.groups), src.name, src.bytes, first))
	}
	return strings.Join(told, "; ")
}

// warnLarge puts a large token into the log, once for a session and client, and
// returns what the trail says of it; nil of one that is not large.
func (s *Service) warnLarge(sess *Session, c *Client, t preparedToken) map[string]string {
	size := t.size()
	if size <= largeToken {
		return nil
	}
	if s.large.first(sess.ID + " " + c.ID) {
		s.Log.WithField("username", sess.Username).WithField("client", c.ID).Warnf(
			"a token has about %d bytes, over %d: %s", size, largeToken, s.sizeAdvice(c, t.groups))
	}
	return map[string]string{"size": fmt.Sprint(size)}
}
