package node

import (
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

// clockSlack is by how much the clock of who asks may be ahead of that of this node: a time that is past there is taken
// for one that is past here.
const clockSlack = time.Minute

// rangeWait is for how long it is tried to say which other states there are, where the archive is not needed otherwise.
const rangeWait = 5 * time.Second

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
	remarks []string // what a person has to know of the choice
}

// want finds the state that a moment names. It is never an earlier one because the archive is late.
func (n *Node) want(ctx context.Context, name string, m api.Moment) (*wanted, error) {
	parsed, err := moment.Parse(m.At, m.To, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, api.ErrInvalid)
	}
	parsed.Slack = clockSlack
	cctx, cancel := context.WithTimeout(ctx, writerWait)
	defer cancel()
	if err := n.svc.CatchUp(cctx); err != nil {
		return nil, err
	}
	st, exists := n.svc.Lookup(name)
	future := parsed.Refusal()
	if exists && future == nil && n.isCurrent(parsed, st) {
		w := &wanted{at: st.Position, current: true, id: st.ID, commit: n.commit(st.ID, st.Position, st.CommitTime, st.PageCount)}
		if parsed.ByTime() {
			w.remarks = []string{n.lastRemark(ctx, st)}
		}
		return w, nil
	}
	a := n.Archive()
	if a == nil && future != nil {
		return nil, fmt.Errorf("%w: %w", future, api.ErrInvalid)
	}
	if a == nil {
		return nil, fmt.Errorf("the archive of this node cannot be read (%s): %w", n.ArchiveURL(), api.ErrUnavailable)
	}
	end := time.Now().Add(archivePatience)
	for {
		f, err := parsed.Find(ctx, a, name)
		late := exists && lateFor(parsed, f, err, st, n.dir.Record().Lineage)
		switch {
		case late && time.Now().After(end):
			return nil, fmt.Errorf("the archive has not got transaction %s yet, and the state may be one that it lacks: %w", st.Position.TXID, api.ErrUnavailable)
		case late:
			n.svc.HurryArchive()
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(archivePoll):
			}
			continue
		case errors.Is(err, archive.ErrNotArchived), errors.Is(err, archive.ErrNoDatabase):
			return nil, fmt.Errorf("%w: %w", err, api.ErrNotFound)
		case errors.Is(err, moment.ErrInvalid):
			return nil, fmt.Errorf("%w: %w", err, api.ErrInvalid)
		case err != nil:
			return nil, err
		}
		id, err := replicate.ParseDatabaseID(f.View.State().Database)
		if err != nil {
			return nil, err
		}
		w := &wanted{found: f, id: id, at: replicate.Position{TXID: replicate.TXID(f.Point.TXID), Checksum: replicate.Checksum(f.Point.Checksum)}}
		w.commit = commit(id, w.at, f.Point.Time.UnixMicro(), f.Point.PageCount)
		w.remarks = parsed.Remarks(f)
		return w, nil
	}
}

// exact refuses a state that may not be the one that was asked for: what follows from it could not be told from what is
// right.
func (w *wanted) exact() error {
	if err := w.found.Exact(); err != nil {
		return fmt.Errorf("%w: %w", err, api.ErrNotFound)
	}
	return nil
}

// lastRemark says that the newest state was chosen by a time, and which ones there are. Of the first one the archive knows,
// which is not asked for longer than a moment.
func (n *Node) lastRemark(ctx context.Context, st replicate.DatabaseState) string {
	last := commit(st.ID, st.Position, st.CommitTime, st.PageCount)
	text := fmt.Sprintf("it is the last commit, of %s (%s)", moment.TimeText(last.Time), last.Bookmark)
	a := n.Archive()
	if a == nil {
		return text
	}
	ctx, cancel := context.WithTimeout(ctx, rangeWait)
	defer cancel()
	v, err := a.Load(ctx, archive.Identity{Cluster: a.Cluster(), Lineage: n.dir.Record().Lineage, Database: st.ID.String(), Name: st.Name})
	if err != nil || v.Empty() {
		return text
	}
	first, err := v.First(ctx)
	if err != nil {
		return text
	}
	return fmt.Sprintf("%s; the first one that the archive has is of %s (%s)", text, moment.TimeText(first.Time), moment.Bookmark(v, first))
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

// lateFor reports that the archive lacks transactions that the database has in this lineage of the cluster, and one of
// them may be the one that is named.
func lateFor(m moment.Moment, f moment.Found, err error, st replicate.DatabaseState, lineage uint64) bool {
	var own *archive.View
	for _, v := range f.Views {
		if s := v.State(); s.Database == st.ID.String() && s.Lineage == lineage {
			own = v
		}
	}
	switch {
	case err != nil && !errors.Is(err, archive.ErrNotArchived) && !errors.Is(err, archive.ErrNoDatabase):
		return false
	case m.Database != "" && m.Database != st.ID.String() || err == nil && m.Checksum != 0:
		return false
	case own != nil && own.Last().TXID >= uint64(st.Position.TXID):
		return false // it has all of it
	case m.ByTime() && m.Time.Before(time.UnixMicro(st.CreatedTime)):
		return false // when another one had the name, or none
	case m.ByTime():
		return own == nil || err == nil && f.View == own && f.Last() // else it begins later, or has what follows
	}
	return m.TXID <= uint64(st.Position.TXID) && (own == nil || own.Last().TXID < m.TXID)
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
	s := &stateFile{f: f, pageSize: w.found.View.State().PageSize, pageCount: w.found.Point.PageCount}
	if err := n.room(int64(s.pageCount)*int64(s.pageSize), 1); err != nil {
		return nil, err
	}
	report := steps(progress)
	err := w.found.View.Planned(ctx, w.found.Point, func(v *archive.View, plan *archive.Plan) error {
		if err := f.Truncate(0); err != nil {
			return err
		}
		return v.Restore(ctx, plan, f, func(done, total int64) { report("restore", done, total) })
	})
	if err != nil {
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
	if err := w.exact(); err != nil {
		return r, err
	}
	r = api.RollbackReport{Name: req.Name, ID: st.ID.String(), Target: w.commit, Remarks: w.remarks, DryRun: req.DryRun}
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
		PageSize: state.pageSize, Hold: hold(req.HoldMS), Wait: writerWait, DryRun: req.DryRun, Progress: steps(progress),
	})
	if err != nil {
		return r, err
	}
	r.Previous, r.Commit = b.n.commit(st.ID, done.Before, 0, 0), b.n.commit(st.ID, done.After, done.CommitTime, done.PageCount)
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
	if w != nil {
		if err := w.exact(); err != nil {
			return r, err
		}
	}
	r = api.ForkReport{Name: req.Name, Source: req.Source, PageSize: src.PageSize, DryRun: req.DryRun}
	if w != nil {
		r.Target, r.Remarks = w.commit, w.remarks
	}
	if req.DryRun {
		r.SizeBytes = int64(w.commit.Pages) * int64(src.PageSize)
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
	r.ID, r.Target = st.ID.String(), b.n.commit(src.ID, st.Position, st.CommitTime, st.PageCount)
	r.SizeBytes, r.DurationMS = int64(st.PageCount)*int64(st.PageSize), time.Since(start).Milliseconds()
	return r, nil
}
