package idp

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
)

func TestClustersOf(t *testing.T) {
	h := newHouse(t)
	open := func(login string) string {
		clusters, err := h.ClustersOf(h.browserOf(login))
		h.must(err)
		var names []string
		for _, c := range clusters {
			names = append(names, c.Name)
		}
		return strings.Join(names, " ")
	}
	if got := open("alice") + "|" + open("bob"); got != "prod dev vault|prod dev" {
		t.Errorf("alice and bob may use %q", got)
	}
	h.corp.change("bob", func(e *entry) { e.Username = "system:bob" })
	if got := open("bob"); got != "" {
		t.Errorf("whoever gets no token may use %q", got)
	}
}

// behind stands in for an index that has not heard from the store.
type behind struct{}

func (behind) Of(string, []string, time.Time) ([]groups.Effective, error) {
	return nil, groups.ErrStale
}

func (behind) Why(context.Context, string, []string) ([]groups.Path, error) {
	return nil, groups.ErrStale
}

// Groups that may be out of date are in no token and open no cluster, and nobody is
// signed out for it.
func TestStaleGroupsDeny(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", "kubernetes")
	sess := h.browserOf("alice")
	real := h.Groups
	h.Groups = behind{}
	_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, groups.ErrStale)
	_, err = h.ClustersOf(sess)
	wantErr(t, err, groups.ErrStale)
	_, err = h.Actor(sess)
	wantErr(t, err, groups.ErrStale)
	_, err = h.UserInfo(h.ctx, tokens.AccessToken)
	wantErr(t, err, groups.ErrStale)
	h.Groups = real
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, nil)
}
