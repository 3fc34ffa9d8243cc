package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// logPause is the longest that one grant waits while the log is only nearly full.
	logPause = 100 * time.Millisecond
	// reservePatience is for how long a large transaction waits for room in the log, less than its node waits for a sign
	// of progress.
	reservePatience = 2 * time.Second
)

// ErrLogFull is returned for writes that begin while the raft log has reached its limit and cannot be
// compacted. It says what is in the way.
var ErrLogFull = errors.New("the raft log is full")

// awaitLogRoom holds a grant back while a log is nearly full that the write depends on, and refuses it while one is full.
// It is held back for a moment also while another member's log is full and about to be compacted. One that cannot be
// compacted counts only where there is no majority without it: one node does not stop the others.
func (s *Service) awaitLogRoom(ctx context.Context) error {
	limit := s.opts.LogLimit
	slow, full := share(limit, slowShare), share(limit, fullShare)
	bytes, _ := s.logUsed()
	if bytes < slow {
		if s.memberFull(time.Now()) {
			s.logBound.count(&s.logBound.slowed)
			s.pauseFor(ctx, logPause)
		}
		return nil
	}
	if bytes < full {
		s.logBound.count(&s.logBound.slowed)
		s.pauseFor(ctx, time.Duration(float64(logPause)*float64(bytes-slow)/float64(full-slow)))
		return nil
	}
	for s.pauseFor(ctx, logPause) {
		if bytes, _ := s.logUsed(); bytes < full {
			return nil
		}
	}
	s.logBound.count(&s.logBound.refused)
	return s.logFullError()
}

// logUsed is how much of its limit the fullest log has that writes depend on, with what large transactions under way will
// add to it, and of which other member it is: none for this node's own.
func (s *Service) logUsed() (bytes int64, member string) {
	bytes, member = s.logBytes()
	b := &s.logBound
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes + b.reserved, member
}

// logBytes is logUsed without what is reserved.
func (s *Service) logBytes() (bytes int64, member string) {
	bytes = s.store.Bytes()
	r := s.neededMember(time.Now())
	if r.id == "" {
		return bytes, ""
	}
	if its := s.memberBytes(r.memberProgress); its > bytes {
		return its, r.id
	}
	return bytes, ""
}

// memberBytes is how full the log of a member is: as it told, with what the leader's log, which may be compacted while that
// one cannot be, was given since.
func (s *Service) memberBytes(p memberProgress) int64 {
	return share(s.opts.LogLimit, p.Full) + max(0, s.store.Offset(math.MaxUint64)-p.offset)
}

// neededMember is the member with the fullest log of those that cannot compact it and without which there is no majority.
// Of several that can stand in for each other the one with the most room is needed.
func (s *Service) neededMember(now time.Time) (none memberReport) {
	if !s.logBound.any(now, func(p memberProgress) bool { return p.Blocked }) { // as at almost every commit
		return none
	}
	fresh := s.logBound.reports(now)
	voters, free := 0, 0
	var blocked []memberReport
	for _, srv := range s.servers() {
		if srv.Suffrage != raft.Voter {
			continue
		}
		voters++
		i := slices.IndexFunc(fresh, func(r memberReport) bool { return r.id == string(srv.ID) })
		switch {
		case string(srv.ID) == s.opts.NodeID:
			free++
		case i < 0:
		case fresh[i].Blocked:
			blocked = append(blocked, fresh[i])
		case now.Sub(fresh[i].at) < 2*progressInterval && s.port.Connected(fresh[i].id): // one that died a moment ago is none
			free++
		}
	}
	missing := voters/2 + 1 - free
	if missing <= 0 || missing > len(blocked) {
		return none
	}
	slices.SortFunc(blocked, func(x, y memberReport) int { return cmp.Compare(x.Full, y.Full) })
	return blocked[missing-1]
}

type memberReport struct {
	id string
	memberProgress
}

// reports are what members have told lately.
func (b *logBound) reports(now time.Time) (fresh []memberReport) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, p := range b.progress {
		if p.fresh(now) {
			fresh = append(fresh, memberReport{id, p})
		}
	}
	return fresh
}

// any reports whether f says yes to something that a member has told lately.
func (b *logBound) any(now time.Time, f func(memberProgress) bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.progress {
		if p.fresh(now) && f(p) {
			return true
		}
	}
	return false
}

func (p memberProgress) fresh(now time.Time) bool { return now.Sub(p.at) < 5*progressInterval }

func (s *Service) logFullError() error {
	bytes, member := s.logUsed()
	st := s.logStatus()
	why := st.Blocked
	switch {
	case member != "":
		why = fmt.Sprintf("there is no majority without node %s, whose status says why", member)
	case why == "":
		why = "a snapshot is being taken, or large transactions are under way"
	}
	if member == "" {
		member = s.opts.NodeID
	}
	return fmt.Errorf("%w: it has %d of at most %d bytes on node %s, with what large transactions will add, and cannot be compacted: %s: %w", ErrLogFull, bytes, st.Limit, member, why, ErrLockBusy)
}

// memberFull reports a member whose log is full, with what it was sent since it told, and about to be compacted.
func (s *Service) memberFull(now time.Time) bool {
	slow := share(s.opts.LogLimit, slowShare)
	return s.logBound.any(now, func(p memberProgress) bool {
		return !p.Blocked && s.memberBytes(p) >= slow
	})
}

// logReserve is room in the log that a large transaction has and has not used yet.
type logReserve struct {
	b  *logBound
	mu sync.Mutex
	n  int64
}

// reserveLog holds room in the log for a large transaction: a grant says only that the log was not full. It waits for a
// compaction, which makes room for those that wait, and refuses what could never fit with a FullError.
func (s *Service) reserveLog(ctx context.Context, size int64) (*logReserve, error) {
	full := share(s.opts.LogLimit, fullShare)
	if size > full {
		return nil, &FullError{Size: size, Limit: full, Cause: fmt.Errorf("the log of the leader, node %s, has at most %d bytes (--log-limit)", s.opts.NodeID, s.opts.LogLimit)}
	}
	b := &s.logBound
	wait := func(by int64) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.waiting += by
	}
	wait(size)
	defer wait(-size)
	ctx, cancel := context.WithTimeout(ctx, reservePatience)
	defer cancel()
	for {
		bytes, _ := s.logBytes()
		b.mu.Lock()
		fits := bytes+b.reserved+size <= full
		if fits {
			b.reserved += size
		}
		b.mu.Unlock()
		if fits {
			return &logReserve{b: b, n: size}, nil
		}
		if !s.pauseFor(ctx, logPause/2) {
			b.count(&b.refused)
			return nil, s.logFullError()
		}
	}
}

// use gives back what is in the log now.
func (r *logReserve) use(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, r.n)
	r.n -= n
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.b.reserved -= n
}

// release gives back what was not used.
func (r *logReserve) release() { r.use(math.MaxInt64) }
