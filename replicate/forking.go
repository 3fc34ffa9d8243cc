package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/wal"
)

// ErrForking is returned for a database whose copies are being made. Wait and retry.
var ErrForking = errors.New("the database is being made of another one")

// ErrNoClone is returned by Files.Clone where the file system cannot do it. Copy instead.
var ErrNoClone = errors.New("the file system cannot clone files")

const (
	// forkPatience is for how long a leader waits for a majority to have its copies, from when it looks first.
	forkPatience = 10 * time.Minute
	// forkAsk is for how long a member that is asked for its copy waits for it.
	forkAsk = 2 * time.Second
	// forkOpen is for how long an open waits for a copy.
	forkOpen = 5 * time.Second
)

// forking is the making of this node's copy of a fork. Its fields are guarded by the replica's lock.
type forking struct {
	at      Position
	source  DatabaseID
	past    bool
	time    int64 // commit time of at
	started bool
	over    bool
	done    chan struct{} // closed when the copy is durable
	// first holds the state still that the fork begins with, until it is archived or that has taken too long.
	first *wal.Snapshot
}

// firstPatience is for how long the first state of a fork waits for the archive.
const firstPatience = time.Minute

// forkSource is the source's state at the fork's position, held still.
type forkSource struct {
	db   *replica
	snap *wal.Snapshot
	sums sumTable
}

// beginForking makes d one whose copy is still to be made, unless it is here.
func (d *replica) beginForking(st DatabaseState, past bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.forking == nil {
		d.forking = &forking{at: st.Position, source: st.Source, past: past, time: st.CommitTime, done: make(chan struct{})}
	}
}

// forkingLocked reports that this node has no copy of a fork yet: its files are no database that can be opened.
func (d *replica) forkingLocked() bool { return d.forking != nil && !d.forking.over }

// startFork makes this node's copy, of what the source holds still or, with nil, of what a peer or the archive has. What
// comes first counts.
func (d *replica) startFork(from *forkSource) {
	d.mu.Lock()
	f := d.forking
	skip := f == nil || f.started
	if !skip {
		f.started = true
		d.listLocked()
	}
	d.mu.Unlock()
	if skip {
		from.release()
		return
	}
	d.svc.goroutine(func() { d.makeFork(f, from) })
}

func (from *forkSource) release() {
	if from != nil && from.snap != nil {
		from.snap.Close()
		from.snap = nil
	}
}

// makeFork tries until the copy is durable here, or the fork is undone.
func (d *replica) makeFork(f *forking, from *forkSource) {
	defer from.release()
	s := d.svc
	select {
	case <-s.raftUp:
	case <-s.ctx.Done():
		return
	}
	start, said := time.Now(), ""
	for wait := minApplyRetry; s.ctx.Err() == nil; wait = min(2*wait, time.Second) {
		err := d.tryFork(s.ctx, f, from)
		from.release()
		from = nil
		switch {
		case err == nil:
			d.mu.Lock()
			f.over = true
			d.mu.Unlock()
			if s.archiver != nil {
				d.holdFirst(f)
			}
			d.mu.Lock()
			close(f.done)
			d.kickLocked()
			d.mu.Unlock()
			d.step("fork done")
			d.log.Info("copy of the fork is here", "txid", f.at.TXID.String(), "duration", time.Since(start).Round(time.Millisecond))
			return
		case errors.Is(err, ErrDeleted) || d.gone():
			d.dropIfGone()
			return
		}
		s.stopIfSyncFailed(err)
		if text := err.Error(); text != said && s.ctx.Err() == nil {
			said = text
			d.log.Warn("make this node's copy of a fork, will try again", "err", err)
		}
		s.pauseFor(s.ctx, wait)
	}
}

// holdFirst holds the first state of a fork still for the archive: its history begins there. Nobody has written yet, unless
// this node was late; then it begins later.
func (d *replica) holdFirst(f *forking) {
	ctx, cancel := context.WithTimeout(d.svc.ctx, pinPatience)
	defer cancel()
	snap, pos, err := d.pin(ctx, f.at.TXID)
	if err != nil {
		d.log.Debug("the first state of a fork is not held still", "err", err)
		return
	}
	if pos != f.at {
		snap.Close()
		return
	}
	d.mu.Lock()
	f.first = snap
	d.mu.Unlock()
	time.AfterFunc(firstPatience, func() {
		if img := d.takeFirst(); img != nil {
			img.snap.Close()
		}
	})
}

// takeFirst gives the first state of a fork to who archives it, nil if it is not held still any more.
func (d *replica) takeFirst() *archiveImage {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.forking
	if f == nil || f.first == nil {
		return nil
	}
	img := &archiveImage{snap: f.first, position: f.at, time: f.time, pageSize: d.pageSize}
	f.first = nil
	return img
}

// dropIfGone removes what was fetched for a database that was deleted meanwhile: whoever removed its files was there first.
func (d *replica) dropIfGone() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deleted || d.removed {
		d.dropCatchupLocked()
	}
}

func (d *replica) gone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deleted || d.removed
}

func (d *replica) tryFork(ctx context.Context, f *forking, from *forkSource) error {
	if !d.absent() { // of a former life of this node
		return d.forkFound(ctx, f)
	}
	if from != nil {
		err := d.forkFrom(ctx, f, from)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrDeleted) {
			return err
		}
		d.log.Warn("copy of the source's files", "err", err)
	}
	d.step("fork fetch")
	var archived error
	if f.past {
		if archived = d.forkFromArchive(ctx, f); archived == nil || ctx.Err() != nil {
			return archived
		}
	}
	if err := d.seedFork(ctx, f); err != nil {
		d.log.Debug("what the source has here is not used", "err", err)
	}
	if err := d.catchUp(ctx, false); err != nil {
		return errors.Join(archived, err)
	}
	return nil
}

// forkFound makes files that are here already the copy, if they are.
func (d *replica) forkFound(ctx context.Context, f *forking) error {
	if err := d.svc.waitReplayed(ctx); err != nil {
		return err
	}
	if err := d.lockIO(ctx); err != nil {
		return err
	}
	_, err := d.openFileIO(true)
	if err == nil {
		err = d.locateIO(ctx)
	}
	d.ioMu.Unlock()
	if err != nil {
		return d.catchUp(ctx, false)
	}
	return d.recordNow()
}

// forkFrom makes the copy of the files of the source, which are held still at the fork's position.
func (d *replica) forkFrom(ctx context.Context, f *forking, from *forkSource) error {
	d.catchMu.Lock()
	defer d.catchMu.Unlock()
	d.step("fork begin")
	cloned, err := from.db.copyFiles(ctx, from.snap, from.sums, d.pagesPath())
	from.release() // checkpoints of the source go on
	if err != nil {
		return err
	}
	d.step("fork copied")
	return d.install(ctx, &target{position: f.at, pageSize: d.pageSize, sums: from.sums, cloned: cloned}, nil, false)
}

// copyFiles makes a file of the pages of a state that is held still, synced: by a clone of the database file, over which
// the pages are written that are in the log only, or page by page. The child process that clones is the only one to
// have another descriptor of the database file (RULES A6).
func (d *replica) copyFiles(ctx context.Context, snap *wal.Snapshot, sums sumTable, path string) (cloned bool, err error) {
	if err := os.MkdirAll(d.svc.spoolDir(), 0o770); err != nil {
		return false, fmt.Errorf("open the spool: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	err = d.svc.files.Clone(ctx, d.path, path)
	cloned = err == nil
	if err != nil && !errors.Is(err, ErrNoClone) {
		return false, fmt.Errorf("clone the files of database %q: %w", d.name, err)
	}
	f, err := openSpoolFile(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if cloned {
		err = d.overlay(snap, sums, f)
	} else {
		have, whole := sumTable(nil), false
		for !whole && err == nil {
			have, whole, err = d.copyRound(ctx, snap, sums, have, f, func(int64, int64) {})
		}
	}
	if err == nil {
		err = f.Truncate(int64(len(sums)) * int64(d.pageSize))
	}
	if err == nil {
		err = syncFile(f)
	}
	if err != nil {
		return false, fmt.Errorf("copy the files of database %q: %w", d.name, err)
	}
	return cloned, nil
}

// overlay writes the pages that are in the log over a clone of the database file.
func (d *replica) overlay(snap *wal.Snapshot, sums sumTable, f *os.File) error {
	var pages pageSet
	if err := snap.LogPages(pages.add); err != nil {
		return err
	}
	buf := make([]byte, d.pageSize)
	var err error
	pages.each(func(pgno uint32) {
		if err != nil || int(pgno) > len(sums) || sums[pgno-1] == 0 {
			return
		}
		if err = snap.ReadPage(pgno, buf); err != nil {
			return
		}
		if pageSum(d.pageSize, pgno, buf) != sums[pgno-1] {
			err = d.fence(fmt.Errorf("fork: page %d is not what its checksum says: %w", pgno, errForeign))
			return
		}
		_, err = f.WriteAt(buf, int64(pgno-1)*int64(d.pageSize))
	})
	return err
}

// forkFromArchive restores the copy from the archive of this node, where it has the state.
func (d *replica) forkFromArchive(ctx context.Context, f *forking) error {
	a := d.svc.Archive()
	source, ok := d.svc.fsm.Get(f.source)
	if a == nil || !ok {
		return errors.New("the archive of this node cannot be read")
	}
	var v *archive.View
	var p archive.Point
	if err := archive.Again(ctx, func() error {
		views, err := a.Views(ctx, source.Name, func(id archive.Identity) bool { return id.Database == f.source.String() })
		if err == nil {
			v, p, err = archive.FindState(ctx, views, uint64(f.at.TXID), uint64(f.at.Checksum))
		}
		return err
	}); err != nil {
		return err
	}
	d.catchMu.Lock()
	defer d.catchMu.Unlock()
	if err := os.MkdirAll(d.svc.spoolDir(), 0o770); err != nil {
		return fmt.Errorf("open the spool: %w", err)
	}
	file, err := d.openPages()
	if err != nil {
		return err
	}
	err = v.Planned(ctx, p, func(v *archive.View, plan *archive.Plan) error {
		if err := file.Truncate(0); err != nil {
			return err
		}
		return v.Restore(ctx, plan, file, nil)
	})
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	pages, err := d.openFetched()
	if err != nil {
		return err
	}
	defer pages.file.Close()
	t := &target{position: f.at, pageSize: d.pageSize, sums: make(sumTable, len(pages.sums))}
	for i := range t.sums {
		t.sums[i] = pages.sum(uint32(i) + 1)
	}
	if got := t.sums.checksum(); got != f.at.Checksum || t.pageCount() != p.PageCount {
		return fmt.Errorf("the restored pages have checksum %s, the fork begins at %s: %w", got, f.at, errDiverged)
	}
	d.step("fork restored")
	return d.install(ctx, t, pages, false)
}

// seedFork puts what the source has here now where a fetch looks for pages: only those that differ have to come.
func (d *replica) seedFork(ctx context.Context, f *forking) error {
	if _, err := os.Stat(d.pagesPath()); err == nil {
		return nil
	}
	source, ok := d.svc.replica(f.source)
	if !ok {
		return ErrNotFound
	}
	pctx, cancel := context.WithTimeout(ctx, roundTime)
	snap, _, sums, err := source.pinSums(pctx, 0)
	cancel()
	if err != nil {
		return err
	}
	defer snap.Close()
	d.catchMu.Lock()
	defer d.catchMu.Unlock()
	_, err = source.copyFiles(ctx, snap, sums, d.pagesPath())
	return err
}

// ForkBegun implements Sink: the copy is made when the source's files are at the position, in the order of the log.
func (k sink) ForkBegun(index uint64, st DatabaseState, past bool) {
	d := k.s.made(st)
	d.beginForking(st, past)
	source, ok := k.s.replica(st.Source)
	if past || !ok {
		d.startFork(nil)
		return
	}
	source.enqueueFork(item{index: index, position: st.Position, fork: d})
}

// ForkReady implements Sink. Who waits for it asks the state machine.
func (k sink) ForkReady(_ uint64, st DatabaseState) {
	if k.s.archiver != nil {
		k.s.archiver.noteFork(st)
	}
}

// enqueueFork puts the fork behind what was decided before it.
func (d *replica) enqueueFork(it item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = append(d.queue, it)
	d.listLocked()
	d.kickLocked()
}

// forkSource pins the files at the position of a fork, nil if they are past it or cannot be used.
func (d *replica) forkSource(it item) *forkSource {
	if !it.fork.absent() {
		return nil
	}
	d.lockApplier()
	defer d.unlockApplier()
	if err := d.locateIO(d.svc.ctx); err != nil {
		return nil
	}
	live, err := d.openIO()
	if err != nil {
		return nil
	}
	// What is in the log only has to be written over a clone, into blocks that are shared then. It costs less in the file
	// itself, and forks that follow find it there.
	frames, backfilled, err := live.Checkpoint(false)
	d.checkpointed(false, frames == backfilled, err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.position != it.position || d.behind {
		return nil
	}
	snap, err := d.tryPinLocked() // no checkpoint runs: this goroutine has the files
	if err != nil {
		return nil // an application publishes right now: the files are past it
	}
	return &forkSource{db: d, snap: snap, sums: slices.Clone(d.sums)}
}

// PastState is a state of a database that is not its newest.
type PastState struct {
	Position   Position `json:"position"`
	PageCount  uint32   `json:"page_count"`
	CommitTime int64    `json:"commit_time"`
}

type forkRequest struct {
	Source DatabaseID `json:"source"`
	Name   string     `json:"name"`
	Past   *PastState `json:"past,omitempty"`
}

type forkReply struct {
	ID    DatabaseID `json:"id"`
	Index uint64     `json:"index"`
}

// Fork makes a database of a state of another one: with past nil of what that is when the fork is decided. It returns
// once a majority has durable copies, with the state that it began with.
func (s *Service) Fork(ctx context.Context, source, name string, past *PastState, waiting func()) (DatabaseState, error) {
	none := DatabaseState{}
	if err := ValidateName(name); err != nil {
		return none, &kindError{err, ErrInvalid}
	}
	if err := s.CatchUp(ctx); err != nil {
		return none, err
	}
	src, ok := s.fsm.Lookup(source)
	if !ok {
		return none, fmt.Errorf("database %q: %w", source, ErrNotFound)
	}
	reply, err := onLeader(ctx, s, methodFork, forkRequest{Source: src.ID, Name: name, Past: past}, s.leaderFork)
	if err != nil {
		return none, err
	}
	if err := s.fsm.WaitIndex(ctx, reply.Index); err != nil {
		return none, fmt.Errorf("the fork has begun: %w: %w", err, ErrUnknown)
	}
	first, _ := s.fsm.Get(reply.ID)
	for {
		st, ok := s.fsm.Get(reply.ID)
		switch {
		case !ok:
			return none, fmt.Errorf("no majority of the nodes made its copy, the fork was undone: %w", ErrConflict)
		case !st.Pending:
			return first, nil
		}
		if waiting != nil {
			waiting()
		}
		if !s.pauseFor(ctx, forkPoll) {
			return none, fmt.Errorf("the fork has begun, the nodes make their copies: %w: %w", errors.Join(ctx.Err(), s.ctx.Err()), ErrUnknown)
		}
	}
}

const forkPoll = 2 * time.Millisecond

func (s *Service) leaderFork(ctx context.Context, q forkRequest) (forkReply, error) {
	if _, ok := s.leading(); !ok {
		return forkReply{}, ErrNotLeader
	}
	if err := s.diskFull(); err != nil {
		return forkReply{}, err
	}
	id, incarnation := s.fsm.NextID(s.opts.Cluster(), q.Name)
	src, _ := s.fsm.Get(q.Source) // one that is gone is refused below
	pages := src.PageCount
	if q.Past != nil {
		pages = q.Past.PageCount
	}
	if err := s.quotas.of(q.Name).admitSize(src.PageSize, 0, pages); err != nil {
		return forkReply{}, err
	}
	done, err := s.quotas.admit(q.Name)
	if err != nil {
		return forkReply{}, err
	}
	defer done()
	e := &ForkBegin{ID: id, Source: q.Source, Incarnation: incarnation, Name: q.Name, CommitTime: s.now().UnixMicro()}
	if p := q.Past; p != nil {
		e.At, e.PageCount, e.StateTime = p.Position, p.PageCount, p.CommitTime
	}
	entry, err := EncodeForkBegin(nil, e)
	if err != nil {
		return forkReply{}, err
	}
	dec, err := s.propose(ctx, entry)
	if err != nil {
		return forkReply{}, err
	}
	if !dec.Accepted {
		if dec.ID != (DatabaseID{}) {
			return forkReply{}, fmt.Errorf("%s: %w", dec.Reason, ErrExists)
		}
		return forkReply{}, fmt.Errorf("refused at log index %d: %s: %w", dec.Index, dec.Reason, ErrConflict)
	}
	s.driveForks()
	return forkReply{ID: dec.ID, Index: dec.Index}, nil
}

// driveForks sees to it that the forks that are pending end. The leader calls it again and again.
func (s *Service) driveForks() {
	term, ok := s.leading()
	if !ok {
		return
	}
	for _, st := range s.fsm.PendingForks() {
		if _, driven := s.driven.LoadOrStore(st.ID, true); !driven {
			s.goroutine(func() {
				defer s.driven.Delete(st.ID)
				s.driveFork(term, st)
			})
		}
	}
}

// driveFork asks the members for their copies until a majority has them, and ends the fork: ready, or deleted.
func (s *Service) driveFork(term uint64, st DatabaseState) {
	end := time.Now().Add(s.forkPatience)
	for {
		now, ok := s.leading()
		if current, pending := s.fsm.Get(st.ID); !ok || now != term || !pending || !current.Pending {
			return
		}
		ready := s.majorityHasFork(st)
		var entry []byte
		var err error
		switch {
		case ready:
			entry, err = EncodeForkReady(nil, &ForkReady{ID: st.ID, CommitTime: s.now().UnixMicro()})
		case time.Now().After(end):
			s.log.Warn("no majority has a copy of the fork in time, it is undone", "db", st.Name)
			entry, err = EncodeDelete(nil, &Delete{DB: st.ID, CommitTime: s.now().UnixMicro()})
		default:
			if !s.pauseFor(s.ctx, forkPoll) {
				return
			}
			continue
		}
		if err == nil {
			_, err = s.propose(s.ctx, entry)
		}
		if err == nil {
			return
		}
		s.log.Debug("end a fork, will try again", "db", st.Name, "err", err)
		if !s.pauseFor(s.ctx, leaderPoll) {
			return
		}
	}
}

// majorityHasFork asks all voters at once, and waits for no more of them than are needed.
func (s *Service) majorityHasFork(st DatabaseState) bool {
	ctx, cancel := context.WithTimeout(s.ctx, forkAsk+time.Second)
	defer cancel()
	voters := 0
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	answers := make(chan bool, len(s.servers()))
	for _, srv := range s.servers() {
		if srv.Suffrage != raft.Voter {
			continue
		}
		voters++
		wg.Go(func() {
			id := string(srv.ID)
			if id == s.opts.NodeID {
				has, err := s.serveHasFork(ctx, st.ID)
				answers <- has && err == nil
				return
			}
			has, err := callJSON[DatabaseID, bool](ctx, s, id, methodHasFork, st.ID)
			answers <- has && err == nil
		})
	}
	yes := 0
	for range voters {
		if <-answers {
			yes++
		}
		if 2*yes > voters {
			return true
		}
	}
	return false
}

// serveHasFork says whether this node has a durable copy of a fork, and waits a little for it.
func (s *Service) serveHasFork(ctx context.Context, id DatabaseID) (bool, error) {
	d, ok := s.replica(id)
	if !ok {
		return false, nil // it has not decided it
	}
	d.mu.Lock()
	f := d.forking
	has := d.durableLocked(d.base.TXID) && !d.forkingLocked()
	d.mu.Unlock()
	if f == nil || has {
		return has, nil
	}
	ctx, cancel := context.WithTimeout(ctx, forkAsk)
	defer cancel()
	select {
	case <-f.done:
		return true, nil
	case <-ctx.Done():
		return false, nil
	}
}

// waitFork returns when a fork can be opened here; at once for any other database.
func (s *Service) waitFork(ctx context.Context, d *replica) error {
	ctx, cancel := context.WithTimeout(ctx, forkOpen)
	defer cancel()
	for {
		st, ok := s.fsm.Get(d.id)
		d.mu.Lock()
		making := d.forkingLocked()
		d.mu.Unlock()
		switch {
		case !ok && making:
			return d.deletedError()
		case !making && !st.Pending:
			return nil
		}
		if !s.pauseFor(ctx, forkPoll) {
			return fmt.Errorf("open database %q: %w", d.name, ErrForking)
		}
	}
}
