package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// ticketKeep is how long a writer that got BUSY keeps its place in the
	// queue, for the retry of its busy handler (RULES B1).
	ticketKeep = time.Second

	// reservationKeep is how long a lock stays reserved for the handle whose
	// begin ended in BUSY_SNAPSHOT because it had to wait for applies (RULES B1).
	reservationKeep = 50 * time.Millisecond

	maxFreeLocks = 256
)

var (
	// ErrNotLeader is returned where only the leader can act. Nothing was
	// granted; the caller asks the leader.
	ErrNotLeader = errors.New("not the leader")

	// ErrLockBusy is returned by Acquire when the time to wait is over. The
	// caller answers SQLITE_BUSY; the place in the queue is kept for a second.
	ErrLockBusy = errors.New("database is locked by another writer")

	// ErrLockHeld is returned by Reregister when another writer was granted the
	// lock first. The caller's transaction is refused at commit.
	ErrLockHeld = errors.New("write lock was granted to another writer")

	// ErrOwnerGone is returned by an Acquire whose node or handle was dropped,
	// or that asked again before it was answered.
	ErrOwnerGone = errors.New("waiting writer is gone")
)

// Owner is one database handle of one node.
type Owner struct {
	Node   string
	Handle uint64
}

// String names the owner for logs.
func (o Owner) String() string { return fmt.Sprintf("%s/%d", o.Node, o.Handle) }

// Clock is the time a LockTable goes by.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once after d, in a goroutine of its own, unless the
	// returned stop is called before.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// SystemClock is the Clock of the machine.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Time { return time.Now() }

// AfterFunc implements Clock.
func (SystemClock) AfterFunc(d time.Duration, f func()) func() bool {
	return time.AfterFunc(d, f).Stop
}

// LockTable is the leader's table of write locks, one per database. A lock
// orders writers and is fair to them; safety does not rest on it but on the
// FSM. The table is not replicated.
//
// Invariants:
//  1. At most one owner holds a lock.
//  2. Who waits is served in the order of first asking; no owner is granted a
//     lock twice while another waits, except once by its own reservation, or once
//     because it kept the lock before the other asked.
//  3. A lease ends only while another owner waits, the holder was silent for
//     its length and no commit of the holder is in progress.
//  4. A closed table grants nothing. It is closed at first and after Reset.
type LockTable struct {
	// OnExpire, set before use, hears of leases that ran out.
	OnExpire func(db DatabaseID, owner Owner, silent time.Duration)

	clock Clock
	lease time.Duration

	mu      sync.Mutex
	open    bool
	quiet   time.Time // no grants before, only re-registrations
	locks   map[DatabaseID]*writeLock
	free    []*writeLock
	expired []expiry // to be told once mu is released
}

type expiry struct {
	db     DatabaseID
	owner  Owner
	silent time.Duration
}

// writeLock is guarded by the table's lock. One that is neither held, waited
// for, reserved nor queued for is not in the table.
type writeLock struct {
	db DatabaseID

	held          bool
	holder        Owner
	since         time.Time // of the grant
	heard         time.Time // last sign of the holder
	commits       int       // commits of the holder in progress
	leaving       bool      // released or dropped during a commit
	fromReserved  bool      // this grant used a reservation
	reserved      Owner
	reservedUntil time.Time // zero: no reservation

	queue   []*ticket
	waiting int // tickets of which somebody waits

	timerAt   time.Time // zero: no timer
	timerStop func() bool
	timerSeq  uint64
}

// ticket is a place in the queue. It outlives the wait by ticketKeep.
type ticket struct {
	owner     Owner
	answer    chan error // buffered; nil: nobody waits
	keepUntil time.Time  // where nobody waits
}

// NewLockTable returns a closed table. A nil clock is the machine's.
func NewLockTable(clock Clock, lease time.Duration) *LockTable {
	if clock == nil {
		clock = SystemClock{}
	}
	return &LockTable{clock: clock, lease: lease, locks: make(map[DatabaseID]*writeLock)}
}

// Open lets the table grant: this node is the leader and its term start is
// decided (RULES B19). For the time quiet, holders of the former leader may
// re-register before others are granted anything.
func (t *LockTable) Open(quiet time.Duration) {
	t.mu.Lock()
	defer t.unlock()
	t.open = true
	t.quiet = time.Time{}
	if quiet > 0 {
		t.quiet = t.clock.Now().Add(quiet)
	}
}

// Reset closes the table: leadership is lost. All locks are forgotten and all
// who wait get ErrNotLeader.
func (t *LockTable) Reset() {
	t.mu.Lock()
	defer t.unlock()
	t.open = false
	for db, l := range t.locks {
		for _, k := range l.queue {
			k.reply(ErrNotLeader)
		}
		l.stopTimer()
		delete(t.locks, db)
	}
}

// Acquire grants the lock to owner, waiting for its turn until ctx ends. At the
// deadline it returns ErrLockBusy and the owner keeps its place for a second;
// where ctx is cancelled the place is given up. The owner that holds the lock
// already gets it again. Of one owner only the last Acquire waits.
func (t *LockTable) Acquire(ctx context.Context, db DatabaseID, owner Owner) error {
	t.mu.Lock()
	if !t.open {
		t.unlock()
		return fmt.Errorf("lock database %s for %v: %w", db, owner, ErrNotLeader)
	}
	now := t.clock.Now()
	l := t.get(db)
	if l.held && l.holder == owner && !l.leaving {
		l.heard = now
		t.unlock()
		return nil
	}
	if l.busy() { // a reservation or lease may have ended, its timer not fired yet
		t.advance(l, now)
		l = t.get(db)
	}
	mine := l.reservedFor(owner, now)
	if !l.held && !now.Before(t.quiet) && (mine || l.waiting == 0 && l.reservedUntil.IsZero()) {
		if k := l.ticketOf(owner); k != nil {
			l.drop(k, ErrOwnerGone)
		}
		l.grant(owner, now)
		if len(l.queue) > 0 {
			t.advance(l, now)
		}
		t.unlock()
		return nil
	}
	k := l.ticketOf(owner)
	if k == nil {
		k = &ticket{owner: owner}
		l.queue = append(l.queue, k)
	} else {
		k.reply(ErrOwnerGone)
	}
	answer := make(chan error, 1)
	if k.answer == nil {
		l.waiting++
	}
	k.answer = answer
	t.advance(l, now)
	t.unlock()

	select {
	case err := <-answer:
		return wrapLock(db, owner, err)
	case <-ctx.Done():
	}

	t.mu.Lock()
	defer t.unlock()
	select {
	case err := <-answer: // answered at the same moment; a grant stands
		return wrapLock(db, owner, err)
	default:
	}
	// Not answered, so the ticket is still in the queue of this lock.
	now = t.clock.Now()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		k.answer, k.keepUntil = nil, now.Add(ticketKeep)
		l.waiting--
		t.advance(l, now)
		return fmt.Errorf("lock database %s for %v: %w", db, owner, ErrLockBusy)
	}
	l.drop(k, nil)
	t.advance(l, now)
	return fmt.Errorf("lock database %s for %v: %w", db, owner, context.Cause(ctx))
}

// Release ends owner's hold, if it has one. During a commit it takes effect
// when the commit is done.
func (t *LockTable) Release(db DatabaseID, owner Owner) { t.release(db, owner, false) }

// ReleaseReserved is Release after an empty transaction whose begin had to wait
// for applies: SQLite has answered BUSY_SNAPSHOT, and its busy handler is about
// to begin again. For 50 ms nobody else is granted the lock. A reservation is
// not renewed by its own use while another waits.
func (t *LockTable) ReleaseReserved(db DatabaseID, owner Owner) { t.release(db, owner, true) }

func (t *LockTable) release(db DatabaseID, owner Owner, reserve bool) {
	t.mu.Lock()
	defer t.unlock()
	l := t.locks[db]
	if l == nil || !l.held || l.holder != owner {
		return
	}
	if l.commits > 0 {
		l.leaving = true
		return
	}
	again := l.fromReserved
	l.freeHold()
	if !reserve && l.waiting == 0 && len(l.queue) == 0 {
		t.recycle(l)
		return
	}
	now := t.clock.Now()
	if reserve && !(again && l.waiting > 0) {
		l.reserved, l.reservedUntil = owner, now.Add(reservationKeep)
	}
	t.advance(l, now)
}

// Holds reports whether owner holds the lock.
func (t *LockTable) Holds(db DatabaseID, owner Owner) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.locks[db]
	return l != nil && l.heldBy(owner)
}

// Touch notes a sign of life of the holder.
func (t *LockTable) Touch(db DatabaseID, owner Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.locks[db]; l != nil && l.heldBy(owner) {
		l.heard = t.clock.Now()
	}
}

// CommitStarted stops owner's lease until CommitDone. It reports false where
// owner does not hold the lock (any more): the commit is to be refused.
func (t *LockTable) CommitStarted(db DatabaseID, owner Owner) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.locks[db]
	if l == nil || !l.heldBy(owner) {
		return false
	}
	l.commits++
	return true
}

// CommitDone lets the lease run again: the verdict is known.
func (t *LockTable) CommitDone(db DatabaseID, owner Owner) {
	t.mu.Lock()
	defer t.unlock()
	l := t.locks[db]
	if l == nil || !l.held || l.holder != owner || l.commits == 0 {
		return
	}
	now := t.clock.Now()
	l.commits--
	l.heard = now
	if l.commits == 0 && l.leaving {
		l.freeHold()
	}
	t.advance(l, now)
}

// Finish is CommitDone for a commit that was accepted, and Release. keep asks to leave the lock with the owner, who is
// about to begin again: that is done, and true returned, only while nobody waits or has a place in the queue.
func (t *LockTable) Finish(db DatabaseID, owner Owner, keep bool) bool {
	t.mu.Lock()
	defer t.unlock()
	l := t.locks[db]
	if l == nil || !l.held || l.holder != owner || l.commits == 0 {
		return false
	}
	now := t.clock.Now()
	l.commits--
	l.heard = now
	switch {
	case l.commits > 0:
		l.leaving = true
		return false
	case keep && !l.leaving && len(l.queue) == 0:
		return true
	}
	l.freeHold()
	t.advance(l, now)
	return false
}

// Reregister gives the lock to an owner that held it under a former leader and
// has a transaction open, ahead of the queue. ErrLockHeld: another was faster.
func (t *LockTable) Reregister(db DatabaseID, owner Owner) error {
	t.mu.Lock()
	defer t.unlock()
	if !t.open {
		return fmt.Errorf("register holder %v of database %s: %w", owner, db, ErrNotLeader)
	}
	l := t.get(db)
	if l.held && (l.holder != owner || l.leaving) {
		return fmt.Errorf("register holder %v of database %s, held by %v: %w", owner, db, l.holder, ErrLockHeld)
	}
	now := t.clock.Now()
	if l.held {
		l.heard = now
		return nil
	}
	if k := l.ticketOf(owner); k != nil {
		l.drop(k, ErrOwnerGone)
	}
	l.grant(owner, now)
	t.advance(l, now)
	return nil
}

// DropNode releases all that a node's handles hold, wait for or have reserved.
func (t *LockTable) DropNode(node string) {
	t.dropWhere(func(o Owner) bool { return o.Node == node })
}

// DropOwner is DropNode for one handle, which is closed.
func (t *LockTable) DropOwner(owner Owner) {
	t.dropWhere(func(o Owner) bool { return o == owner })
}

func (t *LockTable) dropWhere(gone func(Owner) bool) {
	t.mu.Lock()
	defer t.unlock()
	now := t.clock.Now()
	for _, l := range t.locks {
		changed := false
		for i := len(l.queue) - 1; i >= 0; i-- {
			if k := l.queue[i]; gone(k.owner) {
				l.drop(k, ErrOwnerGone)
				changed = true
			}
		}
		if !l.reservedUntil.IsZero() && gone(l.reserved) {
			l.reservedUntil = time.Time{}
			changed = true
		}
		if l.held && gone(l.holder) {
			if l.commits > 0 {
				l.leaving = true
			} else {
				l.freeHold()
				changed = true
			}
		}
		if changed {
			t.advance(l, now)
		}
	}
}

// Waiting returns how many owners wait for the lock now.
func (t *LockTable) Waiting(db DatabaseID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.locks[db]; l != nil {
		return l.waiting
	}
	return 0
}

// Holder returns who holds the lock, and since when.
func (t *LockTable) Holder(db DatabaseID) (owner Owner, since time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.locks[db]; l != nil && l.held {
		return l.holder, l.since, true
	}
	return Owner{}, time.Time{}, false
}

// unlock releases the table and tells of leases that ran out meanwhile.
func (t *LockTable) unlock() {
	if len(t.expired) == 0 {
		t.mu.Unlock()
		return
	}
	expired := t.expired
	t.expired = nil
	t.mu.Unlock()
	for _, e := range expired {
		t.OnExpire(e.db, e.owner, e.silent)
	}
}

// get returns the lock of a database, making one where there is none.
func (t *LockTable) get(db DatabaseID) *writeLock {
	l := t.locks[db]
	if l != nil {
		return l
	}
	if n := len(t.free); n > 0 {
		l = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		l = new(writeLock)
	}
	l.db = db
	t.locks[db] = l
	return l
}

func (t *LockTable) recycle(l *writeLock) {
	l.stopTimer()
	delete(t.locks, l.db)
	if len(t.free) < maxFreeLocks {
		*l = writeLock{queue: l.queue[:0], timerSeq: l.timerSeq}
		t.free = append(t.free, l)
	}
}

// advance does all that is due for a lock: it ends what has run out, grants the
// lock if it is free, and sets the timer for what comes next. The lock may be
// recycled by it.
func (t *LockTable) advance(l *writeLock, now time.Time) {
	l.queue = slices.DeleteFunc(l.queue, func(k *ticket) bool { return k.answer == nil && !now.Before(k.keepUntil) })
	if !now.Before(l.reservedUntil) {
		l.reservedUntil = time.Time{}
	}
	if l.leaseRuns() && now.Sub(l.heard) >= t.lease {
		if t.OnExpire != nil {
			t.expired = append(t.expired, expiry{db: l.db, owner: l.holder, silent: now.Sub(l.heard)})
		}
		l.freeHold()
	}
	if !l.held && l.waiting > 0 && !now.Before(t.quiet) {
		if k := l.next(); k != nil {
			answer := k.answer
			l.drop(k, nil)
			l.grant(k.owner, now)
			answer <- nil
		}
	}
	if !l.busy() {
		t.recycle(l)
		return
	}
	t.schedule(l, now)
}

// schedule makes sure that advance is called when something runs out next. A
// timer that is too early is left: it looks and is set again.
func (t *LockTable) schedule(l *writeLock, now time.Time) {
	var at time.Time
	due := func(when time.Time) {
		if at.IsZero() || when.Before(at) {
			at = when
		}
	}
	if l.leaseRuns() {
		due(l.heard.Add(t.lease))
	}
	if !l.reservedUntil.IsZero() {
		due(l.reservedUntil)
	}
	if !l.held && l.waiting > 0 && now.Before(t.quiet) {
		due(t.quiet)
	}
	if len(l.queue) > l.waiting {
		for _, k := range l.queue {
			if k.answer == nil {
				due(k.keepUntil)
			}
		}
	}
	if at.IsZero() || !l.timerAt.IsZero() && !at.Before(l.timerAt) {
		return
	}
	l.stopTimer()
	l.timerAt = at
	seq := l.timerSeq
	l.timerStop = t.clock.AfterFunc(at.Sub(now), func() { t.fire(l, seq) })
}

func (t *LockTable) fire(l *writeLock, seq uint64) {
	t.mu.Lock()
	defer t.unlock()
	if l.timerSeq != seq || l.timerAt.IsZero() {
		return
	}
	l.timerAt, l.timerStop = time.Time{}, nil
	l.timerSeq++
	t.advance(l, t.clock.Now())
}

func (l *writeLock) stopTimer() {
	if !l.timerAt.IsZero() {
		l.timerStop()
		l.timerAt, l.timerStop = time.Time{}, nil
	}
	l.timerSeq++
}

func (l *writeLock) heldBy(owner Owner) bool { return l.held && l.holder == owner && !l.leaving }

// busy reports whether the lock belongs in the table.
func (l *writeLock) busy() bool { return l.held || len(l.queue) > 0 || !l.reservedUntil.IsZero() }

// leaseRuns reports whether the lease can end.
func (l *writeLock) leaseRuns() bool { return l.held && l.commits == 0 && l.waiting > 0 }

func (l *writeLock) reservedFor(owner Owner, now time.Time) bool {
	return now.Before(l.reservedUntil) && l.reserved == owner
}

func (l *writeLock) grant(owner Owner, now time.Time) {
	l.fromReserved = l.reservedFor(owner, now)
	l.reservedUntil = time.Time{}
	l.held, l.holder, l.since, l.heard = true, owner, now, now
	l.commits, l.leaving = 0, false
}

func (l *writeLock) freeHold() {
	l.held, l.holder, l.commits, l.leaving, l.fromReserved = false, Owner{}, 0, false, false
}

// next returns the ticket to be served: the reserved owner's, else the first of
// which somebody waits.
func (l *writeLock) next() *ticket {
	for _, k := range l.queue {
		if k.answer != nil && (l.reservedUntil.IsZero() || k.owner == l.reserved) {
			return k
		}
	}
	return nil
}

func (l *writeLock) ticketOf(owner Owner) *ticket {
	for _, k := range l.queue {
		if k.owner == owner {
			return k
		}
	}
	return nil
}

// drop takes a ticket out of the queue; who waits of it is answered err, where
// err is not nil.
func (l *writeLock) drop(k *ticket, err error) {
	i := slices.Index(l.queue, k)
	l.queue = slices.Delete(l.queue, i, i+1)
	if k.answer != nil {
		l.waiting--
		if err != nil {
			k.reply(err)
		}
		k.answer = nil
	}
}

// reply answers who waits, if anybody does.
func (k *ticket) reply(err error) {
	if k.answer != nil {
		k.answer <- err
	}
}

func wrapLock(db DatabaseID, owner Owner, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("lock database %s for %v: %w", db, owner, err)
}
