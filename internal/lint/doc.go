// Package lint holds the rules of the house that no tool checks: which room may
// import which, what is documented, how long a function is and what stands at
// the top level. It has only tests.
package lint
