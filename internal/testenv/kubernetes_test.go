package testenv

import (
	"strings"
	"testing"
)

func TestKubeAPIServer(t *testing.T) {
	k := StartKubeAPIServer(t, KubeAPIServerOptions{})
	if out := k.Kubectl(t, "version"); strings.Count(out, ": v1.36.3") != 2 {
		t.Errorf("kubectl version:\n%s", out)
	}
	if out := k.Kubectl(t, "get", "namespaces", "-o", "name"); !strings.Contains(out, "namespace/default") {
		t.Errorf("namespaces:\n%s", out)
	}
	_, err := k.KubectlWith(t, KubectlOptions{Token: "from-nowhere"}, "get", "namespaces")
	if err == nil || !strings.Contains(err.Error(), "(Unauthorized)") {
		t.Errorf("a token from nowhere: %v", err)
	}
	k.Kubectl(t, "create", "serviceaccount", "robot")
	token := strings.TrimSpace(k.Kubectl(t, "create", "token", "robot"))
	_, err = k.KubectlWith(t, KubectlOptions{Token: token}, "get", "namespaces")
	if err == nil || !strings.Contains(err.Error(), `"system:serviceaccount:default:robot" cannot list resource "namespaces"`) {
		t.Errorf("an account without rights: %v", err)
	}
}
