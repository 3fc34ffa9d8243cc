package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/wal"
)

// archiveSource is what an uploader has of a database.
type archiveSource struct {
	a  *archiver
	id DatabaseID
}

// Position implements archive.Source.
func (s *archiveSource) Position() (txid uint64, time int64) {
	if st, ok := s.a.s.fsm.Get(s.id); ok {
		return uint64(st.Position.TXID), st.CommitTime
	}
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if k := s.a.kept[s.id]; k != nil {
		return uint64(k.last), k.lastTime
	}
	return 0, 0
}

// Archived implements archive.Source.
func (s *archiveSource) Archived(txid uint64) { s.a.archived(s.id, TXID(txid)) }

// Commits implements archive.Source: what this node has, else what a peer has.
func (s *archiveSource) Commits(ctx context.Context, from uint64, count int, size int64) (*archive.Batch, error) {
	if from == 1 {
		return s.beginning(ctx, count, size)
	}
	batch, err := s.a.local(ctx, s.id, TXID(from), count, size)
	if !errors.Is(err, archive.ErrNotInBacklog) {
		return batch, err
	}
	if batch, ok := s.a.fromPeers(ctx, s.id, TXID(from)); ok {
		return batch, nil
	}
	return nil, err
}

// beginning returns the creation of a database with the commits that follow it. An archive does not begin with an empty
// database where nobody has these any more: it would be the state of all times up to the snapshot that stands in.
func (s *archiveSource) beginning(ctx context.Context, count int, size int64) (*archive.Batch, error) {
	made, last, err := s.a.creation(s.id)
	if err != nil || last == 1 {
		return archive.NewBatch([]archive.Commit{made}, nil), err
	}
	batch, err := s.Commits(ctx, 2, max(1, count-1), size)
	if err != nil {
		return nil, err
	}
	return archive.NewBatch(append([]archive.Commit{made}, batch.Commits...), batch.Close), nil
}

// local returns commits that this node has.
func (a *archiver) local(ctx context.Context, id DatabaseID, from TXID, count int, size int64) (*archive.Batch, error) {
	batch, err := a.backlog.Range(id.String(), uint64(from), count, size)
	if err == nil && len(batch.Commits) > 0 || err != nil && !errors.Is(err, archive.ErrNotInBacklog) {
		return batch, err
	}
	return a.fromLog(ctx, id, from, count, size)
}

// creation returns the first commit of a database, which is in no log entry but follows from one, and the last one that
// is decided.
func (a *archiver) creation(id DatabaseID) (made archive.Commit, last TXID, err error) {
	st, ok := a.s.fsm.Get(id)
	last = st.Position.TXID
	if !ok {
		a.mu.Lock()
		if k := a.kept[id]; k != nil {
			st, ok, last = k.made, k.made.PageSize != 0, k.last
		}
		a.mu.Unlock()
	}
	if ok && !st.Source.IsZero() {
		return made, 0, fmt.Errorf("database %s begins as a fork, with a snapshot: %w", id, archive.ErrNotInBacklog)
	}
	if !ok {
		return made, 0, fmt.Errorf("the creation of database %s: %w", id, archive.ErrNotInBacklog)
	}
	image, err := wal.EmptyDatabase(st.PageSize, st.AutoVacuum)
	if err != nil {
		return made, 0, err
	}
	ltx, err := snapshot.EncodeTransaction(nil, snapshot.Header{
		PageSize: st.PageSize, PageCount: 1, TXID: 1, CommitTimeMillis: commitTimeMillis(st.CreatedTime),
	}, []wal.Page{{Pgno: 1, Data: image}})
	if err != nil {
		return made, 0, err
	}
	return archive.Commit{
		TXID: 1, Time: st.CreatedTime, Post: snapshot.Roll(snapshot.ChecksumFlag, snapshot.PageSum(1, image)), LTX: bytes.NewReader(ltx),
	}, last, nil
}

// fromLog returns commits that are in the log.
func (a *archiver) fromLog(ctx context.Context, id DatabaseID, from TXID, count int, size int64) (*archive.Batch, error) {
	gone := func(why any) error {
		return fmt.Errorf("commit %s of %s: %v: %w", from, id, why, archive.ErrNotInBacklog)
	}
	a.mu.Lock()
	var list []keptCommit
	k := a.kept[id]
	if k != nil && len(k.entries) > 0 && from >= k.first && from < k.first+TXID(len(k.entries)) {
		list = append(list, k.entries[from-k.first:][:min(count, len(k.entries)-int(from-k.first))]...)
		for _, c := range list {
			if c.spool != nil {
				c.spool.hold()
			}
		}
	}
	a.mu.Unlock()
	release := func() {
		for _, c := range list {
			if c.spool != nil {
				c.spool.release()
			}
		}
	}
	if len(list) == 0 {
		return nil, gone("the log has no entry of it")
	}
	var commits []archive.Commit
	for i, c := range list {
		if size -= c.size; size < 0 && i > 0 {
			break
		}
		commit, err := a.logCommit(ctx, id, from+TXID(i), c)
		if err != nil {
			if i > 0 {
				break
			}
			release()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, gone(err)
		}
		commits = append(commits, commit)
	}
	return archive.NewBatch(commits, release), nil
}

// logCommit reads one commit back from the log, a large one from its parts.
func (a *archiver) logCommit(ctx context.Context, id DatabaseID, txid TXID, c keptCommit) (archive.Commit, error) {
	if c.spool == nil {
		t, err := logged[*Transaction](a.s, c.index)
		if err != nil {
			return archive.Commit{}, err
		}
		if t.DB != id || t.Post.TXID != txid {
			return archive.Commit{}, fmt.Errorf("log entry %d has transaction %s of %s", c.index, t.Post.TXID, t.DB)
		}
		return archive.Commit{TXID: uint64(txid), Time: t.CommitTime, Post: uint64(t.Post.Checksum), LTX: bytes.NewReader(t.LTX), Sound: true}, nil
	}
	f, err := logged[*Final](a.s, c.index)
	if err != nil {
		return archive.Commit{}, err
	}
	if f.DB != id || f.Post.TXID != txid || f.Size > math.MaxInt64 {
		return archive.Commit{}, fmt.Errorf("log entry %d has transaction %s of %s", c.index, f.Post.TXID, f.DB)
	}
	size := int64(f.Size)
	if err := c.spool.wait(ctx, size); err != nil {
		return archive.Commit{}, err
	}
	body, err := snapshot.RestampAt(c.spool.file, size, int(f.Pages), commitTimeMillis(f.CommitTime))
	if err != nil {
		return archive.Commit{}, err
	}
	return archive.Commit{TXID: uint64(txid), Time: f.CommitTime, Post: uint64(f.Post.Checksum), LTX: body}, nil
}

// Image implements archive.Source.
func (s *archiveSource) Image(ctx context.Context) (archive.Image, func(), error) {
	for {
		st, ok := s.a.s.fsm.Get(s.id)
		d, open := s.a.s.replica(s.id)
		if !ok || !open {
			s.a.giveUp(s.id)
			return nil, nil, fmt.Errorf("database %s: %w", s.id, ErrDeleted)
		}
		if img := d.takeFirst(); img != nil {
			return img, func() { img.snap.Close() }, nil
		}
		snap, pos, err := d.pin(ctx, st.Position.TXID)
		if err != nil {
			return nil, nil, err
		}
		if t, ok := s.a.timeOf(s.id, pos); ok {
			img := &archiveImage{snap: snap, position: pos, time: t, pageSize: d.pageSize}
			return img, func() { snap.Close() }, nil
		}
		snap.Close() // it is far ahead of what is known of it, or behind
		if !s.a.s.pauseFor(ctx, ioPoll) {
			return nil, nil, errors.Join(ctx.Err(), s.a.s.ctx.Err())
		}
	}
}

// timeOf returns the commit time of a position.
func (a *archiver) timeOf(id DatabaseID, p Position) (int64, bool) {
	if st, ok := a.s.fsm.Get(id); ok && st.Position == p {
		return st.CommitTime, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.kept[id]
	if k == nil || p.TXID < k.first || p.TXID >= k.first+TXID(len(k.entries)) {
		return 0, false
	}
	return k.entries[p.TXID-k.first].time, true
}

// archiveImage is a database at a position, for a snapshot.
type archiveImage struct {
	snap     *wal.Snapshot
	position Position
	time     int64
	pageSize uint32
}

// Position implements archive.Image.
func (i *archiveImage) Position() (txid uint64, time int64, checksum uint64) {
	return uint64(i.position.TXID), i.time, uint64(i.position.Checksum)
}

// PageSize implements archive.Image.
func (i *archiveImage) PageSize() uint32 { return i.pageSize }

// PageCount implements archive.Image.
func (i *archiveImage) PageCount() uint32 { return i.snap.PageCount() }

// ReadPage implements archive.Image.
func (i *archiveImage) ReadPage(pgno uint32, data []byte) error { return i.snap.ReadPage(pgno, data) }
