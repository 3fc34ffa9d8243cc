// Package readme runs the README: every command line in it, in order, in one
// shell, and its Go program.
//
// Owns: nothing outside its tests. Imports: the standard library only.
// Invariant: a line of the README that is not run is in a table of this
// package, with the reason.
package readme
