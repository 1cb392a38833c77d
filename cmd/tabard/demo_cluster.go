package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/parts"
)

// demoObjects are a namespace, roles and two pods.
//
//go:embed demo_objects.yaml
var demoObjects string

// applyTime bounds one try to write demoObjects.
const applyTime = time.Minute

// demoParts are what runs of the cluster; nil is what does not.
type demoParts struct {
	etcd   *parts.Etcd
	server *parts.KubeAPIServer
}

// stop ends them, the API server first.
func (c *demoParts) stop() {
	if c.server != nil {
		c.server.Stop()
	}
	if c.etcd != nil {
		c.etcd.Stop()
	}
}

// startCluster builds what is not built yet, starts it, and fills it. What runs
// when it fails is returned too.
func (d *demoRun) startCluster(ctx context.Context) (*demoParts, error) {
	c, paths := &demoParts{}, map[string]string{}
	programs := []string{"etcd", "kube-apiserver", "kubectl"}
	for i, name := range programs {
		err := d.screen.during(fmt.Sprintf("Building %s (%d of %d, once; takes minutes)", name, i+1, len(programs)), func(doing func(string)) (err error) {
			paths[name], err = parts.Build(ctx, name, doing)
			return err
		})
		if err != nil {
			return c, err
		}
	}
	err := d.screen.during("Starting etcd and kube-apiserver", func(func(string)) (err error) {
		if c.etcd, err = parts.StartEtcd(ctx, parts.EtcdConfig{Binary: paths["etcd"], Dir: d.path("cluster")}); err != nil {
			return err
		}
		c.server, err = parts.StartKubeAPIServer(ctx, d.apiServer(paths["kube-apiserver"], c.etcd.Endpoint))
		return err
	})
	if err != nil {
		return c, err
	}
	self, err := os.Executable()
	if err != nil {
		return c, fmt.Errorf("find tabard: %w", err)
	}
	for name, target := range map[string]string{"kubectl": paths["kubectl"], "kubectl-tabard": d.plugin, "tabard": self} {
		if err := d.link(name, target); err != nil {
			return c, err
		}
	}
	if err := d.writeKubeconfigs(); err != nil {
		return c, err
	}
	return c, d.screen.during("Adding roles and pods", func(func(string)) error { return d.apply(ctx, paths["kubectl"]) })
}

// apiServer is an API server that trusts the provider by nothing but its flags.
func (d *demoRun) apiServer(binary, etcdURL string) parts.KubeAPIServerConfig {
	return parts.KubeAPIServerConfig{
		Binary: binary, Dir: d.path("cluster"), EtcdURL: etcdURL, Port: d.port + 2,
		CAFile: d.path("ca.pem"), CertFile: d.path("server.pem"), KeyFile: d.path("server.key"),
		AdminCertFile: d.path("admin.pem"), AdminKeyFile: d.path("admin.key"),
		ExtraArgs: []string{
			"--oidc-issuer-url=" + d.issuer, "--oidc-client-id=kubernetes", "--oidc-ca-file=" + d.path("ca.pem"),
			"--oidc-username-claim=preferred_username", "--oidc-username-prefix=-", "--oidc-groups-claim=groups",
		},
	}
}

// apply writes demoObjects to the cluster as its administrator.
func (d *demoRun) apply(ctx context.Context, kubectl string) error {
	ctx, cancel := context.WithTimeout(ctx, applyTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, kubectl, "apply", "-f", "-")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.path("admin.kubeconfig"), "KUBECACHEDIR="+d.path("cache", "kubectl"), "KUBERC=off")
	cmd.Stdin = strings.NewReader(demoObjects)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("add roles and pods to the cluster: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
