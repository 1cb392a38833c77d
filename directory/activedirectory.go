package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// inChainRule is LDAP_MATCHING_RULE_IN_CHAIN [MS-ADTS 3.1.1.3.4.4.3].
const inChainRule = "1.2.840.113556.1.4.1941"

// tracedAttributes are what trace reads of each group.
func tracedAttributes() []string { return []string{"memberOf", "objectSid"} }

// inChain asks Active Directory for all groups at any depth. Its rule does not
// see the primary group, so that and the groups it is in are asked for as well.
// The DN of the primary group is remembered, as nearly all people share one; it
// counts only when the answer shows the group there, so that a group that moved
// is never taken for one that is in no other.
func (d *Directory) inChain(ctx context.Context, s *schema, p Person) ([]Group, error) {
	known := d.sids.primary(p.primaryGroup)
	dn := known
	for {
		if dn == "" {
			var err error
			if dn, err = d.primaryGroupDN(ctx, p.primaryGroup); err != nil {
				return nil, fmt.Errorf("read the primary group %s: %w", p.primaryGroup, err)
			}
		}
		rule := s.groups.Member + ":" + inChainRule + ":"
		terms := []string{equals(rule, p.DN), equals(rule, dn), equals("objectSid", p.primaryGroup)}
		found, err := d.searchGroups(ctx, s, "find groups by the in-chain rule", terms, tracedAttributes()...)
		if err != nil {
			return nil, err
		}
		shown := slices.ContainsFunc(found, func(e *ldap.Entry) bool { return isGroup(e, p.primaryGroup) && foldDN(e.DN) == foldDN(dn) })
		if shown || known == "" {
			d.sids.setPrimary(p.primaryGroup, dn, shown)
			return d.trace(ctx, s, p, found)
		}
		known, dn = "", ""
	}
}

// primaryGroupDN is the DN of the group with this security identifier.
func (d *Directory) primaryGroupDN(ctx context.Context, sid string) (string, error) {
	found, err := d.ask(ctx, "read the primary group", entryQuery("<SID="+sid+">", "1.1"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", errors.New("bindDN may not read it")
	}
	return found[0].DN, nil
}

// isGroup says whether e has this security identifier.
func isGroup(e *ldap.Entry, sid string) bool {
	own, err := decodeSID(e.GetEqualFoldRawAttributeValue("objectSid"))
	return err == nil && own == sid
}

// tokenGroups reads the security identifiers that Active Directory computes for
// a person, and then the groups they stand for.
func (d *Directory) tokenGroups(ctx context.Context, s *schema, p Person) ([]Group, error) {
	person, err := d.ask(ctx, "read tokenGroups", entryQuery(p.DN, "tokenGroups"))
	if err != nil {
		return nil, err
	}
	var sids []string
	for _, e := range person {
		for _, raw := range e.GetEqualFoldRawAttributeValues("tokenGroups") {
			sid, err := decodeSID(raw)
			if err != nil {
				return nil, fmt.Errorf("tokenGroups: %w", err)
			}
			sids = append(sids, sid)
		}
	}
	if len(sids) == 0 {
		return nil, errors.New("tokenGroups is empty: bindDN needs the right to read it (group Pre-Windows 2000 Compatible Access or Windows Authorization Access)")
	}
	if len(sids) > maxGroups {
		return nil, fmt.Errorf("there are more than %d", maxGroups)
	}
	found, err := d.groupsOfSIDs(ctx, s, sids)
	if err != nil {
		return nil, err
	}
	return d.trace(ctx, s, p, found)
}

// groupsOfSIDs returns the groups with these security identifiers, from the
// cache where that knows them.
func (d *Directory) groupsOfSIDs(ctx context.Context, s *schema, sids []string) ([]*ldap.Entry, error) {
	all, missing := d.sids.get(sids, time.Now())
	for batch := range slices.Chunk(missing, maxBatch) {
		found, err := d.searchGroups(ctx, s, "find the groups of tokenGroups", anyOf("objectSid", batch), tracedAttributes()...)
		if err != nil {
			return nil, err
		}
		d.sids.put(batch, found, time.Now())
		all = append(all, found...)
	}
	return all, nil
}

// sidCache knows which group a security identifier stands for. People share
// most of their groups, and asking for each of a person's groups by SID is most
// of the work of tokenGroups. Which groups a person is in is never cached: a
// membership that ended counts at once. A group that was renamed, hidden or
// moved into another keeps its name, and its place, for sidsKept.
type sidCache struct {
	mu        sync.Mutex
	entries   map[string]sidEntry
	primaries map[string]string // DNs, for inChain, which checks them itself
}

type sidEntry struct {
	group *ldap.Entry // nil: no group that groups.filter and groups.baseDN show
	until time.Time
}

const (
	sidsKept = time.Minute
	maxSIDs  = 20_000
	// Domains have few primary groups in use.
	maxPrimaries = 1000
)

// primary is the last known DN of a primary group, or empty.
func (c *sidCache) primary(sid string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.primaries[sid]
}

// setPrimary remembers the DN of a primary group, or forgets it.
func (c *sidCache) setPrimary(sid, dn string, keep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !keep {
		delete(c.primaries, sid)
		return
	}
	if c.primaries == nil || len(c.primaries) >= maxPrimaries {
		c.primaries = map[string]string{}
	}
	c.primaries[sid] = dn
}

// get returns the groups that it knows of sids, and the sids it does not know.
func (c *sidCache) get(sids []string, now time.Time) (found []*ldap.Entry, missing []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sid := range sids {
		e, ok := c.entries[sid]
		switch {
		case !ok || !now.Before(e.until):
			missing = append(missing, sid)
		case e.group != nil:
			found = append(found, e.group)
		}
	}
	return found, missing
}

// put notes what a search for sids found.
func (c *sidCache) put(sids []string, found []*ldap.Entry, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil || len(c.entries)+len(sids) > maxSIDs {
		c.entries = map[string]sidEntry{}
	}
	for _, sid := range sids {
		c.entries[sid] = sidEntry{until: now.Add(sidsKept)}
	}
	for _, e := range found {
		if sid, err := decodeSID(e.GetEqualFoldRawAttributeValue("objectSid")); err == nil {
			c.entries[sid] = sidEntry{group: e, until: now.Add(sidsKept)}
		}
	}
}

// trace finds the way from the person to each of found by their memberOf, and
// leaves out what is reached only through hidden groups, or through groups that
// are no security groups. Where groups.baseDN or groups.filter keep some
// security groups out of sight and nothing is hidden, a group whose way leads
// through one of those counts too.
func (d *Directory) trace(ctx context.Context, s *schema, p Person, found []*ldap.Entry) ([]Group, error) {
	entries := map[string]*ldap.Entry{}
	level := map[string][]string{} // folded DN to the path before it
	for _, dn := range p.memberOf {
		level[foldDN(dn)] = nil
	}
	for _, e := range found {
		entries[foldDN(e.DN)] = e
		if isGroup(e, p.primaryGroup) {
			level[foldDN(e.DN)] = nil
		}
	}
	var all []Group
	for len(level) > 0 {
		var reached []Group
		reached, level = d.climb(ctx, s, entries, level)
		all = append(all, reached...)
	}
	for _, e := range entries {
		if s.hides() || s.allSecurity {
			g, _ := d.group(s, e)
			reportOf(ctx).hide(g.Name, g.DN, "reached only through groups that are left out")
		} else if g, ok := d.visible(ctx, s, e); ok {
			g.Path = []string{e.DN}
			all = append(all, g)
		}
	}
	return all, nil
}

// climb takes the groups of level out of entries and returns them, and the
// level above.
func (d *Directory) climb(ctx context.Context, s *schema, entries map[string]*ldap.Entry, level map[string][]string) ([]Group, map[string][]string) {
	var reached []Group
	above := map[string][]string{}
	for _, key := range slices.Sorted(maps.Keys(level)) {
		e := entries[key]
		if e == nil {
			continue
		}
		delete(entries, key)
		g, ok := d.visible(ctx, s, e)
		if !ok {
			continue
		}
		g.Path = append(slices.Clone(level[key]), e.DN)
		reached = append(reached, g)
		for _, parent := range e.GetEqualFoldAttributeValues("memberOf") {
			above[foldDN(parent)] = g.Path
		}
	}
	return reached, above
}
