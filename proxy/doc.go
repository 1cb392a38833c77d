// Package proxy is the impersonating reverse proxy for clusters whose flags cannot be
// changed, and for those where every request is to be checked. A request passes, in this
// order: size limits; the cluster, by host or raw path; the bearer token, afresh; the
// person's limits; what is asked for, as the API server itself reads it; the policy; the
// trail. Then everything that could say who asks is taken off it, and the person's name,
// groups and uid are put on as the last thing before it is sent.
package proxy
