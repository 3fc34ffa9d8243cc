// Package peer is the one TCP port on which the nodes of a cluster talk.
//
// It is a listener whose connections carry one of four things: raft's own
// transport, many concurrent requests to one peer, a single request to an
// address whose owner is not known yet, or one stream of bytes.
//
// Owns: the handshake (who talks to whom, of which cluster and lineage), the
// frames, the connections and their liveness. It does not know what a request
// means.
// Imports: none of ours.
// Invariant: an error of Call that matches ErrNotSent means that no handler has
// run or will ever run for the request. Every other error leaves it open,
// except a *RemoteError, which is the handler's own answer.
// Format: handshake.go and frame.go, little-endian throughout.
package peer
