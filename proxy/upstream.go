package proxy

import (
	"net/http"
	"net/url"
	"time"

	"github.com/sirupsen/logrus"
)

// upstream is one cluster's API server, and the account by which the proxy acts there.
type upstream struct{ base *url.URL }

// newUpstream returns the API server that cfg names, and keeps its health and the
// account's credential current until close. It waits for neither.
func newUpstream(name string, cfg APIServerConfig, log logrus.FieldLogger) (*upstream, error) {
	panic("not yet")
}

// url is where the API server is: https, perhaps with a path in front of its own. Not to
// be changed.
func (u *upstream) url() *url.URL { return u.base }

// transport sends requests that impersonate somebody, over HTTP/2 where the API server
// has it. It puts the account's credential on the request itself, which must be the
// caller's own to change, and refuses one without an Impersonate-User.
func (u *upstream) transport() http.RoundTripper { panic("not yet") }

// upgrades is transport for requests with Upgrade: over HTTP/1.1, each on a connection
// of its own.
func (u *upstream) upgrades() http.RoundTripper { panic("not yet") }

// foreign sends requests that bring their own Authorization, without any credential of
// ours, a client certificate above all: the API server would believe that one first.
func (u *upstream) foreign() http.RoundTripper { panic("not yet") }

// foreignUpgrades is foreign for requests with Upgrade.
func (u *upstream) foreignUpgrades() http.RoundTripper { panic("not yet") }

// health is what is wrong with the API server by the last probe, nil for nothing, and
// since when it has been so.
func (u *upstream) health() (error, time.Time) { panic("not yet") }

// close ends what newUpstream started and drops idle connections.
func (u *upstream) close() {}
