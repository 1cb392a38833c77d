// Package proxy is the impersonating reverse proxy for clusters whose flags
// cannot be changed. Nothing is here yet.
package proxy
