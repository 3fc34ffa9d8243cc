package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// ErrNoLeader is returned when a call needs a leader and none is known in time. Nothing was done.
var ErrNoLeader = errors.New("the cluster has no leader")

// proposal is one transaction on its way to the leader.
type proposal struct {
	db        DatabaseID
	id        EntryID
	handle    uint64
	term      uint64 // the leader must be in this term
	pre, post Position
	pageCount uint32       // of the database after it
	pages     uint32       // that it writes
	entry     []byte       // encoded; term and commit time are stamped by the leader
	meanwhile func() error // run while the log is written
	keep      bool         // the handle is about to begin again: it wants to keep its lock

	// What became of the lock, where the transaction was accepted. Neither: the leader's answer was not heard.
	kept, ended bool
}

// answer is the leader's answer to a proposal.
type answer struct {
	outcome     Outcome
	text        string
	index, term uint64
	kept        bool // accepted, and the handle has the write lock still
}

// commit sends the proposal to the leader, once, and finds out its verdict (RULES A1).
func (s *Service) commit(ctx context.Context, p *proposal) (Outcome, string) {
	leader, term := s.leader()
	if leader == "" {
		return OutcomeRefused, ErrNoLeader.Error()
	}
	p.term = term
	if leader == s.opts.NodeID {
		v := s.leaderCommit(ctx, s.opts.NodeID, p)
		p.kept, p.ended = v.kept, !v.kept
		if v.outcome != OutcomeUnknown {
			return v.outcome, v.text
		}
		return s.resolveVerdict(ctx, p, v.text)
	}
	// A stopped leader answers nothing for long: the log may tell the verdict first.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		outcome Outcome
		text    string
	}
	fromLog := make(chan result, 1)
	watch := time.AfterFunc(verdictPatience, func() {
		outcome, text := s.resolveVerdict(ctx, p, "")
		if outcome != OutcomeUnknown {
			fromLog <- result{outcome, text}
			cancel()
		}
	})
	defer watch.Stop()
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		s.checkMeanwhile(p)
	}()
	v := s.forwardCommit(ctx, leader, p)
	<-checked
	if v.outcome == OutcomeAccepted {
		p.kept, p.ended = v.kept, !v.kept
		// A file is never ahead of its node's log (RULES A3).
		if err := s.store.Durable(ctx, v.index, v.term); err != nil {
			v = answer{text: fmt.Sprintf("the leader accepted it, this node's log does not hold index %d: %v", v.index, err)}
		}
	}
	select {
	case r := <-fromLog:
		return r.outcome, r.text
	default:
	}
	if v.outcome != OutcomeUnknown {
		return v.outcome, v.text
	}
	return s.resolveVerdict(ctx, p, v.text)
}

// resolveVerdict reads the verdict from the log that this node applies.
func (s *Service) resolveVerdict(ctx context.Context, p *proposal, why string) (Outcome, string) {
	v, _, index, err := s.fsm.Wait(ctx, p.db, p.pre.TXID, p.id, p.term)
	switch v {
	case VerdictAccepted:
		return OutcomeAccepted, ""
	case VerdictRefused:
		return OutcomeRefused, fmt.Sprintf("refused by log index %d", index)
	}
	if why == "" {
		why = err.Error()
	}
	return OutcomeUnknown, fmt.Sprintf("transaction %s may or may not be committed: %s", p.pre.TXID+1, why)
}

// leaderCommit stamps, encodes and proposes a transaction. Whatever the verdict, the write lock of its
// handle ends: the decided position has moved or the handle has to begin again.
func (s *Service) leaderCommit(ctx context.Context, node string, p *proposal) answer {
	term, release, refusal := s.startCommit(node, p)
	if refusal != nil {
		return *refusal
	}
	finished := false
	defer func() {
		if !finished {
			release()
		}
	}()
	st, ok := s.fsm.Get(p.db)
	if !ok {
		return answer{outcome: OutcomeRefused, text: ErrDeleted.Error()}
	}
	// The stamp is monotone because the position check carries the previous one (RULES B7).
	stamp := max(st.CommitTime+1, s.now().UnixMicro())
	if err := StampTransaction(p.entry, term, stamp); err != nil {
		return answer{outcome: OutcomeRefused, text: err.Error()}
	}
	s.metrics.proposedBytes.Add(uint64(len(p.entry)))
	future := s.raft.Apply(p.entry, enqueueTimeout)
	runtime.Gosched() // the followers' requests are sent before pages are compared
	s.checkMeanwhile(p)
	v, over := decidedBy(ctx, future)
	if over != nil {
		finished = true
		s.releaseAfter(over, p.db, Owner{Node: node, Handle: p.handle})
	}
	if v.outcome == OutcomeAccepted {
		finished = true
		v.kept = s.locks.Finish(p.db, Owner{Node: node, Handle: p.handle}, p.keep && s.mayKeep(p.db))
	}
	return v
}

// decidedBy is decided, unless ctx ends first. The outcome is unknown then, and over is closed when raft says something after
// all; it is nil otherwise.
func decidedBy(ctx context.Context, future raft.ApplyFuture) (v answer, over <-chan struct{}) {
	var said answer
	done := make(chan struct{})
	go func() {
		defer close(done)
		said = decided(future)
	}()
	select {
	case <-done:
		return said, nil
	case <-ctx.Done():
		return answer{text: fmt.Sprintf("wait for the decision: %v", ctx.Err())}, done
	}
}

// releaseAfter ends the hold of a handle on the write lock, which nobody gets before raft has decided its proposal.
func (s *Service) releaseAfter(over <-chan struct{}, db DatabaseID, owner Owner) {
	s.locks.Release(db, owner)
	s.goroutine(func() {
		<-over
		s.locks.CommitDone(db, owner)
	})
}

// mayKeep reports whether a handle may begin again without asking. Whatever delays or refuses a grant (leaderAcquire)
// has to be looked at here too, or a writer in a loop would never meet it.
func (s *Service) mayKeep(db DatabaseID) bool {
	if s.draining.Load() || s.diskFull() != nil || s.pressure.count(db, s.now()) != 0 || s.memberFull(s.now()) {
		return false
	}
	bytes, _ := s.logUsed()
	return bytes < share(s.opts.LogLimit, slowShare)
}

// startCommit says whether a transaction of a handle of node may be proposed now, in which term, and stops
// the lease of its write lock. release ends the lock.
func (s *Service) startCommit(node string, p *proposal) (term uint64, release func(), refusal *answer) {
	refuse := func(format string, args ...any) (uint64, func(), *answer) {
		return 0, nil, &answer{outcome: OutcomeRefused, text: fmt.Sprintf(format, args...)}
	}
	owner := Owner{Node: node, Handle: p.handle}
	term, ok := s.leading()
	switch {
	case !ok:
		return refuse("this node is not the leader any more")
	case p.term != term:
		return refuse("the transaction was sent to the leader of term %d, this is term %d", p.term, term)
	}
	if !s.locks.CommitStarted(p.db, owner) {
		// A holder of the former leader goes on if nobody was faster: the position decides (RULES B19).
		if err := s.locks.Reregister(p.db, owner); err != nil || !s.locks.CommitStarted(p.db, owner) {
			return refuse("the write lease ended: %v", err)
		}
	}
	release = func() {
		s.locks.CommitDone(p.db, owner)
		s.locks.Release(p.db, owner)
	}
	st, ok := s.fsm.Get(p.db)
	var over error
	if ok && st.Position == p.pre {
		if over = s.admitCommit(st, p.pageCount, int64(p.pages)*int64(st.PageSize)); over == nil {
			return term, release, nil
		}
	}
	release()
	switch {
	case over != nil:
		return 0, nil, &answer{outcome: refusalOf(over), text: over.Error()}
	case !ok:
		return refuse("%v", ErrDeleted)
	}
	return refuse("the database is at %s, the transaction began at %s", st.Position, p.pre)
}

// checkMeanwhile has the application's node compare the pages that the transaction replaces (RULES B8).
func (s *Service) checkMeanwhile(p *proposal) {
	if p.meanwhile == nil {
		return
	}
	if err := p.meanwhile(); err != nil {
		if d, ok := s.replica(p.db); ok {
			s.goroutine(func() { d.suspectAfterCommit(err) })
		}
	}
}

// definite reports whether raft's error means that the entry was never appended (RULES A1).
func definite(err error) bool {
	// A log without room has refused the entry before it did anything.
	return errors.Is(err, logstore.ErrFull) || errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) || errors.Is(err, raft.ErrLeadershipTransferInProgress)
}

const (
	enqueueTimeout  = 5 * time.Second
	verdictPatience = 500 * time.Millisecond
)

// suspectAfterCommit fences a database whose replaced pages were not what the table said.
func (d *replica) suspectAfterCommit(cause error) {
	d.mu.Lock()
	local := d.local
	d.mu.Unlock()
	if local != nil {
		select {
		case <-local.done:
		case <-d.svc.ctx.Done():
			return
		}
	}
	d.fence(cause)
}

// A commit request: handle 8, term 8, flags 1, pages that it writes 4, then the entry. Little-endian. The answer: outcome 1, index 8, term 8,
// flags 1, text.
const (
	commitHeaderSize = 8 + 8 + 1 + 4
	commitReplySize  = 1 + 8 + 8 + 1
	commitKeep       = 1 // of a request: the handle wants to keep its lock; of an answer: it does
)

func (s *Service) forwardCommit(ctx context.Context, leader string, p *proposal) answer {
	return s.callCommit(ctx, leader, methodCommit, commitHeader(p), p.entry)
}

func commitHeader(p *proposal) []byte {
	head := binary.LittleEndian.AppendUint64(make([]byte, 0, commitHeaderSize), p.handle)
	head = binary.LittleEndian.AppendUint64(head, p.term)
	return binary.LittleEndian.AppendUint32(append(head, commitFlags(p.keep)), p.pages)
}

func commitFlags(keep bool) byte {
	if keep {
		return commitKeep
	}
	return 0
}

// callCommit sends a transaction to the leader, once.
func (s *Service) callCommit(ctx context.Context, leader string, method uint8, req ...[]byte) answer {
	reply, err := s.port.Call(ctx, leader, method, req...)
	switch {
	case errors.Is(err, peer.ErrNotSent):
		return answer{outcome: OutcomeRefused, text: fmt.Sprintf("send the transaction to leader %s: %v", leader, err)}
	case err != nil:
		return answer{text: fmt.Sprintf("the answer of leader %s did not arrive: %v", leader, err)}
	case len(reply) < commitReplySize:
		return answer{text: fmt.Sprintf("leader %s answered %d bytes", leader, len(reply))}
	}
	return answer{
		outcome: Outcome(reply[0]), index: binary.LittleEndian.Uint64(reply[1:]), term: binary.LittleEndian.Uint64(reply[9:]),
		kept: reply[17]&commitKeep != 0, text: string(reply[commitReplySize:]),
	}
}

func (s *Service) serveCommit(ctx context.Context, from string, req []byte) ([]byte, error) {
	p, err := decodeCommit(req)
	if err != nil {
		return nil, err
	}
	return encodeAnswer(s.leaderCommit(ctx, from, p)), nil
}

func encodeAnswer(v answer) []byte {
	reply := make([]byte, 0, commitReplySize+len(v.text))
	reply = append(reply, byte(v.outcome))
	reply = binary.LittleEndian.AppendUint64(reply, v.index)
	reply = binary.LittleEndian.AppendUint64(reply, v.term)
	reply = append(reply, commitFlags(v.kept))
	return append(reply, v.text...)
}

func decodeCommit(b []byte) (*proposal, error) {
	if len(b) < commitHeaderSize {
		return nil, fmt.Errorf("decode commit request: %d bytes, the head has %d", len(b), commitHeaderSize)
	}
	p := &proposal{
		handle: binary.LittleEndian.Uint64(b), term: binary.LittleEndian.Uint64(b[8:]),
		keep: b[16]&commitKeep != 0, pages: binary.LittleEndian.Uint32(b[17:]), entry: b[commitHeaderSize:],
	}
	var t Transaction
	if err := decodeTransaction(p.entry, &t); err != nil {
		return nil, fmt.Errorf("decode commit request: %w", err)
	}
	p.db, p.id, p.pre, p.post, p.pageCount = t.DB, t.ID, t.Pre, t.Post, t.PageCount
	return p, nil
}

// acquire gets the cluster's write lock for a handle of this node and returns the decided position.
// It waits for a leader, for the queue, and across leader changes, until ctx ends.
// Of its errors only ErrLockBusy says that the lock is certainly not held.
func (s *Service) acquire(ctx context.Context, db DatabaseID, handle uint64) (Position, error) {
	for {
		leader, _ := s.leader()
		var pos Position
		err := error(ErrNoLeader)
		switch leader {
		case "":
		case s.opts.NodeID:
			pos, err = s.leaderAcquire(ctx, Owner{s.opts.NodeID, handle}, db)
		default:
			pos, err = s.forwardAcquire(ctx, leader, db, handle)
		}
		if err == nil {
			return pos, nil
		}
		if errors.Is(err, ErrDeleted) || errors.Is(err, ErrLockBusy) || ctx.Err() != nil {
			return Position{}, fmt.Errorf("lock the database for writing: %w", err)
		}
		select { // not the leader, or it could not be reached: look again
		case <-ctx.Done():
			return Position{}, fmt.Errorf("lock the database for writing: %w", err)
		case <-s.ctx.Done():
			return Position{}, ErrShutdown
		case <-time.After(leaderPoll):
		}
	}
}

// lockGrace is how much longer than the leader a caller waits for the answer: the leader's own ErrLockBusy
// keeps the place in the queue (RULES B1), a call that is given up does not.
const lockGrace = 500 * time.Millisecond

const leaderPoll = 5 * time.Millisecond

func (s *Service) leaderAcquire(ctx context.Context, owner Owner, db DatabaseID) (Position, error) {
	if err := s.diskFull(); err != nil { // what is added here belongs in mayKeep too
		return Position{}, err
	}
	term, ok := s.leading()
	if !ok {
		return Position{}, ErrNotLeader
	}
	s.slowDown(ctx, db)
	if err := s.awaitLogRoom(ctx); err != nil {
		return Position{}, err
	}
	if err := s.locks.Acquire(ctx, db, owner); err != nil {
		return Position{}, err
	}
	st, ok := s.fsm.Get(db)
	if !ok {
		s.locks.Release(db, owner)
		if _, _, gone := s.fsm.Tombstone(db); gone {
			return Position{}, ErrDeleted
		}
		return Position{}, ErrNotFound
	}
	if now, ok := s.leading(); !ok || now != term {
		s.locks.Release(db, owner)
		return Position{}, ErrNotLeader
	}
	return st.Position, nil
}

func (s *Service) forwardAcquire(ctx context.Context, leader string, db DatabaseID, handle uint64) (Position, error) {
	req := make([]byte, 0, 32)
	req = append(req, db[:]...)
	req = binary.LittleEndian.AppendUint64(req, handle)
	wait := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(time.Until(deadline), 0)
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait+lockGrace)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) { // the application is gone
			cancel()
		}
	})()
	req = binary.LittleEndian.AppendUint64(req, uint64(wait))
	reply, err := s.port.Call(cctx, leader, methodAcquire, req)
	if err != nil {
		return Position{}, remoteError(err)
	}
	if len(reply) != 16 {
		return Position{}, fmt.Errorf("leader %s answered a lock request with %d bytes", leader, len(reply))
	}
	return Position{TXID(binary.LittleEndian.Uint64(reply)), Checksum(binary.LittleEndian.Uint64(reply[8:]))}, nil
}

func (s *Service) serveAcquire(ctx context.Context, from string, req []byte) ([]byte, error) {
	if len(req) != 32 {
		return nil, fmt.Errorf("lock request of %d bytes, want 32", len(req))
	}
	owner := Owner{Node: from, Handle: binary.LittleEndian.Uint64(req[16:])}
	wait := min(time.Duration(binary.LittleEndian.Uint64(req[24:])), time.Hour)
	db := DatabaseID(req[:16])
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	pos, err := s.leaderAcquire(wctx, owner, db)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // the caller gave up or is gone
		s.locks.Release(db, owner)
		return nil, ctx.Err()
	}
	reply := binary.LittleEndian.AppendUint64(make([]byte, 0, 16), uint64(pos.TXID))
	return binary.LittleEndian.AppendUint64(reply, uint64(pos.Checksum)), nil
}

// releaseLock gives a handle's lock back. The channel is closed when the leader knows.
func (s *Service) releaseLock(db DatabaseID, handle uint64) chan struct{} {
	done := make(chan struct{})
	leader, _ := s.leader()
	if leader == s.opts.NodeID {
		s.locks.Release(db, Owner{s.opts.NodeID, handle})
		close(done)
		return done
	}
	s.goroutine(func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
		defer cancel()
		if err := s.forwardRelease(ctx, db, handle); err != nil && s.ctx.Err() == nil {
			s.log.Debug("release of a write lock was not heard; its lease ends by itself", "err", err)
		}
	})
	return done
}

// forwardRelease tells whoever leads: the leader that granted the lock may have been lost sight of for a moment.
func (s *Service) forwardRelease(ctx context.Context, db DatabaseID, handle uint64) error {
	req := binary.LittleEndian.AppendUint64(append(make([]byte, 0, 24), db[:]...), handle)
	for {
		err := error(ErrNoLeader)
		switch leader, _ := s.leader(); leader {
		case "":
		case s.opts.NodeID:
			s.locks.Release(db, Owner{s.opts.NodeID, handle})
			return nil
		default:
			_, err = s.port.Call(ctx, leader, methodRelease, req)
		}
		if err == nil || !s.pauseFor(ctx, leaderPoll) {
			return err
		}
	}
}

func (s *Service) serveRelease(_ context.Context, from string, req []byte) ([]byte, error) {
	if len(req) != 24 {
		return nil, fmt.Errorf("release request of %d bytes, want 24", len(req))
	}
	s.locks.Release(DatabaseID(req[:16]), Owner{Node: from, Handle: binary.LittleEndian.Uint64(req[16:])})
	return nil, nil
}

// readIndex returns a position of the database, and a log index, that include every transaction acknowledged
// before the call. The zero id asks for the index alone.
func (s *Service) readIndex(ctx context.Context, db DatabaseID) (Position, uint64, error) {
	for {
		leader, _ := s.leader()
		var r readIndexReply
		err := error(ErrNoLeader)
		switch leader {
		case "":
		case s.opts.NodeID:
			r, err = s.leaderReadIndex(ctx, db)
		default:
			r, err = s.remoteReadIndex(ctx, leader, db)
		}
		if err == nil || errors.Is(err, ErrDeleted) {
			return r.position, r.index, err
		}
		if !s.pauseFor(ctx, leaderPoll) {
			return Position{}, 0, fmt.Errorf("confirm the read with the leader: %w", err)
		}
	}
}

type readIndexReply struct {
	position Position
	index    uint64
}

const readIndexReplySize = 24

func (s *Service) remoteReadIndex(ctx context.Context, leader string, db DatabaseID) (readIndexReply, error) {
	b, err := s.port.Call(ctx, leader, methodReadIndex, db[:])
	if err != nil {
		return readIndexReply{}, remoteError(err)
	}
	if len(b) != readIndexReplySize {
		return readIndexReply{}, fmt.Errorf("leader %s answered a read request with %d bytes", leader, len(b))
	}
	return readIndexReply{
		Position{TXID(binary.LittleEndian.Uint64(b)), Checksum(binary.LittleEndian.Uint64(b[8:]))}, binary.LittleEndian.Uint64(b[16:]),
	}, nil
}

// leaderReadIndex reads the commit index first, then confirms leadership, then waits until the decided
// positions include that index (RULES B6).
func (s *Service) leaderReadIndex(ctx context.Context, db DatabaseID) (readIndexReply, error) {
	if _, ok := s.leading(); !ok {
		return readIndexReply{}, ErrNotLeader
	}
	r := readIndexReply{index: s.raft.CommitIndex()}
	if err := s.raft.VerifyLeader().Error(); err != nil {
		return r, fmt.Errorf("verify leadership: %w: %w", ErrNotLeader, err)
	}
	if err := s.fsm.WaitIndex(ctx, r.index); err != nil {
		return r, err
	}
	if db == (DatabaseID{}) {
		return r, nil
	}
	st, ok := s.fsm.Get(db)
	if !ok {
		return r, ErrDeleted
	}
	r.position = st.Position
	return r, nil
}

func (s *Service) serveReadIndex(ctx context.Context, _ string, req []byte) ([]byte, error) {
	if len(req) != 16 {
		return nil, fmt.Errorf("read request of %d bytes, want 16", len(req))
	}
	r, err := s.leaderReadIndex(ctx, DatabaseID(req))
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, readIndexReplySize)
	for _, v := range []uint64{uint64(r.position.TXID), uint64(r.position.Checksum), r.index} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b, nil
}
