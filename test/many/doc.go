// Package many tests a cluster that holds many databases: how long a node takes to start, what the idle ones cost, and
// that the active ones get their turns.
//
// Owns: nothing; it starts clusters of real nodes.
// Imports: internal/testcluster, internal/localcluster.
// Invariant: the sizes of a default run fit every change; "make many" runs the sizes that are promised, and their limits
// are checked in every run.
package many
