package peer

import (
	"errors"
	"fmt"
)

var (
	// ErrNotSent is matched by the errors of Call and CallAddr when no handler
	// has run or will ever run for the request: it can be given up or repeated
	// without a doubt. Errors that do not match it, and are not a *RemoteError,
	// leave open whether the handler ran.
	ErrNotSent = errors.New("request was not handled")
	// ErrRefused is matched when the other side declined the handshake: wrong
	// cluster, lineage or node. A person has to look at the addresses.
	ErrRefused = errors.New("handshake refused")
	// ErrClosed is matched once the Port was closed.
	ErrClosed = errors.New("peer port closed")
	// ErrUnknownPeer is matched when no address is known for a node id.
	ErrUnknownPeer = errors.New("no address known for node")
	// ErrTooLarge is matched when a request exceeds MaxFrame.
	ErrTooLarge = errors.New("frame too large")
	// ErrSilent is the cause of a connection's end when the other side sent
	// nothing, not even answers to pings: stopped, dead or cut off.
	ErrSilent = errors.New("peer is silent")
	// ErrStalled is the cause of a connection's end when a request ended while
	// half of it was written, and the other side did not take the rest.
	ErrStalled = errors.New("peer does not read")
	// ErrMalformed is matched when the other side sent bytes that are no frame
	// or no handshake.
	ErrMalformed = errors.New("malformed peer message")

	errSuperseded = errors.New("superseded by a newer connection of the same peer")
	errForgotten  = errors.New("peer was forgotten")
	errPeerClosed = errors.New("connection closed by peer")
)

// Codes from codeReserved on belong to this package; handlers use those below.
const (
	// CodeGeneric is the code of handler errors that carry none.
	CodeGeneric uint16 = 0

	codeReserved uint16 = 0xff00
	// CodeNoMethod says that the peer has no handler for the method.
	CodeNoMethod uint16 = 0xff01
	// CodeNotMember says that the method needs both sides to be members of the
	// same cluster.
	CodeNotMember uint16 = 0xff02
	// CodeOverloaded says that the peer holds too many requests already.
	CodeOverloaded uint16 = 0xff03
	// CodeResponseTooLarge says that the handler ran, but its answer exceeds
	// MaxFrame.
	CodeResponseTooLarge uint16 = 0xff04
)

// RemoteError is an answer of the other side that is an error. A handler that
// returns one decides its code; any other error of a handler arrives with
// CodeGeneric and its text.
type RemoteError struct {
	// Code is below 0xff00 for errors of handlers.
	Code uint16
	// Text is for people.
	Text string
}

// Error returns the text.
func (e *RemoteError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("peer error %d", e.Code)
	}
	return e.Text
}

// notRun tells that the port answered in place of a handler.
func (e *RemoteError) notRun() bool {
	return e.Code == CodeNoMethod || e.Code == CodeNotMember || e.Code == CodeOverloaded
}

// notSentError marks err as definite without changing its text.
type notSentError struct{ err error }

func (e *notSentError) Error() string        { return e.err.Error() }
func (e *notSentError) Unwrap() error        { return e.err }
func (e *notSentError) Is(target error) bool { return target == ErrNotSent }

func notSent(err error) error { return &notSentError{err} }
