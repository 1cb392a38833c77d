package demoldap

import (
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

const (
	maxFilter = 16 << 10 // bytes
	maxDepth  = 32       // of filters in filters
)

// filter says whether an entry matches.
type filter func(*entry) bool

// parseFilter reads the string form of a search filter (RFC 4515): and, or, not,
// equality, presence and substrings. Other matches are an error.
func parseFilter(s string) (filter, error) {
	if len(s) > maxFilter {
		return nil, errors.New("the filter is too long")
	}
	p := &filterParser{rest: s}
	f, err := p.filter(0)
	if err == nil && p.rest != "" {
		err = fmt.Errorf("there is more after the filter: %q", p.rest)
	}
	return f, err
}

type filterParser struct{ rest string }

// take removes c from the start of what is left and says whether it was there.
func (p *filterParser) take(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *filterParser) filter(depth int) (f filter, err error) {
	if depth > maxDepth {
		return nil, errors.New("the filter is too deep")
	}
	if !p.take('(') {
		return nil, fmt.Errorf("a filter begins with a parenthesis, not %q", p.rest)
	}
	switch {
	case p.take('&'):
		f, err = p.list(depth, false)
	case p.take('|'):
		f, err = p.list(depth, true)
	case p.take('!'):
		var not filter
		if not, err = p.filter(depth + 1); err == nil {
			f = func(e *entry) bool { return !not(e) }
		}
	default:
		f, err = p.item()
	}
	if err == nil && !p.take(')') {
		err = errors.New("a parenthesis is not closed")
	}
	return f, err
}

// list reads filters up to a closing parenthesis. One match decides where wanted
// is true, one mismatch where it is false; none at all decide the other way
// (RFC 4526).
func (p *filterParser) list(depth int, wanted bool) (filter, error) {
	var all []filter
	for strings.HasPrefix(p.rest, "(") {
		f, err := p.filter(depth + 1)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return func(e *entry) bool {
		for _, f := range all {
			if f(e) == wanted {
				return wanted
			}
		}
		return !wanted
	}, nil
}

var filterAttribute = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.;-]*$`)

// item reads attribute=value up to a closing parenthesis.
func (p *filterParser) item() (filter, error) {
	text, rest, closed := strings.Cut(p.rest, ")")
	attribute, value, ok := strings.Cut(text, "=")
	if !closed || !ok || !filterAttribute.MatchString(attribute) {
		return nil, fmt.Errorf("%q is no equality, presence or substring match", text)
	}
	p.rest = ")" + rest
	if value == "*" {
		return func(e *entry) bool { return len(e.values(attribute)) > 0 }, nil
	}
	if strings.Contains(value, "**") {
		return nil, fmt.Errorf("%q has nothing between two asterisks", text)
	}
	pieces := strings.Split(value, "*")
	for i, piece := range pieces {
		plain, err := unescape(piece)
		if err != nil {
			return nil, err
		}
		pieces[i] = fold(attribute, plain)
	}
	return func(e *entry) bool {
		for _, v := range e.values(attribute) {
			if matches(fold(attribute, v), pieces) {
				return true
			}
		}
		return false
	}, nil
}

// matches says whether v is pieces with anything between them.
func matches(v string, pieces []string) bool {
	first, last := pieces[0], pieces[len(pieces)-1]
	if len(pieces) == 1 {
		return v == first
	}
	if !strings.HasPrefix(v, first) || len(v) < len(first)+len(last) || !strings.HasSuffix(v, last) {
		return false
	}
	v = v[len(first) : len(v)-len(last)]
	for _, middle := range pieces[1 : len(pieces)-1] {
		_, after, found := strings.Cut(v, middle)
		if !found {
			return false
		}
		v = after
	}
	return true
}

// unescape replaces each \xx by the byte it stands for.
func unescape(s string) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		if len(after) < 2 {
			return "", errors.New("an escape is cut off")
		}
		char, err := hex.DecodeString(after[:2])
		if err != nil {
			return "", fmt.Errorf(`\%s is no escape`, after[:2])
		}
		b.Write(char)
		s = after[2:]
	}
}
