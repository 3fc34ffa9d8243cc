package replicate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

const (
	// reservation is for how long the write lock stays with a handle whose begin had to wait for
	// applies: SQLite answers BUSY_SNAPSHOT to it and its busy handler comes right back (RULES B1). A busy handler
	// that has waited for long, as while its node was restarted, sleeps for 100 ms: with less, it would never get
	// its turn beside two writers that take turns.
	reservation = 150 * time.Millisecond
	// keepUse is for how long after its end a handle that comes back at once may begin without asking, while nobody
	// waits for the lock. keepHold is when the node gives the lock back that it did not use. The difference is for what
	// is on its way: the application looks at its clock, takes native slot 0 and says so.
	keepUse  = 3 * time.Millisecond
	keepHold = 10 * time.Millisecond
	// seriesGap ends a series of attempts: lock_timeout is spent once per series (RULES B2).
	seriesGap = 250 * time.Millisecond
	// shortWait is what each attempt may still wait when lock_timeout is spent. An application that starts
	// its next statement right after SQLITE_BUSY never leaves the series: without a wait it would never
	// get its turn, although its place in the queue is kept.
	shortWait = 25 * time.Millisecond
)

// Outcome is what became of a transaction.
type Outcome uint8

// The outcomes of RULES A1.
const (
	OutcomeUnknown  Outcome = iota // it was proposed; its verdict was not heard
	OutcomeAccepted                // it is in the log of a quorum and won its position
	OutcomeRefused                 // nobody has seen it or ever will; retry is safe
	OutcomeFull                    // likewise, and a retry is of no use: it is over a limit
)

// BusyError says that a write could not begin in time. Nothing was written; retry is safe.
type BusyError struct{ Cause error }

func (e *BusyError) Error() string { return "write cannot begin: " + e.Cause.Error() }

// Unwrap returns why.
func (e *BusyError) Unwrap() error { return e.Cause }

// HandleOptions are the URI parameters of one open database handle.
type HandleOptions struct {
	PID           int
	LockTimeout   time.Duration
	CommitTimeout time.Duration
	ReadOnly      bool
}

// Handle is an application's open handle on a database. Its methods are called one at a time, except Close.
type Handle struct {
	svc  *Service
	db   *replica
	opts HandleOptions
	num  uint64 // unique on this node for its lifetime

	// Under db.mu.
	granted bool
	base    Position
	basefp  wal.Fingerprint
	since   time.Time // when the write lock was granted
	closed  bool
	parts   *pieces            // of a transaction that is being sent
	giveUp  context.CancelFunc // ends the begin that waits
	unasked bool               // told that it may begin without asking

	// Of the goroutine that serves the handle.
	sentBack    *walGate    // by which it was, after all was copied
	waited      bool        // the files changed while the last begin waited
	kept        bool        // the leader leaves the lock with the last commit's handle
	quick       bool        // the last begin came right after the end before it
	ended       time.Time   // when the last transaction was published
	last        Position    // that it left
	series      time.Time   // start of the series of attempts
	lastAttempt time.Time   // end of the last one
	reserved    *time.Timer // running while an empty end keeps the cluster lock
	reserveMu   sync.Mutex
	held        bool          // the cluster lock is ours, granted or reserved
	reclaimed   bool          // a new leader was told that it is, and may have granted it after a commit had ended it
	releasing   chan struct{} // closed when an earlier release reached the leader
}

// OpenHandle registers an application's handle and opens the files of the database, which must exist.
func (s *Service) OpenHandle(ctx context.Context, id DatabaseID, opts HandleOptions) (*Handle, uint32, error) {
	d, ok := s.replica(id)
	if !ok {
		return nil, 0, ErrNotFound
	}
	if err := s.waitFork(ctx, d); err != nil {
		return nil, 0, err
	}
	h := &Handle{svc: s, db: d, opts: opts, num: s.handleSeq.Add(1)}
	d.mu.Lock()
	if d.deleted || d.removed {
		d.mu.Unlock()
		return nil, 0, ErrDeleted
	}
	if d.handles == nil {
		d.handles = map[*Handle]struct{}{}
	}
	d.handles[h] = struct{}{}
	d.listLocked()
	d.attendLocked()
	d.mu.Unlock()
	err := d.useSoon(ctx)
	if errors.Is(err, errAbsent) {
		err = d.awaitCopy(ctx, opts.LockTimeout)
	}
	if err == nil {
		d.settle(ctx)
	}
	if errors.Is(err, ErrFenced) {
		err = nil // it can be read; a begin says why it cannot be written
	}
	var epoch uint32
	if err == nil {
		epoch, err = d.epoch()
	}
	if err != nil {
		h.Close()
		return nil, 0, err
	}
	return h, epoch, nil
}

func (d *replica) epoch() (uint32, error) {
	d.mu.Lock()
	live, fenced := d.live, d.fenced
	d.mu.Unlock()
	if live == nil { // it cannot be opened at all, or the node stops
		return 0, errors.Join(fenced, ErrShutdown)
	}
	return live.Epoch()
}

var errReadOnlyHandle = errors.New("the handle was opened read-only")

// Database returns the id of the database.
func (h *Handle) Database() DatabaseID { return h.db.id }

// Begin gets the cluster's write lock for the database and waits until this node's files show everything
// that was committed before. It returns the position that the application must find in the files.
func (h *Handle) Begin(ctx context.Context) (Position, wal.Fingerprint, error) {
	now := time.Now()
	h.quick = !h.ended.IsZero() && now.Sub(h.ended) < keepUse
	if h.series.IsZero() || now.Sub(h.lastAttempt) > seriesGap {
		h.series = now
	}
	deadline := h.series.Add(h.opts.LockTimeout)
	if least := now.Add(shortWait); deadline.Before(least) {
		deadline = least
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	pos, fp, err := h.begin(ctx, cancel)
	h.lastAttempt = time.Now()
	took := h.lastAttempt.Sub(now)
	if err == nil {
		h.series = time.Time{}
		h.svc.metrics.begin(0, took)
		return pos, fp, nil
	}
	h.release()
	if errors.Is(err, ErrDeleted) || errors.Is(err, ErrAhead) || errors.Is(err, errReadOnlyHandle) {
		h.svc.metrics.begin(2, took)
		return pos, fp, err
	}
	h.svc.metrics.begin(1, took)
	return pos, fp, &BusyError{err}
}

func (h *Handle) begin(ctx context.Context, giveUp context.CancelFunc) (Position, wal.Fingerprint, error) {
	d := h.db
	if h.opts.ReadOnly {
		return Position{}, wal.Fingerprint{}, errReadOnlyHandle
	}
	if err := h.writable(); err != nil {
		return Position{}, wal.Fingerprint{}, err
	}
	// What the application's snapshot shows, or less: SQLite took it before it asked.
	d.mu.Lock()
	known, before, gate := d.known, d.position, d.ckpt.gate
	h.giveUp, h.unasked = giveUp, false
	d.mu.Unlock()
	if gate != nil {
		if err := gate.pass(ctx, h); err != nil {
			return Position{}, wal.Fingerprint{}, err
		}
	}
	var at TXID // 0: taken up again where it was
	if !h.resume() {
		decided, err := h.acquire(ctx)
		if err != nil {
			return Position{}, wal.Fingerprint{}, err
		}
		at = decided.TXID
	}
	h.waited = !known
	for {
		if err := d.waitPosition(ctx, at); err != nil {
			return Position{}, wal.Fingerprint{}, err
		}
		if at > 0 {
			if err := d.notAhead(ctx, at); err != nil {
				return Position{}, wal.Fingerprint{}, err
			}
		}
		d.mu.Lock()
		switch {
		case d.deleted:
			d.mu.Unlock()
			return Position{}, wal.Fingerprint{}, d.deletedError()
		case h.closed:
			d.mu.Unlock()
			return Position{}, wal.Fingerprint{}, ErrShutdown
		}
		if local := d.local; local != nil { // another handle here is about to publish
			d.mu.Unlock()
			h.waited = true
			select {
			case <-local.done:
				continue
			case <-ctx.Done():
				return Position{}, wal.Fingerprint{}, ctx.Err()
			}
		}
		if gate := d.ckpt.gate; gate != nil {
			d.mu.Unlock()
			h.waited = true
			if err := gate.pass(ctx, h); err != nil {
				return Position{}, wal.Fingerprint{}, err
			}
			continue
		}
		if d.known && d.fenced == nil {
			break
		}
		d.mu.Unlock()
		h.waited = true
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return Position{}, wal.Fingerprint{}, ctx.Err()
		}
	}
	// Others committed while this one waited for the lock: SQLite will find its snapshot old and begin again.
	h.waited = h.waited || d.position != before
	h.granted, h.base, h.basefp, h.since = true, d.position, d.fingerprint, time.Now()
	pos, fp := d.position, d.fingerprint
	d.mu.Unlock()
	return pos, fp, nil
}

// notAhead returns ErrAhead if the files are past what the cluster has decided, of which at is what the leader has applied.
func (d *replica) notAhead(ctx context.Context, at TXID) error {
	d.mu.Lock()
	known, pos := d.known, d.position
	d.mu.Unlock()
	if !known || pos.TXID <= at {
		return nil
	}
	// This node may have applied an entry before the leader has. Only what is committed reaches files, so if they had it from the
	// log, the leader has it once it has applied all that is committed by now.
	decided, _, err := d.svc.readIndex(ctx, d.id)
	if err != nil {
		return err
	}
	if pos.TXID > decided.TXID {
		return fmt.Errorf("the files are at transaction %s, the log ends at %s: %w", pos.TXID, decided.TXID, ErrAhead)
	}
	return nil
}

// acquire gets the cluster lock from the leader, with the decided position.
func (h *Handle) acquire(ctx context.Context) (Position, error) {
	h.reserveMu.Lock()
	releasing := h.releasing
	h.reserveMu.Unlock()
	if releasing != nil { // or it would give back the lock that comes now
		select {
		case <-releasing:
		case <-ctx.Done():
			return Position{}, ctx.Err()
		}
	}
	// Held until the answer says otherwise: a grant may be on its way when the time is over.
	h.setHeld(true)
	decided, err := h.svc.acquire(ctx, h.db.id, h.num)
	if errors.Is(err, ErrLockBusy) {
		h.setHeld(false)
	}
	return decided, err
}

// Keep is for how long after its End the application may begin its next transaction without asking, on the files that it
// left, and say so by Resume; 0: it has to ask. Asked after Commit.
func (h *Handle) Keep() time.Duration {
	if !h.kept {
		return 0
	}
	h.db.mu.Lock()
	defer h.db.mu.Unlock()
	if h.db.ckpt.gate != nil {
		return 0 // the log is about to be cut: it has to come to the gate
	}
	h.unasked = true
	return keepUse
}

// writingLocked reports whether the application has a write transaction open, or may begin one without asking.
func (h *Handle) writingLocked(now time.Time) bool {
	return h.granted || h.unasked && now.Sub(h.ended) < keepHold
}

// Resume hears that the application has begun a transaction on what its last one left, without asking. It holds native
// slot 0. Where the lock was lost meanwhile it is acquired again; if that is too late, Commit is refused.
func (h *Handle) Resume(ctx context.Context) {
	d := h.db
	now := time.Now()
	h.quick, h.waited, h.series = true, false, time.Time{}
	if !h.resume() {
		ctx, cancel := context.WithTimeout(ctx, h.opts.LockTimeout)
		defer cancel()
		if decided, err := h.acquire(ctx); err != nil || decided != h.last {
			h.release()
			return
		}
	}
	d.mu.Lock()
	ok := d.known && d.fenced == nil && !d.deleted && !d.removed && !h.closed && !h.opts.ReadOnly && d.local == nil && d.position == h.last
	if ok {
		h.granted, h.base, h.basefp, h.since = true, d.position, d.fingerprint, now
	}
	d.mu.Unlock()
	if !ok {
		h.release()
	}
	h.svc.metrics.begin(0, time.Since(now))
}

func (h *Handle) writable() error {
	h.db.mu.Lock()
	defer h.db.mu.Unlock()
	switch {
	case h.db.deleted || h.db.removed:
		return h.db.deletedError()
	case h.svc.draining.Load():
		return ErrShutdown
	}
	return h.svc.diskFull()
}

func (h *Handle) setHeld(held bool) {
	h.reserveMu.Lock()
	defer h.reserveMu.Unlock()
	h.held = held
}

// resume takes up a cluster lock that an empty end kept for this handle.
func (h *Handle) resume() bool {
	h.reserveMu.Lock()
	defer h.reserveMu.Unlock()
	h.unreserveLocked()
	return h.held
}

// reserveLocked keeps the cluster lock for a while longer.
func (h *Handle) reserveLocked(length time.Duration) {
	var t *time.Timer
	t = time.AfterFunc(length, func() {
		h.reserveMu.Lock()
		defer h.reserveMu.Unlock()
		if h.reserved == t { // nobody took it up or gave it back meanwhile
			h.reserved = nil
			h.releaseLocked()
		}
	})
	h.reserved = t
}

func (h *Handle) unreserveLocked() {
	if h.reserved != nil {
		h.reserved.Stop()
		h.reserved = nil
	}
}

// release gives the cluster lock back. It does not wait for the leader to hear of it.
func (h *Handle) release() {
	h.reserveMu.Lock()
	defer h.reserveMu.Unlock()
	h.releaseLocked()
}

func (h *Handle) releaseLocked() {
	if !h.held && !h.reclaimed {
		return
	}
	h.held, h.reclaimed = false, false
	h.releasing = h.svc.releaseLock(h.db.id, h.num)
}

// End reports what the application found when it gave native slot 0 back: whether an accepted transaction
// was published in the files, and the fingerprint after it. Called while the application still holds slot 0.
func (h *Handle) End(published bool, seen wal.Fingerprint, empty bool) {
	d := h.db
	h.dropPieces() // no commit followed them
	d.mu.Lock()
	h.granted = false
	local := d.local
	mine := local != nil && local.handle == h
	if mine {
		if published && d.known {
			d.stepSumsLocked(local.delta)
			d.advanceLocked(local.post, seen)
			h.last, h.ended = local.post, time.Now()
		}
		d.endLocalLocked(local)
	}
	d.mu.Unlock()
	if mine && published && h.svc.opts.VerifyFull {
		d.verifyNow()
	}
	h.reserveMu.Lock()
	defer h.reserveMu.Unlock()
	kept := h.kept && mine && published
	h.kept = false
	switch {
	case !h.held || h.reserved != nil:
	case empty && h.waited:
		h.reserveLocked(reservation)
		return
	case kept:
		h.reserveLocked(keepHold)
		return
	}
	h.releaseLocked()
}

// Mismatch reports that the application found another fingerprint than it was granted.
func (h *Handle) Mismatch(seen wal.Fingerprint) {
	d := h.db
	d.mu.Lock()
	h.granted = false
	granted, now := h.basefp, d.fingerprint
	d.mu.Unlock()
	h.release()
	if seen.Matches(now) { // it was late, its lock was lost meanwhile
		d.log.Info("an application took up a grant after others had committed", "pid", h.opts.PID, "granted", granted.String(), "seen", seen.String())
		return
	}
	d.log.Warn("an application found other files than it was granted", "pid", h.opts.PID, "granted", granted.String(), "seen", seen.String())
	d.svc.goroutine(func() {
		ctx, cancel := context.WithTimeout(d.svc.ctx, 30*time.Second)
		defer cancel()
		d.suspect(ctx, "an application found a foreign change before its write")
	})
}

// verifyNow compares the whole file with the position (--verify=full).
func (d *replica) verifyNow() {
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live, fp, known := d.live, d.fingerprint, d.known
	d.mu.Unlock()
	if live == nil || !known {
		return
	}
	seen, _, _, err := live.Peek()
	if err != nil || !seen.Matches(fp) {
		return // somebody wrote on; their end-write verifies
	}
	d.judge("full verification", d.confirmIO(nil))
}

// Close ends the handle: its connection or its process has ended. A transaction that was accepted and not
// reported as published is resolved under native slot 0.
func (h *Handle) Close() {
	d := h.db
	h.dropPieces()
	h.reserveMu.Lock()
	h.unreserveLocked()
	h.releaseLocked()
	h.reserveMu.Unlock()
	d.mu.Lock()
	if h.closed {
		d.mu.Unlock()
		return
	}
	h.closed = true
	h.granted = false
	delete(d.handles, h)
	d.attendLocked()
	local := d.local
	mine := local != nil && local.handle == h
	last := d.deleted && len(d.handles) == 0
	d.lastUsed = time.Now()
	d.mu.Unlock()
	if mine {
		d.svc.goroutine(func() { d.resolve(local) })
	}
	if last {
		d.svc.goroutine(d.removeFiles)
	}
}

// resolve finds out under native slot 0 whether an accepted transaction, whose application is gone, was
// published. If it was not, the applier redoes it from the log.
func (d *replica) resolve(local *localCommit) {
	if d.lockIO(d.svc.ctx) != nil {
		return
	}
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live, fp, pos := d.live, d.fingerprint, d.position
	current := d.local == local
	d.mu.Unlock()
	if !current {
		return
	}
	finish := func(known bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !known {
			d.forgetLocked()
		}
		if d.local == local {
			d.endLocalLocked(local)
		}
	}
	if !local.acceptedNow(d) || live == nil {
		finish(true)
		return
	}
	txn, err := d.beginIO(d.svc.ctx, live)
	if err != nil {
		finish(false) // the applier tries again and finds what the application left by its checksum
		return
	}
	defer txn.End()
	if txn.Fingerprint().Matches(fp) {
		finish(true) // not published
		return
	}
	sums, sum, err := readSums(txn, d.pageSize)
	var device deviceError
	if errors.As(err, &device) {
		finish(false)
		return
	}
	d.mu.Lock()
	switch {
	case err == nil && sum == local.post.Checksum && sum != pos.Checksum:
		d.setSumsLocked(sums)
		d.verified = true
		d.advanceLocked(local.post, txn.Fingerprint())
	case err == nil && sum == pos.Checksum:
		d.fingerprint, d.verified = txn.Fingerprint(), true
	case err == nil:
		err = fmt.Errorf("checksum %s is neither %s nor %s: %w", sum, pos, local.post, errForeign)
	}
	if d.local == local {
		d.endLocalLocked(local)
	}
	d.mu.Unlock()
	if err != nil {
		d.fence(fmt.Errorf("after an application ended in a commit: %w", err))
	}
}

func (l *localCommit) acceptedNow(d *replica) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return l.accepted
}

// Position returns the file position of the handle's database.
func (h *Handle) Position() (Position, bool) {
	h.db.mu.Lock()
	defer h.db.mu.Unlock()
	return h.db.position, h.db.known
}

// Lineage is how often the cluster was recovered by force, as this node knows it.
func (h *Handle) Lineage() uint64 { return h.svc.lineage() }

// WaitPosition waits until this node's files show the bookmarked transaction. A bookmark of another
// database, or of another history, is an error.
func (h *Handle) WaitPosition(ctx context.Context, b Bookmark) error {
	if !b.DB.IsZero() && b.DB != h.db.id {
		return fmt.Errorf("bookmark %s is of another database than %q (id %s)", b, h.db.name, h.db.id)
	}
	lineage := h.svc.lineage()
	if b.Lineage > lineage {
		return fmt.Errorf("bookmark %s is of another history: the cluster is of lineage %d", b, lineage)
	}
	if b.Lineage < lineage {
		// What its lineage had and this one does not have was lost: it will never come.
		at, _, err := h.svc.readIndex(ctx, h.db.id)
		if err != nil {
			return &BusyError{err}
		}
		if b.Position.TXID > at.TXID {
			return fmt.Errorf("bookmark %s is of another history: the cluster was recovered without its transaction, database %q is at %s", b, h.db.name, at)
		}
	}
	if err := h.db.waitPosition(ctx, b.Position.TXID); err != nil {
		return err
	}
	switch sum, ok := h.svc.fsm.ChecksumAt(h.db.id, b.Position.TXID); {
	case ok && sum != b.Position.Checksum:
		return fmt.Errorf("bookmark %s is of another history: transaction %s of database %q left checksum %s", b, b.Position.TXID, h.db.name, sum)
	case !ok && b.Lineage < lineage:
		return fmt.Errorf("bookmark %s may be of another history: the cluster was recovered since, and transaction %s of database %q is too long ago to tell whether that lost it", b, b.Position.TXID, h.db.name)
	}
	return nil
}

// ReadBarrier waits until this node's files show every transaction that was acknowledged before the call.
func (h *Handle) ReadBarrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.opts.LockTimeout)
	defer cancel()
	at, _, err := h.svc.readIndex(ctx, h.db.id)
	if err != nil {
		return &BusyError{err}
	}
	if err := h.db.waitPosition(ctx, at.TXID); err != nil {
		return &BusyError{err}
	}
	return nil
}
