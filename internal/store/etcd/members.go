package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coreos/go-semver/semver"
)

const statusTimeout = 3 * time.Second

// Member is what an endpoint says of itself.
type Member struct {
	Endpoint string
	Err      error // it gives no answer; the rest is empty then
	Version  string
	Cluster  uint64 // the cluster's id
	Leader   bool
	Size     int64    // of its database file, bytes
	Quota    int64    // what Size may grow to; 0: the member does not say
	Alarms   []string // such as NOSPACE
}

// Members asks every endpoint how it is, for 3 s at most.
func (s *Store) Members(ctx context.Context) []Member {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members := make([]Member, len(s.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range s.cfg.Endpoints {
		wg.Go(func() { members[i] = s.member(ctx, endpoint) })
	}
	wg.Wait()
	return members
}

func (s *Store) member(ctx context.Context, endpoint string) Member {
	st, err := s.client.Status(ctx, endpoint)
	if err != nil {
		return Member{Endpoint: endpoint, Err: s.explain(ctx, err)}
	}
	return Member{
		Endpoint: endpoint, Version: st.Version, Cluster: st.Header.ClusterId,
		Leader: st.Leader == st.Header.MemberId, Size: st.DbSize, Quota: st.DbSizeQuota, Alarms: st.Errors,
	}
}

// tooOld refuses members whose watches tell of progress that they have not made
// (etcd issues 15220 and 17507), and endpoints of different clusters.
func tooOld(members []Member) error {
	var cluster uint64
	for _, m := range members {
		if m.Err != nil {
			continue
		}
		if v, err := semver.NewVersion(m.Version); err == nil && (v.LessThan(*semver.New("3.4.31")) ||
			!v.LessThan(*semver.New("3.5.0-alpha.0")) && v.LessThan(*semver.New("3.5.13"))) {
			return fmt.Errorf("%s runs etcd %s, whose watches can miss changes: update it to 3.5.13 or newer", m.Endpoint, m.Version)
		}
		if cluster != 0 && m.Cluster != cluster {
			return errors.New("the endpoints are members of different clusters: name those of one in store.etcd.endpoints")
		}
		cluster = m.Cluster
	}
	return nil
}
