// Package shell is a SQL prompt: it reads statements and dot commands, runs
// them on one SQLite connection and prints what comes back.
//
// Owns: where a statement ends in the input, the dot commands, the output
// modes, the text form of values, and .dump.
// Imports: the SQLite driver and a line editor; none of ours. Which VFS the
// connection uses is in the data source name that the caller gives.
// Invariant: what is typed is run as it stands, one statement at a time, and
// each error is printed with its SQLite code; nothing is run twice.
package shell
