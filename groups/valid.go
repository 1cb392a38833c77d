package groups

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	maxName = 128  // runes of a group's name
	maxText = 1024 // bytes of a description, a reason, or a member's name
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

func (s *Service) validMember(m Member) error {
	if err := validKind(m.Kind); err != nil {
		return err
	}
	switch {
	case m.ID == "" || len(m.ID) > maxID || !clean(m.ID):
		return invalid("the member's id is empty, longer than %d bytes, or has control characters", maxID)
	case m.Kind == KindDirectoryGroup && !slices.ContainsFunc(s.cfg.Reserved, func(p string) bool { return strings.HasPrefix(m.ID, p) && m.ID != p }):
		return invalid("a directory group begins with its directory's prefix: %s", strings.Join(s.cfg.Reserved, ", "))
	case m.Kind == KindDirectoryGroup && (m.ID != strings.TrimSpace(m.ID) || !norm.NFC.IsNormalString(m.ID)):
		return invalid("a directory group's name has no space at its ends and is in Unicode NFC")
	case !m.End.IsZero() && !m.End.After(time.Now()):
		return invalid("the end of a membership lies ahead")
	case m.End.Year() > 9999: // RFC 3339 has no more
		return invalid("the end of a membership is before the year 10000")
	}
	if err := validText("member's name", m.Name); err != nil {
		return err
	}
	return validText("reason", m.Reason)
}

func validKind(k Kind) error {
	if k != KindPerson && k != KindDirectoryGroup {
		return invalid("a member is a %s or a %s", KindPerson, KindDirectoryGroup)
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
