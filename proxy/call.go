package proxy

import (
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/tabard-id/tabard/idp"
)

// call is one request on its way through the proxy: what each step found out.
type call struct {
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
	cut      string // why the stream was ended by us, or ""
}

// impersonation is whom the API server is told to act for.
type impersonation struct {
	User   string
	UID    string
	Groups []string
	Extra  map[string][]string
}
