// Package history tests forks of whole clusters, at full size if asked, and kills in the middle of imports and rollbacks.
//
// Owns: nothing but tests.
// Imports: nothing.
// Invariant: what is asserted at full size is asserted at the size of every run.
package history
