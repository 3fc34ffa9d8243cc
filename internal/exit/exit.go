// Package exit says with which code a command ends.
//
// Owns: the list of exit codes, which docs/operations.md repeats, and the
// mapping from errors to them.
// Imports: internal/api for the kinds of errors.
// Invariant: a code, once given a meaning, keeps it.
package exit

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
)

// Exit codes of both commands. A process that is ended by a second signal
// exits with 128 plus the signal's number.
const (
	OK          = 0
	Failure     = 1 // an error of no other kind
	Usage       = 2 // wrong arguments, options or configuration
	NotFound    = 3 // no such database or member
	Unreachable = 4 // the node did not answer, or the cluster has no leader
	Differs     = 5 // the nodes hold different bytes
	Conflict    = 6 // the name is taken, or the database is in use
	Unknown     = 7 // timed out: whether it took effect is not known
	Device      = 8 // the disk of the node failed
	Damaged     = 9 // an archive or a restored file is damaged
)

// codedError is an error that has its exit code with it.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// With gives err an exit code. A nil err stays nil.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &codedError{code, err}
}

// Usagef makes an error of the kind Usage.
func Usagef(format string, args ...any) error {
	return With(Usage, fmt.Errorf(format, args...))
}

// Args makes the refusal of a positional-argument rule a usage error.
func Args(rule cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := rule(cmd, args); err != nil {
			return Usagef("%w\nUsage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

// Code returns the exit code for err.
func Code(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return OK
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, api.ErrInvalid):
		return Usage
	case errors.Is(err, api.ErrNotFound):
		return NotFound
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrNoLeader), errors.Is(err, api.ErrUnavailable):
		return Unreachable
	case errors.Is(err, api.ErrExists), errors.Is(err, api.ErrInUse):
		return Conflict
	case errors.Is(err, api.ErrTimeout):
		return Unknown
	}
	return Failure
}
