// Package lang works on a cluster with programs that were not made for it: the sqlite3 command line and Python's sqlite3
// module as the distribution ships them, with nothing but the loadable extension.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster.
// Invariant: the programs are the unmodified ones, found by their usual paths.
package lang
