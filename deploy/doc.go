// Package deploy holds what an operator installs Tabard with: Kubernetes
// manifests, a systemd unit, an API server's flags and sample roles. It has only
// tests, which hold these files and the documentation to the real programs.
package deploy
