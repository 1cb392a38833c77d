package proxy

import (
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

// call is one request on its way through the proxy: what each step found out.
type call struct {
	origin   audit.Origin
	cluster  *cluster
	who      idp.Identity
	foreign  bool           // not our token: let through by the API server's own word
	as       *impersonation // whom the caller wants to be (--as), or nil
	info     *request.RequestInfo
	decision Decision
	level    auditLevel // what is left of it in the trail
	refused  string     // why we answered ourselves, where decision does not say it
	auditID  string
	started  time.Time
	status   int   // of the answer, 0 before there is one
	bytes    int64 // of the answer's body, or both ways of an upgraded connection
	upgrade  bool
	stream   bool         // does not end by itself: a watch, logs, an upgrade, what a pod or service serves
	begun    bool         // the trail let it go on: it may have been forwarded
	judged   bool         // whoever asks is known: the trail is told
	upgraded atomic.Int64 // bytes of an upgraded connection, while it is open
	cut      string       // why the stream was ended by us, or ""
}

// impersonation is whom the API server is told to act for.
type impersonation struct {
	User   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// inputFor is what a policy sees of the request, as who asks.
func (c *call) inputFor(who idp.Identity, now time.Time) *Input {
	return &Input{
		User: who.Username, Groups: who.Groups, Verb: c.info.Verb, Resource: c.info.Resource, Subresource: c.info.Subresource,
		APIGroup: c.info.APIGroup, Namespace: c.info.Namespace, Name: c.info.Name, Path: c.info.Path,
		Now: now, SourceIP: c.origin.Address, SessionAge: now.Sub(who.AuthTime),
	}
}

// describe fills in what is asked for. Whatever opens a connection into a pod is called
// create, as the API server authorizes it, though WebSocket clients send a GET: whoever
// is only to read may not get in that way.
func (c *call) describe(info *request.RequestInfo) {
	c.info = info
	enters := info.APIGroup == "" && info.Resource == "pods" && slices.Contains([]string{"exec", "attach", "portforward"}, info.Subresource)
	if enters && info.Verb == "get" {
		info.Verb = "create"
	}
	c.stream = c.upgrade || enters || info.Verb == "watch" || info.Verb == "proxy" || info.Subresource == "proxy" || info.Subresource == "log"
}
