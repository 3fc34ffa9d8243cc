package replicate

import (
	"context"
	"fmt"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// kept is what a node knows of a database that is not archived to its last commit. Its fields are guarded by the lock
// of the archiver.
type kept struct {
	id      DatabaseID
	made    DatabaseState // as it was when this was made; zero where it was deleted before
	deleted bool
	lost    bool // deleted, and what is missing of it cannot be had

	// entries are the commits from first on that follow each other up to last, by their entries in the log. Those
	// before it are in the backlog, or were dropped.
	first   TXID
	entries []keptCommit
	bytes   int64

	last     TXID // decided
	lastTime int64
	archived TXID // known

	uploader *uploading // nil: none runs
	opened   bool       // the archive was looked into
	jobs     int        // of others that need it
}

// keptCommit is a commit that the log has.
type keptCommit struct {
	index uint64
	time  int64
	size  int64
	spool *spool // of a large one, else nil
}

// uploading is an uploader that runs.
type uploading struct {
	u      *archive.Uploader
	cancel context.CancelFunc
	done   chan struct{}
}

func (a *archiver) keptLocked(id DatabaseID) *kept {
	k := a.kept[id]
	if k == nil {
		k = &kept{id: id}
		if st, ok := a.s.fsm.Get(id); ok {
			k.made = st
		}
		a.kept[id] = k
	}
	return k
}

// add takes a commit that was decided. It is called in the order of the log and does not wait.
func (a *archiver) add(id DatabaseID, txid TXID, c keptCommit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if txid == 1 { // an empty database is archived with its first transaction
		return
	}
	k := a.keptLocked(id)
	switch {
	case len(k.entries) == 0:
		k.first = txid
	case txid != k.first+TXID(len(k.entries)):
		k.drop(len(k.entries)) // a hole
		k.first = txid
	}
	if c.spool != nil {
		c.spool.hold()
	}
	k.entries = append(k.entries, c)
	k.bytes += c.size
	k.last, k.lastTime = txid, c.time
	if k.uploader != nil {
		k.uploader.u.Notify()
		return
	}
	if a.archive != nil {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// drop forgets the first n commits.
func (k *kept) drop(n int) {
	for i := range n {
		c := &k.entries[i]
		k.bytes -= c.size
		if c.spool != nil {
			c.spool.release()
		}
		*c = keptCommit{}
	}
	k.first += TXID(n)
	if k.entries = k.entries[n:]; len(k.entries) == 0 {
		k.entries = nil
	}
}

// dropTo forgets the commits up to one.
func (k *kept) dropTo(txid TXID) {
	if txid >= k.first {
		k.drop(min(int(txid-k.first)+1, len(k.entries)))
	}
}

// noteFork takes a fork that can be used: it is archived by a snapshot, before anybody writes into it.
func (a *archiver) noteFork(st DatabaseState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.keptLocked(st.ID)
	k.last, k.lastTime = max(k.last, st.Position.TXID), max(k.lastTime, st.CommitTime)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// noteDeleted notes that a database is gone: what it was is archived nevertheless.
func (a *archiver) noteDeleted(id DatabaseID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := a.kept[id]; k != nil {
		k.deleted = true
	}
}

// giveUp notes that what is missing of a deleted database cannot be had: no state of it is left to make a snapshot of.
func (a *archiver) giveUp(id DatabaseID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.kept[id]
	if k == nil || k.lost {
		return
	}
	k.lost = true
	a.s.log.Error("the last commits of a deleted database are not in the archive and cannot be had any more", "db", k.made.Name, "id", id.String(),
		"txid", k.archived.String(), "last", k.last.String())
	a.forgetLocked(id, k.last)
}

// rebase follows the state machine to a manifest: what was kept of a database that has moved on otherwise is not needed
// any more, or cannot be had here.
func (a *archiver) rebase(states []DatabaseState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, st := range states {
		if st.Position.TXID == 1 || st.Pending {
			continue
		}
		k := a.keptLocked(st.ID)
		if st.Position.TXID > k.last && len(k.entries) > 0 {
			k.drop(len(k.entries))
		}
		k.last, k.lastTime = max(k.last, st.Position.TXID), max(k.lastTime, st.CommitTime)
		if !a.opts.Local {
			a.forgetLocked(st.ID, st.Archived)
		}
	}
	for id, k := range a.kept {
		if _, _, gone := a.s.fsm.Tombstone(id); gone {
			k.deleted = true // between this node's last entry and the manifest
		}
	}
}

// keep moves what is decided up to a manifest's positions and not archived from the log into the backlog, durably. What
// there is no room for is dropped: it is a gap, and the log must be free to go on.
func (a *archiver) keep(ctx context.Context, states []DatabaseState) error {
	a.keepMu.Lock()
	defer a.keepMu.Unlock()
	limits := make(map[DatabaseID]TXID, len(states))
	for _, st := range states {
		limits[st.ID] = st.Position.TXID
	}
	type move struct {
		k    *kept
		upTo TXID
	}
	var moves []move
	a.mu.Lock()
	for id, k := range a.kept {
		limit, ok := limits[id]
		if !ok && k.deleted {
			limit = k.last
		}
		if len(k.entries) > 0 && k.first <= limit {
			moves = append(moves, move{k, min(limit, k.first+TXID(len(k.entries))-1)})
		}
	}
	a.mu.Unlock()
	for _, m := range moves {
		if err := a.moveOut(ctx, m.k, m.upTo); err != nil {
			return err
		}
	}
	if len(moves) == 0 {
		return nil
	}
	if err := a.backlog.Sync(); err != nil {
		a.s.metrics.error("archive_backlog")
		return fmt.Errorf("keep the log: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range moves {
		m.k.dropTo(m.upTo)
	}
	return nil
}

// moveOut copies commits into the backlog.
func (a *archiver) moveOut(ctx context.Context, k *kept, upTo TXID) error {
	from := TXID(0) // what it has dropped meanwhile is not tried again
	for ctx.Err() == nil {
		a.mu.Lock()
		from = max(from, k.first)
		a.mu.Unlock()
		if _, last, ok := a.backlog.Bounds(k.id.String()); ok {
			from = max(from, TXID(last.TXID)+1)
		}
		if from > upTo {
			return nil
		}
		if err := a.room(0); err != nil {
			a.s.metrics.error("archive_backlog")
			a.s.log.Warn("commits are not kept for the archive: a snapshot stands in for them", "id", k.id.String(), "txid", from.String(), "err", err)
			return nil
		}
		batch, err := a.fromLog(ctx, k.id, from, min(int(upTo-from)+1, moveCommits), moveBytes)
		if err == nil {
			from += TXID(len(batch.Commits))
			for _, c := range batch.Commits {
				if err = a.backlog.Add(k.id.String(), c); err != nil {
					break
				}
			}
			batch.Close()
		}
		if err != nil && ctx.Err() == nil {
			a.s.metrics.error("archive_backlog")
			a.s.log.Warn("commits are not kept for the archive: they are fetched from a peer, or a snapshot stands in", "id", k.id.String(), "txid", from.String(), "err", err)
			return nil
		}
	}
	return ctx.Err()
}

const (
	moveCommits = 256
	moveBytes   = 8 << 20
)
