// Package large tests transactions of many parts on clusters of real processes: what they cost, and what is left
// of them when a process dies in their middle.
//
// Owns: nothing; it is tests only.
// Imports: internal/localcluster, internal/testcluster.
// Invariant: a transaction is on all nodes or on none.
package large
