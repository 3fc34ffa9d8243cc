package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// Errors of a database on this node. They describe the local copy, not the replicated state.
var (
	// ErrFenced is returned for writes on a database whose local copy was found to differ from what
	// the log says. It is healed from a peer; wait and retry.
	ErrFenced = errors.New("the local copy of the database is fenced")
	// ErrUnusable is returned by Files.Open for a file whose content is to blame.
	ErrUnusable = errors.New("the file is no database that can be used")
	// ErrDeleted is returned for a database that the cluster has deleted. Open the name again.
	ErrDeleted = errors.New("the database was deleted")
	// ErrNotFound is returned for a name or id that the cluster does not know.
	ErrNotFound = errors.New("no such database")
	// ErrShutdown is returned once the node is stopping.
	ErrShutdown = errors.New("the node is shutting down")
)

// LiveFile is a node's handle on the files of one database. Package vfs implements it.
//
// Begin takes the native write lock (slot 0) and may wait for an application that holds it.
// Peek and Pin take no lock; no checkpoint runs while a snapshot is pinned.
type LiveFile interface {
	Begin(ctx context.Context) (*wal.Txn, error)
	Peek() (fp wal.Fingerprint, pageSize, backfilled uint32, err error)
	Pin() (*wal.Snapshot, error)
	Checkpoint(truncate bool) (walFrames, backfilled int, err error)
	// Truncate waits for readers that end within wait; writers wait for it.
	Truncate(wait time.Duration) (walFrames, backfilled int, err error)
	Marks() (wal.Marks, error)
	SyncWAL() error
	WALSize() (int64, error)
	Epoch() (uint32, error)
	SetEpoch(uint32) error
	Close() error
}

// Files creates and opens the files of databases. Package vfs implements it through SQLite's own
// platform VFS: no other code opens these files (closing any descriptor of them would drop every
// POSIX lock of the process).
type Files interface {
	// Create writes the one-page image of an empty database. A file that has content already is
	// left as it is and is no error.
	Create(path string, pageSize uint32, autoVacuum uint8) error
	Open(path string) (LiveFile, error)
	// Stat describes the main file without opening it.
	Stat(path string) (FileStat, error)
	// WALEmpty reports that there is no write-ahead log with content beside the file.
	WALEmpty(path string) bool
	// Trim gives memory that closed files have left behind back to the system.
	Trim()
	// Remove deletes the database's directory. Nothing has it open.
	Remove(path string) error
}

// FileStat is what identifies an unchanged file between two looks at it.
type FileStat struct {
	SizeBytes    int64
	ModTimeNanos int64
	ChangeNanos  int64
	Inode        uint64
}

// item is one decided change that the files of a database do not show yet.
type item struct {
	index    uint64
	position Position // after it
	pre      Position
	id       EntryID
	ltx      []byte // nil when it has to be read back from the log
	// Of a large transaction:
	spool      *spool // its LTX file; nil: it is no large one
	size       int64  // bytes of that
	pages      uint32
	commitTime int64 // microseconds
	deleted    bool
}

// localCommit is a transaction of an application on this node, from its proposal until it is known
// whether the application published it in the local files.
type localCommit struct {
	handle    *Handle
	id        EntryID
	pre, post Position
	delta     *sumDelta
	accepted  bool
	done      chan struct{} // closed when the database no longer waits for the application
}

// replica is this node's copy of one replicated database.
//
// Invariants:
//  1. position is the file position: what the files show, never what the log merely decided.
//  2. position, fingerprint and sums change together, under mu, and only after the files did.
//  3. Files are touched (opened, closed, appended to, checkpointed) under ioMu, which is taken
//     before mu. An application's own publication is the one exception: it holds native slot 0.
//  4. While local is set and accepted, nothing else moves the file position.
type replica struct {
	svc  *Service
	log  *slog.Logger
	id   DatabaseID
	name string
	path string

	ioMu    sync.Mutex
	decoder snapshot.Decoder // of the applier; its memory is used again, under ioMu
	oldPage []byte           // likewise

	mu          sync.Mutex
	provisional bool // found by its files, not decided yet
	pageSize    uint32
	autoVacuum  uint8
	live        LiveFile // nil while idle
	known       bool     // position, fingerprint and sums are valid
	position    Position
	fingerprint wal.Fingerprint
	sums        sumTable
	kept        *image   // fetched by a restore, and not installed yet
	base        Position // decided position the files are known to have reached (invariant of restore)
	durable     TXID     // file position that is known to be synced
	decided     Position
	queue       []item
	queueBytes  int
	applying    bool
	local       *localCommit
	handles     map[*Handle]struct{}
	fenced      error
	fenceKnown  time.Time
	healing     bool
	healErr     error // why the last attempt failed
	deleted     bool
	removed     bool
	lastUsed    time.Time
	lastScrub   time.Time
	late        time.Time // since when the applier waits for native slot 0; zero when it does not
	waiters     map[*positionWaiter]struct{}
	pins        map[*pinRequest]struct{}
	checking    bool  // a check runs beside everything else
	stuck       error // why the applier cannot write the files
	ckpt        checkpoints

	listed     bool     // in the set of active databases
	unattended bool     // counted as open for no application here
	evicting   bool     // about to be closed to make room
	closedStat FileStat // of the files as they were closed, zero if that is not known
	worker     *worker  // that runs the applier; of the applier
	turn       *worker  // the same while the applier has ioMu; under ioMu
}

type positionWaiter struct {
	txid TXID
	done chan struct{}
	err  error // set before done is closed
}

type pinRequest struct {
	at   TXID
	done chan struct{}
	snap *wal.Snapshot
	pos  Position
	err  error
}

func newReplica(svc *Service, st DatabaseState) *replica {
	return &replica{
		svc: svc, log: svc.log.With("db", st.Name), id: st.ID, name: st.Name,
		path:     svc.databasePath(st.ID),
		pageSize: st.PageSize, autoVacuum: st.AutoVacuum,
		base: st.Position, durable: st.Position.TXID, decided: st.Position,
		lastUsed: time.Now(), lastScrub: time.Now(),
	}
}

// enqueue adds a decided change. It is called in log order and never blocks.
func (d *replica) enqueue(it item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if it.deleted {
		d.doomLocked()
	} else {
		d.decided = it.position
	}
	if len(d.queue) == 0 && !it.deleted && d.known && it.position == d.position {
		it.drop()
		return // an application here has published it already
	}
	if it.ltx != nil {
		if d.queueBytes+len(it.ltx) > maxQueueBytesPerDatabase || !d.svc.retain(len(it.ltx)) {
			it.ltx = nil
		} else {
			d.queueBytes += len(it.ltx)
		}
	}
	d.queue = append(d.queue, it)
	d.listLocked()
	d.kickLocked()
}

// doomLocked notes that the database is deleted: what was decided before does not matter any more, and
// nobody waits for it.
func (d *replica) doomLocked() {
	d.deleted = true
	for len(d.queue) > 0 {
		d.dropQueueHeadLocked()
	}
	for w := range d.waiters {
		delete(d.waiters, w)
		w.err = d.deletedError()
		close(w.done)
	}
}

func (d *replica) deletedError() error {
	return fmt.Errorf("database %q (id %s): %w", d.name, d.id, ErrDeleted)
}

// idleLocked reports that the applier has nothing to do, or must not: a fenced copy takes no change but its
// removal.
func (d *replica) idleLocked() bool {
	return len(d.queue) == 0 || d.removed || d.fenced != nil && !d.queue[0].deleted
}

// kickLocked starts the applier if it has work and does not run.
func (d *replica) kickLocked() {
	if d.applying || d.idleLocked() {
		return
	}
	if !d.svc.replayed() {
		return // the log's tail is not confirmed yet; the service kicks every database when it is
	}
	if d.local != nil && d.local.id == d.queue[0].id && !d.queue[0].deleted {
		if d.late.IsZero() {
			d.late = time.Now()
		}
		return // an application here is about to publish it: endLocalLocked kicks
	}
	d.applying = true
	d.svc.appliers.run(d.apply)
}

// endLocalLocked ends the wait for an application's transaction. What it published needs no applier.
func (d *replica) endLocalLocked(local *localCommit) {
	d.local, d.late = nil, time.Time{}
	close(local.done)
	if d.known && !d.applying {
		for len(d.queue) > 0 && !d.queue[0].deleted && d.queue[0].position == d.position {
			d.dropQueueHeadLocked()
		}
	}
	d.kickLocked()
}

// advanceLocked records that the files now show position p.
func (d *replica) advanceLocked(p Position, fp wal.Fingerprint) {
	d.position, d.fingerprint = p, fp
	d.lastUsed = time.Now()
	for w := range d.waiters {
		if w.txid <= p.TXID {
			close(w.done)
			delete(d.waiters, w)
		}
	}
	for r := range d.pins {
		if r.at <= p.TXID {
			d.pinLocked(r)
		}
	}
	d.ckpt.notice(fp.MaxFrame)
	if fp.MaxFrame >= d.ckpt.next {
		d.checkpointLocked()
	}
}

// drop ends the item's use of a spool.
func (it *item) drop() {
	if it.spool != nil {
		it.spool.release()
	}
}

// dropQueueHeadLocked removes the first item.
func (d *replica) dropQueueHeadLocked() {
	d.queue[0].drop()
	n := len(d.queue[0].ltx)
	d.queueBytes -= n
	d.svc.release(n)
	d.queue[0] = item{}
	d.queue = d.queue[1:]
	if len(d.queue) == 0 {
		d.queue = nil
	}
}

// waitPosition waits until the files show TXID txid or a later one.
func (d *replica) waitPosition(ctx context.Context, txid TXID) error {
	d.mu.Lock()
	if d.deleted {
		d.mu.Unlock()
		return d.deletedError()
	}
	if d.known && d.position.TXID >= txid {
		d.mu.Unlock()
		return nil
	}
	w := &positionWaiter{txid: txid, done: make(chan struct{})}
	if d.waiters == nil {
		d.waiters = map[*positionWaiter]struct{}{}
	}
	d.waiters[w] = struct{}{}
	d.listLocked()
	needs := !d.known
	d.mu.Unlock()
	if needs {
		d.svc.goroutine(func() { d.locate(d.svc.ctx) })
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
	case <-d.svc.ctx.Done():
		return ErrShutdown
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.waiters, w)
	if w.err != nil {
		return w.err
	}
	if d.known && d.position.TXID >= txid {
		return nil
	}
	if d.fenced != nil {
		return d.fenced
	}
	return fmt.Errorf("wait for transaction %s of database %q, the files show %s: %w", txid, d.name, d.position.TXID, ctx.Err())
}

// openLocked opens the live handle if it is not open. The caller holds ioMu, not mu.
func (d *replica) openIO() (LiveFile, error) {
	d.mu.Lock()
	live := d.live
	removed, pageSize, autoVacuum := d.removed, d.pageSize, d.autoVacuum
	d.mu.Unlock()
	if live != nil {
		return live, nil
	}
	if removed {
		return nil, ErrDeleted
	}
	d.svc.makeRoom()
	if err := d.svc.files.Create(d.path, pageSize, autoVacuum); err != nil {
		return nil, deviceError{fmt.Errorf("create database %q: %w", d.name, err)}
	}
	rec, recErr := d.readRecord()
	if err := d.removeRecord(); err != nil {
		return nil, deviceError{err}
	}
	live, err := d.svc.files.Open(d.path)
	if err != nil {
		err = fmt.Errorf("open database %q: %w", d.name, err)
		if !errors.Is(err, ErrUnusable) { // no descriptor, no permission, no space: that passes
			err = deviceError{err}
		}
		return nil, err
	}
	d.mu.Lock()
	d.live = live
	d.closedStat = FileStat{}
	d.lastUsed = time.Now()
	d.listLocked()
	d.attendLocked()
	d.mu.Unlock()
	if recErr == nil && rec != nil {
		d.adoptRecord(rec, live)
	}
	return live, nil
}

// adoptRecord trusts the page sums of a database that was closed cleanly and is unchanged since.
func (d *replica) adoptRecord(rec *record, live LiveFile) {
	fp, pageSize, _, err := live.Peek()
	if err != nil || pageSize != rec.PageSize || fp.PageCount != uint32(len(rec.Sums)) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known || rec.Position.TXID < d.base.TXID {
		return
	}
	d.sums = sumTable(rec.Sums)
	d.known = true
	d.advanceLocked(rec.Position, fp)
}

// locate finds the file position when it is not known: the checksum of all pages names it among the
// positions that the log has decided. While it is unknown nothing is applied. See RULES A3: equal sums
// are equal bytes, and nothing is redone below the position found.
func (d *replica) locate(ctx context.Context) {
	if err := d.svc.waitReplayed(ctx); err != nil {
		return
	}
	if err := d.lockIO(ctx); err != nil {
		return
	}
	defer d.ioMu.Unlock()
	if err := d.locateOrFenceIO(ctx); err != nil && ctx.Err() == nil {
		d.log.Debug("position of the local copy not found", "err", err)
	}
}

// locateOrFenceIO is locateIO for everybody but the applier: files that are at no position are fenced.
func (d *replica) locateOrFenceIO(ctx context.Context) error {
	err := d.locateIO(ctx)
	var device deviceError
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrFenced) || errors.Is(err, ErrDeleted) || errors.As(err, &device) {
		return err
	}
	return d.fence(fmt.Errorf("find the position of the local copy: %w", err))
}

func (d *replica) locateIO(ctx context.Context) error {
	d.mu.Lock()
	known, fenced, kept := d.known, d.fenced, d.kept
	d.mu.Unlock()
	if known || fenced != nil {
		return fenced
	}
	if kept != nil {
		return d.installKeptIO(ctx, kept)
	}
	live, err := d.openIO()
	if err != nil {
		return err
	}
	d.mu.Lock()
	known = d.known
	d.mu.Unlock()
	if known { // the record of a clean close was enough
		return nil
	}
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		return err
	}
	defer txn.End()
	sums, sum, err := readSums(txn, d.pageSize)
	if err != nil {
		return err
	}
	err = d.findIO(txn, sums, sum)
	if err == nil {
		return nil
	}
	if kept = d.loadKept(); kept == nil {
		return err
	}
	d.mu.Lock()
	d.kept = kept
	d.mu.Unlock()
	// The node stopped before it could install what a restore had fetched.
	if err := txn.End(); err != nil {
		return err
	}
	return d.installKeptIO(ctx, kept)
}

// findIO looks a checksum of the whole file up among the positions that it can have.
func (d *replica) findIO(txn *wal.Txn, sums sumTable, sum Checksum) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	found, ok := d.base, sum == d.base.Checksum
	for _, it := range d.queue {
		if !it.deleted && it.position.Checksum == sum {
			found, ok = it.position, true // the highest that is confirmed counts
		}
	}
	if !ok {
		return fmt.Errorf("checksum %s of %d pages is none of the positions %s to %s", sum, len(sums), d.base, d.decided)
	}
	d.sums = sums
	d.known = true
	d.log.Debug("file position found", "txid", found.TXID.String(), "base", d.base.TXID.String())
	d.advanceLocked(found, txn.Fingerprint())
	d.dropKeptLocked()
	return nil
}

// beginIO takes native slot 0 and notes for how long it had to wait for an application.
func (d *replica) beginIO(ctx context.Context, live LiveFile) (*wal.Txn, error) {
	d.mu.Lock()
	d.late = time.Now()
	d.mu.Unlock()
	stop := d.turn.lendSoon()
	txn, err := live.Begin(ctx)
	stop()
	d.mu.Lock()
	d.late = time.Time{}
	d.mu.Unlock()
	if err != nil {
		return nil, deviceError{fmt.Errorf("lock database %q for the node: %w", d.name, err)}
	}
	if txn.PageSize() != d.pageSize {
		txn.End()
		return nil, fmt.Errorf("database %q has pages of %d bytes, not the %d it was created with", d.name, txn.PageSize(), d.pageSize)
	}
	return txn, nil
}

// pin waits until the files show TXID at or a later one and pins a snapshot of exactly the position
// that it returns.
func (d *replica) pin(ctx context.Context, at TXID) (*wal.Snapshot, Position, error) {
	if err := d.use(ctx); err != nil {
		return nil, Position{}, err
	}
	if err := d.waitPosition(ctx, at); err != nil {
		return nil, Position{}, err
	}
	r := &pinRequest{at: at, done: make(chan struct{})}
	d.mu.Lock()
	d.pinLocked(r)
	if r.snap == nil && errors.Is(r.err, errMoved) {
		// An application publishes right now: its end-write moves the position, and the pin is taken there.
		r.err = nil
		r.done = make(chan struct{})
		if d.pins == nil {
			d.pins = map[*pinRequest]struct{}{}
		}
		d.pins[r] = struct{}{}
	}
	d.mu.Unlock()
	select {
	case <-r.done:
		return r.snap, r.pos, r.err
	case <-time.After(pinPatience):
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pins, r)
	if r.snap != nil || r.err != nil {
		return r.snap, r.pos, r.err
	}
	if ctx.Err() != nil {
		return nil, Position{}, ctx.Err()
	}
	d.pinLocked(r)
	return r.snap, r.pos, r.err
}

var errMoved = errors.New("the files are being written")

// pinLocked pins now, if the files show exactly the recorded position.
func (d *replica) pinLocked(r *pinRequest) {
	delete(d.pins, r)
	defer close(r.done)
	if d.live == nil || !d.known || d.fenced != nil {
		r.err = errors.Join(errMoved, d.fenced)
		return
	}
	snap, err := d.live.Pin()
	if err != nil {
		r.err = err
		return
	}
	if !snap.Fingerprint().Matches(d.fingerprint) {
		snap.Close()
		r.err = errMoved
		return
	}
	r.snap, r.pos = snap, d.position
}

// use opens the files for somebody on this node and makes the position known, waiting for it until ctx ends.
func (d *replica) use(ctx context.Context) error {
	d.mu.Lock()
	d.lastUsed = time.Now()
	ready := d.live != nil && d.known
	d.mu.Unlock()
	if ready {
		return nil
	}
	if err := d.openFiles(ctx); err != nil {
		return err
	}
	if !d.svc.replayed() {
		return nil // served as it is, marked stale
	}
	if err := d.lockIO(ctx); err != nil {
		return err
	}
	defer d.ioMu.Unlock()
	return d.locateOrFenceIO(ctx)
}

// useSoon is use for somebody who only reads: an application that holds native slot 0 for long, or a
// file that takes long to read, keeps nobody from opening.
func (d *replica) useSoon(ctx context.Context) error {
	sctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	err := d.use(sctx)
	if err == nil || sctx.Err() == nil || ctx.Err() != nil {
		return err
	}
	d.svc.goroutine(func() { d.locate(d.svc.ctx) })
	return d.openFiles(ctx)
}

// openPatience is for how long an open waits for the position of files that nobody had open.
const openPatience = time.Second

// openFiles opens the live handle if it is not open.
func (d *replica) openFiles(ctx context.Context) error {
	for {
		d.mu.Lock()
		open := d.live != nil
		d.lastUsed = time.Now()
		d.mu.Unlock()
		if open {
			return nil
		}
		if d.ioMu.TryLock() {
			defer d.ioMu.Unlock()
			_, err := d.openIO()
			return err
		}
		// Who holds ioMu may open the files and then wait for an application.
		if !d.svc.pauseFor(ctx, ioPoll) {
			return fmt.Errorf("open database %q: %w", d.name, errors.Join(ctx.Err(), d.svc.ctx.Err()))
		}
	}
}

// lockIO takes ioMu, unless ctx ends first.
func (d *replica) lockIO(ctx context.Context) error {
	for !d.ioMu.TryLock() {
		if !d.svc.pauseFor(ctx, ioPoll) {
			return fmt.Errorf("use the files of database %q: %w", d.name, errors.Join(ctx.Err(), d.svc.ctx.Err()))
		}
	}
	return nil
}

// ioPoll is how often somebody who may give up looks whether the files are free.
const ioPoll = time.Millisecond

// makeDurable returns when the files show at least TXID txid and that is synced. It needs no turn at the
// files: an applier may hold that while it waits for an application.
func (d *replica) makeDurable(ctx context.Context, txid TXID) error {
	d.mu.Lock()
	done := d.durable >= txid || d.removed || d.deleted
	d.mu.Unlock()
	if done {
		return nil
	}
	if err := d.waitPosition(ctx, txid); err != nil {
		return err
	}
	d.mu.Lock()
	at, live := d.position.TXID, d.live
	d.mu.Unlock()
	if live == nil { // closed in between: closing checkpoints and syncs
		return nil
	}
	if err := live.SyncWAL(); err != nil {
		d.mu.Lock()
		closed := d.live != live
		d.mu.Unlock()
		if !closed {
			return fmt.Errorf("sync the log of database %q: %w", d.name, err)
		}
	}
	d.mu.Lock()
	d.durable = max(d.durable, at)
	d.mu.Unlock()
	return nil
}
