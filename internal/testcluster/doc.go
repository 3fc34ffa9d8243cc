// Package testcluster is what the tests under test/ share: node binaries built once, clusters that end with their test,
// and applications as processes of their own.
//
// Owns: the binaries it builds and what localcluster starts for it.
// Imports: localcluster, and vfs for its name "hasqlite" in SQLite. Only tests and programs under test/ import it.
// Invariant: a node that panicked or raced fails the test that started it, whatever else that test saw.
package testcluster
