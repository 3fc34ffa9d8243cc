// Package shell runs the commands hasqlite and hasqlite-node against a real
// cluster: the SQL prompt on a terminal and without one, administration,
// refusals at start with their exit codes.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster.
// Invariant: only the built commands are run, as a user would.
package shell
