package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// partWindow is how many parts of one transaction may be proposed and not decided (RULES A8: 8 MiB). Other
// databases' entries wait behind no more than that.
const partWindow = 8

// largeProposal is a transaction whose LTX file is in a spool of the application's node.
type largeProposal struct {
	proposal
	final Final // term and commit time are stamped by the leader
}

// commitLarge has the leader propose the transaction, once, and finds out its verdict (RULES A1). Nobody
// proposes the final entry but the leader's call: before that every failure is a definite refusal.
func (s *Service) commitLarge(ctx context.Context, p *largeProposal, sp *spool, tick func()) (Outcome, string) {
	leader, term := s.leader()
	if leader == "" {
		return OutcomeRefused, ErrNoLeader.Error()
	}
	p.term = term
	s.ticks.Store(p.id, tick)
	defer s.ticks.Delete(p.id)
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		s.checkMeanwhile(&p.proposal)
	}()
	defer func() { <-checked }()
	if leader == s.opts.NodeID {
		v := s.leaderLarge(ctx, s.opts.NodeID, p, io.NewSectionReader(sp.file, 0, int64(p.final.Size)))
		if v.outcome != OutcomeUnknown {
			return v.outcome, v.text
		}
		return s.resolveVerdict(ctx, &p.proposal, v.text)
	}
	// The log of this node may tell the verdict before a leader that is stopped or cut off does.
	cctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var fromLog *answer
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if outcome, text := s.resolveVerdict(cctx, &p.proposal, ""); outcome != OutcomeUnknown {
			fromLog = &answer{outcome: outcome, text: text}
			cancel()
		}
	}()
	v := s.forwardLarge(cctx, leader, p)
	if v.outcome == OutcomeAccepted {
		// A file is never ahead of its node's log (RULES A3).
		if err := s.store.Durable(cctx, v.index, v.term); err != nil {
			v = answer{text: fmt.Sprintf("the leader accepted it, this node's log does not hold index %d: %v", v.index, err)}
		}
	}
	if v.outcome == OutcomeUnknown && cctx.Err() == nil {
		<-watched // until the log tells, or the time without progress is over
	}
	cancel()
	<-watched
	switch {
	case fromLog != nil:
		return fromLog.outcome, fromLog.text
	case v.outcome == OutcomeUnknown:
		return v.outcome, fmt.Sprintf("transaction %s may or may not be committed: %s", p.post.TXID, v.text)
	}
	return v.outcome, v.text
}

// leaderLarge proposes the parts and the final entry. Whatever the verdict, the write lock of its handle ends.
func (s *Service) leaderLarge(ctx context.Context, node string, p *largeProposal, src io.Reader) answer {
	term, release, refusal := s.startCommit(node, &p.proposal)
	if refusal != nil {
		return *refusal
	}
	defer func() { release() }()
	room, err := s.reserveLog(ctx, int64(p.final.Size))
	if err != nil {
		return answer{outcome: refusalOf(err), text: err.Error()}
	}
	defer room.release()
	if err := s.proposeParts(ctx, p, term, src, room); err != nil {
		s.abortLarge(p, term)
		return answer{outcome: OutcomeRefused, text: err.Error()}
	}
	st, ok := s.fsm.Get(p.db)
	if !ok || st.Position != p.pre {
		s.abortLarge(p, term)
		return answer{outcome: OutcomeRefused, text: fmt.Sprintf("the database is at %s, the transaction began at %s", st.Position, p.pre)}
	}
	s.beforePart(p.final.Count + 1)
	final := p.final
	final.Term, final.CommitTime = term, max(st.CommitTime+1, s.now().UnixMicro())
	future := s.raft.Apply(EncodeFinal(nil, &final), enqueueTimeout)
	v, over := decidedBy(ctx, future)
	if over != nil {
		s.releaseAfter(over, p.db, Owner{Node: node, Handle: p.handle})
		release = func() {}
	}
	if v.outcome == OutcomeRefused && v.index == 0 {
		s.abortLarge(p, term)
	}
	return v
}

func (s *Service) beforePart(number uint32) {
	if s.opts.BeforePart != nil {
		s.opts.BeforePart(number)
	}
}

// decided turns what raft says of a proposal into an answer.
func decided(future raft.ApplyFuture) answer {
	if err := future.Error(); err != nil {
		if definite(err) {
			return answer{outcome: OutcomeRefused, text: err.Error()}
		}
		return answer{text: err.Error()}
	}
	dec, ok := future.Response().(*Decision)
	switch {
	case !ok:
		return answer{text: fmt.Sprintf("the log entry was answered with %T", future.Response())}
	case !dec.Accepted:
		return answer{outcome: OutcomeRefused, text: dec.Reason, index: dec.Index, term: dec.Term}
	}
	return answer{outcome: OutcomeAccepted, index: dec.Index, term: dec.Term}
}

// proposeParts reads the LTX file from src and returns when all its parts are decided.
func (s *Service) proposeParts(ctx context.Context, p *largeProposal, term uint64, src io.Reader, room *logReserve) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	window := make(chan raft.ApplyFuture, partWindow-2)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		for f := range window {
			if v := decided(f); v.outcome != OutcomeAccepted {
				cancel(fmt.Errorf("a part was not accepted: %s", v.text))
			}
			room.use(PartBytes)
		}
	}()
	err := s.sendParts(ctx, p, term, src, window)
	close(window)
	if err != nil {
		return err
	}
	select {
	case <-waited:
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

func (s *Service) sendParts(ctx context.Context, p *largeProposal, term uint64, src io.Reader, window chan<- raft.ApplyFuture) error {
	left := p.final.Size
	for number := uint32(1); number <= p.final.Count; number++ {
		n := min(left, PartBytes)
		entry, data := newPart(&Part{DB: p.db, ID: p.id, Term: term, Pre: p.pre, Count: p.final.Count, Number: number}, int(n))
		if _, err := io.ReadFull(src, data); err != nil {
			return fmt.Errorf("read part %d of %d: %w", number, p.final.Count, err)
		}
		left -= n
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.beforePart(number)
		entry = finishPart(entry)
		s.metrics.proposedBytes.Add(uint64(len(entry)))
		future := s.raft.Apply(entry, enqueueTimeout)
		select {
		case window <- future:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// abortLarge has the log forget a transaction that this leader will not end. Where that fails, the next term
// start does it.
func (s *Service) abortLarge(p *largeProposal, term uint64) {
	s.goroutine(func() {
		if _, ok := s.leading(); !ok {
			return
		}
		err := s.raft.Apply(EncodeFinal(nil, &Final{Abort: true, DB: p.db, ID: p.id, Term: term, Pre: p.pre}), enqueueTimeout).Error()
		if err != nil && s.ctx.Err() == nil {
			s.log.Debug("abort of a large transaction; the next term drops it", "err", err)
		}
	})
}

// A large commit request: the head of a commit request, then the final entry, whose term and commit time are not stamped.

func (s *Service) forwardLarge(ctx context.Context, leader string, p *largeProposal) answer {
	return s.callCommit(ctx, leader, methodLarge, commitHeader(&p.proposal), EncodeFinal(nil, &p.final))
}

func (s *Service) serveLarge(ctx context.Context, from string, req []byte) ([]byte, error) {
	p, err := decodeLarge(req)
	if err != nil {
		return nil, err
	}
	stream, err := s.port.Stream(ctx, from, methodParts, partsRequest(p.id, p.final.Size))
	if err != nil {
		return encodeAnswer(answer{outcome: OutcomeRefused, text: fmt.Sprintf("fetch the parts from node %s: %v", from, remoteError(err))}), nil
	}
	defer stream.Close()
	return encodeAnswer(s.leaderLarge(ctx, from, p, stream)), nil
}

func decodeLarge(b []byte) (*largeProposal, error) {
	if len(b) < commitHeaderSize {
		return nil, fmt.Errorf("decode large commit request: %d bytes, the head has %d", len(b), commitHeaderSize)
	}
	e, err := Decode(b[commitHeaderSize:])
	if err != nil {
		return nil, fmt.Errorf("decode large commit request: %w", err)
	}
	f, ok := e.(*Final)
	if !ok || f.Abort || f.Count == 0 || f.Count > maxParts || (f.Size+PartBytes-1)/PartBytes != uint64(f.Count) {
		return nil, fmt.Errorf("decode large commit request: %T is no transaction in parts: %w", e, ErrCorruptEntry)
	}
	p := &largeProposal{final: *f}
	p.handle, p.term = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	p.db, p.id, p.pre, p.post, p.pageCount, p.pages = f.DB, f.ID, f.Pre, f.Post, f.PageCount, f.Pages
	return p, nil
}

// A request for parts: entry id 16, bytes 8. The answer is that many bytes of the LTX file.

func partsRequest(id EntryID, size uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(make([]byte, 0, 24), id[:]...), size)
}

func (s *Service) serveParts(ctx context.Context, _ string, req []byte, w io.Writer) error {
	if len(req) != 24 {
		return fmt.Errorf("request for parts of %d bytes, want 24", len(req))
	}
	size := binary.LittleEndian.Uint64(req[16:])
	if size > maxParts*PartBytes {
		return fmt.Errorf("request for %d bytes of parts: %w", size, ErrInvalid)
	}
	return s.spools.serve(ctx, EntryID(req[:16]), int64(size), w)
}

// fetchParts gets the parts that a manifest lists from a peer, the leader last: what that does not have any
// more was decided or dropped since.
func (s *Service) fetchParts(ctx context.Context, r Running, w io.WriterAt) error {
	select {
	case <-s.raftUp:
	case <-ctx.Done():
		return ctx.Err()
	}
	leader, _ := s.leader()
	var errs []error
	for _, node := range s.peersLeaderLast() {
		err := s.fetchPartsFrom(ctx, node, r, w)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("from node %s: %w", node, err))
		if node == leader && errors.Is(err, ErrNotFound) {
			return fmt.Errorf("%w: %w", errSpoolLost, errors.Join(errs...))
		}
	}
	return fmt.Errorf("fetch the parts of a large transaction: %w", errors.Join(append(errs, ErrNoLeader)...))
}

func (s *Service) fetchPartsFrom(ctx context.Context, node string, r Running, w io.WriterAt) error {
	stream, err := s.bulk(ctx, node, methodParts, partsRequest(r.ID, r.Bytes))
	if err != nil {
		return remoteError(err)
	}
	defer stream.Close()
	n, err := io.Copy(io.NewOffsetWriter(w, 0), io.LimitReader(stream, int64(r.Bytes)))
	switch {
	case err != nil:
		return remoteError(err)
	case uint64(n) != r.Bytes:
		return fmt.Errorf("%d bytes of parts, want %d: %w", n, r.Bytes, io.ErrUnexpectedEOF)
	}
	return nil
}

// openSpools makes what keeps the parts of large transactions.
func (s *Service) openSpools() {
	s.spools = newSpools(filepath.Join(s.opts.Dir, "parts"), s.log, s.ctx, s.goroutine)
	s.spools.back = s.partData
	s.spools.ask = s.fetchParts
	s.spools.over = func() {
		if !s.forgetting.Swap(true) {
			s.goroutine(s.forgetParts)
		}
	}
	s.fsm.Spools = SpoolHooks{
		Listed: s.spools.noteListed, Persist: s.spools.persist, Persisted: s.spools.notePersisted,
		Restore: func(running []Running) error {
			s.mu.Lock()
			fromLeader := s.restored
			s.mu.Unlock()
			return s.spools.restore(s.ctx, running, fromLeader)
		},
	}
}

// forgetParts takes snapshots until none that is newest lists a transaction that has ended: its file may go.
func (s *Service) forgetParts() {
	defer s.forgetting.Store(false)
	for s.pauseFor(s.ctx, forgetInterval) && s.spools.waits() {
		select {
		case <-s.raftUp:
			if err := s.raft.Snapshot().Error(); err != nil && s.ctx.Err() == nil {
				s.log.Debug("snapshot after a large transaction", "err", err)
			}
		default:
		}
	}
}

const forgetInterval = time.Second

// partData reads a part back from the log.
func (s *Service) partData(index uint64) ([]byte, error) {
	p, err := logged[*Part](s, index)
	if err != nil {
		return nil, err
	}
	return p.Data, nil
}

// tick tells the committing handle, if it is of this node, that its large transaction moved forward.
func (s *Service) tick(id EntryID) {
	if f, ok := s.ticks.Load(id); ok {
		f.(func())()
	}
}

// touch tells the leader that the holder of a write lock is alive: its transaction is on its way to this node.
func (s *Service) touch(db DatabaseID, handle uint64) {
	leader, _ := s.leader()
	switch leader {
	case "":
	case s.opts.NodeID:
		s.locks.Touch(db, Owner{s.opts.NodeID, handle})
	default:
		s.goroutine(func() {
			ctx, cancel := context.WithTimeout(s.ctx, time.Second)
			defer cancel()
			req := binary.LittleEndian.AppendUint64(append(make([]byte, 0, 24), db[:]...), handle)
			if _, err := s.port.Call(ctx, leader, methodTouch, req); err != nil && s.ctx.Err() == nil && !errors.Is(err, peer.ErrNotSent) {
				s.log.Debug("the leader did not hear of a transaction that is on its way", "err", err)
			}
		})
	}
}

func (s *Service) serveTouch(_ context.Context, from string, req []byte) ([]byte, error) {
	if len(req) != 24 {
		return nil, fmt.Errorf("touch request of %d bytes, want 24", len(req))
	}
	s.locks.Touch(DatabaseID(req[:16]), Owner{Node: from, Handle: binary.LittleEndian.Uint64(req[16:])})
	return nil, nil
}
