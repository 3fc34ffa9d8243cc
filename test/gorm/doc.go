// Package gorm works on a cluster with an object-relational mapper, and does the same on plain SQLite: what the mapper reads
// back, and every byte of schema and rows, has to be equal.
//
// It is a module of its own, so that nobody who uses HA-Sqlite downloads the mapper.
//
// Owns: nothing outside its tests. Imports: testcluster, localcluster, gorm.io/gorm.
// Invariant: plain SQLite says what is right; nothing here says it by hand.
package gorm
