// Package compat holds docs/sqlite-compatibility.md to its word: one subtest
// of TestCompat for each row of its table, on a cluster of three nodes.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster, the
// SQLite driver.
// Invariant: the rows of the document and the subtests are the same list.
package compat
