package main

import (
	"fmt"
	"reflect"

	"github.com/tabard-id/tabard/internal/audit"
)

// auditFiles reads what the sinks name, and makes the trail's paths absolute.
func (l *loader) auditFiles() {
	a := &l.cfg.Audit
	l.resolve(&a.KeyFile)
	if a.Node == "" && l.cfg.Store.Etcd != nil {
		a.Node = audit.HostNode()
	}
	for i := range a.Sinks {
		s, at := &a.Sinks[i], fmt.Sprintf("audit.sinks[%d]", i)
		if s.File != nil {
			l.resolve(&s.File.Path)
		}
		if s.Syslog != nil {
			s.Syslog.CA = l.caFile(at+".syslog.caFile", &s.Syslog.CAFile)
		}
		if s.Webhook != nil {
			s.Webhook.CA = l.caFile(at+".webhook.caFile", &s.Webhook.CAFile)
			l.secret(at+".webhook.secret", &s.Webhook.Secret, &s.Webhook.SecretFile)
		}
	}
}

// auditChanged says whether only a restart puts now in the place of before.
func auditChanged(now, before *Config) bool {
	a, b := now.Audit, before.Audit
	a.Serve, a.Log, b.Serve, b.Log = false, nil, false, nil
	return !reflect.DeepEqual(a, b)
}
