package idp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
)

// ErrNoCluster says that the configuration has no cluster of that name.
var ErrNoCluster = errors.New("no such cluster")

// Explanation says which groups a person's token would hold now, and why. Nothing
// in it is a secret, and no token is made.
type Explanation struct {
	Entry   directory.Explanation // what the directory says, and how it was asked
	Cluster string                // "" for a token of Tabard itself
	// Required are the groups of which the cluster wants one; empty: it wants none.
	Required []string
	Groups   []ExplainedGroup // in the token, sorted by name
	LeftOut  []LeftOut        // found, and kept out by a rule
	// Claims of the token but for jti and sid, which only an issued one has; nil
	// where the username may not be in one.
	Claims        map[string]any
	Size, MaxSize int // of the signed token, in bytes: about, and at most
	// SizeAdvice says of a large token what makes it large, and what to do; else "".
	SizeAdvice string
	// Refused is why there would be no token; "" when there would be one. Groups and
	// Claims then say what it would hold otherwise.
	Refused string
}

// ExplainedGroup is a group in a token, and where it comes from.
type ExplainedGroup struct {
	Name string
	// Path of a directory group holds DNs, from the first group that the person is
	// in to this one.
	Path []string
	// Paths to a local group that count; one of them is enough.
	Paths []groups.Path
}

// LeftOut is a group, or one path to a local group, that does not count.
type LeftOut struct {
	Name string
	DN   string       // of a directory group
	Path *groups.Path // to a local group
	Rule string       // e.g. "clusters[prod].groups.exclude[0] corp:*-old"
}

// ExplainTo is Explain for whoever asks: administrators may ask about everybody, others
// about themselves, which is what an empty loginOrSub means. The question is in the trail
// before it is answered. groups.ErrForbidden, and the errors of Explain.
func (s *Service) ExplainTo(ctx context.Context, a groups.Actor, admin bool, loginOrSub, cluster string) (Explanation, error) {
	own := !a.Operator && (loginOrSub == "" || loginOrSub == a.Sub || strings.EqualFold(loginOrSub, a.Name))
	e := audit.Event{Act: "explain", Who: a.Sub, Name: a.Name, Outcome: audit.Done}
	if !own && !admin {
		e.Outcome, e.Reason = audit.Denied, "only administrators may ask about others"
		return Explanation{}, cmp.Or(s.record(ctx, e, nil), fmt.Errorf("explain somebody else: %w", ErrAdministrators))
	}
	if own {
		loginOrSub = a.Sub
	}
	x, err := s.Explain(ctx, loginOrSub, cluster)
	if x.Entry.Person.ID != "" {
		e.On, e.Cluster = x.Entry.Person.Sub(), x.Cluster
	}
	if err != nil { // what was typed as a login stays out of the trail
		e.Outcome, e.Reason = audit.Failed, "no answer about the person or their groups"
	}
	if recErr := s.record(ctx, e, nil); recErr != nil {
		return Explanation{}, recErr
	}
	if admin && e.On != "" { // who looks for the cause wants what is known until there
		return x, nil
	}
	for i := range x.Entry.Queries { // the directory's own words can name hosts
		if q := &x.Entry.Queries[i]; q.Error != "" && !admin {
			q.Error = "failed"
		}
	}
	return x, err
}

// Explain asks the directories about somebody, named as they sign in or by sub, and says
// what their token for a cluster would hold and why; without a cluster, a token of
// Tabard itself. It goes through the same steps as a token that is issued.
// ErrNoCluster, ErrUnavailable, directory.ErrNotFound, directory.ErrAmbiguous,
// directory.ErrUnusable. Where only the groups could not be read, the Explanation
// holds the person and the queries beside the error.
func (s *Service) Explain(ctx context.Context, loginOrSub, cluster string) (Explanation, error) {
	c := s.clients[BuiltinClient]
	if cluster != "" {
		if c = s.clientOf(cluster); c == nil {
			return Explanation{}, fmt.Errorf("%w: %q", ErrNoCluster, cluster)
		}
	}
	entry, err := s.explainEntry(ctx, loginOrSub)
	if errors.Is(err, directory.ErrUnusable) {
		return Explanation{}, err
	}
	if err != nil {
		return Explanation{Entry: entry, Cluster: c.Cluster, MaxSize: int(c.tokens.MaxSize), Refused: err.Error()}, outage(err)
	}
	return s.explainToken(ctx, entry, c)
}

// ClusterNames returns the names of all clusters, in the order of the configuration.
func (s *Service) ClusterNames() []string {
	names := make([]string, len(s.cfg.Clusters))
	for i, cl := range s.cfg.Clusters {
		names[i] = cl.Name
	}
	return names
}

// explainEntry finds the person in the one directory that knows them. While another
// directory does not answer they are found all the same, as at sign-in.
func (s *Service) explainEntry(ctx context.Context, loginOrSub string) (directory.Explanation, error) {
	ctx, cancel := context.WithTimeout(ctx, loginBudget)
	defer cancel()
	if name, id, ok := strings.Cut(loginOrSub, "."); ok {
		if d := s.directoryNamed(name); d != nil {
			if x, err := d.Explain(ctx, id); !errors.Is(err, directory.ErrNotFound) {
				return x, err
			}
		}
	}
	var found []directory.Explanation
	var failed error
	for _, d := range s.Directories {
		x, err := d.Explain(ctx, loginOrSub)
		switch {
		case err == nil:
			found = append(found, x)
		case x.Person.ID != "":
			return x, err
		case !errors.Is(err, directory.ErrNotFound):
			failed = cmp.Or(failed, err)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return directory.Explanation{}, fmt.Errorf("%w: found in several directories", directory.ErrAmbiguous)
	}
	return directory.Explanation{}, cmp.Or(failed, directory.ErrNotFound)
}

// explainToken prepares the token and traces what is in it, and what is not.
func (s *Service) explainToken(ctx context.Context, entry directory.Explanation, c *Client) (Explanation, error) {
	names := groupNames(entry.Groups)
	x := Explanation{Entry: entry, Cluster: c.Cluster, MaxSize: int(c.tokens.MaxSize)}
	if c.rules != nil {
		x.Required = c.rules.RequireGroups
	}
	sess := s.startSession(ctx, entry.Person, names, s.Now())
	t, refused, err := s.wouldBe(sess, c)
	if err != nil {
		return Explanation{}, err
	}
	x.Refused = refused
	if entry.Person.State != directory.Active {
		x.Refused = (&directory.AccountError{State: entry.Person.State}).Error()
	}
	local, err := s.Groups.Why(ctx, sess.Sub, names)
	if err != nil {
		return Explanation{}, fmt.Errorf("local groups: %w", err)
	}
	if t.payload != nil {
		if err := json.Unmarshal(t.payload, &x.Claims); err != nil {
			return Explanation{}, fmt.Errorf("read the claims: %w", err)
		}
		delete(x.Claims, "jti")
		delete(x.Claims, "sid")
		if x.Size = t.size(); x.Size > largeToken {
			x.SizeAdvice = s.sizeAdvice(c, t.groups)
		}
	}
	x.trace(s, c, local)
	return x, nil
}

// wouldBe prepares the token of sess for c. Where a rule refuses it, it says why and
// prepares it as if the cluster required no group.
func (s *Service) wouldBe(sess *Session, c *Client) (t preparedToken, refused string, err error) {
	t, err = s.prepare(sess, c, grant{azp: c.ID})
	if errors.Is(err, ErrNoAccess) && c.rules != nil {
		refused = err.Error()
		open, rules := *c, *c.rules
		rules.RequireGroups = nil
		open.rules = &rules
		t, err = s.prepare(sess, &open, grant{azp: c.ID})
	}
	if errors.Is(err, ErrNoAccess) || errors.Is(err, ErrTooLarge) {
		refused, err = cmp.Or(refused, err.Error()), nil
	}
	return t, refused, err
}

// trace fills in Groups and LeftOut. The names in the token are read from its claims.
func (x *Explanation) trace(s *Service, c *Client, local []groups.Path) {
	in := map[string]*ExplainedGroup{}
	listed, _ := x.Claims[c.tokens.GroupsClaim].([]any)
	for _, v := range listed {
		name, _ := v.(string)
		in[name] = &ExplainedGroup{Name: name}
	}
	for _, g := range x.Entry.Groups {
		if rule := s.nameRule(c, []string{g.Name}, nil); rule != "" {
			x.LeftOut = append(x.LeftOut, LeftOut{Name: g.Name, DN: g.DN, Rule: rule})
		} else if e := in[g.Name]; e != nil {
			e.Path = g.Path
		}
	}
	for _, p := range local {
		if rule := s.pathRule(c, p); rule != "" {
			x.LeftOut = append(x.LeftOut, LeftOut{Name: p.Group(), Path: &p, Rule: rule})
		} else if e := in[p.Group()]; e != nil {
			e.Paths = append(e.Paths, p)
		}
	}
	for _, h := range x.Entry.Hidden {
		x.LeftOut = append(x.LeftOut, LeftOut{Name: h.Name, DN: h.DN, Rule: h.Rule})
	}
	for _, v := range listed {
		x.Groups = append(x.Groups, *in[v.(string)])
	}
	slices.SortStableFunc(x.LeftOut, func(a, b LeftOut) int { return strings.Compare(a.Name, b.Name) })
}

// pathRule says what keeps one path to a local group out of c's tokens, or "".
func (s *Service) pathRule(c *Client, p groups.Path) string {
	now := s.Now()
	switch {
	case p.Begin.After(now):
		return "begins at " + p.Begin.UTC().Format(time.RFC3339)
	case p.End.IsZero():
	case !p.End.After(now):
		return "ended at " + p.End.UTC().Format(time.RFC3339)
	case p.End.Before(now.Add(c.tokens.MinLifetime)):
		return fmt.Sprintf("ends at %s: less than tokens.minLifetime (%s) is left", p.End.UTC().Format(time.RFC3339), c.tokens.MinLifetime)
	}
	if !countsOn(p.Clusters, c.Cluster) {
		return "counts only on " + strings.Join(p.Clusters, ", ")
	}
	return s.nameRule(c, nil, []groups.Effective{{Group: p.Group()}})
}

// nameRule says what keeps the one group in fromDirectory or local out of c's tokens
// for its name, or "".
func (s *Service) nameRule(c *Client, fromDirectory []string, local []groups.Effective) string {
	m, dropped := mergeGroups(fromDirectory, local, s.cfg.DirectoryPrefixes, time.Time{})
	switch {
	case len(dropped) == 1 && reservedName(dropped[0]):
		return "reserved name"
	case len(dropped) == 1 && local != nil:
		return "a local group's name must not begin with a directory's prefix"
	case len(dropped) == 1:
		return "a directory group's name must begin with its directory's prefix"
	case c.rules == nil || len(c.rules.Groups.apply(m.names, s.cfg.DirectoryPrefixes)) == 1:
		return ""
	}
	for i, p := range c.rules.Groups.Exclude {
		if matchesAny([]string{p}, m.names[0], s.cfg.DirectoryPrefixes) {
			return fmt.Sprintf("clusters[%s].groups.exclude[%d] %s", c.Cluster, i, p)
		}
	}
	return fmt.Sprintf("not in clusters[%s].groups.include", c.Cluster)
}
