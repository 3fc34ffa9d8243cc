package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// Methods of the calls between nodes.
const (
	methodHello      uint8 = 1 // open to strangers: who is there
	methodJoin       uint8 = 2 // open to strangers
	methodCommit     uint8 = 3
	methodAcquire    uint8 = 4
	methodRelease    uint8 = 5
	methodReadIndex  uint8 = 6
	methodCatalog    uint8 = 7
	methodStatus     uint8 = 8
	methodHandles    uint8 = 10
	methodMember     uint8 = 11
	methodReclaim    uint8 = 12
	methodPressure   uint8 = 13
	methodParts      uint8 = 14 // a stream
	methodLarge      uint8 = 15
	methodTouch      uint8 = 16
	methodProgress   uint8 = 18
	methodCaughtUp   uint8 = 19
	methodReplace    uint8 = 20
	methodDisk       uint8 = 24
	methodLeaderGone uint8 = 27
	methodVerify     uint8 = 33 // a stream
	methodRound      uint8 = 34 // a stream
	methodPages      uint8 = 35 // a stream
	methodDurable    uint8 = 36
	methodCommits    uint8 = 40 // a stream
	methodFork       uint8 = 45
	methodHasFork    uint8 = 46
	methodArchiveJob uint8 = 50
	methodDrilled    uint8 = 51
)

// Codes of errors that the caller has to tell apart.
const (
	codeOther     uint16 = 0
	codeNotLeader uint16 = 1
	codeDeleted   uint16 = 2
	codeNotFound  uint16 = 3
	codeConflict  uint16 = 4
	codeInvalid   uint16 = 5
	codeFenced    uint16 = 6
	codeNoMember  uint16 = 7
	codeLockBusy  uint16 = 8
	codeQuota     uint16 = 21
	codeDiskFull  uint16 = 24
	codeExists    uint16 = 45
)

// ErrConflict is returned when the request contradicts what exists: a name that is taken, a database that
// is open.
var ErrConflict = errors.New("conflict")

// ErrExists is returned for a name that is taken.
var ErrExists = errors.New("the name is taken")

// ErrInvalid is returned for a request that can never succeed as it is.
var ErrInvalid = errors.New("invalid request")

var codedErrors = map[uint16]error{
	codeExists: ErrExists, codeFenced: ErrFenced, codeQuota: ErrQuota, codeLockBusy: ErrLockBusy, codeDiskFull: ErrDiskFull, codeNoMember: ErrNoMember,
	codeNotLeader: ErrNotLeader, codeDeleted: ErrDeleted, codeNotFound: ErrNotFound, codeConflict: ErrConflict, codeInvalid: ErrInvalid,
}

// coded wraps an error for the wire.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if remote := (*peer.RemoteError)(nil); errors.As(err, &remote) {
		return remote // coded already
	}
	for code, sentinel := range codedErrors {
		if errors.Is(err, sentinel) {
			return &peer.RemoteError{Code: code, Text: err.Error()}
		}
	}
	return &peer.RemoteError{Code: codeOther, Text: err.Error()}
}

// remoteError gives an error from the wire its sentinel back.
func remoteError(err error) error {
	var remote *peer.RemoteError
	if errors.As(err, &remote) {
		if sentinel, ok := codedErrors[remote.Code]; ok {
			return &kindError{err, sentinel}
		}
	}
	return err
}

// kindError gives an error a sentinel without changing its text.
type kindError struct{ err, kind error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.err, e.kind} }

func (s *Service) registerMethods() {
	type method = func(context.Context, string, []byte) ([]byte, error)
	whenUp := func(f method) method {
		return func(ctx context.Context, from string, req []byte) ([]byte, error) {
			select {
			case <-s.raftUp:
				return f(ctx, from, req)
			case <-s.ctx.Done():
				return nil, coded(ErrShutdown)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	handle := func(number uint8, f method) {
		s.port.Handle(number, whenUp(func(ctx context.Context, from string, req []byte) ([]byte, error) {
			reply, err := f(ctx, from, req)
			return reply, coded(err)
		}))
	}
	handle(methodCommit, s.serveCommit)
	handle(methodAcquire, s.serveAcquire)
	handle(methodRelease, s.serveRelease)
	handle(methodReadIndex, s.serveReadIndex)
	handle(methodReclaim, s.serveReclaim)
	handle(methodLarge, s.serveLarge)
	handle(methodTouch, s.serveTouch)
	handle(methodCatalog, jsonMethod(s.leaderCatalog))
	handle(methodMember, jsonMethod(s.leaderMember))
	handle(methodStatus, jsonMethod(func(ctx context.Context, _ struct{}) (*Status, error) { return s.LocalStatus(), nil }))
	handle(methodHandles, jsonMethod(s.localHandles))
	handle(methodPressure, jsonMethodFrom(s.servePressure))
	handle(methodProgress, jsonMethodFrom(s.serveProgress))
	handle(methodDisk, jsonMethod(s.serveDisk))
	handle(methodCaughtUp, jsonMethod(s.serveCaughtUp))
	handle(methodReplace, jsonMethod(s.leaderReplace))
	s.port.Handle(methodHello, whenUp(jsonMethodFrom(s.serveHello)), peer.OpenToStrangers())
	s.port.Handle(methodJoin, whenUp(jsonMethodFrom(s.serveJoin)), peer.OpenToStrangers())
	handle(methodDurable, jsonMethod(s.serveDurable))
	handle(methodFork, jsonMethod(s.leaderFork))
	handle(methodHasFork, jsonMethod(s.serveHasFork))
	s.port.HandleStream(methodRound, func(ctx context.Context, from string, req []byte, w io.Writer) error {
		return coded(s.serveRound(ctx, from, req, w))
	})
	s.port.HandleStream(methodPages, func(ctx context.Context, from string, req []byte, w io.Writer) error {
		return coded(s.servePages(ctx, from, req, w))
	})
	s.port.HandleStream(methodParts, func(ctx context.Context, from string, req []byte, w io.Writer) error {
		return coded(s.serveParts(ctx, from, req, w))
	})
	s.port.HandleStream(methodVerify, func(ctx context.Context, from string, req []byte, w io.Writer) error {
		return coded(s.serveVerify(ctx, from, req, w))
	})
	s.port.HandleStream(methodCommits, func(ctx context.Context, _ string, req []byte, w io.Writer) error {
		return coded(s.serveCommits(ctx, req, w))
	})
	handle(methodLeaderGone, jsonMethod(s.judgeLeader))
	handle(methodArchiveJob, jsonMethod(s.archiveJob))
	handle(methodDrilled, jsonMethod(s.drilled))
	s.port.OnRaftEnded(s.raftEnded)
	s.port.OnDisconnect(func(id string) { s.locks.DropNode(id) })
}

func jsonMethod[Q, R any](f func(context.Context, Q) (R, error)) func(context.Context, string, []byte) ([]byte, error) {
	return jsonMethodFrom(func(ctx context.Context, _ string, q Q) (R, error) { return f(ctx, q) })
}

func jsonMethodFrom[Q, R any](f func(context.Context, string, Q) (R, error)) func(context.Context, string, []byte) ([]byte, error) {
	return func(ctx context.Context, from string, req []byte) ([]byte, error) {
		var q Q
		if err := json.Unmarshal(req, &q); err != nil {
			return nil, coded(&kindError{err, ErrInvalid})
		}
		r, err := f(ctx, from, q)
		if err != nil {
			return nil, coded(err)
		}
		return json.Marshal(r)
	}
}

// callJSON calls a method of another node.
func callJSON[Q, R any](ctx context.Context, s *Service, node string, method uint8, q Q) (R, error) {
	var r R
	req, err := json.Marshal(q)
	if err != nil {
		return r, err
	}
	reply, err := s.port.Call(ctx, node, method, req)
	if err != nil {
		return r, remoteError(err)
	}
	if err := json.Unmarshal(reply, &r); err != nil {
		return r, fmt.Errorf("decode the answer of node %s: %w", node, err)
	}
	return r, nil
}

// onLeader runs f here if this node leads, else calls the leader's method. It waits for a leader.
func onLeader[Q, R any](ctx context.Context, s *Service, method uint8, q Q, f func(context.Context, Q) (R, error)) (R, error) {
	for {
		var r R
		err := error(ErrNoLeader)
		switch leader, _ := s.leader(); leader {
		case "":
		case s.opts.NodeID:
			r, err = f(ctx, q)
		default:
			r, err = callJSON[Q, R](ctx, s, leader, method, q)
		}
		// Only what certainly was not done is tried again.
		if err == nil || !(errors.Is(err, ErrNotLeader) || errors.Is(err, ErrNoLeader) || errors.Is(err, peer.ErrNotSent)) {
			return r, err
		}
		if !s.pause(ctx) {
			return r, err
		}
	}
}
