package proxy

import (
	"net"
	"net/http"
	"net/url"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxTarget is how long path and query may be together, in bytes.
const maxTarget = 32 << 10

// routes finds a request's cluster.
type routes struct {
	issuer string
	prefix string // raw path that names a cluster, e.g. "/k8s/clusters/"
	byName map[string]*cluster
	byHost map[string]*cluster // lower case, without port
}

// target is where a request goes.
type target struct {
	cluster *cluster
	base    string // raw path before the API server's own, "" when reached by host
	path    string // the API server's, decoded
	raw     string // the same as it came
	query   string
}

// Handles says whether a request is the proxy's: by its host, or by its raw path. What is
// under <issuer>/k8s/clusters always is, known cluster or not.
func (p *Proxy) Handles(r *http.Request) bool {
	rs := p.routes.Load()
	if rs.byHost[hostOf(r.Host)] != nil {
		return true
	}
	if !strings.HasPrefix(r.RequestURI, "/") { // absolute-form, to be refused
		_, _, ok := rs.named(r.URL.EscapedPath())
		return ok
	}
	_, _, ok := rs.named(r.RequestURI)
	return ok
}

// named cuts the prefix and a cluster's name off a raw path. It decodes nothing.
func (rs *routes) named(raw string) (name, rest string, ok bool) {
	if rs.prefix == "" {
		return "", "", false
	}
	rest, ok = strings.CutPrefix(raw, rs.prefix)
	if !ok {
		bare := rs.prefix[:len(rs.prefix)-1]
		return "", "", raw == bare || strings.HasPrefix(raw, bare+"?")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	return rest[:end], rest[end:], true
}

// find says where a request goes. The error is an *answer.
func (rs *routes) find(r *http.Request) (target, error) {
	uri := r.RequestURI
	if len(uri) > maxTarget {
		return target{}, &answer{code: http.StatusRequestURITooLong, reason: metav1.StatusReasonBadRequest, message: "the path and query are too long"}
	}
	if !strings.HasPrefix(uri, "/") {
		return target{}, badRequest("the request target must be a path")
	}
	t := target{cluster: rs.byHost[hostOf(r.Host)]}
	rest := uri
	if t.cluster == nil {
		name, after, ok := rs.named(uri)
		if t.cluster = rs.byName[name]; !ok || t.cluster == nil {
			return target{}, notFound("there is no such cluster here: see kubectl tabard kubeconfig for those that there are")
		}
		t.base, rest = rs.prefix+name, after
	}
	t.raw, t.query, _ = strings.Cut(rest, "?")
	if t.raw == "" {
		t.raw = "/"
	}
	var err error
	if t.path, err = decodePath(t.raw); err != nil {
		return target{}, err
	}
	if !printable(t.query) {
		return target{}, badRequest("the query holds bytes that must be percent-encoded")
	}
	return t, nil
}

// hostOf is the name of a Host header: lower case, without port, brackets or the root's
// dot. What is no host is "".
func hostOf(host string) string {
	if strings.ContainsRune(host, ':') {
		name, port, err := net.SplitHostPort(host)
		if err != nil || strings.Trim(port, "0123456789") != "" {
			return ""
		}
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// decodePath decodes a raw path once, and refuses what two parsers could read in two
// ways: the policy would judge one, and the API server do another.
func decodePath(raw string) (string, error) {
	path := raw
	if strings.IndexByte(raw, '%') >= 0 {
		var err error
		if path, err = url.PathUnescape(raw); err != nil {
			return "", badRequest("the path is not percent-encoded as it must be")
		}
	}
	strict, tail := splitTail(raw)
	for segment := range strings.SplitSeq(strings.TrimSuffix(strict[1:], "/"), "/") {
		if segment == "" && strict == "/" {
			break
		}
		if err := checkSegment(segment); err != nil {
			return "", err
		}
	}
	return path, checkTail(tail)
}

// checkSegment takes one segment of a path of the API server's own. Names in Kubernetes
// hold neither slash nor percent sign.
func checkSegment(raw string) error {
	segment := raw
	if strings.IndexByte(raw, '%') >= 0 {
		var err error
		if segment, err = url.PathUnescape(raw); err != nil {
			return badRequest("the path is not percent-encoded as it must be")
		}
		if strings.ContainsAny(segment, `/\%`) {
			return badRequest(`the path may not hold an encoded /, \ or %%`)
		}
	}
	switch {
	case segment == "":
		return badRequest("the path may not hold //")
	case segment == "." || segment == "..":
		return badRequest("the path may not hold . or .. as a segment")
	}
	for i := range len(raw) {
		if !isPathByte(raw[i]) {
			return badRequest("the path holds a byte that must be percent-encoded")
		}
	}
	for i := range len(segment) {
		if segment[i] < ' ' || segment[i] == 0x7f {
			return badRequest("the path may not hold control characters")
		}
	}
	return nil
}

// checkTail takes what a pod, service or node is asked for: its own business, but for dot
// segments in any spelling, which the API server or what is behind it might resolve.
func checkTail(raw string) error {
	for i := range len(raw) {
		if !isPathByte(raw[i]) && strings.IndexByte("/[]", raw[i]) < 0 {
			return badRequest("the path holds a byte that must be percent-encoded")
		}
	}
	decoded, err := url.PathUnescape(raw)
	if err != nil {
		return badRequest("the path is not percent-encoded as it must be")
	}
	for segment := range strings.FieldsFuncSeq(decoded, func(r rune) bool { return r == '/' || r == '\\' }) {
		if segment == "." || segment == ".." {
			return badRequest("the path may not hold . or .. as a segment")
		}
	}
	return nil
}

// splitTail cuts a raw path after the "proxy" of a pod, service or node.
func splitTail(raw string) (strict, tail string) {
	const (
		namespaced = 7 // /api/v1/namespaces/NS/pods/NAME/proxy
		cluster    = 5 // /api/v1/nodes/NAME/proxy
	)
	if !strings.Contains(raw, "/proxy/") {
		return raw, ""
	}
	var segments [namespaced]string
	n, at := 0, 1
	for n < len(segments) && at < len(raw) {
		end := strings.IndexByte(raw[at:], '/')
		if end < 0 {
			break
		}
		segments[n] = raw[at : at+end]
		n, at = n+1, at+end+1
		if segments[n-1] != "proxy" || segments[0] != "api" || segments[1] != "v1" {
			continue
		}
		if n == cluster && segments[2] == "nodes" ||
			n == namespaced && segments[2] == "namespaces" && (segments[4] == "pods" || segments[4] == "services") {
			return raw[:at], raw[at:]
		}
	}
	return raw, ""
}

// printable says that s holds nothing but visible ASCII.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// isPathByte is RFC 3986's pchar, with the percent sign.
func isPathByte(b byte) bool {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		return true
	}
	return strings.IndexByte("-._~!$&'()*+,;=:@%", b) >= 0
}
