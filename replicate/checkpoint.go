package replicate

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

const (
	// checkpointFrames is the length of the WAL at which the node checkpoints it, SQLite's own default.
	checkpointFrames = 1000
	// truncateBytes is the size of the WAL file at which the node cuts it. Under readers that overlap without end
	// no writer ever finds the log unread, and begins it anew: the node holds writers back for a moment then.
	truncateBytes = 16 << 20
	// fenceWait is for how long a cut waits at first until all is copied, and then again until nobody reads the log;
	// after attempts to which that was too short it is fenceWaitMost at most. Of the time writers are held back for at most one part in fenceRest.
	fenceWait     = 100 * time.Millisecond
	fenceWaitMost = 500 * time.Millisecond
	fenceRest     = 20
	// stuckAfter is the age at which a reader counts as one that will not end soon. Writers do not wait for it.
	stuckAfter = time.Second
)

// checkpoints is what a replica knows of its WAL. Under replica.mu.
type checkpoints struct {
	running  bool          // one runs or is due
	next     uint32        // frames at which the next is due
	last     uint32        // frames when a commit was seen last
	gate     *walGate      // while the log is cut, else nil
	notUntil time.Time     // no gate before
	fence    time.Duration // for how long writers are held back, 0: fenceWait
	backlog  uint32        // frames that are not in the database file
	since    time.Time     // when the backlog began; zero without one
	readers  map[readerKey]reader
}

// readerKey tells one reader from the next that uses the same lock slot: a reader that begins later has a
// later mark, or a log that was begun anew.
type readerKey struct {
	slot  int
	mark  uint32
	salts [8]byte
}

type reader struct {
	pid    int   // 0: not known
	pids   []int // of those that were met at every look, the processes it can be
	from   time.Time
	seen   time.Time // last
	missed int       // looks in a row since
}

// readerGone is after how long a reader that is not seen any more counts as ended, if it was missed more than once: the
// kernel's table of locks changes while it is read, and misses one now and then; and a busy node may not look for longer.
const readerGone = 1500 * time.Millisecond

// notice follows the length of the log.
func (c *checkpoints) notice(frames uint32) {
	if frames < c.last || c.next == 0 {
		c.next = checkpointFrames // the log was begun anew
	}
	c.last = frames
}

// oldest is the reader that has held its snapshot the longest, as far as it was seen: one that was met once, in
// the middle of a short transaction, has no age.
func (c *checkpoints) oldest() (r reader, age time.Duration, ok bool) {
	for _, k := range c.readers {
		if d := k.seen.Sub(k.from); !ok || d > age {
			r, age, ok = k, d, true
		}
	}
	return r, age, ok
}

// stuck reports a reader that writers should not wait for.
func (c *checkpoints) stuck() bool {
	_, age, ok := c.oldest()
	return ok && age >= stuckAfter
}

// checkpointLocked starts a checkpoint, unless one runs.
func (d *replica) checkpointLocked() {
	if d.ckpt.running {
		return
	}
	d.ckpt.running = true
	d.svc.goroutine(d.runCheckpoint)
}

// runCheckpoint copies the WAL into the main file, and cuts it when it is long. Only the node does so:
// applications get BUSY.
func (d *replica) runCheckpoint() {
	defer func() {
		d.mu.Lock()
		d.ckpt.running = false
		d.pinWaitingLocked()
		d.mu.Unlock()
	}()
	if d.takeCopierIO() != nil {
		return
	}
	defer d.endCopierIO()
	d.mu.Lock()
	live := d.live
	d.mu.Unlock()
	if live == nil {
		return
	}
	marks := d.lookAtWAL(live)
	if marks.Backfilled < marks.MaxFrame {
		frames, backfilled, err := live.Checkpoint(false)
		d.checkpointed(false, frames == backfilled, err)
		marks = d.lookAtWAL(live)
	}
	size, err := live.WALSize()
	if err != nil {
		d.log.Warn("size of the WAL unknown", "err", err)
		return
	}
	now := time.Now()
	d.mu.Lock()
	d.ckpt.next = marks.MaxFrame + checkpointFrames
	if marks.Backfilled < marks.MaxFrame && !d.ckpt.stuck() {
		d.ckpt.next = marks.MaxFrame + checkpointFrames/4
	}
	cut := size >= truncateBytes && !d.ckpt.stuck() && now.After(d.ckpt.notUntil)
	d.mu.Unlock()
	if cut {
		d.cutWAL(live)
		d.lookAtWAL(live)
	}
}

// walGate keeps the writers of this node from beginning while the log is cut.
type walGate struct {
	copied chan struct{} // closed when all of the log is in the database file: snapshots do not need it any more
	open   chan struct{} // closed at the end
}

// errCut is an answer to a writer whose snapshot may need the log. SQLite takes its snapshot before it asks for the write
// lock: the writer must give it up and come back, as its busy handler does, or nobody could copy, or cut, the log that it
// reads. A snapshot that it takes once all is copied is of the database file alone.
var errCut = errors.New("the write-ahead log is being cut")

// sentBackAfter is for how long a writer is kept before it is sent back: some busy handlers ask again at once.
const sentBackAfter = time.Millisecond

// pass sends a writer back until its snapshot is known to be of the database file alone, and then keeps it until the log
// is cut. It is nil where the gate is open.
func (g *walGate) pass(ctx context.Context, h *Handle) error {
	var back <-chan time.Time
	if h.sentBack != g {
		timer := time.NewTimer(sentBackAfter)
		defer timer.Stop()
		back = timer.C
	}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-back:
	}
	select {
	case <-g.copied:
		h.sentBack = g
	default:
	}
	return errCut
}

// cutWAL holds the writers of this node back for a moment, so that all of the log can be copied, readers that
// are in the log come to their end, and those that begin need the database file alone. Then it cuts the log.
func (d *replica) cutWAL(live LiveFile) {
	start, cut := time.Now(), false
	gate := &walGate{copied: make(chan struct{}), open: make(chan struct{})}
	d.mu.Lock()
	wait := max(d.ckpt.fence, fenceWait)
	d.ckpt.gate = gate
	for h := range d.handles {
		if !h.granted && h.giveUp != nil {
			h.giveUp() // it holds an older snapshot while it waits for its turn
		}
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		took := time.Since(start)
		d.ckpt.gate = nil
		d.ckpt.notUntil = time.Now().Add(fenceRest * took)
		if cut { // readers are what they were
			wait = took
		}
		d.ckpt.fence = min(2*wait, fenceWaitMost)
		d.mu.Unlock()
		close(gate.open)
	}()
	pause := func() bool { return time.Since(start) < wait && d.svc.pauseFor(d.svc.ctx, time.Millisecond) }
	for d.writing() {
		if !pause() {
			return // a long transaction; the next commit or the janitor tries again
		}
	}
	for {
		frames, backfilled, err := live.Checkpoint(false)
		d.checkpointed(false, frames == backfilled, err)
		if err == nil && frames == backfilled {
			break
		}
		if !pause() {
			return
		}
	}
	close(gate.copied)
	frames, backfilled, err := live.Truncate(wait)
	cut = err == nil && frames == backfilled
	d.checkpointed(true, cut, err)
}

// writing reports whether an application on this node has a write transaction open, or may begin one unasked.
func (d *replica) writing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.local != nil {
		return true
	}
	now := time.Now()
	for h := range d.handles {
		if h.writingLocked(now) {
			return true
		}
	}
	return false
}

func (d *replica) checkpointed(truncate, all bool, err error) {
	result := checkpointOK
	switch {
	case errors.Is(err, wal.ErrBusy), err == nil && !all:
		result = checkpointBusy
	case err != nil:
		result = checkpointError
		d.svc.metrics.error("checkpoint")
		d.log.Warn("checkpoint", "err", err)
	}
	d.svc.metrics.checkpoint(truncate, result)
}

// lookAtWAL notes how much of the log is not in the database file, and who reads it since when.
func (d *replica) lookAtWAL(live LiveFile) wal.Marks {
	marks, err := live.Marks()
	if err != nil {
		return wal.Marks{} // it is being recovered, or closed
	}
	holders := d.svc.holders.of(d.svc.files, d.path)
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &d.ckpt
	c.backlog = marks.MaxFrame - min(marks.Backfilled, marks.MaxFrame)
	switch {
	case c.backlog == 0:
		c.since = time.Time{}
	case c.since.IsZero():
		c.since = now
	}
	readers := map[readerKey]reader{}
	for key, pids := range c.met(holders, marks) {
		r, known := c.readers[key]
		if !known {
			r.from = now
		}
		r.seen, r.missed = now, 0
		r.meet(pids)
		readers[key] = r
	}
	for key, r := range c.readers {
		if _, still := readers[key]; !still && key.salts == marks.Salts && (now.Sub(r.seen) < readerGone || r.missed == 0) {
			r.missed++
			readers[key] = r
		}
	}
	c.readers = readers
	return marks
}

// met lists the processes that hold each lock slot of readers which keeps something in the log. A writer is a reader
// too, and shares a slot with those that hold up the log when these have all of them: it is listed only where it is
// alone.
func (c *checkpoints) met(holders []slotHolder, marks wal.Marks) map[readerKey][]int {
	writer := 0
	for _, h := range holders {
		if h.slot == 0 {
			writer = h.pid
		}
	}
	all := map[readerKey][]int{}
	for _, h := range holders {
		i := h.slot - firstReadSlot
		if i < 0 || i >= len(marks.Read) {
			continue
		}
		key := readerKey{h.slot, marks.Read[i], marks.Salts}
		if i > 0 && key.mark == wal.MarkNotUsed {
			continue // a reader that is about to set it, or a checkpoint
		}
		if i == 0 {
			if c.backlog == 0 {
				continue // it needs nothing of the log and keeps nothing out of it
			}
			key.mark = marks.Backfilled
		}
		all[key] = append(all[key], h.pid)
	}
	for key, pids := range all {
		others := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return pid == writer })
		if len(others) > 0 {
			all[key] = others
		}
	}
	return all
}

// meet narrows down which process the reader is: one that was there at every look. Where there is none, readers follow
// each other without a gap, and the last ones are as good as any.
func (r *reader) meet(pids []int) {
	still := slices.DeleteFunc(slices.Clone(r.pids), func(pid int) bool { return !slices.Contains(pids, pid) })
	if len(still) == 0 {
		still = pids
	}
	r.pids, r.pid = still, still[0]
}

// watchWAL is the janitor's look at an open database: it tries again what readers kept from being done.
func (d *replica) watchWAL() {
	d.mu.Lock()
	live, running := d.live, d.ckpt.running
	look := live != nil && !running && (d.ckpt.last >= checkpointFrames || d.ckpt.backlog > 0 || len(d.ckpt.readers) > 0)
	d.mu.Unlock()
	if live == nil || running {
		return
	}
	size, err := live.WALSize()
	if err != nil || !look && size < truncateBytes {
		return
	}
	marks := d.lookAtWAL(live)
	d.mu.Lock()
	defer d.mu.Unlock()
	if marks.MaxFrame-min(marks.MaxFrame, marks.Backfilled) >= checkpointFrames || size >= truncateBytes && !d.ckpt.stuck() {
		d.checkpointLocked()
	}
}
