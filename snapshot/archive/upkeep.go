package archive

import (
	"context"
	"errors"
	"time"
)

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
	compact bool // done
	retain  bool // done
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
		if err := j.ctx.Err(); err != nil {
			j.done <- err
			return
		}
		if err := r.work(ctx, r.opts.Turn, r.open); err != nil {
			j.done <- err
			return
		}
	}
	now := time.Now()
	at, planned := r.nextUpkeep()
	if j == nil && (!planned || at.After(now)) {
		return
	}
	k := &r.upkeep
	w, running, compact, retain := r.w, make(chan outcome, 1), k.crowded || !now.Before(k.compact), !now.Before(k.retain)
	ctx, cancel := context.WithCancel(ctx)
	k.running, k.cancel = running, cancel
	if j == nil {
		k.crowded = false
	}
	go func() {
		o := outcome{begun: now, job: j != nil}
		if j != nil {
			defer context.AfterFunc(j.ctx, cancel)()
			o.err = r.work(ctx, r.opts.UpkeepTurn, func(ctx context.Context) error { return j.f(ctx, w) })
			j.done <- o.err
		} else {
			o.err = r.mergeAndRemove(ctx, w, compact, retain, &o)
		}
		running <- o
	}()
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
	o.retain = step(retain, func(ctx context.Context) error { _, err := w.Retain(ctx, o.begun); return err })
	return errors.Join(errs...)
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
		k.retain = o.begun.Add(retainEvery)
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
