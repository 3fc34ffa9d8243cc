package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/sqlitefile"
	"github.com/uglyer/ha-sqlite/replicate"
)

const (
	// holdTime bounds for how long writers wait before a replacement is proposed, where nobody says so (RULES A7).
	holdTime = 2 * time.Second
	// writerWait is for how long a replacement waits for its turn among the writers.
	writerWait = 30 * time.Second
)

// scratchFile is a file for content that is on its way. What a node that ended in the middle leaves behind is removed
// when it starts.
func (n *Node) scratchFile() (*os.File, error) {
	dir := filepath.Join(n.dir.Path(), "spool")
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return nil, fmt.Errorf("make a file for the content: %w", err)
	}
	f, err := os.CreateTemp(dir, "content-*")
	if err != nil {
		return nil, fmt.Errorf("make a file for the content: %w", err)
	}
	return f, nil
}

func dropScratch(f *os.File) {
	f.Close()
	os.Remove(f.Name())
}

// room refuses so many copies of what would fill the disk.
func (n *Node) room(bytes, copies int64) error {
	free, err := n.space.Free()
	if err != nil {
		return nil // the write will say so
	}
	most := math.MaxInt64/copies - maxReserveBytes // what is asked for comes from outside
	if need := copies*min(bytes, most) + reserveBytes(n.cfg.LogLimit); free < need {
		return fmt.Errorf("%d bytes are needed on the disk of this node, %d are free: %w", need, free, api.ErrUnavailable)
	}
	return nil
}

// Import implements api.Contents.
func (b backend) Import(ctx context.Context, req api.ImportRequest, file io.Reader, progress func(api.Progress)) (api.ImportReport, error) {
	r, err := b.importFile(ctx, req, file, progress)
	if err != nil {
		return r, fmt.Errorf("import into %q: %w", req.Name, apiError(err))
	}
	return r, nil
}

func (b backend) importFile(ctx context.Context, req api.ImportRequest, file io.Reader, progress func(api.Progress)) (r api.ImportReport, err error) {
	start := time.Now()
	if err := req.Validate(); err != nil {
		return r, err
	}
	cctx, cancel := context.WithTimeout(ctx, writerWait)
	err = b.n.svc.CatchUp(cctx)
	cancel()
	if err != nil {
		return r, err
	}
	// One that is empty may be what is left of an import whose node was killed. It is taken if it stays as it is until
	// the file is looked through: the next transaction of an import that goes on is not that long in coming.
	var empty replicate.Position
	if id, _, exists, err := b.n.svc.Resolve(req.Name); err != nil {
		return r, err
	} else if exists {
		if empty, err = b.n.svc.Empty(ctx, id); err != nil && !req.Replace {
			return r, fmt.Errorf("there is a database of this name: %w: %w", api.ErrExists, err)
		}
		if empty == (replicate.Position{}) && !req.Replace {
			return r, fmt.Errorf("there is a database of this name: %w", api.ErrExists)
		}
	}
	if err := b.n.room(req.Size, 2); err != nil { // here, and as a database
		return r, err
	}
	f, err := b.n.scratchFile()
	if err != nil {
		return r, err
	}
	defer dropScratch(f)
	if n, err := io.Copy(f, file); err != nil || n != req.Size {
		return r, fmt.Errorf("receive the file: %d of %d bytes came: %w", n, req.Size, errors.Join(err, api.ErrInvalid))
	}
	content, err := checkedContent(ctx, f, req.Size, progress)
	if err != nil {
		return r, err
	}
	st, created, err := b.n.svc.Create(ctx, req.Name, replicate.DatabaseID{}, content.info.PageSize, content.info.AutoVacuum)
	if err != nil {
		return r, err
	}
	if !req.Replace && st.Position != empty && (!created || st.Position.TXID != 1) {
		return r, fmt.Errorf("somebody has written into a database of this name meanwhile: %w", api.ErrExists)
	}
	if st.PageSize != content.info.PageSize {
		return r, fmt.Errorf("its pages have %d bytes, those of the file %d: delete it first: %w", st.PageSize, content.info.PageSize, api.ErrInvalid)
	}
	o := replicate.Overwrite{PageSize: content.info.PageSize, Hold: hold(req.HoldMS), Wait: writerWait, Progress: steps(progress)}
	if st.Position.TXID == 1 || st.Position == empty {
		o.Import = st.Position
	}
	done, err := b.n.svc.Overwrite(ctx, st.ID, content, o)
	if err != nil {
		if created {
			err = b.undoCreate(ctx, st, err)
		}
		return r, err
	}
	r = api.ImportReport{
		Name: req.Name, ID: st.ID.String(), Replaced: !created && req.Replace, Commit: b.n.commit(st.ID, done.After, done.CommitTime, done.PageCount),
		PageSize: content.info.PageSize, SizeBytes: content.info.Size(), Shipped: done.Pages, DurationMS: time.Since(start).Milliseconds(),
	}
	if r.Replaced {
		p := b.n.commit(st.ID, done.Before, 0, st.PageCount)
		r.Previous = &p
	}
	return r, nil
}

// hold is for how long writers may be kept waiting, which a request says in milliseconds.
func hold(ms int64) time.Duration { return cmp.Or(time.Duration(ms)*time.Millisecond, holdTime) }

// undoCreate removes a database that was made for an import that failed, unless somebody else has written into it.
func (b backend) undoCreate(ctx context.Context, st replicate.DatabaseState, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
	defer cancel()
	for {
		at, err := b.n.svc.Empty(ctx, st.ID)
		if err == nil && at == (replicate.Position{}) {
			return cause
		}
		if err == nil {
			err = b.n.svc.DeleteAt(ctx, st.Name, st.ID, at)
		}
		if err == nil || errors.Is(err, replicate.ErrDeleted) || errors.Is(err, replicate.ErrNotFound) {
			return cause
		}
		// A transaction of the import whose verdict was not heard may have been decided in between.
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the database that was made for it is left behind, empty: %w", cause, err)
		case <-time.After(undoPause):
		}
	}
}

const (
	undoWait  = 10 * time.Second
	undoPause = 200 * time.Millisecond
)

func steps(progress func(api.Progress)) func(string, int64, int64) {
	return func(step string, done, total int64) { progress(api.Progress{Step: step, Done: done, Total: total}) }
}

// commit describes a state that the database has, or had a moment ago.
func (n *Node) commit(id replicate.DatabaseID, p replicate.Position, micros int64, pages uint32) api.Commit {
	c := commit(id, p, micros, pages)
	c.Bookmark = replicate.Bookmark{Position: p, DB: id, Lineage: n.dir.Record().Lineage}.String()
	return c
}

// commit describes a state that is in the archive, which does not say of which lineage it is.
func commit(id replicate.DatabaseID, p replicate.Position, micros int64, pages uint32) api.Commit {
	c := api.Commit{Bookmark: replicate.Bookmark{Position: p, DB: id}.String(), TXID: api.Hex64(p.TXID), Pages: pages}
	if micros != 0 {
		c.Time = time.UnixMicro(micros).UTC()
	}
	return c
}

// content is a SQLite file that was found whole, as the database that it is to become.
type content struct {
	stateFile
	info sqlitefile.Info
}

// checkedContent has SQLite look through a file.
func checkedContent(ctx context.Context, f *os.File, size int64, progress func(api.Progress)) (*content, error) {
	info, err := sqlitefile.Inspect(f, size)
	if err == nil {
		progress(api.Progress{Step: "check"})
		err = sqlitefile.Check(ctx, f.Name())
	}
	if err != nil {
		if errors.Is(err, sqlitefile.ErrDamaged) || errors.Is(err, sqlitefile.ErrRefused) {
			err = fmt.Errorf("the file is refused: %w: %w", err, api.ErrInvalid)
		}
		return nil, err
	}
	return &content{stateFile{f, info.PageSize, info.PageCount}, info}, nil
}

// ReadPage implements replicate.Content.
func (c *content) ReadPage(pgno uint32, buf []byte) error {
	if err := c.stateFile.ReadPage(pgno, buf); err != nil {
		return err
	}
	if pgno == 1 {
		sqlitefile.Header(buf, c.pageCount)
	}
	return nil
}

// Export implements api.Contents.
func (b backend) Export(ctx context.Context, name string, m api.Moment) (head api.ExportHead, _ io.ReadCloser, err error) {
	if err := m.Validate(); err != nil {
		return head, nil, err
	}
	f, err := b.n.scratchFile()
	if err != nil {
		return head, nil, err
	}
	defer func() {
		if err != nil {
			dropScratch(f)
			err = fmt.Errorf("export %q: %w", name, apiError(err))
		}
	}()
	var w *wanted
	if !m.Zero() {
		if w, err = b.n.want(ctx, name, m); err != nil {
			return head, nil, err
		}
		if !w.current {
			return b.exportArchived(ctx, name, w, f)
		}
	}
	if st, ok := b.n.svc.Lookup(name); ok {
		if err := b.n.room(int64(st.PageCount)*int64(st.PageSize), 1); err != nil {
			return head, nil, err
		}
	}
	c, err := b.n.svc.Copy(ctx, name, f, func(int64, int64) {})
	if err != nil {
		return head, nil, err
	}
	if w != nil && c.Bookmark.Position != w.at { // it has moved on: the archive has it now
		remarks := w.remarks
		if w, err = b.n.want(ctx, name, api.Moment{To: w.commit.Bookmark}); err != nil {
			return head, nil, err
		}
		w.remarks = remarks
		return b.exportArchived(ctx, name, w, f)
	}
	head = api.ExportHead{
		Name: name, Commit: b.n.commit(c.Bookmark.DB, c.Bookmark.Position, c.CommitTime, c.PageCount), PageSize: c.PageSize, SizeBytes: int64(c.PageCount) * int64(c.PageSize),
	}
	if w != nil {
		head.Remarks = w.remarks
	}
	return head, scratchReader{f}, nil
}

func (b backend) exportArchived(ctx context.Context, name string, w *wanted, f *os.File) (head api.ExportHead, _ io.ReadCloser, err error) {
	if w.current {
		return head, nil, fmt.Errorf("the database changes: %w", api.ErrUnavailable)
	}
	s, err := b.n.restore(ctx, w, f, func(api.Progress) {})
	if err != nil {
		return head, nil, err
	}
	return api.ExportHead{
		Name: name, Commit: w.commit, Remarks: w.remarks, Dropped: w.found.Dropped,
		PageSize: s.pageSize, SizeBytes: int64(s.pageCount) * int64(s.pageSize),
	}, scratchReader{f}, nil
}

// scratchReader reads a scratch file from its beginning, and removes it.
type scratchReader struct{ *os.File }

func (s scratchReader) Close() error {
	dropScratch(s.File)
	return nil
}
