package proxy

import (
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"github.com/tabard-id/tabard/idp"
)

const (
	maxHeaders     = 200      // lines
	maxHeaderBytes = 64 << 10 // of names and values
	maxBearer      = 32 << 10
)

// Headers of impersonation, as net/http spells them.
const (
	headerUser  = "Impersonate-User"
	headerUID   = "Impersonate-Uid"
	headerGroup = "Impersonate-Group"
	headerExtra = "Impersonate-Extra-"
	headerAudit = "Audit-Id"
)

// Extras that the proxy adds to those of idp.Identity.
const (
	extraAddress         = "tabard.dev/address"
	extraImpersonator    = "tabard.dev/impersonator"
	extraImpersonatorUID = "tabard.dev/impersonator-uid"
)

// websocketBearer begins a WebSocket subprotocol that is a bearer token for an API server.
const websocketBearer = "base64url.bearer.authorization.k8s.io."

// checkHeaders refuses what is too much, and WebSocket subprotocols that are tokens: an
// API server might take one in place of who we say it is.
func checkHeaders(h http.Header) error {
	lines, size := 0, 0
	for name, values := range h {
		for _, v := range values {
			lines, size = lines+1, size+len(name)+len(v)
		}
	}
	if lines > maxHeaders || size > maxHeaderBytes {
		return headersTooLarge()
	}
	for _, v := range h["Sec-Websocket-Protocol"] {
		if strings.Contains(strings.ToLower(v), websocketBearer) {
			return badRequest("a token as a WebSocket subprotocol is not taken here: send it in Authorization")
		}
	}
	return nil
}

// bearer returns the token of the one Authorization header. RFC 6750 section 2.1.
func bearer(h http.Header) (string, error) {
	values := h["Authorization"]
	if len(values) != 1 {
		return "", unauthorized()
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxBearer {
		return "", unauthorized()
	}
	for i := range len(token) {
		if b := token[i]; b <= ' ' || b >= 0x7f || b == ',' || b == '"' {
			return "", unauthorized()
		}
	}
	return token, nil
}

// upgradeOf says whether the client wants another protocol on the connection. It may be
// WebSocket or SPDY alone: h2c would be a way to the API server past every check.
func upgradeOf(h http.Header) (bool, error) {
	wanted := h["Upgrade"]
	if len(wanted) == 0 {
		return false, nil
	}
	if len(wanted) > 1 || !strings.EqualFold(wanted[0], "websocket") && !strings.EqualFold(wanted[0], "SPDY/3.1") {
		return false, badRequest("upgrades are to websocket or SPDY/3.1")
	}
	for _, v := range h["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(textproto.TrimString(token), "upgrade") {
				return true, nil
			}
		}
	}
	return false, badRequest("there is an Upgrade header, but Connection does not name it")
}

// requested returns whom the client asks to be (kubectl --as), or nil. It reads the
// headers as the API server does, and refuses what that would pass over in silence.
func requested(h http.Header) (*impersonation, error) {
	want := impersonation{Groups: h[headerGroup], Extra: map[string][]string{}}
	asked := len(want.Groups) > 0
	for name, one := range map[string]*string{headerUser: &want.User, headerUID: &want.UID} {
		switch values := h[name]; {
		case len(values) > 1:
			return nil, badRequest("there may be one %s header", name)
		case len(values) == 1:
			*one, asked = values[0], true
		}
	}
	for name, values := range h {
		escaped, ok := strings.CutPrefix(name, headerExtra)
		if !ok {
			continue
		}
		key, err := url.PathUnescape(strings.ToLower(escaped))
		if err != nil || key == "" || key != strings.ToLower(key) || want.Extra[key] != nil {
			return nil, badRequest("%s%.100s is not percent-encoded as it must be", headerExtra, escaped)
		}
		if strings.HasPrefix(key, "tabard.dev/") || key == idp.ExtraCredentialID {
			return nil, badRequest("the extra %.100s is not for clients to set", key)
		}
		want.Extra[key], asked = values, true
	}
	switch {
	case !asked:
		return nil, nil
	case want.User == "":
		return nil, badRequest("groups, uid and extras are impersonated together with a user")
	}
	if err := want.check(); err != nil {
		return nil, badRequest("who is to be impersonated: %s", err)
	}
	return &want, nil
}

// check says whether the headers would bring every value to the API server as it is.
func (i *impersonation) check() error {
	if !carries(i.User) || i.UID != "" && !carries(i.UID) {
		return errUnsafe
	}
	if slices.ContainsFunc(i.Groups, func(g string) bool { return !carries(g) }) {
		return errUnsafe
	}
	for _, values := range i.Extra {
		for _, v := range values {
			if v != "" && !carries(v) {
				return errUnsafe
			}
		}
	}
	return nil
}

var errUnsafe = errors.New("a name is empty, or begins or ends with white space, or holds control characters")

// carries says whether a header brings s to the other side as it is. " system:masters"
// would arrive as system:masters.
func carries(s string) bool {
	if s == "" || s[0] == ' ' || s[len(s)-1] == ' ' {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// strip takes off a request everything by which a client could say who asks, or from
// where, or how the connection is to be treated.
func strip(h http.Header) {
	for name := range h {
		if isDropped(name) {
			delete(h, name)
		}
	}
}

// isDropped says whether a header never goes on, in any spelling: some servers read _
// as -.
func isDropped(name string) bool {
	switch name[0] | 0x20 {
	case 'a', 'c', 'f', 'h', 'i', 'k', 'p', 't', 'u', 'x': // what is below begins so
	default:
		return false
	}
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	switch name {
	case "authorization", "cookie", "cookie2", "forwarded", "x-forwarded", "x-real-ip", "x-remote", "impersonate", "audit-id",
		"host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	for _, prefix := range [...]string{"impersonate-", "x-remote-", "x-forwarded-", "proxy-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// set puts on a request for whom the API server is to act. It comes last, after strip.
func (i *impersonation) set(h http.Header) {
	h[headerUser] = []string{i.User}
	if i.UID != "" {
		h[headerUID] = []string{i.UID}
	}
	if len(i.Groups) > 0 {
		h[headerGroup] = i.Groups
	}
	for key, values := range i.Extra {
		h[extraHeader(key)] = values
	}
}

// extraHeader is the name of the header for an extra.
func extraHeader(key string) string {
	switch key {
	case idp.ExtraCredentialID:
		return headerExtra + "Authentication.kubernetes.io%2fcredential-Id"
	case idp.ExtraSession:
		return headerExtra + "Tabard.dev%2fsid"
	case extraAddress:
		return headerExtra + "Tabard.dev%2faddress"
	}
	return http.CanonicalHeaderKey(headerExtra + escapeKey(key))
}

// escapeKey percent-encodes what may not be in a header's name, as client-go does.
func escapeKey(key string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		if c != '%' && isTokenByte(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// isTokenByte is RFC 9110's tchar.
func isTokenByte(b byte) bool {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}

// stripTrailers takes cookies off trailers, those that were not announced too.
func stripTrailers(h http.Header) {
	for _, name := range [...]string{"Set-Cookie", "Set-Cookie2"} {
		delete(h, name)
		delete(h, http.TrailerPrefix+name)
	}
}

// stripAnswer takes off an answer what could reach into the issuer's own origin. own
// says that it is given there.
func stripAnswer(h http.Header, own bool) {
	delete(h, "Set-Cookie")
	delete(h, "Set-Cookie2")
	if !own {
		return
	}
	for _, name := range [...]string{"Clear-Site-Data", "Alt-Svc", "Strict-Transport-Security", "Public-Key-Pins", "Service-Worker-Allowed", "Nel", "Report-To", "Reporting-Endpoints"} {
		delete(h, name)
	}
	h["Content-Security-Policy"] = []string{"sandbox"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
}
