package groups

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// Lookalikes returns the names of groups that people would take for name, sorted, at
// most ten, name itself not among them: for a warning, never a refusal.
func (s *Service) Lookalikes(name string) []string {
	out := []string{}
	if len(name) > 4*maxName { // no group has such a name
		return out
	}
	looks := skeleton(name)
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	for _, other := range s.index.names {
		if other != name && s.index.byName[other].skeleton == looks && len(out) < 10 {
			out = append(out, other)
		}
	}
	return out
}

// skeleton is what is left of a name when all that looks alike is made the same,
// after the idea of Unicode's UTS #39: case, marks, widths and styles of letters,
// letters of other scripts and digits that look like Latin ones, pairs that look
// like one letter, and what separates words. It is coarser than that standard's
// table for what it knows, and leaves scripts alone that look like no other.
func skeleton(name string) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(name) {
		if l := looksLike(r); l != 0 { // before case: П is no n, and п is
			b.WriteRune(l)
			continue
		}
		for _, r := range norm.NFKD.String(strings.ToLower(strings.ToUpper(string(r)))) {
			if l := looksLike(r); l != 0 {
				r = l
			}
			if !unicode.Is(unicode.Mn, r) {
				b.WriteRune(r)
			}
		}
	}
	out := b.String()
	for _, pair := range [][2]string{{"rn", "m"}, {"vv", "w"}, {"cj", "g"}} {
		out = strings.ReplaceAll(out, pair[0], pair[1])
	}
	return out
}

// looksLike returns the Latin letter or the hyphen that r looks like, 0 if none:
// Latin, Cyrillic, Greek, Armenian and digits. One, el, ell and i are all l.
func looksLike(r rune) rune {
	switch r {
	case '-', '_', '.', ' ', '·', '‐', '‑', '–', '—', '―', '−', '⁃', '‧', '˗':
		return '-'
	case 'а', 'А', 'α', 'Α', 'ɑ':
		return 'a'
	case 'В', 'Β', 'β', 'ß', 'ẞ', 'Ь', 'ь':
		return 'b'
	case 'с', 'С', 'ϲ', 'Ϲ', 'ⅽ':
		return 'c'
	case 'ԁ', 'Ԁ', 'ժ':
		return 'd'
	case 'е', 'Е', 'Ε', 'ε', 'є', 'Є':
		return 'e'
	case 'ғ', 'ƒ', 'ք':
		return 'f'
	case 'ɡ', 'ց', 'ԍ':
		return 'g'
	case 'һ', 'Һ', 'Н', 'н', 'Η', 'հ':
		return 'h'
	case 'i', 'I', 'l', 'L', '1', '|', 'ı', 'ɩ', 'ι', 'Ι', 'і', 'І', 'ӏ', 'Ӏ', 'ł', 'Ł', 'ǀ', 'ﺍ':
		return 'l'
	case 'ј', 'Ј', 'ϳ', 'յ':
		return 'j'
	case 'к', 'К', 'κ', 'Κ', 'ĸ':
		return 'k'
	case 'м', 'М', 'Μ':
		return 'm'
	case 'Ν', 'п', 'η', 'ո', 'ռ':
		return 'n'
	case 'о', 'О', 'ο', 'Ο', 'ø', 'Ø', 'օ', 'Օ', 'σ', '0', '٥', '०':
		return 'o'
	case 'р', 'Р', 'ρ', 'Ρ', 'þ':
		return 'p'
	case 'ԛ', 'Ԛ', 'գ', 'զ':
		return 'q'
	case 'г', 'ɾ':
		return 'r'
	case 'ѕ', 'Ѕ', 'Տ':
		return 's'
	case 'т', 'Т', 'τ', 'Τ':
		return 't'
	case 'υ', 'ս', 'Ս', 'μ', 'ц':
		return 'u'
	case 'ν', 'ѵ', 'Ѵ':
		return 'v'
	case 'ѡ', 'ԝ', 'Ԝ', 'ω', 'ш', 'Ш', 'ա':
		return 'w'
	case 'х', 'Х', 'χ', 'Χ', '×':
		return 'x'
	case 'у', 'У', 'γ', 'Υ', 'Ү', 'ү', 'ყ':
		return 'y'
	case 'Ζ', 'ʐ':
		return 'z'
	}
	return 0
}
