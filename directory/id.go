package directory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/uuid"
)

// idFromEntry returns the canonical lower-case UUID in an entry's id attribute.
func idFromEntry(e *ldap.Entry, attribute string) (string, error) {
	values := e.GetEqualFoldRawAttributeValues(attribute)
	if len(values) != 1 {
		return "", fmt.Errorf("%w: it has %d values of %s, which must be one", ErrUnusable, len(values), attribute)
	}
	id, err := decodeID(attribute, values[0])
	if err != nil {
		return "", fmt.Errorf("%w: %s is not a UUID: %w", ErrUnusable, attribute, err)
	}
	return id.String(), nil
}

func decodeID(attribute string, raw []byte) (uuid.UUID, error) {
	switch strings.ToLower(attribute) {
	case "objectguid":
		id, err := uuid.FromBytes(raw)
		return mixEndian(id), err
	case "nsuniqueid": // 8-8-8-8 hexadecimal digits
		parts := strings.Split(string(raw), "-")
		if len(raw) != 35 || len(parts) != 4 {
			return uuid.Nil, errors.New("it is not 8-8-8-8 hexadecimal digits")
		}
		return uuid.Parse(strings.Join(parts, ""))
	}
	if len(raw) != 36 {
		return uuid.Nil, errors.New("it does not have 36 characters")
	}
	return uuid.ParseBytes(raw)
}

// idFilter is the filter that finds the entry with this id.
func idFilter(attribute string, id uuid.UUID) string {
	value := id.String()
	switch strings.ToLower(attribute) {
	case "objectguid":
		mixed, escaped := mixEndian(id), strings.Builder{}
		for _, b := range mixed {
			fmt.Fprintf(&escaped, `\%02x`, b)
		}
		value = escaped.String()
	case "nsuniqueid":
		h := strings.ReplaceAll(value, "-", "")
		value = strings.Join([]string{h[:8], h[8:16], h[16:24], h[24:]}, "-")
	}
	return "(" + attribute + "=" + value + ")"
}

// mixEndian converts between a UUID and objectGUID, whose first three parts are
// little-endian [MS-DTYP 2.3.4.2]. It is its own inverse.
func mixEndian(b uuid.UUID) uuid.UUID {
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	return b
}

// decodeSID returns the S-1-… form of a binary security identifier
// [MS-DTYP 2.4.2].
func decodeSID(raw []byte) (string, error) {
	if len(raw) < 8 || raw[0] != 1 || raw[1] > 15 || len(raw) != 8+4*int(raw[1]) {
		return "", errors.New("not a security identifier")
	}
	authority := binary.BigEndian.Uint64(append([]byte{0, 0}, raw[2:8]...))
	sid := fmt.Sprintf("S-1-%d", authority)
	for sub := raw[8:]; len(sub) > 0; sub = sub[4:] {
		sid += fmt.Sprintf("-%d", binary.LittleEndian.Uint32(sub))
	}
	return sid, nil
}

// foldDN returns a form of dn that is equal for DNs that name one entry, as far
// as case and spelling go.
func foldDN(dn string) string {
	if plainDN(dn) {
		return strings.ToLower(dn)
	}
	return foldAnyDN(dn)
}

// plainDN says whether dn is ASCII without escapes, several values in one RDN,
// or space beside a separator, as nearly all are. Such a DN is folded by its case
// alone, which is much of the work of finding groups.
func plainDN(dn string) bool {
	before, equals := byte(','), 0
	for i := range len(dn) {
		c := dn[i]
		switch {
		case c < ' ' || c > '~' || strings.IndexByte(`\"#+;<>`, c) >= 0:
			return false
		case c == '=':
			if equals++; equals > 1 || before == ',' {
				return false
			}
		case c == ',':
			if equals != 1 {
				return false
			}
			equals = 0
		}
		separates := c == ',' || c == '='
		if separates && (before == ' ' || before == '=') || c == ' ' && (before == ',' || before == '=') {
			return false
		}
		before = c
	}
	return equals == 1 && before != ' ' && before != '='
}

func foldAnyDN(dn string) string {
	parsed, err := ldap.ParseDN(dn)
	if err != nil {
		return strings.ToLower(clean(dn))
	}
	for _, rdn := range parsed.RDNs {
		for _, a := range rdn.Attributes {
			a.Value = strings.ToLower(clean(a.Value))
		}
	}
	return parsed.String()
}
