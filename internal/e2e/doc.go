// Package e2e holds the whole-product tests: the built binaries against a real
// directory, a real API server, real clients and a real browser.
package e2e
