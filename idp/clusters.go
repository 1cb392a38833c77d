package idp

import (
	"errors"
	"net/url"
)

// APIServerConfig says where people reach a cluster's API server. A zero one says
// nothing: the cluster is then left out of the kubeconfigs that Tabard writes.
type APIServerConfig struct {
	URL     string // https
	CAFile  string // of its certificate; the system's roots when empty
	CA      string // PEM, what CAFile holds
	Proxied bool   // URL is our own proxy's, and CA our own certificate's
}

func (a APIServerConfig) validate(path string) error {
	if a == (APIServerConfig{}) || a.Proxied { // which is below the issuer, and as good
		return nil
	}
	u, err := url.Parse(a.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return &FieldError{path + ".url", "must be an https URL such as https://10.0.0.1:6443"}
	}
	return nil
}

// ClustersOf returns the clusters whose rules give the session's person a token
// now, in the order of the configuration.
func (s *Service) ClustersOf(sess *Session) ([]ClusterConfig, error) {
	var open []ClusterConfig
	for _, cl := range s.cfg.Clusters {
		_, err := s.entitle(sess, s.clients[cl.ClientID])
		if err == nil {
			open = append(open, cl)
		} else if !errors.Is(err, ErrNoAccess) {
			return nil, err
		}
	}
	return open, nil
}
