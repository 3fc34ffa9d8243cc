package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// Errors of a database on this node. They describe the local copy, not the replicated state.
var (
	// ErrFenced is returned for writes on a database whose local copy was found to differ from what
	// the log says. It is healed from a peer; wait and retry.
	ErrFenced = errors.New("the local copy of the database is fenced")
	// ErrAhead is returned for writes on a database whose files show transactions that the log has lost, which a
	// recovery by force can leave. Nobody can write after them: a person has to act.
	ErrAhead = errors.New("the log has lost transactions that the files show, and nothing can be written after them: export the database, delete it with --force, and import it")
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
	TryPin() (*wal.Snapshot, error) // an error while a checkpoint runs, which Pin waits for
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
	// Place gives a file that is complete and synced the path of a database, durably. It fails with
	// os.ErrExist, and changes nothing, if there is a file already. The file may keep its old name too.
	Place(file, path string) error
	// Clone makes a file of the blocks of a database file, which nobody writes meanwhile, without copying them. The
	// error wraps ErrNoClone where the file system cannot do that.
	Clone(ctx context.Context, path, file string) error
	// Discard removes a file that cannot be opened as a database. It fails, and changes nothing, if somebody has it open,
	// an application that was attached before this node started, too.
	Discard(path string) error
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
	fork       *replica // to be made of the files at position; nil: it is no fork
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

	catchMu  sync.Mutex // one catch-up at a time; taken before ioMu
	recordMu sync.Mutex // one record at a time; taken after ioMu and before mu

	ioMu    sync.Mutex
	oldPage []byte // of the applier; its memory is used again, under ioMu

	mu          sync.Mutex
	provisional bool // found by its files, not decided yet
	pageSize    uint32
	autoVacuum  uint8
	live        LiveFile // nil while idle
	known       bool     // position, fingerprint and sums are valid
	position    Position
	fingerprint wal.Fingerprint
	sums        sumTable
	table       uint64        // counts the times that sums was replaced
	dirty       pageSet       // pages that changed since the record at recorded
	recorded    TXID          // of the record that the next one continues; 0: that holds all pages
	verified    bool          // every page was compared since the position was found
	behind      bool          // the log does not have what the files lack: a peer has
	pending     *target       // fetched from a peer, and not installed yet
	claimed     chan struct{} // while pages of that are read, else nil: see claim
	fetches     uint64        // counts those that went over what was fetched before
	filling     bool          // the file was empty, and what was fetched is not in it yet
	unreached   bool          // base came in a snapshot that the leader sent, and the files may be behind it
	base        Position      // decided position the files are known to have reached (invariant of restore)
	durable     TXID          // file position that is known to be synced
	decided     Position
	queue       []item
	queueBytes  int
	inHand      int // of the queue, what the applier has begun
	applying    bool
	gathering   bool  // see kickSoonLocked
	seen        int64 // see streams
	local       *localCommit
	handles     map[*Handle]struct{}
	fenced      error
	fenceKnown  time.Time
	healing     bool
	healErr     error // why the last attempt failed
	deleted     bool
	removed     bool
	lastUsed    time.Time
	lastApply   time.Time // when the applier last wrote
	lastScrub   time.Time
	late        time.Time // since when the applier waits for native slot 0; zero when it does not
	waiters     map[*positionWaiter]struct{}
	pins        map[*pinRequest]struct{}
	checking    bool  // a check runs beside everything else
	scrubbing   bool  // a scrub does, or waits for its turn
	stuck       error // why the applier cannot write the files
	progress    progress
	ckpt        checkpoints

	forking *forking // nil: it is no fork, or was none in this life of the node

	quota      *Quota  // of this node, nil for none
	listed     bool    // in the set of active databases
	unattended bool    // counted as open for no application here
	evicting   bool    // about to be closed to make room
	worker     *worker // that runs the applier; of the applier
	turn       *worker // the same while the applier has ioMu; under ioMu
}

type positionWaiter struct {
	txid TXID
	done chan struct{}
	err  error // set before done is closed
}

type pinRequest struct {
	at   TXID
	wait bool // for the next position, while the files are being written; under replica.mu
	done chan struct{}
	snap *wal.Snapshot
	pos  Position
	err  error
}

func newReplica(svc *Service, st DatabaseState) *replica {
	d := &replica{
		svc: svc, log: svc.log.With("db", st.Name), id: st.ID, name: st.Name,
		path:     svc.databasePath(st.ID),
		pageSize: st.PageSize, autoVacuum: st.AutoVacuum,
		base: st.Position, durable: st.Position.TXID, decided: st.Position, quota: svc.quotas.of(st.Name),
		lastUsed: time.Now(), lastScrub: time.Now(),
	}
	// A database that was blocked when the log was cut off may be behind the manifest: only the record tells. One
	// without a transaction is what its creation says, files or not.
	if rec, ok := svc.sums.Find(st.ID); st.Position.TXID > 1 && (!ok || TXID(rec.TXID) < st.Position.TXID) {
		d.durable = 0
	}
	return d
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
	d.kickSoonLocked()
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
	if d.forkingLocked() && (len(d.queue) == 0 || !d.queue[0].deleted) {
		return true // its files are still to be made
	}
	if len(d.queue) == 0 {
		return !d.behind || d.removed || d.deleted || d.fenced != nil
	}
	return d.removed || d.fenced != nil && !d.queue[0].deleted
}

// kickLocked starts the applier if it has work and does not run.
func (d *replica) kickLocked() {
	if d.applying || d.idleLocked() {
		return
	}
	if !d.svc.replayed() {
		return // the log's tail is not confirmed yet; the service kicks every database when it is
	}
	if d.local != nil && len(d.queue) > 0 && d.local.id == d.queue[0].id && !d.queue[0].deleted {
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
		for len(d.queue) > 0 && !d.queue[0].deleted && d.queue[0].fork == nil && d.queue[0].position == d.position {
			d.dropQueueHeadLocked()
		}
	}
	d.kickLocked()
}

// advanceLocked records that the files now show position p.
func (d *replica) advanceLocked(p Position, fp wal.Fingerprint) {
	if p.TXID >= d.base.TXID {
		d.unreached = false
	}
	d.position, d.fingerprint = p, fp
	d.lastUsed = time.Now()
	for w := range d.waiters {
		if w.txid <= p.TXID {
			close(w.done)
			delete(d.waiters, w)
		}
	}
	d.pinWaitingLocked()
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
	if f := it.fork; f != nil { // if that has not begun, it is made of something else
		f.svc.goroutine(func() { f.startFork(nil) })
	}
}

// endItemLocked ends an item, which is about to leave the queue.
func (d *replica) endItemLocked(it item) {
	it.drop()
	d.queueBytes -= len(it.ltx)
	d.svc.release(len(it.ltx))
}

// lacksLocked reports that the queue does not have what was decided next: a peer has the pages.
func (d *replica) lacksLocked() bool {
	if !d.known || d.deleted || d.removed {
		return false
	}
	for _, it := range d.queue {
		if it.fork == nil && it.position.TXID > d.position.TXID {
			return it.pre.TXID > d.position.TXID
		}
	}
	return d.position.TXID < d.decided.TXID
}

// dropQueueHeadLocked removes the first item.
func (d *replica) dropQueueHeadLocked() {
	d.endItemLocked(d.queue[0])
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
	d.kickLocked() // it may be biding its time
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
	// While an application publishes, the pin is taken where its end-write moves the position.
	r := &pinRequest{at: at, wait: true, done: make(chan struct{})}
	d.mu.Lock()
	d.pinLocked(r)
	d.mu.Unlock()
	for {
		select {
		case <-r.done:
			return r.snap, r.pos, r.err
		case <-time.After(pinPatience):
		case <-ctx.Done():
		case <-d.svc.ctx.Done():
		}
		d.mu.Lock()
		if _, waits := d.pins[r]; waits {
			if err := errors.Join(ctx.Err(), d.svc.ctx.Err()); err != nil {
				delete(d.pins, r)
				d.mu.Unlock()
				return nil, Position{}, err
			}
			r.wait = false
			d.pinLocked(r)
		}
		d.mu.Unlock()
	}
}

var errMoved = errors.New("the files are being written")

// pinLocked answers a request now, or puts it among those that wait.
func (d *replica) pinLocked(r *pinRequest) {
	snap, err := d.tryPinLocked()
	if errors.Is(err, wal.ErrBusy) || r.wait && errors.Is(err, errMoved) {
		if d.pins == nil {
			d.pins = map[*pinRequest]struct{}{}
		}
		d.pins[r] = struct{}{}
		return
	}
	delete(d.pins, r)
	r.snap, r.err = snap, err
	if err == nil {
		r.pos = d.position
	}
	close(r.done)
}

// pinWaitingLocked tries the requests that wait: the position has moved, or a checkpoint has ended.
func (d *replica) pinWaitingLocked() {
	for r := range d.pins {
		if r.at <= d.position.TXID {
			d.pinLocked(r)
		}
	}
}

// tryPinLocked pins if the files show exactly the recorded position, else the error wraps errMoved; or wal.ErrBusy while a
// checkpoint runs. That takes seconds where much is to be synced, and the state machine waits for mu.
func (d *replica) tryPinLocked() (*wal.Snapshot, error) {
	if d.live == nil || !d.known || d.fenced != nil {
		return nil, errors.Join(errMoved, d.fenced)
	}
	snap, err := d.live.TryPin()
	if err != nil {
		return nil, err
	}
	if !snap.Fingerprint().Matches(d.fingerprint) {
		snap.Close()
		return nil, errMoved
	}
	return snap, nil
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
	var unread unreadError
	if errors.As(err, &unread) {
		return d.openFiles(ctx) // the rest of it can be read
	}
	if err == nil || sctx.Err() == nil || ctx.Err() != nil {
		return err
	}
	d.svc.goroutine(func() { d.locate(d.svc.ctx) })
	return d.openFiles(ctx)
}

// awaitCopy opens files that are not here yet: they are fetched whole before anybody opens them. Of a database that peers
// say is deleted they never come; that ends when this node has decided it, too (RULES A5).
func (d *replica) awaitCopy(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for asked := false; ; {
		d.mu.Lock()
		gone := d.deleted || d.removed
		d.mu.Unlock()
		if gone {
			return d.deletedError()
		}
		if !d.absent() {
			if err := d.useSoon(ctx); !errors.Is(err, errAbsent) {
				return err
			}
		}
		if !asked { // it may be that nobody has missed them before
			asked = true
			d.mu.Lock()
			if !d.unreached && !d.known && d.live == nil && d.fenced == nil {
				d.behind = true
				d.kickLocked()
			}
			d.mu.Unlock()
		}
		if !d.svc.pauseFor(ctx, copyPoll) {
			return fmt.Errorf("open database %q: %w", d.name, errAbsent)
		}
	}
}

// copyPoll is how often somebody who waits for files looks whether they are here.
const copyPoll = 10 * time.Millisecond

// settle waits until the files show what was decided when it is called. After a power failure they begin at some older
// state, and an application that opens them then would not find what it was told before. A copy that cannot follow for
// now is opened as it is: it can be read.
func (d *replica) settle(ctx context.Context) {
	d.mu.Lock()
	at := d.decided.TXID
	stuck := d.fenced != nil || d.stuck != nil || d.deleted || !d.late.IsZero() || !d.svc.replayed()
	d.mu.Unlock()
	if stuck {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	if err := d.waitPosition(ctx, at); err != nil {
		d.log.Debug("an application opens files that are behind", "err", err)
	}
}

// settlePatience is for how long an open waits for the files to follow.
const settlePatience = 3 * time.Second

// openPatience is for how long an open waits for the position of files that nobody had open.
const openPatience = time.Second

// openFiles opens the live handle if it is not open.
func (d *replica) openFiles(ctx context.Context) error {
	for {
		d.mu.Lock()
		open, filling := d.live != nil, d.filling
		d.lastUsed = time.Now()
		d.mu.Unlock()
		if filling {
			return fmt.Errorf("open database %q: %w", d.name, errAbsent)
		}
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
