package groups

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	maxName = 128  // runes of a group's name
	maxText = 1024 // bytes of a description, a reason, or a member's name

	maxOwners  = 50
	maxLabels  = 32
	maxNesting = 20 // memberships of groups in groups, one above the other
	maxFormer  = 20 // names that a group remembers

	// maxID is what the longest name leaves of a key; in bytes.
	maxID = store.MaxKey - maxName*utf8.UTFMax - 64
)

// invalid is ErrInvalid with what is wrong, in words for who asked.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// validName refuses names that Kubernetes or a directory owns, and those that
// people or programs would read as something else.
func (s *Service) validName(name string) error {
	switch {
	case name == "" || !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxName:
		return invalid("a group's name has 1 to %d characters", maxName)
	case hasPrefixFold(name, "system:"):
		return invalid("names that begin with system: belong to Kubernetes")
	case name != strings.TrimSpace(name) || !norm.NFC.IsNormalString(name):
		return invalid("a group's name has no space at its ends and is in Unicode NFC")
	case strings.ContainsAny(name, "/,") || strings.ContainsFunc(name, unseen):
		return invalid("a group's name has no slash, comma or invisible character")
	case strings.Trim(name, ".") == "":
		return invalid("a group's name is not dots alone, which a URL cannot hold")
	}
	for _, p := range s.cfg.Reserved {
		if hasPrefixFold(name, p) {
			return invalid("names that begin with %s belong to a directory", p)
		}
	}
	return nil
}

// hasPrefixFold reports whether s begins with prefix in whatever case. Upper case
// comes first: two letters that share only that (s and ſ) count as one.
func hasPrefixFold(s, prefix string) bool {
	fold := func(s string) string { return strings.ToLower(strings.ToUpper(s)) }
	return strings.HasPrefix(fold(s), fold(prefix))
}

// unseen reports whether r prints as nothing, or as a space that is not U+0020: two
// names that look alike would be two groups.
func unseen(r rune) bool {
	return !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// validMember checks a membership of a group; was is the one that it replaces, if any.
// The member's group, if it is one, is checked elsewhere.
func (s *Service) validMember(m Member, was *Member) error {
	if err := s.validRef(m.Ref); err != nil {
		return fmt.Errorf("member: %w", err)
	}
	switch {
	case !m.End.IsZero() && !m.End.After(m.Begin):
		return invalid("a membership ends after it begins")
	case !m.End.IsZero() && !m.End.After(time.Now()) && (was == nil || !was.End.Equal(m.End)):
		return invalid("the end of a membership lies ahead")
	case m.End.Year() > 9999 || m.Begin.Year() > 9999: // RFC 3339 has no more
		return invalid("a membership begins and ends before the year 10000")
	}
	return validText("reason", m.Reason)
}

// validRef checks what a person, directory group or local group is known by.
func (s *Service) validRef(r Ref) error {
	if err := validKind(r.Kind); err != nil {
		return err
	}
	switch {
	case r.ID == "" || len(r.ID) > maxID || !clean(r.ID):
		return invalid("an id is empty, longer than %d bytes, or has control characters", maxID)
	case r.Kind == KindDirectoryGroup && !slices.ContainsFunc(s.cfg.Reserved, func(p string) bool { return strings.HasPrefix(r.ID, p) && r.ID != p }):
		return invalid("a directory group begins with its directory's prefix: %s", strings.Join(s.cfg.Reserved, ", "))
	case r.Kind == KindDirectoryGroup && (r.ID != strings.TrimSpace(r.ID) || !norm.NFC.IsNormalString(r.ID)):
		return invalid("a directory group's name has no space at its ends and is in Unicode NFC")
	}
	return validText("name of a member or owner", r.Name)
}

func validKind(k Kind) error {
	if k != KindPerson && k != KindDirectoryGroup && k != KindGroup {
		return invalid("a member or owner is a %s, a %s or a %s", KindPerson, KindDirectoryGroup, KindGroup)
	}
	return nil
}

// validSettings checks what differs from old, and puts the rest in order: each owner
// and cluster once. Owners' local groups are known by their ids here.
func (s *Service) validSettings(set *Settings, old Settings) error {
	if set.Name != old.Name || set.Name == "" {
		if err := s.validName(set.Name); err != nil {
			return err
		}
	}
	if err := validText("description", set.Description); err != nil {
		return err
	}
	set.Clusters = slices.Compact(slices.Sorted(slices.Values(set.Clusters)))
	for _, c := range set.Clusters {
		if !slices.Contains(s.cfg.Clusters, c) && !slices.Contains(old.Clusters, c) {
			return invalid("there is no cluster %.80q", c)
		}
	}
	if err := s.validOwners(set); err != nil {
		return err
	}
	return validLabels(set.Labels)
}

func (s *Service) validOwners(set *Settings) error {
	var owners []Ref
	for _, o := range set.Owners {
		if slices.ContainsFunc(owners, o.same) {
			continue
		}
		if err := s.validRef(o); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
		switch {
		case o.Kind == KindDirectoryGroup:
			o.Name = o.ID
		case o.Kind == KindGroup:
			o.Name = "" // read anew each time
		}
		owners = append(owners, o)
	}
	if set.Owners = owners; len(owners) > maxOwners {
		return invalid("a group has at most %d owners: name a group instead", maxOwners)
	}
	return nil
}

func (r Ref) same(other Ref) bool { return r.Kind == other.Kind && r.ID == other.ID }

func validLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return invalid("a group has at most %d labels", maxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if wrong := validation.IsQualifiedName(k); len(wrong) > 0 {
			return invalid("label %.80q: %s", k, wrong[0])
		}
		if wrong := validation.IsValidLabelValue(labels[k]); len(wrong) > 0 {
			return invalid("value of label %s: %s", k, wrong[0])
		}
	}
	return nil
}

func validText(what, s string) error {
	if len(s) > maxText || !clean(s) {
		return invalid("the %s is longer than %d bytes, or has control characters", what, maxText)
	}
	return nil
}

// clean reports whether s is text without control characters, which would go to
// terminals.
func clean(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }
