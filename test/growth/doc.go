// Package growth tests what the files of a node grow to, and come back to.
//
// Owns: the readers that hold snapshots, as processes of their own.
// Imports: the test harness.
// Invariant checked: a WAL is cut while readers overlap without end; readers that hold a snapshot let it grow
// by what is written meanwhile, and it is small soon after they end, with no restart.
package growth
