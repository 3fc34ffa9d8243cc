package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// ErrVerdictForgotten is returned by Wait where the transaction in question is
// older than the ids that are kept, or its database was deleted since. The
// caller reports an unknown outcome.
var ErrVerdictForgotten = errors.New("verdict no longer known")

// Verdict is the fate of an entry.
type Verdict uint8

// The verdicts. Unknown is not a fate: it may still become either.
const (
	VerdictUnknown Verdict = iota
	VerdictAccepted
	VerdictRefused
)

// String names the verdict for logs.
func (v Verdict) String() string {
	switch v {
	case VerdictAccepted:
		return "accepted"
	case VerdictRefused:
		return "refused"
	}
	return "unknown"
}

type acceptedEntry struct {
	id       EntryID
	checksum Checksum
	index    uint64
}

// acceptedRing keeps the entries of the last transactions of a database, oldest
// first. Elements once written never change, so that a copy of the slice header
// is a snapshot. It takes no memory before the first transaction.
type acceptedRing struct {
	entries []acceptedEntry
}

// add appends the entry of the next transaction.
func (r *acceptedRing) add(e acceptedEntry) {
	if len(r.entries) >= acceptedWindow+acceptedWindow/4 {
		kept := make([]acceptedEntry, acceptedWindow-1, acceptedWindow+acceptedWindow/4)
		copy(kept, r.recent()[1:])
		r.entries = kept
	}
	r.entries = append(r.entries, e)
}

// recent returns the entries of the last transactions.
func (r *acceptedRing) recent() []acceptedEntry {
	return r.entries[max(0, len(r.entries)-acceptedWindow):]
}

// window returns the entries that count at a log index: what is further back than the horizon does not, on any
// node, whether the node still has it or not.
func (r *acceptedRing) window(now uint64) []acceptedEntry {
	w := r.recent()
	if len(w) == 0 || w[0].index+acceptedHorizon > now {
		return w
	}
	return w[sort.Search(len(w), func(i int) bool { return w[i].index+acceptedHorizon > now }):]
}

// forget gives back the memory of entries that do not count any more.
func (r *acceptedRing) forget(now uint64) {
	switch w := r.window(now); {
	case len(w) == 0:
		r.entries = nil
	case 2*len(w) < len(r.entries):
		r.entries = slices.Clone(w)
	}
}

// at returns the entry that took transaction txid, where last is the database's and now the log index.
func (r *acceptedRing) at(txid, last TXID, now uint64) (acceptedEntry, bool) {
	w := r.window(now)
	if txid > last || uint64(last-txid) >= uint64(len(w)) {
		return acceptedEntry{}, false
	}
	return w[len(w)-1-int(last-txid)], true
}

// transactionWith returns the newest transaction of a database that left the checksum, as far back as entry ids
// are kept.
func (f *FSM) transactionWith(id DatabaseID, sum Checksum) (TXID, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	db := f.s.byID[id]
	if db == nil {
		return 0, false
	}
	if db.Position.Checksum == sum {
		return db.Position.TXID, true
	}
	w := db.accepted.window(f.s.applied)
	for i := len(w) - 1; i >= 0; i-- {
		if w[i].checksum == sum {
			return db.Position.TXID - TXID(len(w)-1-i), true
		}
	}
	return 0, false
}

type rejectedEntry struct {
	id    EntryID
	index uint64
}

// rejectedRing keeps the last rejected entries.
type rejectedRing struct {
	entries []rejectedEntry // oldest at next once full
	next    int
	byID    map[EntryID]uint64
}

func (r *rejectedRing) add(id EntryID, index uint64) {
	if _, ok := r.byID[id]; ok || id.IsZero() {
		return
	}
	if r.byID == nil {
		r.byID = make(map[EntryID]uint64)
	}
	if len(r.entries) < rejectedWindow {
		r.entries = append(r.entries, rejectedEntry{id, index})
	} else {
		delete(r.byID, r.entries[r.next].id)
		r.entries[r.next] = rejectedEntry{id, index}
		r.next = (r.next + 1) % rejectedWindow
	}
	r.byID[id] = index
}

func (r *rejectedRing) find(id EntryID) (index uint64, ok bool) {
	index, ok = r.byID[id]
	return index, ok
}

// ordered returns the entries, oldest first.
func (r *rejectedRing) ordered() []rejectedEntry {
	return slices.Concat(r.entries[r.next:], r.entries[:r.next])
}

// outcome is what Wait returns.
type outcome struct {
	verdict  Verdict
	position Position
	index    uint64
	err      error
}

// verdict gives the fate of an entry as far as the state decides it (RULES A1).
// done is false while it may still become either.
func (s *state) verdict(db DatabaseID, pre TXID, id EntryID, term uint64) (o outcome, done bool) {
	d := s.byID[db]
	taken := d != nil && d.Position.TXID > pre
	if taken {
		if e, ok := d.accepted.at(pre+1, d.Position.TXID, s.applied); ok {
			if e.id == id {
				return outcome{verdict: VerdictAccepted, position: Position{TXID: pre + 1, Checksum: e.checksum}, index: e.index}, true
			}
			return outcome{verdict: VerdictRefused, position: d.Position, index: e.index}, true
		}
	}
	if index, ok := s.rejected.find(id); ok {
		o := outcome{verdict: VerdictRefused, index: index}
		if d != nil {
			o.position = d.Position
		}
		return o, true
	}
	if taken {
		if pre == 0 { // transaction 1 is the creation: no entry takes it
			return outcome{verdict: VerdictRefused, position: d.Position, index: d.CreatedIndex}, true
		}
		return outcome{err: fmt.Errorf("entry %s after transaction %v of %s: %w", id, pre, db, ErrVerdictForgotten)}, true
	}
	if g, ok := s.tombstones[db]; ok {
		return outcome{index: g.Index, err: fmt.Errorf("entry %s after transaction %v of %s, deleted at index %d: %w", id, pre, db, g.Index, ErrVerdictForgotten)}, true
	}
	if s.term > term {
		o := outcome{verdict: VerdictRefused, index: s.termIndex}
		if d != nil {
			o.position = d.Position
		}
		return o, true
	}
	return outcome{}, false
}

type verdictWaiter struct {
	pre  TXID
	id   EntryID
	term uint64
	// settled is set where the state had the answer already when the wait began
	// and only the sink had not been told.
	settled bool
	done    chan outcome // buffered
}

type indexWaiter struct {
	index uint64
	done  chan struct{}
}

// waiters is guarded by the FSM's lock.
type waiters struct {
	verdicts map[DatabaseID][]*verdictWaiter
	indexes  []*indexWaiter
}

// review answers those who wait for a database and can be answered.
func (w *waiters) review(s *state, db DatabaseID) {
	list := w.verdicts[db]
	if len(list) == 0 {
		return
	}
	list = slices.DeleteFunc(list, func(v *verdictWaiter) bool {
		o, done := s.verdict(db, v.pre, v.id, v.term)
		if done {
			v.done <- o
		}
		return done
	})
	if len(list) == 0 {
		delete(w.verdicts, db)
		return
	}
	w.verdicts[db] = list
}

// deleted answers those who wait for a database that was deleted just now. Who
// still waits was not accepted before, and cannot be any more.
func (w *waiters) deleted(s *state, db DatabaseID, index uint64) {
	for _, v := range w.verdicts[db] {
		if v.settled {
			o, _ := s.verdict(db, v.pre, v.id, v.term)
			v.done <- o
			continue
		}
		v.done <- outcome{verdict: VerdictRefused, index: index}
	}
	delete(w.verdicts, db)
}

func (w *waiters) reviewAll(s *state) {
	for db := range w.verdicts {
		w.review(s, db)
	}
}

func (w *waiters) indexReached(applied uint64) {
	if len(w.indexes) == 0 {
		return
	}
	w.indexes = slices.DeleteFunc(w.indexes, func(v *indexWaiter) bool {
		if v.index > applied {
			return false
		}
		close(v.done)
		return true
	})
}

// Wait returns the fate of an entry that was proposed in term on top of
// transaction pre. Accepted comes with the position and raft index that the
// entry got, Refused with the index that decided against it. Until the log
// decides it waits; when ctx ends first, the verdict is unknown and the error
// is the context's.
func (f *FSM) Wait(ctx context.Context, db DatabaseID, pre TXID, id EntryID, term uint64) (Verdict, Position, uint64, error) {
	f.mu.Lock()
	o, done := f.s.verdict(db, pre, id, term)
	// What the sink has not been told yet is not given away here: the end of
	// this very Apply answers.
	if done && o.index <= f.s.applied {
		f.mu.Unlock()
		return o.verdict, o.position, o.index, o.err
	}
	w := &verdictWaiter{pre: pre, id: id, term: term, settled: done, done: make(chan outcome, 1)}
	if f.wait.verdicts == nil {
		f.wait.verdicts = make(map[DatabaseID][]*verdictWaiter)
	}
	f.wait.verdicts[db] = append(f.wait.verdicts[db], w)
	f.mu.Unlock()

	select {
	case o = <-w.done:
		return o.verdict, o.position, o.index, o.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case o = <-w.done: // answered at the same moment
		return o.verdict, o.position, o.index, o.err
	default:
	}
	list := slices.DeleteFunc(f.wait.verdicts[db], func(v *verdictWaiter) bool { return v == w })
	if len(list) == 0 {
		delete(f.wait.verdicts, db)
	} else {
		f.wait.verdicts[db] = list
	}
	return VerdictUnknown, Position{}, 0, context.Cause(ctx)
}

// WaitIndex returns when the entry at a raft index, or a later one, is decided
// and told to the sink.
func (f *FSM) WaitIndex(ctx context.Context, index uint64) error {
	f.mu.Lock()
	if f.s.applied >= index {
		f.mu.Unlock()
		return nil
	}
	w := &indexWaiter{index: index, done: make(chan struct{})}
	f.wait.indexes = append(f.wait.indexes, w)
	f.mu.Unlock()

	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wait.indexes = slices.DeleteFunc(f.wait.indexes, func(v *indexWaiter) bool { return v == w })
	return fmt.Errorf("wait for log index %d, at %d: %w", index, f.s.applied, context.Cause(ctx))
}
