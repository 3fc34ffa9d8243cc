package archive

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// retainMost is how often retention is due at least; retainLeast bounds it where single commits are kept for a moment.
	retainMost   = time.Hour
	retainLeast  = time.Minute
	retainFirst  = 5 * time.Minute // at the most, from the start of a writer
	believeClock = 24 * time.Hour
)

// retainEvery is how often retention is due: what is kept for less than an hour does not stay for two.
func (u *Uploader) retainEvery() time.Duration {
	return min(retainMost, max(retainLeast, u.opts.Writer.Keep[0]))
}

// upkeep merges and removes what is there of a database, and does the jobs of others, in a goroutine of its own which
// runs while there is something to do. Its fields are of the goroutine of Run.
type upkeep struct {
	compact time.Time // when it is due
	retain  time.Time // when it is due
	crowded bool      // so much was archived that it is due now
	after   time.Time // not before that: it has failed
	retry   time.Duration

	running chan outcome // nil: nothing runs
	cancel  context.CancelFunc
}

// outcome is what became of upkeep.
type outcome struct {
	job     bool // of somebody who was told
	begun   time.Time
	until   time.Time // that of retention, as far as it is believed
	compact bool      // done
	retain  bool      // done
	err     error
}

// nextUpkeep says when there is something to do, if nothing of it runs.
func (r *run) nextUpkeep() (time.Time, bool) {
	k := &r.upkeep
	if r.w == nil || k.running != nil {
		return time.Time{}, false
	}
	at := k.retain
	switch {
	case k.crowded:
		at = time.Time{}
	case !r.w.settled() && k.compact.Before(at):
		at = k.compact
	}
	if at.Before(k.after) {
		at = k.after
	}
	return at, true
}

// keepUp begins what is due, or a job.
func (r *run) keepUp(ctx context.Context, j *job) {
	if j != nil {
		if err := r.openFor(ctx, j); err != nil {
			j.over(ctx, err)
			return
		}
	}
	now := time.Now()
	at, planned := r.nextUpkeep()
	if j == nil && (!planned || at.After(now)) {
		return
	}
	k := &r.upkeep
	w, running, until := r.w, make(chan outcome, 1), r.seen.bound(now)
	compact, retain := k.crowded || !now.Before(k.compact), !now.Before(k.retain)
	leads := ctx
	ctx, cancel := context.WithCancel(ctx)
	k.running, k.cancel = running, cancel
	if j == nil {
		k.crowded = false
	}
	go func() {
		o := outcome{begun: now, until: until, job: j != nil}
		if j != nil {
			defer context.AfterFunc(j.ctx, cancel)()
			o.err = r.work(ctx, r.opts.UpkeepTurn, func(ctx context.Context) error { return j.f(ctx, w) })
			j.over(leads, o.err)
		} else {
			o.err = r.mergeAndRemove(ctx, w, compact, retain, &o)
		}
		running <- o
	}()
}

// openFor opens the Writer for a job, which ends that, too.
func (r *run) openFor(ctx context.Context, j *job) error {
	if err := j.ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	return r.work(ctx, r.opts.Turn, r.open)
}

// over tells what became of a job; ctx is that of Run.
func (j *job) over(ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ErrEnded, err)
	}
	j.done <- err
}

// mergeAndRemove does what is due. What cannot be merged keeps nothing from being removed.
func (u *Uploader) mergeAndRemove(ctx context.Context, w *Writer, compact, retain bool, o *outcome) error {
	var errs []error
	step := func(due bool, f func(context.Context) error) bool {
		if !due || ctx.Err() != nil || w.failed() != nil {
			return false
		}
		err := u.work(ctx, u.opts.UpkeepTurn, func(ctx context.Context) error {
			if err := f(ctx); err != nil {
				return err
			}
			return w.Manifest(ctx, false)
		})
		errs = append(errs, err)
		return err == nil
	}
	o.compact = step(compact, func(ctx context.Context) error { return w.Compact(ctx, o.begun) })
	o.retain = step(retain, func(ctx context.Context) error {
		_, err := w.Retain(ctx, o.until)
		if err != nil && !errors.Is(err, errBlocked) {
			return err
		}
		u.retained(err)
		return w.Tidy(ctx)
	})
	return errors.Join(errs...)
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
		e.commit, e.at = w.View().state.Last.Time, time.Now()
	}
}

func (e *evidence) bound(now time.Time) time.Time {
	passed := now.Sub(e.at) // monotonic, whatever the clock does meanwhile
	if proven := time.UnixMicro(e.commit).Add(passed); e.commit != 0 && passed < believeClock && proven.Before(now) {
		return proven
	}
	return now
}

// upkeepOver takes the outcome.
func (r *run) upkeepOver(ctx context.Context, o outcome) {
	k := &r.upkeep
	k.cancel()
	k.running = nil
	if o.compact {
		k.compact = o.begun.Add(r.opts.Writer.Intervals[1])
	}
	if o.retain {
		k.retain = o.begun.Add(r.retainEvery())
	}
	r.know(o.err)
	if o.job || ctx.Err() != nil {
		return
	}
	r.note(r.archived, upkeeps, o.err)
	if o.err == nil {
		k.after, k.retry = time.Time{}, minRetry
		return
	}
	r.opts.Log.Warn("archive not merged, trying again", "db", r.id.Name, "duration", k.retry, "err", o.err)
	k.after, k.retry = time.Now().Add(k.retry), min(2*k.retry, maxRetry)
}

// stopUpkeep ends what runs.
func (r *run) stopUpkeep() {
	k := &r.upkeep
	if k.running == nil {
		return
	}
	k.cancel()
	<-k.running
	k.running = nil
}
