// Command bench measures what HA-Sqlite promises about its speed, on three nodes of this machine: "make bench".
//
// Owns: a temporary directory on the file system of -dir.
// Imports: localcluster, vfs, replicate/logstore.
// Invariant: everything that is compared is measured in one run, in interleaved rounds, and the medians are compared; a number
// without the reference R of the same run says nothing about the software, only about the machine.
package main
