package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// ErrUnknown says that a change was proposed and its verdict was not heard: it may or may not have taken effect.
var ErrUnknown = errors.New("whether it took effect is not known")

// Content is a state that a database is to get.
type Content interface {
	PageCount() uint32
	ReadPage(pgno uint32, buf []byte) error
}

// Overwrite says how a database is given other content.
type Overwrite struct {
	PageSize uint32 // of the content
	// Import: the database is empty, at this position, and gets the content as it is. Content that is larger than one
	// transaction should be goes in several: page 1 comes with the last, and before that the database is empty for
	// everybody. Otherwise, with zero, only pages that differ travel, in one transaction, and page 1 gets counters that
	// no connection has seen (RULES A7).
	Import Position
	// Hold bounds for how long the write lock is held before the transaction is proposed. When that is over the
	// lock is let go, and another round begins, with what was put together before. 0: no bound.
	Hold time.Duration
	// Wait is for how long other writers are waited for.
	Wait time.Duration
	// DryRun only counts the pages.
	DryRun bool
	// Progress is told of pages that were looked at.
	Progress func(step string, done, total int64)
}

// Overwritten is what became of it.
type Overwritten struct {
	Before, After Position
	CommitTime    int64  // of After, microseconds; of Before, if nothing had to be changed
	Pages         uint32 // that travelled
	PageCount     uint32 // of the database now
	Rounds        int
}

const (
	// importChunk is what one transaction of an import has, in bytes of pages, if it is not all.
	importChunk = 64 << 20
	// overwriteRounds is how often the lock is taken and let go again.
	overwriteRounds = 5
	// pieceBytes is what is given to the proposer at a time.
	pieceBytes = 1 << 20
	// beginPause is between two attempts to begin.
	beginPause = 10 * time.Millisecond
	// importRetries is how often one transaction of an import is tried again.
	importRetries = 5
)

// errHeldLong says that the lock was held for as long as it may be.
var errHeldLong = fmt.Errorf("more pages differ than can be put together while the writers are kept waiting: %w", ErrHeldLong)

// ErrHeldLong says that a database was not overwritten because its writers would have had to wait for longer than
// Overwrite.Hold.
var ErrHeldLong = errors.New("the write lock would be held for too long")

// errRefused says that a transaction was proposed and is definitely not accepted.
var errRefused = fmt.Errorf("refused: %w", ErrConflict)

// Overwrite gives a database other content, by transactions like those of an application. Open readers keep their
// snapshots. An error that is no ErrUnknown says that the database is as it was; after a failed import of several
// transactions it is empty.
func (s *Service) Overwrite(ctx context.Context, id DatabaseID, content Content, o Overwrite) (*Overwritten, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	d, ok := s.replica(id)
	if !ok {
		return nil, ErrNotFound
	}
	if o.PageSize != d.pageSize {
		return nil, fmt.Errorf("overwrite database %q: the content has pages of %d bytes, the database of %d: %w", d.name, o.PageSize, d.pageSize, ErrInvalid)
	}
	h, _, err := s.OpenHandle(ctx, id, HandleOptions{PID: os.Getpid(), LockTimeout: o.Wait, CommitTimeout: overwritePatience})
	if err != nil {
		return nil, fmt.Errorf("overwrite database %q: %w", d.name, err)
	}
	defer h.Close()
	w := &overwriter{h: h, d: d, content: content, o: o, buf: make([]byte, o.PageSize), packer: snapshot.NewPacker(o.PageSize)}
	if o.Import != (Position{}) {
		err = w.fill(ctx)
	} else {
		err = w.replace(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("overwrite database %q: %w", d.name, err)
	}
	return &w.done, nil
}

// overwritePatience is how long a transaction may make no progress.
const overwritePatience = 30 * time.Second

// overwriter is one call of Overwrite.
type overwriter struct {
	h       *Handle
	d       *replica
	content Content
	o       Overwrite
	buf     []byte
	packer  *snapshot.Packer
	ready   *readyPages // of pages that differ, made without the lock
	done    Overwritten

	sent Position // that the last transaction proposed leads to
	next uint32   // the page with which an import goes on after it
}

// begin takes the write lock and returns the page checksums and page 1 of the state under it.
func (w *overwriter) begin(ctx context.Context) (base Position, sums sumTable, first []byte, err error) {
	// A begin that waits may be sent away, for the log of the files to be cut: it comes back as an application would.
	var fp wal.Fingerprint
	for end := time.Now().Add(w.o.Wait); ; {
		if base, fp, err = w.h.Begin(ctx); err == nil {
			break
		}
		var busy *BusyError
		if !errors.As(err, &busy) || time.Now().After(end) || !w.h.svc.pauseFor(ctx, beginPause) {
			return base, nil, nil, err
		}
	}
	w.d.mu.Lock()
	live := w.d.live
	if w.d.known && w.d.position == base {
		sums = append(sums, w.d.sums...)
	}
	w.d.mu.Unlock()
	if sums == nil || live == nil {
		w.end()
		return base, nil, nil, errLostBase
	}
	snap, err := live.Pin()
	if err != nil {
		w.end()
		return base, nil, nil, err
	}
	defer snap.Close()
	first = make([]byte, w.o.PageSize)
	if err = snap.ReadPage(1, first); err == nil && (!snap.Fingerprint().Matches(fp) || pageSum(w.o.PageSize, 1, first) != sums[0]) {
		err = errForeign
	}
	if err != nil {
		w.end()
	}
	return base, sums, first, err
}

// end gives the lock back. What was accepted is written into the files here by the applier, as on every other node.
func (w *overwriter) end() { w.h.End(false, wal.Fingerprint{}, false) }

// Offsets in page 1.
const (
	pageChangeCounter = 24
	pageSchemaCookie  = 40
	pageValidFor      = 92
)

// successor makes page 1 of a state that follows the one with page 1 now: its counters are ones that no connection has
// cached anything under (RULES A7).
func successor(first, now []byte) {
	next := func(offset int) uint32 { return binary.BigEndian.Uint32(now[offset:]) + 1 }
	change := next(pageChangeCounter)
	binary.BigEndian.PutUint32(first[pageSchemaCookie:], next(pageSchemaCookie))
	binary.BigEndian.PutUint32(first[pageChangeCounter:], change)
	binary.BigEndian.PutUint32(first[pageValidFor:], change)
}

// replace makes the database equal to the content, but for the counters, in one transaction.
func (w *overwriter) replace(ctx context.Context) error {
	want, err := w.sums(ctx)
	if err != nil {
		return err
	}
	if w.o.DryRun {
		return w.count(ctx, want)
	}
	if w.ready, err = newReadyPages(w.h.svc.spools); err != nil {
		return err
	}
	defer w.ready.close()
	for w.done.Rounds = 1; ; w.done.Rounds++ {
		if err := w.prepare(ctx, want); err != nil {
			return err
		}
		err := w.round(ctx, want)
		again := errors.Is(err, errHeldLong) || errors.Is(err, errRefused) // nothing has happened
		if !again || w.done.Rounds == overwriteRounds || ctx.Err() != nil {
			return err
		}
	}
}

// sums reads all of the content, without any lock.
func (w *overwriter) sums(ctx context.Context) (sumTable, error) {
	count := w.content.PageCount()
	want := make(sumTable, count)
	for i := range want {
		pgno := uint32(i) + 1
		if pgno%1024 == 0 {
			w.o.Progress("compare", int64(pgno)*int64(w.o.PageSize), int64(count)*int64(w.o.PageSize))
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		if pgno == snapshot.LockPgno(w.o.PageSize) {
			continue
		}
		if err := w.content.ReadPage(pgno, w.buf); err != nil {
			return nil, fmt.Errorf("read page %d: %w", pgno, err)
		}
		want[i] = pageSum(w.o.PageSize, pgno, w.buf)
	}
	return want, nil
}

// differing returns the pages of the content that the state with the checksums have does not have, page 1 always.
func differing(want, have sumTable) []uint32 {
	list := []uint32{1}
	for i := 1; i < len(want); i++ {
		if want[i] != 0 && (i >= len(have) || have[i] != want[i]) {
			list = append(list, uint32(i)+1)
		}
	}
	return list
}

// count says what replace would do now.
func (w *overwriter) count(ctx context.Context, want sumTable) error {
	snap, pos, have, err := w.d.pinSums(ctx, 0)
	if err != nil {
		return err
	}
	defer snap.Close()
	w.done.Before, w.done.After, w.done.PageCount = pos, pos, uint32(len(want))
	pages := differing(want, have)
	first := make([]byte, w.o.PageSize)
	if err := snap.ReadPage(1, first); err != nil {
		return err
	}
	if same, err := w.same(pages, want, have, first); err != nil || same {
		return err
	}
	w.done.Pages = uint32(len(pages))
	return nil
}

// same says whether a state has the content already, but for the counters in page 1, which is now. Those count what was
// done to a file, a replacement too, and are no content.
func (w *overwriter) same(pages []uint32, want, have sumTable, now []byte) (bool, error) {
	if len(pages) > 1 || len(want) != len(have) {
		return false, nil
	}
	if err := w.content.ReadPage(1, w.buf); err != nil {
		return false, fmt.Errorf("read page 1: %w", err)
	}
	for _, at := range []int{pageChangeCounter, pageSchemaCookie, pageValidFor} {
		copy(w.buf[at:at+4], now[at:at+4])
	}
	return bytes.Equal(w.buf, now), nil
}

// prepare puts together, without any lock, the pages that differ now and are not ready yet, so that under the lock only
// those remain that have changed since (RULES A7).
func (w *overwriter) prepare(ctx context.Context, want sumTable) error {
	pctx, cancel := context.WithTimeout(ctx, pinPatience)
	snap, _, have, err := w.d.pinSums(pctx, 0)
	cancel()
	if err != nil {
		return err
	}
	snap.Close()
	pages := differing(want, have)
	size := int64(w.o.PageSize)
	if limit := w.h.svc.MaxTransaction(); int64(len(pages))*size > limit {
		return &FullError{Size: int64(len(pages)) * size, Limit: limit}
	}
	for i, pgno := range pages[1:] {
		if w.ready.has(pgno) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := w.h.svc.diskFull(); err != nil {
			return &FullError{Size: int64(len(pages)) * size, Limit: w.h.svc.MaxTransaction(), Cause: err}
		}
		f, err := w.pack(pgno)
		if err == nil {
			err = w.ready.put(f)
		}
		if err != nil {
			return err
		}
		w.o.Progress("prepare", int64(i+1)*size, int64(len(pages)-1)*size)
	}
	return nil
}

// pack reads a page of the content.
func (w *overwriter) pack(pgno uint32) (snapshot.PackedPage, error) {
	if err := w.content.ReadPage(pgno, w.buf); err != nil {
		return snapshot.PackedPage{}, fmt.Errorf("read page %d: %w", pgno, err)
	}
	return w.packer.Pack(wal.Page{Pgno: pgno, Data: w.buf})
}

func (w *overwriter) round(ctx context.Context, want sumTable) error {
	base, have, now, err := w.begin(ctx)
	if err != nil {
		return err
	}
	held := time.Now()
	w.done.Before = base
	pages := differing(want, have)
	same, err := w.same(pages, want, have, now)
	if err != nil {
		w.end()
		return err
	}
	if same {
		w.end()
		w.done.After, w.done.PageCount = base, uint32(len(have))
		w.stamp(base)
		return nil
	}
	if err := w.content.ReadPage(1, w.buf); err != nil {
		w.end()
		return fmt.Errorf("read page 1: %w", err)
	}
	first := append([]byte{}, w.buf...)
	successor(first, now)
	return w.commit(ctx, pages, uint32(len(want)), first, func() error {
		if w.o.Hold > 0 && time.Since(held) > w.o.Hold {
			return errHeldLong
		}
		return nil
	})
}

// Empty returns the position of a database that has nothing in it, as one that was made and never written, or that an import
// was cut off in: page 1 is the one that every database begins with. A zero position says that it has something, or that
// this node cannot tell.
func (s *Service) Empty(ctx context.Context, id DatabaseID) (Position, error) {
	d, ok := s.replica(id)
	st, known := s.fsm.Get(id)
	if !ok || !known {
		return Position{}, ErrNotFound
	}
	if st.Pending {
		return Position{}, nil
	}
	image, err := wal.EmptyDatabase(st.PageSize, st.AutoVacuum)
	if err != nil {
		return Position{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, pinPatience)
	defer cancel()
	snap, pos, err := d.pin(ctx, st.Position.TXID)
	if err != nil {
		return Position{}, fmt.Errorf("look into database %q: %w", d.name, err)
	}
	defer snap.Close()
	first := make([]byte, st.PageSize)
	if err := snap.ReadPage(1, first); err != nil {
		return Position{}, fmt.Errorf("look into database %q: %w", d.name, err)
	}
	if !bytes.Equal(first, image) {
		return Position{}, nil
	}
	return pos, nil
}

// fill gives an empty database its content.
func (w *overwriter) fill(ctx context.Context) error {
	count := w.content.PageCount()
	limit := min(int64(importChunk), w.h.svc.MaxTransaction())
	if q := w.d.quota; q != nil && q.Transaction > 0 {
		limit = min(limit, q.Transaction)
	}
	chunk := uint32(max(1, limit/int64(w.o.PageSize)))
	var last Position
	refused := 0
	for from := uint32(2); ; {
		base, _, now, err := w.begin(ctx)
		if err != nil {
			return err
		}
		if last.TXID == 0 {
			w.done.Before = base
		}
		if last.TXID != 0 && base == w.sent { // its verdict was not heard: it is accepted
			last, from = base, w.next
			if from > count+1 {
				w.end()
				w.accepted(ctx, base, count)
				return nil
			}
		}
		if last.TXID == 0 && base != w.o.Import || last.TXID != 0 && base != last {
			w.end()
			return fmt.Errorf("somebody else has written into it (it is at transaction %s): %w", base.TXID, ErrConflict)
		}
		// Page 1 comes with the last.
		whole := count-from+2 <= chunk
		var pages []uint32
		var first []byte
		to := count
		if whole {
			if err := w.content.ReadPage(1, w.buf); err != nil {
				w.end()
				return fmt.Errorf("read page 1: %w", err)
			}
			first = append([]byte{}, w.buf...)
			imported(first, now)
			pages = append(pages, 1)
		} else {
			to = from + chunk - 1
		}
		for pgno := from; pgno <= to; pgno++ {
			if pgno != snapshot.LockPgno(w.o.PageSize) {
				pages = append(pages, pgno)
			}
		}
		if last.TXID == 0 {
			last = base
		}
		if w.next = to + 1; whole {
			w.next = count + 2
		}
		err = w.commit(ctx, pages, to, first, func() error { return nil })
		switch {
		case err == nil && whole:
			return nil
		case err == nil:
			last, from, refused = w.done.After, to+1, 0
		case ctx.Err() == nil && refused < importRetries && (errors.Is(err, errRefused) || errors.Is(err, ErrUnknown)):
			refused++ // the leader changed, perhaps; where the database stands the next begin tells
			w.d.log.Debug("a transaction of an import is sent again", "err", err)
		default:
			return err
		}
	}
}

// imported changes page 1 of the content if it has to be: who has the empty database open has cached its schema, and must
// not find the same cookie with another.
func imported(first, now []byte) {
	if cookie := binary.BigEndian.Uint32(first[pageSchemaCookie:]); cookie == binary.BigEndian.Uint32(now[pageSchemaCookie:]) {
		binary.BigEndian.PutUint32(first[pageSchemaCookie:], cookie+1)
	}
}

// commit proposes one transaction of pages of the content, of which page 1 is first, and returns when it is accepted and
// this node's files have had their time to show it. The write lock has been taken, and is given back. check is asked while pages are encoded.
func (w *overwriter) commit(ctx context.Context, pages []uint32, pageCount uint32, first []byte, check func() error) error {
	size := int(w.o.PageSize)
	total := int64(w.content.PageCount()) * int64(size)
	last := pages[len(pages)-1]
	for len(pages) > 0 {
		n := min(len(pages), max(1, pieceBytes/size))
		err := w.h.PartPacked(ctx, w.o.PageSize, pageCount, n, func(i int) (snapshot.PackedPage, error) {
			switch pgno := pages[i]; {
			case pgno == 1:
				return w.packer.Pack(wal.Page{Pgno: 1, Data: first})
			case w.ready.has(pgno):
				return w.ready.get(pgno)
			default:
				return w.pack(pgno)
			}
		})
		done := pages[n-1]
		if pages = pages[n:]; err == nil && len(pages) > 0 {
			err = check()
		}
		if err != nil {
			w.end()
			return err
		}
		w.o.Progress("write", int64(done)*int64(size), total)
	}
	return w.propose(ctx, pageCount, last)
}

func (w *overwriter) propose(ctx context.Context, pageCount, last uint32) error {
	w.d.mu.Lock()
	local := w.h.parts.local
	w.d.mu.Unlock()
	total := int64(w.content.PageCount()) * int64(w.o.PageSize)
	defer func() { w.sent = local.post }()
	outcome, text := w.h.CommitParts(ctx, w.o.PageSize, pageCount, nil, func() { w.o.Progress("replicate", int64(last)*int64(w.o.PageSize), total) })
	w.end()
	switch outcome {
	case OutcomeAccepted:
	case OutcomeUnknown:
		return fmt.Errorf("%s: %w", text, ErrUnknown)
	case OutcomeFull:
		return fmt.Errorf("%s: %w", text, ErrInvalid)
	default:
		return fmt.Errorf("%s: %w", text, errRefused)
	}
	w.done.Pages += uint32(len(local.delta.pgnos))
	w.accepted(ctx, local.post, pageCount)
	return nil
}

// accepted notes what is committed, and gives this node's files their time to show it.
func (w *overwriter) accepted(ctx context.Context, post Position, pageCount uint32) {
	w.done.After, w.done.PageCount = post, pageCount
	wctx, cancel := context.WithTimeout(ctx, overwritePatience)
	defer cancel()
	if err := w.d.waitPosition(wctx, post.TXID); err != nil {
		w.d.log.Warn("a transaction of this node is committed, and its own files do not show it", "txid", post.TXID.String(), "err", err)
	}
	w.stamp(post)
}

// stamp notes the commit time of a position.
func (w *overwriter) stamp(p Position) { w.done.CommitTime = w.h.svc.commitTime(w.d.id, p) }
