// Package catchup tests nodes that were away: what they fetch, how long it takes, and that readers on them stay open.
//
// Owns: nothing; it starts clusters of real nodes.
// Imports: internal/testcluster, internal/localcluster, vfs.
// Invariant: the sizes of a default run fit every change; "make catchup" runs the sizes that are promised.
package catchup
