package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	roundCommits = 4096
	roundBytes   = 64 << 20
	minRetry     = time.Second
	maxRetry     = 30 * time.Second
)

// Source is where an Uploader gets a database from: the node.
type Source interface {
	// Position is the last commit decided, and its time.
	Position() (txid uint64, time int64)

	// Commits returns commits that follow each other from one on: at least one
	// where there is one, at most so many of so many bytes. ErrNotInBacklog says
	// that they cannot be had any more.
	Commits(ctx context.Context, from uint64, count int, bytes int64) (*Batch, error)

	// Image opens the database as it is now, at a position that is decided.
	Image(ctx context.Context) (Image, func(), error)

	// Archived is told that all up to a commit is in the archive, each time that
	// it was read from there or written.
	Archived(txid uint64)
}

// UploaderOptions of an Uploader.
type UploaderOptions struct {
	Writer   WriterOptions
	Interval time.Duration // from a commit to its upload; 1 s
	Archived uint64        // last commit that is known to be archived: a database without later ones costs no request
	Log      *slog.Logger

	// Turn waits until a round of uploads may begin, and returns what ends it; nil: at once.
	Turn func(context.Context) (func(), error)
	// UpkeepTurn is the same for what may take long: merging, snapshots, removing.
	UpkeepTurn func(context.Context) (func(), error)
}

// Uploader keeps the archive of one database complete, on the node that leads.
// As long as nothing is committed it sends no request; where the store does not
// answer it waits, and the commits stay in the source. What is there is merged
// and removed beside the uploads, which do not wait for it.
type Uploader struct {
	archive *Archive
	id      Identity
	source  Source
	opts    UploaderOptions
	wake    chan struct{}
	jobs    chan job
	ended   chan struct{} // closed when Run returns
	stall   time.Duration // without progress

	mu     sync.Mutex
	status UploadStatus
	failed [2]string // of the last round of uploads, and of the last upkeep
}

// UploadStatus is what an Uploader has done.
type UploadStatus struct {
	Archived uint64    // last commit in the archive; 0 also before it was read
	Since    time.Time // of the oldest commit that was found not archived, zero where all are
	Error    string    // of the last round or upkeep, empty where both went well
	Failed   time.Time // since when one of them fails, zero where the last ones went well
	Failures uint64    // of them, so far
	Blocked  string    // what retention could not remove, empty where it did
	Gaps     uint64    // ranges of commits that were missing in the middle, over which a snapshot leads
	Settled  bool      // everything is archived and merged: nothing is to be done before the next commit
}

// job is what somebody else has to do with the Writer.
type job struct {
	ctx  context.Context
	f    func(context.Context, *Writer) error
	done chan error
}

// Lag is how long the oldest commit that is not archived has been waiting.
func (s UploadStatus) Lag(now time.Time) time.Duration {
	if s.Since.IsZero() {
		return 0
	}
	return max(0, now.Sub(s.Since))
}

// NewUploader makes an Uploader, which does nothing before Run.
func NewUploader(a *Archive, id Identity, source Source, o UploaderOptions) *Uploader {
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	o.Writer.defaults()
	return &Uploader{
		archive: a, id: id, source: source, opts: o, wake: make(chan struct{}, 1), jobs: make(chan job), ended: make(chan struct{}), stall: stallTimeout,
	}
}

// Notify says that there was a commit. It never waits.
func (u *Uploader) Notify() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// ErrEnded is returned by Do where Run has returned, or does before it comes to it: another node may archive the
// database. f was not called, unless it was cut short.
var ErrEnded = errors.New("the uploader has ended")

// Do calls f with the Writer, as a part of the upkeep. When it returns f has, too, or is never called.
func (u *Uploader) Do(ctx context.Context, f func(context.Context, *Writer) error) error {
	j := job{ctx, f, make(chan error, 1)}
	select {
	case u.jobs <- j:
		return <-j.done // f ends with ctx, or with Run
	case <-u.ended:
		return ErrEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Status returns what was done.
func (u *Uploader) Status() UploadStatus {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status
}

// run is what Run knows of the archive; it is of that goroutine alone.
type run struct {
	*Uploader
	w        *Writer
	archived uint64        // last commit that is, as far as is known
	due      time.Time     // when what is not has to be; zero where all is
	took     time.Duration // by the last round
	retry    time.Duration // after a round that fails
	seen     evidence
	upkeep   upkeep
}

// Run archives until the context ends. The node runs it while it leads, once.
func (u *Uploader) Run(ctx context.Context) {
	defer close(u.ended)
	r := &run{Uploader: u, archived: u.opts.Archived, retry: minRetry, upkeep: upkeep{retry: minRetry, retain: time.Now().Add(min(retainFirst, u.retainEvery()/5))}}
	defer r.stopUpkeep()
	for ctx.Err() == nil {
		j, why := r.sleep(ctx)
		switch last, _ := u.source.Position(); {
		case why == ended:
			return
		case why == upkeepEnded || why == asked:
		case last > r.archived:
			if !r.upload(ctx) {
				return
			}
		}
		r.keepUp(ctx, j)
	}
}

// What ends a sleep.
const (
	ended = iota
	elapsed
	asked // to do a job
	upkeepEnded
)

// sleep waits for the next thing that is to be done. A commit ends a wait for upkeep, and for what is not told in time
// nothing does: let more commits come.
func (r *run) sleep(ctx context.Context) (j *job, why int) {
	last, _ := r.source.Position()
	now := time.Now()
	wake, jobs := r.wake, r.jobs
	wait := time.Duration(-1)
	next, planned := r.nextUpkeep()
	switch {
	case last > r.archived:
		if r.due.IsZero() {
			// The oldest that waits came while the last round ran, and is there when the next one is over.
			r.due = now.Add(max(r.opts.Interval/2, r.opts.Interval-2*r.took))
		}
		wait = max(0, r.due.Sub(now))
		wake = nil
	case planned:
		if wait = max(0, next.Sub(now)); wait <= r.opts.Interval {
			wake = nil
		}
	}
	if r.upkeep.running != nil {
		jobs = nil
	}
	r.settled(last <= r.archived && r.w != nil && r.w.settled() && r.upkeep.running == nil && now.Before(next))
	var timer <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return nil, ended
	case o := <-r.upkeep.running:
		r.upkeepOver(ctx, o)
		return nil, upkeepEnded
	case j := <-jobs:
		return &j, asked
	case <-timer:
	case <-wake:
	}
	return nil, elapsed
}

// upload archives what waits; false says that the context has ended.
func (r *run) upload(ctx context.Context) bool {
	begun := time.Now()
	err := r.round(ctx)
	r.due, r.took = time.Time{}, time.Since(begun)
	r.know(err)
	r.note(r.archived, uploads, err)
	if err == nil {
		r.retry = minRetry
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	r.opts.Log.Warn("archive not complete, trying again", "db", r.id.Name, "duration", r.retry, "err", err)
	if !r.pause(ctx, r.retry) {
		return false
	}
	r.retry = min(2*r.retry, maxRetry)
	return true
}

// know follows what was written, or could not be.
func (r *run) know(err error) {
	if r.w != nil {
		r.archived = r.w.Position()
	}
	if errors.Is(err, ErrForeign) || errors.Is(err, errInvalidChange) {
		r.stopUpkeep()
		r.w = nil // what it knows of the archive is not true any more
	}
}

func (u *Uploader) settled(v bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Settled = v
}

// open makes the Writer where there is none, which reads how far the archive is.
func (r *run) open(ctx context.Context) error {
	if r.w != nil {
		return nil
	}
	w, err := r.archive.Writer(ctx, r.id, r.opts.Writer)
	if err != nil {
		return err
	}
	if err := w.View().Damage(); err != nil {
		r.opts.Log.Warn("the newest manifest is damaged, the one before it serves; nothing is missing, the next one replaces it", "db", r.id.Name, "err", err)
	}
	r.w = w
	r.seen.note(w)
	r.source.Archived(w.Position())
	return nil
}

// work waits for a turn and does f, which ends when it does not get on.
func (u *Uploader) work(ctx context.Context, turn func(context.Context) (func(), error), f func(context.Context) error) error {
	if turn != nil {
		done, err := turn(ctx)
		if err != nil {
			return err
		}
		defer done()
	}
	ctx, end := watch(ctx, u.stall)
	return end(f(ctx))
}

func (u *Uploader) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// What note is told of.
const (
	uploads = iota
	upkeeps
)

// note keeps the outcome of a round, or of upkeep, for Status.
func (u *Uploader) note(archived uint64, of int, err error) {
	last, commit := u.source.Position()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Archived = max(u.status.Archived, archived)
	switch {
	case last <= archived:
		u.status.Since = time.Time{}
	case u.status.Since.IsZero():
		u.status.Since = time.UnixMicro(commit)
	}
	u.failed[of] = ""
	if err != nil {
		u.failed[of] = err.Error()
		u.status.Failures++
	}
	u.status.Error = cmp.Or(u.failed[uploads], u.failed[upkeeps])
	switch {
	case u.status.Error == "":
		u.status.Failed = time.Time{}
	case u.status.Failed.IsZero():
		u.status.Failed = time.Now()
	}
}

// round archives what is there. A snapshot that stands in for commits takes a turn of its own: it may be long.
func (r *run) round(ctx context.Context) error {
	for {
		err := r.work(ctx, r.opts.Turn, r.commits)
		if !errors.Is(err, ErrNotInBacklog) {
			return err
		}
		if err := r.work(ctx, r.opts.UpkeepTurn, r.image); err != nil {
			return err
		}
	}
}

// commits archives commits one by one.
func (r *run) commits(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return err
	}
	// What is committed meanwhile is for the next round, an interval later: a few commits at a time cost as many
	// objects as there are commits.
	for last, _ := r.source.Position(); r.w.Position() < last; {
		more, err := r.batch(ctx)
		if err != nil {
			return err
		}
		r.source.Archived(r.w.Position())
		r.note(r.w.Position(), uploads, nil)
		if !more {
			break
		}
	}
	r.upkeep.crowded = r.w.Crowded()
	return r.w.Manifest(ctx, false)
}

// batch archives some commits and reports whether there may be more.
func (r *run) batch(ctx context.Context) (bool, error) {
	batch, err := r.source.Commits(ctx, r.w.Position()+1, roundCommits, roundBytes)
	if err != nil {
		return false, err
	}
	defer batch.Close()
	progressed(ctx)
	if len(batch.Commits) == 0 {
		return false, nil
	}
	return true, r.w.Append(ctx, batch.Commits)
}

// image archives the database as it is now, in the place of commits that cannot be had any more.
func (r *run) image(ctx context.Context) error {
	img, done, err := r.source.Image(ctx)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer done()
	before := len(r.w.View().state.Gaps)
	if err := r.w.SnapshotOf(ctx, img); err != nil {
		return err
	}
	r.mu.Lock()
	r.status.Gaps += uint64(len(r.w.View().state.Gaps) - before)
	r.mu.Unlock()
	r.source.Archived(r.w.Position())
	r.note(r.w.Position(), uploads, nil)
	return nil
}

// settled reports whether nothing is left to be merged.
func (w *Writer) settled() bool {
	s := w.View().state
	return s.Done[TopLevel] == s.Last.MaxTXID
}
