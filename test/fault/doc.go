// Package fault kills, stops and restarts nodes and applications at random, and then judges whether the cluster kept its word.
//
// Three writers work on three nodes, each with a journal outside the cluster: what it meant to do, and what it was told. Readers
// look at every node all the time. After each round the journals are held against the rows:
//
//   - no acknowledged row is lost, no refused row is there, one of unknown fate is there at most once;
//   - a transaction is there whole or not at all, and in an order that agrees with the clock;
//   - all nodes have the same checksum at the same transaction, by their own word and page by page;
//   - integrity_check is ok, also on copies of the files that are recovered without the -shm file.
//
// TestSoak does the same for a long time with many databases: a crowd of writers on each node works on all of them, a fault
// comes every few seconds, and memory and file handles of a node that lives through it all must stay flat.
//
// TestPowerCut takes the power from disks of nodes, TestDiskFull fills them, TestFailedSyncStopsTheNode lets them fail. The first
// two give each node a file system of its own, which needs root and loop devices; where there are none they say so, and the
// first kills the nodes instead.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster, the LTX checksum.
// Invariant: judge is a pure function of the journals and the rows; chance decides what happens, never what is right.
package fault
