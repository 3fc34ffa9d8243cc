// Package localcluster runs a cluster of HA-Sqlite nodes as real processes on this machine.
//
// Owns: the processes it started, their directory, their ports and their log files.
// Imports: the standard library only; it knows a node by its command line and its HTTP port, never by its code.
// Invariant: it signals a process only by a handle it got when it started that process, so it can never hit another one;
// when the context given to Start ends, every process it started is gone.
//
// The demo, the benchmark and the tests under test/ use it. Nothing in it needs package testing.
package localcluster
