// Package api is a node's HTTP interface: the shapes of its requests and
// answers, the handlers, and the client that speaks to them.
//
// Owns: the paths under /v1, /healthz, /readyz and /metrics, their JSON, the
// mapping between errors and HTTP statuses, and the names of the metrics.
// Imports: the standard library and the Prometheus client. What the handlers
// need of a node is the interface [Backend], declared here and implemented by
// package node; [Client] implements it too, over HTTP.
// Invariant: 64-bit numbers that are not counts (transaction ids, checksums)
// are strings of 16 hexadecimal digits in JSON, because JavaScript rounds
// numbers above 2^53. An error that leaves a handler keeps its kind: a client
// compares it with the same sentinel as the code that returned it.
package api
