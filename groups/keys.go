package groups

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// Keys in the store, all under one prefix, so that one watch serves:
//
//	groups/m/<group>/<kind>/<id>  a membership: begin, end, JSON of the rest
//	groups/n/<name>               the id of the group that has the name
//	groups/nesting                moved by what makes nesting deeper, and by the mark of a delete
//	groups/r/<group>              a group: JSON of a record
//
// <group> is a group's id, which holds no slash.
const (
	keyPrefix  = "groups/"
	memberKeys = "groups/m/"
	nameKeys   = "groups/n/"
	recordKeys = "groups/r/"
	nestingKey = "groups/nesting"
)

func recordKey(group string) string  { return recordKeys + group }
func nameKey(name string) string     { return nameKeys + name }
func membersKey(group string) string { return memberKeys + group + "/" }

func memberKey(group string, kind Kind, id string) string {
	return membersKey(group) + subject(kind, id)
}

// subject is what a membership's key ends in, and what the index knows a person or
// group by.
func subject(kind Kind, id string) string { return string(kind) + "/" + id }

// cutMember is memberKey's inverse.
func cutMember(key string) (group, subject string) {
	group, subject, _ = strings.Cut(strings.TrimPrefix(key, memberKeys), "/")
	return group, subject
}

func cutSubject(subject string) Ref {
	kind, id, _ := strings.Cut(subject, "/")
	return Ref{Kind: Kind(kind), ID: id}
}

const idBytes = 10 // of a group's id, before base32

func encodeID(b []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

func newID() string {
	b := make([]byte, idBytes)
	_, _ = rand.Read(b) // never fails
	return encodeID(b)
}

// record is a group as it is stored. Owners that are local groups are kept without
// their names, which change.
type record struct {
	Settings
	Created       time.Time    `json:"created"`
	CreatedBy     string       `json:"createdBy"`
	CreatedByName string       `json:"createdByName,omitempty"`
	Formerly      []FormerName `json:"formerly,omitempty"`
	Deleting      bool         `json:"deleting,omitempty"` // it counts no more; its memberships are being deleted
}

func decodeRecord(value []byte) (record, error) {
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return record{}, err
	}
	if r.Name == "" {
		return record{}, errors.New("it has no name")
	}
	return r, nil
}

// grant is what a membership's value holds after begin and end.
type grant struct {
	Name   string    `json:"name,omitempty"`
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by"`
	ByName string    `json:"byName,omitempty"`
	At     time.Time `json:"at"`
}

const (
	spanSize = 16
	forever  = math.MaxInt64
)

// span is when a membership counts, in Unix microseconds: begin ≤ now < end.
type span struct{ begin, end int64 }

// never is the span of a membership that cannot be read: it is there, and counts at
// no time.
var never = span{begin: forever}

func (s span) counts(now int64) bool { return s.begin <= now && now < s.end }

// decodeSpan reads the part of a membership that the index needs.
func decodeSpan(value []byte) (span, error) {
	if len(value) < spanSize+2 || value[spanSize] != '{' || value[len(value)-1] != '}' {
		return never, errors.New("it is cut off")
	}
	s := span{int64(binary.BigEndian.Uint64(value)), int64(binary.BigEndian.Uint64(value[8:]))}
	if s.end == 0 {
		s.end = forever
	}
	if s.begin < 0 || s.end <= s.begin {
		return never, errors.New("it ends before it begins")
	}
	return s, nil
}

// encodeMember makes a membership's value. Begin and End are whole microseconds.
func encodeMember(m Member) ([]byte, error) {
	name := m.Name
	if m.Kind != KindPerson { // a directory group is its id, a local group's name may change
		name = ""
	}
	rest, err := json.Marshal(grant{name, m.Reason, m.GrantedBy, m.GrantedByName, m.GrantedAt})
	if err != nil {
		return nil, fmt.Errorf("encode membership: %w", err)
	}
	value := make([]byte, spanSize, spanSize+len(rest))
	binary.BigEndian.PutUint64(value, uint64(micros(m.Begin)))
	binary.BigEndian.PutUint64(value[8:], uint64(micros(m.End)))
	return append(value, rest...), nil
}

// micros is t in Unix microseconds, 0 for the zero time. What lies before 1970 has
// begun or ended as much as 1970.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(1, t.UnixMicro())
}

func fromMicros(us int64) time.Time {
	if us == 0 || us == forever {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// decodeMember reads a whole membership, but for the name of a local group. Where
// the value is damaged it returns what can be read, with an error.
func decodeMember(ref Ref, value []byte) (Member, error) {
	if ref.Kind == KindDirectoryGroup {
		ref.Name = ref.ID
	}
	m := Member{Ref: ref}
	s, err := decodeSpan(value)
	if err != nil {
		m.Begin, m.End, m.Reason = time.Unix(0, 1000).UTC(), time.Unix(0, 2000).UTC(), "this record is damaged, and counts for nothing"
		return m, err
	}
	m.Begin, m.End = fromMicros(s.begin), fromMicros(s.end)
	var g grant
	if err := json.Unmarshal(value[spanSize:], &g); err != nil {
		m.Reason = "the rest of this record is damaged"
		return m, err
	}
	if ref.Kind == KindPerson {
		m.Name = g.Name
	}
	m.Reason, m.GrantedBy, m.GrantedByName, m.GrantedAt = g.Reason, g.By, g.ByName, g.At
	return m, nil
}

func putRecord(group string, r record) (store.Op, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode group %q: %w", r.Name, err)
	}
	return store.Op{Key: recordKey(group), Value: value}, nil
}
