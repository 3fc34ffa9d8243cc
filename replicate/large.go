package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// maxSinglePages bounds the pages of a transaction that is one entry, in bytes: whoever applies it holds
// them in memory. Well compressed, many fit into one.
const maxSinglePages = 8 << 20

// FullError says that a transaction is larger than this node takes. Nothing was proposed.
type FullError struct {
	Size, Limit int64 // bytes of pages
	Cause       error // a device or a log without space, nil: the limit
}

func (e *FullError) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("transaction of %d bytes or more cannot be kept: %v", e.Size, e.Cause)
	}
	return fmt.Sprintf("transaction of %d bytes or more is over the limit of %d bytes (--max-transaction)", e.Size, e.Limit)
}

// Unwrap returns why there is no space.
func (e *FullError) Unwrap() error { return e.Cause }

// MaxTransaction is the size of the pages of the largest transaction that this node takes, in bytes.
func (s *Service) MaxTransaction() int64 { return s.opts.MaxTransaction }

// pieces is a transaction that an application sends piece by piece. Of its pages only the part that is being
// filled is in memory.
type pieces struct {
	local               *localCommit
	pageSize, pageCount uint32
	steps               *sumStep
	enc                 *snapshot.Encoder
	out                 partWriter
	size                int64     // bytes of pages
	touched             time.Time // when the leader heard of it last
}

// partWriter cuts an LTX file into parts. The first stays in memory as long as it is the only one.
type partWriter struct {
	create func() (*spool, error)
	spool  *spool
	buf    []byte
	hash   [32]byte
	parts  uint32
	bytes  int64
}

// Write implements io.Writer.
func (w *partWriter) Write(b []byte) (int, error) {
	n := len(b)
	w.bytes += int64(n)
	for len(b) > 0 {
		if len(w.buf) == PartBytes {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
		k := min(len(b), PartBytes-len(w.buf))
		w.buf = append(w.buf, b[:k]...)
		b = b[k:]
	}
	return n, nil
}

// flush puts the part in memory into the spool.
func (w *partWriter) flush() error {
	if w.spool == nil {
		sp, err := w.create()
		if err != nil {
			return err
		}
		w.spool = sp
	}
	if _, err := w.spool.Write(w.buf); err != nil {
		return fmt.Errorf("write parts: %w", err)
	}
	w.hash = partHash(w.hash, w.buf)
	w.parts++
	w.buf = w.buf[:0]
	return nil
}

// Part takes a piece of the transaction that the next Commit ends. Its pages follow those of the piece before and
// are used until Part returns. An error refuses the transaction: nothing of it was proposed.
func (h *Handle) Part(ctx context.Context, pageSize, pageCount uint32, pages []wal.Page) error {
	return h.part(ctx, pageSize, pageCount, func(p *pieces) error { return h.add(p, pageSize, pageCount, pages) })
}

// PartPacked is Part for n pages that packed returns one by one, each to be used until the next one.
func (h *Handle) PartPacked(ctx context.Context, pageSize, pageCount uint32, n int, packed func(i int) (snapshot.PackedPage, error)) error {
	return h.part(ctx, pageSize, pageCount, func(p *pieces) error {
		return h.addPages(p, pageSize, pageCount, n, func(i int) (uint32, uint64, error) {
			f, err := packed(i)
			if err != nil {
				return 0, 0, err
			}
			sum, err := p.enc.Packed(f)
			return f.Pgno, sum, err
		})
	})
}

func (h *Handle) part(ctx context.Context, pageSize, pageCount uint32, add func(*pieces) error) error {
	p, err := h.pieces(pageSize, pageCount)
	if err == nil {
		err = add(p)
	}
	if err != nil {
		h.dropPieces()
		return err
	}
	if lease := h.svc.opts.WriteLease; time.Since(p.touched) > lease/4 {
		p.touched = time.Now()
		h.svc.touch(h.db.id, h.num)
	}
	return ctx.Err()
}

// HasParts says whether pieces were taken of a transaction that has not ended.
func (h *Handle) HasParts() bool {
	h.db.mu.Lock()
	defer h.db.mu.Unlock()
	return h.parts != nil
}

// pieces returns the transaction that is being sent, or begins it.
func (h *Handle) pieces(pageSize, pageCount uint32) (*pieces, error) {
	d := h.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.parts != nil {
		return h.parts, nil
	}
	if err := h.committableLocked(pageSize); err != nil {
		return nil, err
	}
	if err := h.admit(pageCount, 0); err != nil {
		return nil, err
	}
	local := &localCommit{id: NewEntryID(), handle: h, pre: h.base, post: Position{TXID: h.base.TXID + 1}, done: make(chan struct{})}
	p := &pieces{
		local: local, pageSize: pageSize, pageCount: pageCount, touched: time.Now(),
		steps: d.sums.steps(h.base.Checksum, pageSize, pageCount),
	}
	p.out.create = func() (*spool, error) { return h.svc.spools.create(local.id) }
	p.out.buf = make([]byte, 0, PartBytes)
	enc, err := snapshot.NewEncoder(&p.out, snapshot.Header{
		PageSize: pageSize, PageCount: pageCount, TXID: uint64(local.post.TXID), CommitTimeMillis: partsCommitMillis,
	})
	if err != nil {
		return nil, err
	}
	p.enc = enc
	d.local = local
	h.parts = p
	return p, nil
}

// committableLocked says why the handle's transaction cannot be committed, if so.
func (h *Handle) committableLocked(pageSize uint32) error {
	d := h.db
	switch {
	case !h.granted:
		return errors.New("the write was not granted")
	case d.deleted:
		return d.deletedError()
	case d.fenced != nil:
		return d.fenced
	case !d.known || d.position != h.base || d.local != nil:
		return errLostBase
	case pageSize != d.pageSize:
		return fmt.Errorf("pages of %d bytes, the database's have %d", pageSize, d.pageSize)
	}
	return nil
}

var errLostBase = errors.New("other transactions were committed since this one began (its lease ended)")

// add encodes the pages of a piece.
func (h *Handle) add(p *pieces, pageSize, pageCount uint32, pages []wal.Page) error {
	return h.addPages(p, pageSize, pageCount, len(pages), func(i int) (uint32, uint64, error) {
		sum, err := p.enc.Page(pages[i])
		return pages[i].Pgno, sum, err
	})
}

// addPages is add for n pages that encode writes one by one.
func (h *Handle) addPages(p *pieces, pageSize, pageCount uint32, n int, encode func(i int) (pgno uint32, sum uint64, err error)) error {
	if pageSize != p.pageSize || pageCount != p.pageCount {
		return fmt.Errorf("a piece for %d pages of %d bytes after one for %d of %d", pageCount, pageSize, p.pageCount, p.pageSize)
	}
	p.size += int64(n) * int64(pageSize)
	if err := h.db.quota.admitTransaction(p.size); err != nil {
		return err
	}
	if limit := h.svc.MaxTransaction(); p.size > limit {
		return &FullError{Size: p.size, Limit: limit}
	}
	if err := h.svc.diskFull(); err != nil {
		return &FullError{Size: p.size, Limit: h.svc.MaxTransaction(), Cause: err}
	}
	pgnos, sums := make([]uint32, n), make([]uint64, n)
	for i := range n {
		var err error
		if pgnos[i], sums[i], err = encode(i); err != nil {
			return h.full(p, err)
		}
	}
	return h.onBase(p, func(t sumTable) error {
		for i, pgno := range pgnos {
			if err := p.steps.add(t, pgno, sums[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// full gives a lack of space the type that the application is told about.
func (h *Handle) full(p *pieces, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &FullError{Size: p.size, Limit: h.svc.MaxTransaction(), Cause: err}
	}
	return err
}

// onBase runs f with the table of the position on which the transaction is based.
func (h *Handle) onBase(p *pieces, f func(sumTable) error) error {
	d := h.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.local != p.local || !d.known || d.position != p.local.pre {
		return errLostBase
	}
	return f(d.sums)
}

// dropPieces forgets a transaction of which only pieces came.
func (h *Handle) dropPieces() {
	d := h.db
	d.mu.Lock()
	p := h.parts
	h.parts = nil
	if p != nil && d.local == p.local {
		d.endLocalLocked(p.local)
	}
	d.mu.Unlock()
	if p != nil && p.out.spool != nil {
		p.out.spool.release()
	}
}

// CommitParts ends a transaction of which Part has taken pieces: pages are the last. It calls progress when
// parts or the quorum move forward. The commit timeout counts the time without progress.
func (h *Handle) CommitParts(ctx context.Context, pageSize, pageCount uint32, pages []wal.Page, progress func()) (Outcome, string) {
	d := h.db
	start := time.Now()
	d.mu.Lock()
	p := h.parts
	d.mu.Unlock()
	if p == nil {
		return OutcomeRefused, "no piece of the transaction was taken"
	}
	ctx, tick, stop := watchProgress(ctx, h.opts.CommitTimeout, progress)
	defer stop()
	outcome, text := OutcomeRefused, ""
	err := h.add(p, pageSize, pageCount, pages)
	if err == nil {
		err = h.finish(p)
	}
	if err != nil {
		outcome, text = refusalOf(err), err.Error()
	} else {
		outcome, text = h.proposePieces(ctx, p, tick)
	}
	d.mu.Lock()
	h.parts = nil
	switch {
	case d.local != p.local: // the application is gone; the applier redoes what was accepted
	case outcome == OutcomeAccepted:
		p.local.accepted = true
	default:
		d.endLocalLocked(p.local)
	}
	d.mu.Unlock()
	if p.out.spool != nil {
		p.out.spool.release()
	}
	if outcome == OutcomeAccepted {
		h.setHeld(false)
	}
	h.svc.metrics.commit(outcome, time.Since(start))
	return outcome, text
}

// finish completes the LTX file and computes the post position.
func (h *Handle) finish(p *pieces) error {
	if err := p.enc.Close(); err != nil {
		return h.full(p, err)
	}
	if !p.single() {
		if err := p.out.flush(); err != nil {
			return h.full(p, err)
		}
	}
	return h.onBase(p, func(t sumTable) (err error) {
		p.local.delta, p.local.post.Checksum, err = p.steps.end(t)
		return err
	})
}

// single says whether one entry holds the transaction after all.
func (p *pieces) single() bool { return p.out.parts == 0 && p.size <= maxSinglePages }

func (h *Handle) proposePieces(ctx context.Context, p *pieces, tick func()) (Outcome, string) {
	d, l := h.db, p.local
	d.mu.Lock()
	live, verified := d.live, d.verified
	d.mu.Unlock()
	meanwhile := func() error { return d.checkOldSums(live, h.basefp, l) }
	if !verified { // see Commit: nothing is built on what nobody has compared
		if err := meanwhile(); err != nil {
			d.svc.goroutine(func() { d.suspectAfterCommit(err) })
			return OutcomeRefused, err.Error()
		}
	}
	if p.single() {
		entry, err := EncodeTransaction(nil, &Transaction{
			DB: d.id, ID: l.id, Pre: l.pre, Post: l.post, PageSize: p.pageSize, PageCount: p.pageCount, LTX: p.out.buf,
		})
		if err != nil {
			return OutcomeRefused, err.Error()
		}
		return h.svc.commit(ctx, &proposal{db: d.id, id: l.id, handle: h.num, pre: l.pre, post: l.post, entry: entry,
			pageCount: p.pageCount, pages: uint32(p.enc.Pages()), meanwhile: meanwhile})
	}
	return h.svc.commitLarge(ctx, &largeProposal{
		proposal: proposal{db: d.id, id: l.id, handle: h.num, pre: l.pre, post: l.post,
			pageCount: p.pageCount, pages: uint32(p.enc.Pages()), meanwhile: meanwhile},
		final: Final{
			DB: d.id, ID: l.id, Pre: l.pre, Post: l.post, PageSize: p.pageSize, PageCount: p.pageCount,
			Pages: uint32(p.enc.Pages()), Count: p.out.parts, Size: uint64(p.out.bytes), Hash: p.out.hash,
		},
	}, p.out.spool, tick)
}

// checkOldSums compares the pages that a transaction replaces, as the application's files hold them, with
// the table (RULES B8), as checkOldPages does for one whose pages are in memory.
func (d *replica) checkOldSums(live LiveFile, base wal.Fingerprint, l *localCommit) error {
	snap, err := live.TryPin()
	if err != nil {
		return nil // a checkpoint runs: the scrubber sees the pages later
	}
	defer snap.Close()
	if !snap.Fingerprint().Matches(base) {
		return nil // the application restarted the log; the next apply compares
	}
	buf := make([]byte, d.pageSize)
	for _, pgno := range l.delta.pgnos {
		d.mu.Lock()
		gone := !d.known || d.position != l.pre || int(pgno) > len(d.sums)
		var want uint64
		if !gone {
			want = d.sums[pgno-1]
		}
		d.mu.Unlock()
		if gone {
			return nil
		}
		if err := snap.ReadPage(pgno, buf); err != nil {
			return nil
		}
		if pageSum(d.pageSize, pgno, buf) != want {
			return fmt.Errorf("page %d of the files is not what the table says: %w", pgno, errForeign)
		}
	}
	return nil
}

// watchProgress returns a context that ends when tick was not called for the time given, and calls progress
// for each tick, merging those that come faster than it returns. No call of it begins after stop, which waits for one that runs.
func watchProgress(parent context.Context, timeout time.Duration, progress func()) (ctx context.Context, tick, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ticks, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		for {
			select {
			case <-ticks:
				timer.Reset(timeout)
				if progress != nil {
					progress()
				}
			case <-timer.C:
				cancel(fmt.Errorf("no progress for %v: %w", timeout, context.DeadlineExceeded))
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() {
		select {
		case ticks <- struct{}{}:
		default:
		}
	}, func() { cancel(nil); <-done }
}

// applyLargeIO appends a large transaction to the files from its spool, page by page. The commit frame is
// written after the last page was compared, the LTX file verified and the checksum found to be the log's.
func (d *replica) applyLargeIO(ctx context.Context, live LiveFile, it item) error {
	start := time.Now()
	ltx, err := it.spool.ltx(it.size, it.pages, commitTimeMillis(it.commitTime))
	if err != nil {
		return unread(err)
	}
	dec, err := snapshot.NewStreamDecoder(ltx)
	if err != nil {
		return unread(err)
	}
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		return err
	}
	defer txn.End()
	d.mu.Lock()
	want := d.fingerprint
	d.lastUsed = time.Now()
	d.mu.Unlock()
	if !txn.Fingerprint().Matches(want) {
		if err := d.confirmIO(txn); err != nil {
			return err
		}
	}
	d.mu.Lock()
	sums := d.sums // nothing moves them: slot 0 is ours
	d.mu.Unlock()
	steps := sums.steps(it.pre.Checksum, d.pageSize, dec.Header().PageCount)
	var delta *sumDelta
	var cause error // of an end that is not the device's
	buf := make([]byte, d.pageSize)
	next := func() (wal.Page, error) {
		page, sum, err := dec.Next()
		switch {
		case errors.Is(err, io.EOF):
			delta, cause = d.finishLarge(steps, sums, it)
			if cause == nil {
				return wal.Page{}, io.EOF
			}
		case err != nil:
			cause = unread(err)
		default:
			if cause = d.compareOld(txn, sums, page.Pgno, buf, it.position.TXID); cause == nil {
				cause = steps.add(sums, page.Pgno, sum)
			}
		}
		return page, cause
	}
	fp, err := txn.AppendFrom(next, dec.Header().PageCount)
	switch {
	case cause != nil:
		return cause
	case err != nil:
		return deviceError{err}
	}
	d.mu.Lock()
	d.stepSumsLocked(delta)
	d.advanceLocked(it.position, fp)
	d.mu.Unlock()
	d.svc.metrics.apply(1, int(it.size), time.Since(start))
	if d.svc.opts.VerifyFull {
		return d.confirmIO(nil)
	}
	return nil
}

func (d *replica) finishLarge(steps *sumStep, sums sumTable, it item) (*sumDelta, error) {
	delta, sum, err := steps.end(sums)
	if err == nil && sum != it.position.Checksum {
		err = fmt.Errorf("checksum %s after transaction %s, the log says %s: %w", sum, it.position.TXID, it.position.Checksum, errDiverged)
	}
	return delta, err
}

// compareOld compares the image that a page has in the files with the table (RULES B8).
func (d *replica) compareOld(txn *wal.Txn, sums sumTable, pgno uint32, buf []byte, txid TXID) error {
	if int(pgno) > len(sums) {
		return nil
	}
	if err := txn.ReadPage(pgno, buf); err != nil {
		return unread(fmt.Errorf("read page %d: %w", pgno, err))
	}
	if pageSum(d.pageSize, pgno, buf) != sums[pgno-1] {
		return fmt.Errorf("page %d of the files is not what transaction %s left: %w", pgno, txid-1, errDiverged)
	}
	return nil
}
