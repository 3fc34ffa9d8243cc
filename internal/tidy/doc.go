// Package tidy holds the repository to its own rules: tests read the sources
// and documents and fail where one breaks a rule that no compiler knows.
//
// Owns: the table of who may import whom, the list of places that open files,
// and the checks of what the documents name.
// Imports: the standard library only.
// Invariant: each exception stands in a table of this package, with its reason.
package tidy
