package api

import (
	"context"
	"errors"
	"net/http"
)

// The kinds of errors that cross the HTTP interface. A Backend wraps them, a
// Client returns errors for which errors.Is finds them again.
var (
	// ErrInvalid: the request itself is wrong; repeating it is of no use.
	ErrInvalid = errors.New("invalid request")
	// ErrForbidden: the request came from a place that may not ask.
	ErrForbidden = errors.New("forbidden")
	// ErrNotFound: there is no database or member of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrInUse: the database is open somewhere, or a member could not be
	// asked. Repeat with force to go ahead all the same.
	ErrInUse = errors.New("in use")
	// ErrQuota: a quota does not allow it. Delete something, or raise the quota.
	ErrQuota = errors.New("quota exceeded")
	// ErrNoLeader: the cluster has no leader now. Repeat later.
	ErrNoLeader = errors.New("no leader")
	// ErrUnavailable: the node is starting, stopping or unable to serve this.
	// Repeat later or at another node.
	ErrUnavailable = errors.New("unavailable")
	// ErrTimeout: the answer did not come in time. Whether the request took
	// effect is not known.
	ErrTimeout = errors.New("timed out")
	// ErrUnreachable is returned by a Client that got no answer from a node.
	ErrUnreachable = errors.New("node unreachable")
)

// kind ties a sentinel to its HTTP status and to the word that carries it in
// JSON.
type kind struct {
	err    error
	code   string
	status int
}

// kinds is in the order in which errors are matched.
var kinds = []kind{
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrForbidden, "forbidden", http.StatusForbidden},
	{ErrNotFound, "not_found", http.StatusNotFound},
	{ErrExists, "exists", http.StatusConflict},
	{ErrInUse, "in_use", http.StatusConflict},
	{ErrQuota, "quota", http.StatusConflict},
	{ErrNoLeader, "no_leader", http.StatusServiceUnavailable},
	{ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	{ErrTimeout, "timeout", http.StatusGatewayTimeout},
	{context.DeadlineExceeded, "timeout", http.StatusGatewayTimeout},
	{context.Canceled, "canceled", http.StatusServiceUnavailable},
}

// codeInternal is the word for an error of no known kind.
const codeInternal = "internal"

// classify returns the status and the word for err.
func classify(err error) (status int, code string) {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.status, k.code
		}
	}
	return http.StatusInternalServerError, codeInternal
}

// ErrorResponse is the body of every answer that is not a success.
type ErrorResponse struct {
	Message string `json:"error"`
	// Code is the kind of the error, one word.
	Code string `json:"code"`
}

// RemoteError is an error answer of a node, as a Client returns it. errors.Is
// finds the sentinel of its kind.
type RemoteError struct {
	// Status is the HTTP status of the answer.
	Status int
	// Code is the kind, as in ErrorResponse; empty if the body had none.
	Code    string
	Message string
}

// Error returns the node's own text.
func (e *RemoteError) Error() string { return e.Message }

// Is reports whether target is the sentinel of e's kind.
func (e *RemoteError) Is(target error) bool {
	for _, k := range kinds {
		if k.code == e.Code {
			return k.err == target
		}
	}
	return false
}
