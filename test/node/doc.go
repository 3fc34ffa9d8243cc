// Package node holds the rules that only show with real processes: leases, deletes, restarts under applications, refusals
// at start. Each test names the rule it stands for in its name or its comment.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster.
// Invariant: a cluster is started by each test that hurts it; nothing is shared.
package node
