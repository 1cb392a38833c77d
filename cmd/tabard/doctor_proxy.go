package main

import (
	"context"
	"sync"

	"github.com/tabard-id/tabard/proxy"
)

// proxies tries the API server of each proxied cluster, and the accounts that act there.
func (d *doctor) proxies(ctx context.Context) {
	found := make([][]proxy.Finding, len(d.cfg.Clusters))
	var wg sync.WaitGroup
	for i := range d.cfg.Clusters {
		if cl := &d.cfg.Clusters[i]; cl.Proxy != nil {
			wg.Go(func() { found[i] = proxy.Examine(ctx, cl.proxied()) })
		}
	}
	wg.Wait()
	for i, cl := range d.cfg.Clusters {
		for _, f := range found[i] {
			d.say("cluster "+cl.Name, f.Result, "%s", f.Detail)
		}
	}
}
