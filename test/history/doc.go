// Package history tests forks of whole clusters, at full size if asked.
//
// Owns: nothing but tests.
// Imports: nothing.
// Invariant: what is asserted at full size is asserted at the size of every run.
package history
