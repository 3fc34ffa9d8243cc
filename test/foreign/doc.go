// Package foreign writes to a node's file with plain SQLite, past the cluster, and looks what the cluster makes of it.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster.
// Invariant: the foreign writer is the sqlite3 command line of the distribution, with no extension loaded.
package foreign
