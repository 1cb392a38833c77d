package audit

import (
	"encoding/binary"
	"strings"
	"unicode"
)

// fold makes upper and lower case the same. No letter beyond ASCII becomes one of it,
// as the Kelvin sign would: lower must find in bytes what fold finds in runes.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if l := unicode.ToLower(r); r < 0x80 || l >= 0x80 {
			return l
		}
		return r
	}, s)
}

// lower returns b with its ASCII letters in lower case, eight bytes at a time: a search
// does it to all that it reads.
func lower(b []byte) []byte {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	out := make([]byte, len(b))
	i := 0
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		low := w &^ high
		fromA, beyondZ := low+(0x80-'A')*ones, low+(0x7f-'Z')*ones
		upper := (fromA ^ beyondZ) & ^w & high // the high bit of each byte from A to Z
		binary.LittleEndian.PutUint64(out[i:], w|upper>>2)
	}
	for ; i < len(b); i++ {
		if out[i] = b[i]; 'A' <= b[i] && b[i] <= 'Z' {
			out[i] += 'a' - 'A'
		}
	}
	return out
}
