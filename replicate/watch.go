package replicate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// scrubInterval is how often every page of a database is read and compared (RULES B8), where the options do not say.
const scrubInterval = 24 * time.Hour

const (
	scrubRoundPages = 4096 // read under one pin, which holds checkpoints off
	scrubPause      = 20 * time.Millisecond
	// scrubPatience is for how long a scrub waits for files that are being written. What takes longer is an application that
	// was stopped or a writer that is none of ours, and others have their turn meanwhile.
	scrubPatience = 10 * time.Second
)

// janitor closes idle databases, looks for foreign writers and scrubs. It waits for no database: what may
// take long runs beside it.
func (s *Service) janitor() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var idle idleSweep
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		for _, d := range s.activeReplicas() {
			if s.ctx.Err() != nil {
				return
			}
			d.watch()
			d.watchWAL()
			d.closeIdle(s.opts.IdleClose)
			d.scrubIfDue()
			d.unlistIfIdle()
		}
		idle.step(s)
		s.active.trim(s.files)
	}
}

// beside runs f in a goroutine, unless running, which is under mu, says that one such check of this database runs.
func (d *replica) beside(running *bool, f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if *running {
		return
	}
	*running = true
	d.svc.goroutine(func() {
		defer func() {
			d.mu.Lock()
			*running = false
			d.mu.Unlock()
		}()
		f()
	})
}

// Scrub compares every page of this node's copy of a database with what the log says, now. A copy that
// differs is fenced and healed.
func (s *Service) Scrub(ctx context.Context, name string) error {
	st, ok := s.fsm.Lookup(name)
	if !ok {
		return fmt.Errorf("scrub database %q: %w", name, ErrNotFound)
	}
	d, ok := s.replica(st.ID)
	if !ok {
		return fmt.Errorf("scrub database %q: %w", name, ErrNotFound)
	}
	if err := d.use(ctx); err != nil {
		return err
	}
	return d.scrub(ctx)
}

func (d *replica) scrubDueLocked() bool { return time.Since(d.lastScrub) > d.svc.scrubInterval }

// scrubIfDue has an open database scrubbed. That may have to wait for others, and the watch goes on meanwhile.
func (d *replica) scrubIfDue() {
	d.mu.Lock()
	due := d.live != nil && d.known && d.scrubDueLocked()
	d.mu.Unlock()
	if due {
		d.beside(&d.scrubbing, func() { d.scrubInTurn(d.scrub) })
	}
}

// scrubInTurn runs a kind of scrub when no other database is read.
func (d *replica) scrubInTurn(scrub func(context.Context) error) {
	s := d.svc
	s.rereads.Lock()
	defer s.rereads.Unlock()
	if err := scrub(s.ctx); err != nil && s.ctx.Err() == nil {
		d.log.Warn("scrub, will try again", "err", err)
		d.mu.Lock()
		d.lastScrub = time.Now().Add(time.Minute - s.scrubInterval)
		d.mu.Unlock()
	}
}

// scrubIdle opens a database that nobody uses, reads every page and closes it again, unless somebody came meanwhile.
func (d *replica) scrubIdle(ctx context.Context) error {
	if err := d.useOrFetch(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	used := d.live == nil || d.fenced != nil
	d.mu.Unlock()
	if used {
		return nil // it is healed, or was closed again
	}
	err := d.scrub(ctx)
	d.closeIdle(0)
	return err
}

// scrub reads every page and compares it with the table, in rounds and paced (RULES B8).
func (d *replica) scrub(ctx context.Context) error {
	d.mu.Lock()
	table := d.table
	d.mu.Unlock()
	good := time.Now()
	for from := uint32(1); from != 0; {
		next, err := d.scrubRound(from)
		switch {
		case err == nil:
			from, good = next, time.Now()
		case errors.Is(err, wal.ErrBusy): // the files are being checkpointed: a moment later
			good = time.Now()
		case !errors.Is(err, errMoved) || time.Since(good) > scrubPatience:
			return err
		}
		if from != 0 && !d.svc.pauseFor(ctx, scrubPause) {
			return errors.Join(ctx.Err(), d.svc.ctx.Err())
		}
	}
	d.mu.Lock()
	d.lastScrub = time.Now()
	d.verified = d.verified || d.known && d.table == table
	d.mu.Unlock()
	return nil
}

// scrubRound compares the pages from a number on and returns the next one, 0 after the last.
func (d *replica) scrubRound(from uint32) (next uint32, err error) {
	d.mu.Lock()
	d.lastUsed = time.Now()
	snap, err := d.tryPinLocked()
	if err != nil {
		fenced, idle := d.fenced, d.live == nil || !d.known
		d.mu.Unlock()
		if fenced != nil || idle {
			return 0, errors.Join(fenced, ErrShutdown)
		}
		return 0, err
	}
	pos := d.position
	to := min(uint32(len(d.sums)), from-1+scrubRoundPages)
	want := append(sumTable(nil), d.sums[min(from-1, to):to]...)
	d.mu.Unlock()
	defer snap.Close()
	buf := make([]byte, d.pageSize)
	for i, sum := range want {
		pgno := from + uint32(i)
		if err := snap.ReadPage(pgno, buf); err != nil {
			return 0, fmt.Errorf("read page %d: %w", pgno, err)
		}
		if pageSum(d.pageSize, pgno, buf) != sum {
			return 0, d.fence(fmt.Errorf("scrub: page %d is not what transaction %s left: %w", pgno, pos.TXID, errForeign))
		}
	}
	if uint32(len(want)) < scrubRoundPages {
		return 0, nil
	}
	return to + 1, nil
}

// suspect checks files whose fingerprint is not the expected one, and fences the database when its
// bytes are not the expected ones either.
func (d *replica) suspect(ctx context.Context, why string) {
	if d.lockIO(ctx) != nil {
		return
	}
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live, known, fenced, local := d.live, d.known, d.fenced, d.local
	d.mu.Unlock()
	if live == nil || !known || fenced != nil || local != nil {
		return
	}
	txn, err := d.beginIO(ctx, live)
	var device deviceError
	if err != nil {
		if !errors.As(err, &device) {
			d.fence(err)
		}
		return // the watch looks again
	}
	defer txn.End()
	d.mu.Lock()
	same := txn.Fingerprint().Matches(d.fingerprint) || d.local != nil
	d.mu.Unlock()
	if same {
		return
	}
	d.judge(why, d.confirmIO(txn))
}

// judge goes by what a look at the whole file has said: a copy that is another one is fenced. That it cannot be read now is
// no reason: it is looked at again, and late until then.
func (d *replica) judge(why string, err error) {
	var device deviceError
	switch {
	case err == nil:
		d.trouble(nil)
	case errors.As(err, &device):
		d.trouble(fmt.Errorf("%s: %w", why, err))
	default:
		d.fence(fmt.Errorf("%s: %w", why, err))
	}
}

// watch looks for a foreign writer in the wal-index of an open database, without a lock.
func (d *replica) watch() {
	d.mu.Lock()
	live, known, fp := d.live, d.known, d.fingerprint
	quiet := !d.applying && d.local == nil && d.fenced == nil && !d.deleted
	for h := range d.handles {
		quiet = quiet && !h.granted
	}
	pos := d.position
	d.mu.Unlock()
	if live == nil || !known || !quiet {
		return
	}
	seen, _, _, err := live.Peek()
	if err == nil && seen.Matches(fp) {
		return
	}
	d.mu.Lock()
	moved := d.position != pos || d.local != nil || d.fingerprint != fp
	d.mu.Unlock()
	if moved {
		return
	}
	d.beside(&d.checking, func() {
		ctx, cancel := context.WithTimeout(d.svc.ctx, 5*time.Second)
		defer cancel()
		d.suspect(ctx, "the wal-index changed with no transaction of the cluster")
	})
}
