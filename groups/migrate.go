package groups

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// Record format 1 had "group/<name>" and "group/<name>/<kind>/<id>", both JSON.
const formerPrefix = "group/"

// formerMembers memberships go in one write, with what they leave.
const formerMembers = store.MaxOps / 2

// Migration is the step from record format 1 to 2, after which groups have ids.
func Migration() store.Migration {
	return store.Migration{Name: "give groups ids", Run: migrate}
}

// migrate brings the groups from record format 1 to 2. A group's id comes from its
// name, so that it can be cut off, and two nodes can do it at once. What is damaged
// stays damaged, and counts for nothing.
func migrate(ctx context.Context, st store.Store) error {
	for e, err := range store.All(ctx, st, formerPrefix, "", store.MaxList) {
		if err != nil {
			return fmt.Errorf("list groups of format 1: %w", err)
		}
		if name := strings.TrimPrefix(e.Key, formerPrefix); !strings.Contains(name, "/") {
			if err := migrateGroup(ctx, st, name, e); err != nil {
				return fmt.Errorf("group %q: %w", name, err)
			}
		}
	}
	return nil
}

func formerID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return encodeID(sum[:idBytes])
}

// migrateGroup writes the group anew, moves its memberships, and deletes what it was.
func migrateGroup(ctx context.Context, st store.Store, name string, e store.Entry) error {
	id := formerID(name)
	was := store.Cond{Key: e.Key, Revision: e.Revision}
	conds := []store.Cond{was, {Key: recordKey(id)}, {Key: nameKey(name)}}
	ops := []store.Op{{Key: recordKey(id), Value: formerRecord(name, e.Value)}, {Key: nameKey(name), Value: []byte(id)}}
	if _, err := st.Txn(ctx, conds, ops); err != nil && !errors.Is(err, store.ErrConflict) { // else it was written before
		return err
	}
	for {
		members, _, err := st.List(ctx, e.Key+"/", "", formerMembers)
		if err != nil {
			return fmt.Errorf("list members: %w", err)
		}
		if len(members) == 0 {
			break
		}
		if err := moveMembers(ctx, st, id, e.Key, members); err != nil {
			return err
		}
	}
	_, err := st.Txn(ctx, []store.Cond{was}, []store.Op{{Key: e.Key, Delete: true}})
	if errors.Is(err, store.ErrConflict) {
		return nil // another node was faster
	}
	return err
}

func formerRecord(name string, value []byte) []byte {
	var old struct {
		Description string    `json:"description"`
		Created     time.Time `json:"created"`
		CreatedBy   string    `json:"createdBy"`
	}
	if json.Unmarshal(value, &old) != nil {
		return value
	}
	op, err := putRecord("", record{Settings: Settings{Name: name, Description: old.Description}, Created: old.Created, CreatedBy: old.CreatedBy})
	if err != nil { // a time that JSON has no form for: there is none that it was read from
		return value
	}
	return op.Value
}

// moveMembers moves memberships to their new keys; those that another node has moved
// meanwhile are seen to be gone by the next listing.
func moveMembers(ctx context.Context, st store.Store, id, formerGroup string, members []store.Entry) error {
	var conds []store.Cond
	var ops []store.Op
	for _, e := range members {
		conds = append(conds, store.Cond{Key: e.Key, Revision: e.Revision})
		who := strings.TrimPrefix(e.Key, formerGroup+"/")
		value := e.Value
		var m Member
		if json.Unmarshal(value, &m) == nil {
			m.Ref.Kind, m.End = cutSubject(who).Kind, whole(m.End)
			if v, err := encodeMember(m); err == nil {
				value = v
			}
		}
		ops = append(ops, store.Op{Key: membersKey(id) + who, Value: value}, store.Op{Key: e.Key, Delete: true})
	}
	if _, err := st.Txn(ctx, conds, ops); err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("move members: %w", err)
	}
	return nil
}
