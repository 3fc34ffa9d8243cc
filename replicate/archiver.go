package replicate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// ArchiveOptions say how commits are archived.
type ArchiveOptions struct {
	// URL names the store for people, without secrets.
	URL string
	// Local says that every node keeps an archive of its own. Otherwise there is one, and the leader writes it.
	Local bool
	// Open opens the archive of a cluster. An error that wraps archive.ErrForeign or archive.ErrKey stops the
	// node, after others it is tried again.
	Open func(ctx context.Context, cluster [16]byte) (*archive.Archive, error)
	// Lineage is that of the cluster, once it is open.
	Lineage func() uint64
	// Interval is the time from a commit to its upload.
	Interval time.Duration
	// Writer says what is kept of what was uploaded.
	Writer archive.WriterOptions
	// BacklogLimit bounds the bytes of commits on disk that wait.
	BacklogLimit int64
}

const (
	// An archive that cannot be opened is tried again after the first of these, then after twice as long, up to the second.
	openArchiveRetry, openArchiveRetryMax = 250 * time.Millisecond, 5 * time.Second
	// roundsAtOnce is how many databases are uploaded at a time.
	roundsAtOnce = 8
	// upkeepsAtOnce is how many databases are merged, made snapshots of or removed from at a time, beside the uploads.
	// That reads and writes whole databases and may take hours.
	upkeepsAtOnce = 2
	// lookingAtOnce is for how many databases it is found out at a time how far the archive is.
	lookingAtOnce = 64
	// An archive on the node's own disk rests for so many times as long as it worked: while there are commits, while
	// some have waited for long, and while there are none. See restFactor.
	localRest, localRestLate, localRestIdle = 40, 8, 1
	localLate                               = time.Minute
	localPause                              = 5 * time.Second
	// archiveSpare is how many times the room in which a disk counts as full is left to others than the archive.
	archiveSpare = 4
	// archiveTick is how often the archiver looks whether anything has to begin or to end.
	archiveTick = 200 * time.Millisecond
)

// archiver keeps the archive complete: on every node what is not archived yet, and on the one that leads, or on each
// that has an archive of its own, what writes it.
//
// Invariants:
//  1. What is decided and not archived is in the backlog, or in the log behind the last manifest: a manifest counts only
//     once the rest is in the backlog, durably. So neither a compaction nor a restart loses any of it, but past the cap.
//  2. Nothing that the state machine calls does input or output.
//  3. A database that nobody writes has no goroutine and sends no request.
type archiver struct {
	s       *Service
	opts    ArchiveOptions
	begun   int64 // microseconds since 1970
	backlog *archive.Backlog
	slots   chan struct{} // of uploads to a store elsewhere
	upkeeps chan struct{} // of upkeep of a store elsewhere
	gate    *localGate    // of uploads to the node's own disk
	merging *localGate    // of upkeep of an archive on it
	wake    chan struct{}

	keepMu sync.Mutex // one move into the backlog at a time

	roomMu  sync.Mutex
	claimed int64 // bytes of temporary files that are being made

	mu        sync.Mutex
	archive   *archive.Archive // nil before it is open
	failed    error            // why it is not
	tag       uint64           // names it in the log
	kept      map[DatabaseID]*kept
	trims     map[DatabaseID]TXID // of the backlog, due
	proposals map[DatabaseID]TXID // of archived positions, due
	surveyed  uint64              // term in which all databases were looked at; 1 for a local archive
	gaps      uint64              // filled by snapshots
	fetched   uint64              // commits that came from a peer
	failures  uint64              // rounds that failed
}

func newArchiver(s *Service, o ArchiveOptions) (*archiver, error) {
	backlog, err := archive.OpenBacklog(filepath.Join(s.opts.Dir, "backlog"), o.BacklogLimit)
	if err != nil {
		return nil, err
	}
	a := &archiver{
		s: s, opts: o, begun: s.now().UnixMicro(), backlog: backlog, slots: make(chan struct{}, roundsAtOnce),
		upkeeps: make(chan struct{}, upkeepsAtOnce), wake: make(chan struct{}, 1),
		kept: map[DatabaseID]*kept{}, trims: map[DatabaseID]TXID{}, proposals: map[DatabaseID]TXID{},
	}
	for _, name := range backlog.Databases() {
		id, err := ParseDatabaseID(name)
		if err != nil {
			return nil, fmt.Errorf("open backlog: %w", err)
		}
		_, last, _ := backlog.Bounds(name)
		a.kept[id] = &kept{id: id, last: TXID(last.TXID), lastTime: last.Time} // the state machine is not there yet
	}
	a.opts.Writer.Room = a.claim
	a.gate, a.merging = newLocalGate(roundsAtOnce, a.rest()), newLocalGate(upkeepsAtOnce, a.rest())
	return a, nil
}

// open opens the archive, which has to wait for the node to belong to a cluster.
func (a *archiver) open() bool {
	retry := openArchiveRetry
	for first := true; ; {
		cluster := a.s.opts.Cluster()
		wait := retry
		if cluster == ([16]byte{}) {
			wait = 50 * time.Millisecond
		} else {
			retry = min(2*retry, openArchiveRetryMax)
			opened, err := a.opts.Open(a.s.ctx, cluster)
			a.mu.Lock()
			a.archive, a.failed = opened, err
			if err == nil {
				a.tag = archiveTag(opened, a.opts.Lineage())
			}
			a.mu.Unlock()
			switch {
			case err == nil:
				a.s.log.Info("the archive is open", "archive", a.opts.URL, "conditional", opened.Store().Conditional())
				if !opened.Store().Conditional() {
					a.s.log.Warn("the store of the archive replaces objects where it is told not to: this node looks before it writes, two leaders at the same moment are not kept apart", "archive", a.opts.URL)
				}
				return true
			case a.s.ctx.Err() != nil:
				return false
			case errors.Is(err, archive.ErrForeign), errors.Is(err, archive.ErrKey):
				a.s.stop(err)
				return false
			case first:
				first = false
				a.s.log.Warn("the archive cannot be opened, writes go on and wait on the disk", "err", err)
			}
		}
		if !a.s.pauseFor(a.s.ctx, wait) {
			return false
		}
	}
}

// archiveTag names an archive in the log: positions that were noted for another one count for nothing.
func archiveTag(a *archive.Archive, lineage uint64) uint64 {
	h := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", archivePlace(a.Store().URL()), a.Cluster(), lineage))
	return binary.LittleEndian.Uint64(h[:]) | 1
}

// archivePlace is what of a URL says where objects are. By the rest, as which certificates and credentials are used, the
// nodes of a cluster may differ.
func archivePlace(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	place := url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}
	if endpoint := u.Query().Get("endpoint"); endpoint != "" {
		place.RawQuery = url.Values{"endpoint": {strings.TrimSuffix(endpoint, "/")}}.Encode()
	}
	return place.String()
}

// run starts and ends uploaders, and tells the cluster how far they are.
func (a *archiver) run() {
	defer a.endUploaders(func(*kept) bool { return true })
	if !a.open() {
		return
	}
	tick := time.NewTicker(archiveTick)
	defer tick.Stop()
	told := time.Now()
	for {
		select {
		case <-a.s.ctx.Done():
			return
		case <-tick.C:
		case <-a.wake:
		}
		a.trim()
		if !a.writes() {
			a.endUploaders(func(*kept) bool { return true })
			continue
		}
		a.survey()
		a.startUploaders()
		a.endUploaders(func(k *kept) bool {
			st := k.uploader.u.Status()
			return k.lost || st.Settled && k.jobs == 0 && TXID(st.Archived) >= k.last
		})
		if time.Since(told) >= a.opts.Interval/2 {
			told = time.Now()
			a.tell()
		}
	}
}

// writes reports whether this node writes the archive.
func (a *archiver) writes() bool {
	if !a.s.replayed() {
		return false
	}
	if a.opts.Local {
		return true
	}
	_, ok := a.s.leading()
	return ok
}

// survey looks once, when this node begins to write the archive, which databases are not archived.
func (a *archiver) survey() {
	now := uint64(1)
	if !a.opts.Local {
		now, _ = a.s.leading()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.surveyed == now {
		return
	}
	a.surveyed = now
	// What was archived in a former term and not told yet is still true.
	maps.DeleteFunc(a.proposals, func(id DatabaseID, txid TXID) bool {
		st, ok := a.s.fsm.Get(id)
		return !ok || a.s.fsm.Archive() == a.tag && st.Archived >= txid
	})
	known := a.s.fsm.Archive() == a.tag && !a.opts.Local
	for _, st := range a.s.fsm.List() {
		if st.Pending || st.Position.TXID == 1 || known && st.Archived >= st.Position.TXID {
			continue
		}
		k := a.keptLocked(st.ID)
		k.last, k.lastTime = st.Position.TXID, st.CommitTime
		if known {
			k.archived = max(k.archived, st.Archived)
		}
	}
}

// startUploaders starts what is missing. After a start a node may have many databases of which it does not know how
// far the archive is: it looks for few at a time, for those first that were written last.
func (a *archiver) startUploaders() {
	a.mu.Lock()
	defer a.mu.Unlock()
	looking := 0
	var list []*kept
	for _, k := range a.kept {
		switch {
		case k.uploader != nil:
			if !k.opened && k.uploader.u.Status().Failures == 0 {
				looking++
			}
		case k.jobs == 0 && k.last <= k.archived, k.last == 1, k.lost:
		case k.opened || k.jobs > 0:
			a.startLocked(k)
		default:
			list = append(list, k)
		}
	}
	room := max(0, lookingAtOnce-looking)
	if len(list) > room {
		slices.SortFunc(list, func(x, y *kept) int { return cmp.Compare(y.lastTime, x.lastTime) })
		list = list[:room]
	}
	for _, k := range list {
		a.startLocked(k)
	}
}

func (a *archiver) startLocked(k *kept) {
	var name string
	if st, ok := a.s.fsm.Get(k.id); ok {
		name, k.made = st.Name, st
	} else if gone, _, ok := a.s.fsm.Tombstone(k.id); ok {
		name, k.deleted = gone, true
	} else {
		return // the log will say what it is
	}
	ctx, cancel := context.WithCancel(a.s.ctx)
	up := &uploading{cancel: cancel, done: make(chan struct{})}
	up.u = archive.NewUploader(a.archive, archive.Identity{
		Cluster: a.archive.Cluster(), Lineage: a.opts.Lineage(), Database: k.id.String(), Name: name,
	}, &archiveSource{a: a, id: k.id}, archive.UploaderOptions{
		Writer: a.opts.Writer, Interval: a.opts.Interval, Archived: uint64(k.archived), Log: a.s.log,
		Turn:       func(ctx context.Context) (func(), error) { return a.turn(ctx, a.slots, a.gate) },
		UpkeepTurn: func(ctx context.Context) (func(), error) { return a.turn(ctx, a.upkeeps, a.merging) },
	})
	k.uploader = up
	a.s.goroutine(func() {
		defer close(up.done)
		up.u.Run(ctx)
	})
}

// turn bounds how many databases are uploaded at a time. An archive on the node's own disk is synced there, which the
// log has to wait for: it gets a small part of the time, and more of it where commits wait for long. They lose nothing
// by it, the log has them. Upkeep has turns of its own: it may take long, and no upload waits for it.
func (a *archiver) turn(ctx context.Context, slots chan struct{}, gate *localGate) (func(), error) {
	if !a.opts.Local {
		select {
		case slots <- struct{}{}:
			return func() { <-slots }, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := gate.enter(ctx); err != nil {
		return nil, err
	}
	if err := a.room(0); err != nil {
		gate.leave()
		return nil, err
	}
	return gate.leave, nil
}

// rest returns how long an archive on the node's own disk does nothing after it wrote for a time, for one gate.
func (a *archiver) rest() func(took time.Duration) time.Duration {
	var applied atomic.Uint64 // by the state machine when the gate was closed last
	return func(took time.Duration) time.Duration {
		factor := localRestIdle
		if now := a.s.fsm.Applied(); applied.Swap(now) != now {
			factor = restFactor(a.s.ArchiveStatus().Lag)
		}
		return min(time.Duration(factor)*took, localPause)
	}
}

// restFactor is how many times as long as it worked an archive rests while there are commits. What is given to writers for
// a while is not given for ever: the longer commits wait the less rest there is, and in the end none, or the backlog
// would come to its cap, and a gap would stay in the history.
func restFactor(lag time.Duration) int {
	if lag <= localLate {
		return localRest
	}
	return int(localRestLate * localLate / lag)
}

// endUploaders ends those that over says yes to, and forgets what is archived.
func (a *archiver) endUploaders(over func(*kept) bool) {
	a.mu.Lock()
	var ending []*uploading
	for id, k := range a.kept {
		if k.uploader != nil && over(k) {
			k.uploader.cancel()
			ending = append(ending, k.uploader)
			st := k.uploader.u.Status()
			a.gaps, a.failures = a.gaps+st.Gaps, a.failures+st.Failures
			k.uploader = nil
		}
		if k.uploader == nil && k.jobs == 0 && len(k.entries) == 0 && k.last <= k.archived {
			delete(a.kept, id)
		}
	}
	a.mu.Unlock()
	for _, up := range ending {
		<-up.done
	}
}

// trim forgets what was archived, on disk.
func (a *archiver) trim() {
	a.mu.Lock()
	due := a.trims
	a.trims = map[DatabaseID]TXID{}
	a.mu.Unlock()
	for id, txid := range due {
		if err := a.backlog.Trim(id.String(), uint64(txid)); err != nil {
			a.s.metrics.error("archive_backlog")
			a.s.log.Warn("commits that are archived stay in the backlog", "id", id.String(), "err", err)
		}
	}
}

// tell proposes how far the archive is, for many databases at once.
func (a *archiver) tell() {
	if a.opts.Local {
		return
	}
	a.mu.Lock()
	e := &Archived{Archive: a.tag}
	for id, txid := range a.proposals {
		if len(e.Positions) == maxArchived {
			break
		}
		e.Positions = append(e.Positions, ArchivedPosition{id, txid})
		delete(a.proposals, id)
	}
	a.mu.Unlock()
	if len(e.Positions) == 0 {
		return
	}
	entry, err := EncodeArchived(nil, e)
	if err == nil {
		_, err = a.s.propose(a.s.ctx, entry)
	}
	if err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range e.Positions {
		a.proposals[p.DB] = max(a.proposals[p.DB], p.TXID)
	}
	if a.s.ctx.Err() == nil {
		a.s.log.Debug("tell the cluster what is archived", "err", err)
	}
}

// decided hears which commits the cluster knows to be archived. Where every node has an archive of its own that is
// about nobody's.
func (a *archiver) decided(e *Archived) {
	if a.opts.Local {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tag != 0 && e.Archive != a.tag {
		return
	}
	for _, p := range e.Positions {
		a.forgetLocked(p.DB, p.TXID)
	}
}

// archived hears from an uploader what the archive has.
func (a *archiver) archived(id DatabaseID, txid TXID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.kept[id]
	if k != nil {
		k.opened = true
	}
	if a.opts.Local {
		a.forgetLocked(id, txid)
		return
	}
	if k != nil {
		k.archived = max(k.archived, txid)
	}
	if st, ok := a.s.fsm.Get(id); !ok || st.Archived < txid || a.s.fsm.Archive() != a.tag {
		a.proposals[id] = max(a.proposals[id], txid)
	}
}

// forgetLocked drops commits that are archived.
func (a *archiver) forgetLocked(id DatabaseID, txid TXID) {
	a.trims[id] = max(a.trims[id], txid)
	k := a.kept[id]
	if k == nil {
		return
	}
	k.archived = max(k.archived, txid)
	k.dropTo(txid)
	if len(k.entries) == 0 && k.uploader == nil && k.jobs == 0 && k.last <= k.archived {
		delete(a.kept, id)
	}
}

// ArchiveWriter calls f with what writes the archive of a database, as a part of its upkeep. It fails with ErrNotLeader where
// another node writes it.
func (s *Service) ArchiveWriter(ctx context.Context, id DatabaseID, f func(context.Context, *archive.Writer) error) error {
	a := s.archiver
	if a == nil {
		return fmt.Errorf("nothing is archived: %w", ErrConflict)
	}
	if s.Archive() == nil {
		return fmt.Errorf("the archive is not open: %w", a.why())
	}
	if !a.writes() {
		return ErrNotLeader
	}
	st, ok := s.fsm.Get(id)
	if !ok {
		return ErrNotFound
	}
	a.mu.Lock()
	k := a.keptLocked(id)
	k.jobs++
	k.last, k.lastTime = max(k.last, st.Position.TXID), max(k.lastTime, st.CommitTime)
	if k.uploader == nil {
		a.startLocked(k)
	}
	up := k.uploader
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		k.jobs--
		a.mu.Unlock()
	}()
	if up == nil {
		return ErrNotFound
	}
	err := up.u.Do(ctx, f)
	if errors.Is(err, archive.ErrEnded) {
		err = ErrNotLeader
	}
	return err
}

func (a *archiver) why() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return a.failed
	}
	return ErrNoLeader
}
