package directory

import (
	"strings"
	"unicode/utf8"
)

// Glob reports whether the whole of name fits pattern, in which * stands for
// any run of characters and ? for one. Its time is bounded by the product of
// both lengths.
func Glob(pattern, name string) bool {
	star, taken := "", "" // what follows the last *, and the name where that * gives up
	starred := false
	for name != "" {
		n, size := utf8.DecodeRuneInString(name)
		p, width := utf8.DecodeRuneInString(pattern)
		switch {
		case pattern != "" && p == '*':
			pattern = pattern[width:]
			starred, star, taken = true, pattern, name
		case pattern != "" && (p == '?' || p == n):
			pattern, name = pattern[width:], name[size:]
		case starred:
			_, size = utf8.DecodeRuneInString(taken)
			taken = taken[size:]
			pattern, name = star, taken
		default:
			return false
		}
	}
	return strings.Trim(pattern, "*") == ""
}
