package replicate

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// Commit proposes the transaction and returns its verdict. pages are ascending, and belong to the callee.
func (h *Handle) Commit(ctx context.Context, pageSize, pageCount uint32, pages []wal.Page) (Outcome, string) {
	d := h.db
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, h.opts.CommitTimeout)
	defer cancel()
	d.mu.Lock()
	err := h.committableLocked(pageSize)
	if err == nil {
		err = h.admit(pageCount, int64(len(pages))*int64(pageSize))
	}
	if err != nil {
		d.mu.Unlock()
		outcome := refusalOf(err)
		h.svc.metrics.commit(outcome, time.Since(start))
		return outcome, err.Error()
	}
	local := &localCommit{id: NewEntryID(), handle: h, pre: h.base, post: Position{TXID: h.base.TXID + 1}, done: make(chan struct{})}
	d.local = local
	live, sums := d.live, d.sums // nothing moves them while local is set
	verified := d.verified
	d.mu.Unlock()

	outcome, text := OutcomeRefused, ""
	p := &proposal{}
	entry, err := local.encode(d, sums, pageCount, pages)
	if err == nil && !verified {
		// After an unclean stop pages may differ that nobody has compared: what a foreign program wrote must not
		// be built on.
		if err = d.checkOldPages(live, sums, h.basefp, pages); err != nil {
			d.svc.goroutine(func() { d.suspectAfterCommit(err) })
		}
	}
	if err != nil {
		text = err.Error()
	} else {
		p = &proposal{
			db: d.id, id: local.id, handle: h.num, pre: local.pre, post: local.post, entry: entry, keep: h.quick,
			pageCount: pageCount, pages: uint32(len(pages)),
			meanwhile: func() error { return d.checkOldPages(live, sums, h.basefp, pages) },
		}
		outcome, text = h.svc.commit(ctx, p)
	}
	d.mu.Lock()
	switch {
	case d.local != local: // the application is gone; the applier redoes what was accepted
	case outcome == OutcomeAccepted:
		local.accepted = true
	default:
		d.endLocalLocked(local)
	}
	d.mu.Unlock()
	// Accepting it, the leader has ended the cluster lock, or left it with this handle. What refused it may never have
	// reached the leader, and where the leader's answer was not heard nobody knows: End gives the lock back.
	h.kept = outcome == OutcomeAccepted && p.kept && h.writable() == nil
	if outcome == OutcomeAccepted && p.ended {
		h.setHeld(false)
	}
	h.svc.metrics.commit(outcome, time.Since(start))
	return outcome, text
}

// admit asks this node's limit and quota.
func (h *Handle) admit(pageCount uint32, size int64) error {
	if limit := h.svc.MaxTransaction(); size > limit {
		return &FullError{Size: size, Limit: limit}
	}
	q := h.db.quota
	if err := q.admitSize(h.db.pageSize, h.basefp.PageCount, pageCount); err != nil {
		return err
	}
	return q.admitTransaction(size)
}

// scratch are buffers for entries that are being encoded. Their pages are mostly compressed to a small part of what
// they could take, and the log, raft and the appliers keep the entry for a while.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// maxScratch is the largest buffer that is kept; a larger entry stays where it was encoded.
const maxScratch = 64 << 10

// encode makes the log entry of the transaction and computes its post position on the way. Term and commit
// time are the leader's to stamp.
func (l *localCommit) encode(d *replica, sums sumTable, pageCount uint32, pages []wal.Page) ([]byte, error) {
	bound := TransactionBound(d.pageSize, len(pages))
	if bound > maxScratch {
		return l.encodeTo(make([]byte, 0, bound), d, sums, pageCount, pages)
	}
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	*buf = slices.Grow((*buf)[:0], bound)
	entry, err := l.encodeTo(*buf, d, sums, pageCount, pages)
	return slices.Clone(entry), err
}

func (l *localCommit) encodeTo(entry []byte, d *replica, sums sumTable, pageCount uint32, pages []wal.Page) ([]byte, error) {
	entry = EncodeTransactionHeader(entry, &Transaction{DB: d.id, ID: l.id, Pre: l.pre, PageSize: d.pageSize, PageCount: pageCount})
	entry, pageSums, err := snapshot.EncodeTransactionSums(entry, snapshot.Header{
		PageSize: d.pageSize, PageCount: pageCount, TXID: uint64(l.post.TXID), CommitTimeMillis: 1,
	}, pages, make([]uint64, 0, len(pages)), true)
	if err != nil {
		return nil, err
	}
	if l.delta, l.post.Checksum, err = sums.step(l.pre.Checksum, d.pageSize, pageCount, pages, pageSums); err != nil {
		return nil, err
	}
	return FinishTransaction(entry, 0, l.post)
}

// checkOldPages compares the pages that a transaction replaces, as the application's files hold them,
// with the table (RULES B8). The application holds slot 0: nothing moves. It runs while the log is written.
func (d *replica) checkOldPages(live LiveFile, sums sumTable, base wal.Fingerprint, pages []wal.Page) error {
	snap, err := live.TryPin()
	if err != nil {
		return nil // a checkpoint runs: the scrubber sees the pages later
	}
	defer snap.Close()
	if !snap.Fingerprint().Matches(base) {
		return nil // the application restarted the log; the next apply compares
	}
	buf := make([]byte, d.pageSize)
	for _, p := range pages {
		if int(p.Pgno) > len(sums) {
			break
		}
		if err := snap.ReadPage(p.Pgno, buf); err != nil {
			return nil
		}
		if pageSum(d.pageSize, p.Pgno, buf) != sums[p.Pgno-1] {
			return fmt.Errorf("page %d of the files is not what the table says: %w", p.Pgno, errForeign)
		}
	}
	return nil
}
