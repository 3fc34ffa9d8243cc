package archive

import (
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
	retainEvery  = time.Hour
	retainFirst  = 5 * time.Minute
	believeClock = 24 * time.Hour
	roundTimeout = 10 * time.Minute
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

	// Turn waits until a round may begin, and returns what ends it; nil: at once.
	Turn func(context.Context) (func(), error)
}

// Uploader keeps the archive of one database complete, on the node that leads.
// As long as nothing is committed it sends no request; where the store does not
// answer it waits, and the commits stay in the source.
type Uploader struct {
	archive *Archive
	id      Identity
	source  Source
	opts    UploaderOptions
	wake    chan struct{}
	jobs    chan job
	ended   chan struct{} // closed when Run returns

	mu     sync.Mutex
	status UploadStatus
}

// UploadStatus is what an Uploader has done.
type UploadStatus struct {
	Archived uint64    // last commit in the archive; 0 also before it was read
	Since    time.Time // of the oldest commit that was found not archived, zero where all are
	Error    string    // of the last round, empty where it went well
	Failed   time.Time // since when rounds fail, zero where the last one went well
	Failures uint64    // rounds that failed
	Blocked  string    // what retention could not remove, empty where it did
	Gaps     uint64    // times that commits were missing and a snapshot was made
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
	return &Uploader{archive: a, id: id, source: source, opts: o, wake: make(chan struct{}, 1), jobs: make(chan job), ended: make(chan struct{})}
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

// Do calls f with the Writer, between two rounds of Run. When it returns f has, too, or is never called.
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

// Run archives until the context ends. The node runs it while it leads, once.
func (u *Uploader) Run(ctx context.Context) {
	defer close(u.ended)
	var w *Writer
	retry := minRetry
	var nextCompact time.Time
	nextRetain := time.Now().Add(retainFirst)
	var seen evidence
	var took time.Duration      // by the last round
	archived := u.opts.Archived // as far as is known
	for ctx.Err() == nil {
		last, _ := u.source.Position()
		settled := w != nil && w.settled()
		now := time.Now()
		var wait time.Duration
		switch {
		case last > archived:
			// The oldest that waits came while the last round ran, and is there when the next one is over.
			wait = max(u.opts.Interval/2, u.opts.Interval-2*took)
		case w == nil:
			wait = -1
		case settled:
			wait = max(0, nextRetain.Sub(now))
		default:
			wait = max(0, nextCompact.Sub(now))
		}
		u.settled(settled && last <= archived && now.Before(nextRetain))
		j, err := u.sleep(ctx, wait)
		if err != nil {
			return
		}
		if last, _ = u.source.Position(); j == nil && (last == 0 || w == nil && last <= archived) {
			continue
		}
		begun := time.Now()
		round, cancel := context.WithTimeout(ctx, roundTimeout)
		if j != nil {
			err = u.do(round, j, &w)
		} else {
			err = u.round(round, &w, &seen, &nextCompact, &nextRetain)
			took = time.Since(begun)
		}
		cancel()
		if w != nil {
			archived = w.Position()
		}
		if errors.Is(err, ErrForeign) || errors.Is(err, errInvalidChange) {
			w = nil // what it knows of the archive is not true any more
		}
		if j != nil {
			if err != nil && ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", ErrEnded, err)
			}
			j.done <- err
			continue
		}
		u.note(archived, err)
		if err == nil {
			retry = minRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		u.opts.Log.Warn("archive not complete, trying again", "db", u.id.Name, "duration", retry, "err", err)
		if !u.pause(ctx, retry) {
			return
		}
		retry = min(2*retry, maxRetry)
	}
}

func (u *Uploader) settled(v bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Settled = v
}

// do runs a job.
func (u *Uploader) do(ctx context.Context, j *job, wp **Writer) error {
	if j.ctx.Err() != nil {
		return j.ctx.Err()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	done, err := u.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := u.open(ctx, wp); err != nil {
		return err
	}
	return j.f(ctx, *wp)
}

// open makes the Writer where there is none, which reads how far the archive is.
func (u *Uploader) open(ctx context.Context, wp **Writer) error {
	if *wp != nil {
		return nil
	}
	w, err := u.archive.Writer(ctx, u.id, u.opts.Writer)
	if err != nil {
		return err
	}
	if err := w.view.Damage(); err != nil {
		u.opts.Log.Warn("the newest manifest is damaged, the one before it serves; nothing is missing, the next one replaces it", "db", u.id.Name, "err", err)
	}
	*wp = w
	u.source.Archived(w.Position())
	return nil
}

func (u *Uploader) turn(ctx context.Context) (func(), error) {
	if u.opts.Turn == nil {
		return func() {}, nil
	}
	return u.opts.Turn(ctx)
}

// sleep waits for the time, or where that is negative for a commit, and
// returns a job if one came, or an error at the end. A commit ends a wait for something else.
func (u *Uploader) sleep(ctx context.Context, d time.Duration) (*job, error) {
	var timer <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	wake := u.wake
	if d >= 0 && d <= u.opts.Interval {
		wake = nil // let more commits come
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case j := <-u.jobs:
		return &j, nil
	case <-timer:
	case <-wake:
	}
	return nil, nil
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

// note keeps the outcome of a round for Status.
func (u *Uploader) note(archived uint64, err error) {
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
	if err == nil {
		u.status.Error, u.status.Failed = "", time.Time{}
		return
	}
	u.status.Error = err.Error()
	u.status.Failures++
	if u.status.Failed.IsZero() {
		u.status.Failed = time.Now()
	}
}

// evidence is what bounds the time by which retention goes: a clock that is days ahead, of a node that has just begun to
// lead, must not remove what is to be kept for these days. The last commit that was archived before has the time of
// another clock, or of this one before it went wrong; since then at least as much time has passed as this process has
// seen. What is committed from now on proves nothing, it has the time of the same clock. So history is kept for as much
// longer as the database was idle before, but for a day at most: by then a clock that was so wrong has been noticed.
type evidence struct {
	commit int64 // time of that commit, 0 where there was none
	at     time.Time
}

// note takes what a Writer has found, the first time.
func (e *evidence) note(w *Writer) {
	if e.at.IsZero() {
		e.commit, e.at = w.view.state.Last.Time, time.Now()
	}
}

func (e *evidence) bound(now time.Time) time.Time {
	passed := now.Sub(e.at) // monotonic, whatever the clock does meanwhile
	if proven := time.UnixMicro(e.commit).Add(passed); e.commit != 0 && passed < believeClock && proven.Before(now) {
		return proven
	}
	return now
}

// retained keeps for Status what retention could not do. It is no reason to try again before it is due.
func (u *Uploader) retained(blocked error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Blocked = ""
	if blocked != nil {
		u.status.Blocked = blocked.Error()
		u.opts.Log.Error("the archive keeps more than it should: verify it, with hasqlite archive verify", "db", u.id.Name, "err", blocked)
	}
}

// round archives what is there, and merges and removes what is due.
func (u *Uploader) round(ctx context.Context, wp **Writer, seen *evidence, nextCompact, nextRetain *time.Time) error {
	done, err := u.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := u.open(ctx, wp); err != nil {
		return err
	}
	w := *wp
	seen.note(w)
	// What is committed meanwhile is for the next round, an interval later: a few commits at a time cost as many
	// objects as there are commits.
	for last, _ := u.source.Position(); w.Position() < last; {
		more, err := u.upload(ctx, w)
		if err != nil {
			return err
		}
		u.source.Archived(w.Position())
		u.note(w.Position(), nil)
		if !more {
			break
		}
	}
	now := time.Now()
	if !now.Before(*nextCompact) || w.Crowded() {
		if err := w.Compact(ctx, now); err != nil {
			return err
		}
		*nextCompact = now.Add(u.opts.Writer.Intervals[1])
	}
	if !now.Before(*nextRetain) {
		_, err := w.Retain(ctx, seen.bound(now))
		if err != nil && !errors.Is(err, errBlocked) {
			return err
		}
		u.retained(err)
		if err := w.Tidy(ctx); err != nil {
			return err
		}
		*nextRetain = now.Add(retainEvery)
	}
	return w.Manifest(ctx, false)
}

// upload archives one batch and reports whether there may be more.
func (u *Uploader) upload(ctx context.Context, w *Writer) (bool, error) {
	batch, err := u.source.Commits(ctx, w.Position()+1, roundCommits, roundBytes)
	if errors.Is(err, ErrNotInBacklog) {
		img, done, err := u.source.Image(ctx)
		if err != nil {
			return false, fmt.Errorf("open image: %w", err)
		}
		defer done()
		u.mu.Lock()
		u.status.Gaps++
		u.mu.Unlock()
		return true, w.SnapshotOf(ctx, img)
	}
	if err != nil {
		return false, err
	}
	defer batch.Close()
	if len(batch.Commits) == 0 {
		return false, nil
	}
	return true, w.Append(ctx, batch.Commits)
}

// settled reports whether nothing is left to be merged.
func (w *Writer) settled() bool {
	s := w.view.state
	return s.Done[TopLevel] == s.Last.MaxTXID
}
