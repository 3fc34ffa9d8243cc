package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// archivePatience is for how long a state that is decided and not archived is waited for.
const archivePatience = 15 * time.Second

// wanted is a state that somebody named.
type wanted struct {
	found moment.Found // in the archive; of the newest state nothing of it is set
	// at is the position of it, current says that it is the one that was decided when it was asked for.
	at      replicate.Position
	current bool
	id      replicate.DatabaseID
	commit  api.Commit
}

// want finds the state that a moment names. It is never an earlier one because the archive is late.
func (n *Node) want(ctx context.Context, name string, m api.Moment) (*wanted, error) {
	parsed, err := moment.Parse(m.At, m.To, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, api.ErrInvalid)
	}
	cctx, cancel := context.WithTimeout(ctx, writerWait)
	defer cancel()
	if err := n.svc.CatchUp(cctx); err != nil {
		return nil, err
	}
	st, exists := n.svc.Lookup(name)
	if exists && n.isCurrent(parsed, st) {
		return &wanted{at: st.Position, current: true, id: st.ID, commit: commit(st.ID, st.Position, st.CommitTime, st.PageCount)}, nil
	}
	a := n.Archive()
	if a == nil {
		return nil, fmt.Errorf("the archive of this node cannot be read (%s): %w", n.ArchiveURL(), api.ErrUnavailable)
	}
	end := time.Now().Add(archivePatience)
	for {
		f, err := parsed.Find(ctx, a, name)
		late := exists && lateFor(parsed, f, err, st)
		switch {
		case late && time.Now().After(end):
			return nil, fmt.Errorf("the archive has not got transaction %s yet, and the state may be one that it lacks: %w", st.Position.TXID, api.ErrUnavailable)
		case late:
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(archivePoll):
			}
			continue
		case errors.Is(err, archive.ErrNotArchived), errors.Is(err, archive.ErrNoDatabase):
			return nil, fmt.Errorf("%w: %w", err, api.ErrNotFound)
		case err != nil:
			return nil, err
		}
		id, err := replicate.ParseDatabaseID(f.View.State().Database)
		if err != nil {
			return nil, err
		}
		w := &wanted{found: f, id: id, at: replicate.Position{TXID: replicate.TXID(f.Point.TXID), Checksum: replicate.Checksum(f.Point.Checksum)}}
		w.commit = commit(id, w.at, f.Point.Time.UnixMicro(), f.Point.PageCount)
		return w, nil
	}
}

const archivePoll = 100 * time.Millisecond

// isCurrent reports that the state is the newest one: none other is named, or that one is, exactly, or the time is one
// at which nothing newer existed.
func (n *Node) isCurrent(m moment.Moment, st replicate.DatabaseState) bool {
	switch {
	case m.Database != "" && m.Database != st.ID.String():
		return false
	case m.ByTime():
		return !m.Time.Before(time.UnixMicro(st.CommitTime))
	case m.TXID == 0:
		return true
	}
	return m.TXID == uint64(st.Position.TXID) && (m.Checksum == 0 || m.Checksum == uint64(st.Position.Checksum))
}

// lateFor reports that the archive lacks transactions that the database has, and one of them may be the one that is
// named.
func lateFor(m moment.Moment, f moment.Found, err error, st replicate.DatabaseState) bool {
	if m.Database != "" && m.Database != st.ID.String() {
		return false
	}
	switch {
	case f.View != nil && f.View.State().Database == st.ID.String() && f.View.Last().TXID >= uint64(st.Position.TXID):
		return false // it has all of it
	case m.ByTime() && m.Time.Before(time.UnixMicro(st.CreatedTime)):
		return false // when another one had the name, or none
	}
	missing := errors.Is(err, archive.ErrNotArchived) || errors.Is(err, archive.ErrNoDatabase)
	if err == nil && f.View.State().Database != st.ID.String() { // one that had the name before
		missing = true
	}
	if missing {
		return m.ByTime() || m.TXID <= uint64(st.Position.TXID)
	}
	return err == nil && m.ByTime() && f.Last() && f.Point.TXID < uint64(st.Position.TXID)
}

// stateFile is a state of a database in a file.
type stateFile struct {
	f                   *os.File
	pageSize, pageCount uint32
}

// PageCount implements replicate.Content.
func (s *stateFile) PageCount() uint32 { return s.pageCount }

// ReadPage implements replicate.Content.
func (s *stateFile) ReadPage(pgno uint32, buf []byte) error {
	_, err := s.f.ReadAt(buf, int64(pgno-1)*int64(s.pageSize))
	return err
}

// restore writes a state that is in the archive into a scratch file, verified.
func (n *Node) restore(ctx context.Context, w *wanted, f *os.File, progress func(api.Progress)) (*stateFile, error) {
	plan, err := w.found.View.Plan(ctx, w.found.Point)
	if err != nil {
		return nil, err
	}
	s := &stateFile{f: f, pageSize: w.found.View.State().PageSize, pageCount: w.found.Point.PageCount}
	if err := n.room(int64(s.pageCount)*int64(s.pageSize), 1); err != nil {
		return nil, err
	}
	report := steps(progress)
	if err := w.found.View.Restore(ctx, plan, f, func(done, total int64) { report("restore", done, total) }); err != nil {
		return nil, err
	}
	return s, nil
}

// Rollback implements api.Contents.
func (b backend) Rollback(ctx context.Context, req api.RollbackRequest, progress func(api.Progress)) (api.RollbackReport, error) {
	r, err := b.rollback(ctx, req, progress)
	if err != nil {
		return r, fmt.Errorf("roll back %q: %w", req.Name, apiError(err))
	}
	return r, nil
}

func (b backend) rollback(ctx context.Context, req api.RollbackRequest, progress func(api.Progress)) (r api.RollbackReport, err error) {
	start := time.Now()
	if err := req.Validate(); err != nil {
		return r, err
	}
	w, err := b.n.want(ctx, req.Name, req.Moment)
	if err != nil {
		return r, err
	}
	st, ok := b.n.svc.Lookup(req.Name)
	if !ok {
		return r, api.ErrNotFound
	}
	if w.id != st.ID {
		return r, fmt.Errorf("the state is of database %s, which was deleted; the one of this name is %s: restore it into a file and import that: %w", w.id, st.ID, api.ErrInvalid)
	}
	r = api.RollbackReport{Name: req.Name, ID: st.ID.String(), Target: w.commit, DryRun: req.DryRun}
	if w.current {
		r.Previous, r.Commit = w.commit, w.commit
		return r, nil
	}
	f, err := b.n.scratchFile()
	if err != nil {
		return r, err
	}
	defer dropScratch(f)
	state, err := b.n.restore(ctx, w, f, progress)
	if err != nil {
		return r, err
	}
	done, err := b.n.svc.Overwrite(ctx, st.ID, state, replicate.Overwrite{
		PageSize: state.pageSize, Hold: cmp.Or(time.Duration(req.HoldMS)*time.Millisecond, holdTime), Wait: writerWait, DryRun: req.DryRun, Progress: steps(progress),
	})
	if err != nil {
		return r, err
	}
	r.Previous, r.Commit = commit(st.ID, done.Before, 0, 0), commit(st.ID, done.After, done.CommitTime, done.PageCount)
	if before, ok := b.n.svc.Lookup(req.Name); ok && before.Position == done.Before {
		r.Previous.Pages = before.PageCount
	}
	r.Shipped, r.Rounds, r.DurationMS = done.Pages, done.Rounds, time.Since(start).Milliseconds()
	return r, nil
}

// Fork implements api.Contents.
func (b backend) Fork(ctx context.Context, req api.ForkRequest, progress func(api.Progress)) (api.ForkReport, error) {
	r, err := b.fork(ctx, req, progress)
	if err != nil {
		return r, fmt.Errorf("fork %q into %q: %w", req.Source, req.Name, apiError(err))
	}
	return r, nil
}

func (b backend) fork(ctx context.Context, req api.ForkRequest, progress func(api.Progress)) (r api.ForkReport, err error) {
	start := time.Now()
	if err := req.Validate(); err != nil {
		return r, err
	}
	var past *replicate.PastState
	var w *wanted
	if !req.Zero() || req.DryRun {
		if w, err = b.n.want(ctx, req.Source, req.Moment); err != nil {
			return r, err
		}
		past = &replicate.PastState{Position: w.at, PageCount: w.commit.Pages, CommitTime: w.commit.Time.UnixMicro()}
	}
	src, ok := b.n.svc.Lookup(req.Source)
	if !ok {
		return r, fmt.Errorf("database %q: %w", req.Source, api.ErrNotFound)
	}
	if w != nil && w.id != src.ID {
		return r, fmt.Errorf("the state is of database %s, which was deleted; the one of this name is %s: restore it into a file and import that: %w", w.id, src.ID, api.ErrInvalid)
	}
	r = api.ForkReport{Name: req.Name, Source: req.Source, PageSize: src.PageSize, DryRun: req.DryRun}
	if req.DryRun {
		r.Target, r.SizeBytes = w.commit, int64(w.commit.Pages)*int64(src.PageSize)
		_, _, exists, err := b.n.svc.Resolve(req.Name)
		if err == nil && exists {
			err = fmt.Errorf("there is a database of this name: %w", api.ErrExists)
		}
		return r, err
	}
	st, err := b.n.svc.Fork(ctx, req.Source, req.Name, past, func() { progress(api.Progress{Step: "copy"}) })
	if err != nil {
		return r, err
	}
	r.ID, r.Target = st.ID.String(), commit(src.ID, st.Position, st.CommitTime, st.PageCount)
	r.SizeBytes, r.DurationMS = int64(st.PageCount)*int64(st.PageSize), time.Since(start).Milliseconds()
	return r, nil
}
