// Package storetest has the contract that every store.Store keeps, as a test,
// and a store that fails on purpose.
//
// Owns: the contract test and the fault injector.
// Imports: snapshot/store.
// Invariant: what Contract does not check no caller relies on.
package storetest
