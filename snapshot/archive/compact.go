package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// Compact merges what a level has of windows of time that have passed into the
// next level, and makes a snapshot where one is due. Nothing is removed. Where
// nothing was archived since the last call it sends no request.
func (w *Writer) Compact(ctx context.Context, now time.Time) error {
	for level := 1; level <= TopLevel; level++ {
		if err := w.compactLevel(ctx, level, now); err != nil {
			return fmt.Errorf("compact %s into level %d: %w", w.View().state.Name, level, err)
		}
	}
	v := w.View()
	s := v.state
	if s.Last.MaxTXID == 0 {
		return nil
	}
	since := int64(0)
	if n := len(s.Snapshots); n > 0 {
		since = s.Snapshots[n-1].Time
	} else {
		first, err := v.First(ctx)
		if err != nil {
			return err
		}
		since = first.object.Time
	}
	if s.Last.Time-since >= w.opts.Snapshot.Microseconds() {
		return w.Snapshot(ctx)
	}
	return nil
}

// crowdedFrom is how much a query may have to read of files that have no page
// index before they are merged.
const crowdedFrom = 384 << 10

// Crowded reports whether so much lies in small files which are not yet merged
// that Compact does it before their window has passed.
func (w *Writer) Crowded() bool { return w.View().state.small() >= crowdedFrom }

// small is how much lies in files behind level 1 that have no page index.
func (s *State) small() int64 {
	size := int64(0)
	for _, list := range [][]Object{s.Recent, s.Ranges} {
		for _, o := range list[find(list, s.Done[1]+1):] {
			if o.IndexSize == 0 && !o.packed() {
				size += o.Size
			}
		}
	}
	return size
}

// compactLevel merges the windows that are closed. Files of lower levels stand
// in where a window had too few of them to be worth merging.
func (w *Writer) compactLevel(ctx context.Context, level int, now time.Time) error {
	interval := w.opts.Intervals[level].Microseconds()
	for {
		v := w.View()
		s := v.state
		limit := s.Last.MaxTXID
		if level > 1 {
			limit = s.Done[level-1]
		}
		at, done, window := s.Done[level], s.Done[level], int64(-1)
		var group []Object
		for at < limit {
			o, ok, err := v.next(ctx, at, limit, level-1)
			if err != nil {
				return err
			}
			if !ok {
				if len(group) >= w.opts.MinInputs[level] {
					break
				}
				// A gap in granularity: a snapshot leads over it.
				i := find(s.Snapshots, at+1)
				if i == len(s.Snapshots) {
					return fmt.Errorf("nothing leads on from transaction %016x: %w", at, ErrDamaged)
				}
				at, window, group = s.Snapshots[i].MaxTXID, -1, nil
				done = min(at, limit)
				continue
			}
			if o.Time/interval != window {
				if len(group) >= w.opts.MinInputs[level] {
					break
				}
				done, group, window = at, nil, o.Time/interval
			}
			group = append(group, o)
			at = o.MaxTXID
		}
		if at >= limit && window >= 0 && now.UnixMicro() < (window+1)*interval && (level > 1 || s.small() < crowdedFrom) {
			group = nil // the last window is still open
		} else if len(group) > 0 {
			done = group[len(group)-1].MaxTXID
		}
		var changes []change
		merged := len(group) >= w.opts.MinInputs[level] && len(group) > 0
		if merged {
			o, err := w.merge(ctx, v, group, level)
			if err != nil {
				return err
			}
			changes = append(changes, change{kind: changeAdd, object: o})
		}
		if done > s.Done[level] {
			changes = append(changes, change{kind: changeDone, level: level, txid: done})
		}
		if len(changes) > 0 {
			if err := w.journal(ctx, changes...); err != nil {
				return err
			}
		}
		if !merged {
			return nil
		}
	}
}

// Snapshot makes a file of every page of the last state, from the archive.
func (w *Writer) Snapshot(ctx context.Context) error {
	_, err := w.snapshot(ctx)
	return err
}

// snapshot is Snapshot and returns the state: what is archived while it is made
// is not in it.
func (w *Writer) snapshot(ctx context.Context) (Point, error) {
	v := w.View()
	s := v.state
	if s.Last.MaxTXID == 0 {
		return Point{}, nil
	}
	p := v.Last()
	if i := find(s.Snapshots, p.TXID); i < len(s.Snapshots) {
		return p, nil
	}
	plan, err := v.Plan(ctx, p)
	if err == nil {
		var o Object
		if o, err = w.merge(ctx, v, plan.Objects, SnapshotLevel); err == nil {
			err = w.journal(ctx, change{kind: changeAdd, object: o})
		}
	}
	if err != nil {
		return p, fmt.Errorf("make snapshot of %s: %w", s.Name, err)
	}
	return p, nil
}

// input is a file to be merged.
type input struct {
	o    Object
	open func(context.Context) (*file, error)
}

// merge makes one file of a chain of them, stores it, and reads it back from
// the store, before it is entered and its inputs may go.
func (w *Writer) merge(ctx context.Context, v *View, list []Object, level int) (Object, error) {
	all, passes := int64(0), int64(1)
	for _, o := range list {
		all += o.Size
	}
	for n := len(list); n > w.opts.Fanout; n = (n + w.opts.Fanout - 1) / w.opts.Fanout {
		passes++
	}
	release, err := w.room(v, passes*all, all)
	if err != nil {
		return Object{}, err
	}
	defer release()
	inputs := make([]input, len(list))
	for i, o := range list {
		inputs[i] = input{o, func(ctx context.Context) (*file, error) { return v.openSmall(ctx, o) }}
	}
	for len(inputs) > w.opts.Fanout {
		var next []input
		for len(inputs) > 0 {
			n := min(len(inputs), w.opts.Fanout)
			f, done, err := tempFile(v.tmp)
			if err != nil {
				return Object{}, err
			}
			defer done()
			o, _, err := w.mergeInto(ctx, f, inputs[:n])
			if err != nil {
				return Object{}, err
			}
			next = append(next, input{o, func(context.Context) (*file, error) {
				return v.newFile(f.Name(), o, bufio.NewReaderSize(io.NewSectionReader(f, 0, o.Size), readBuffer), io.NopCloser(nil))
			}})
			inputs = inputs[n:]
		}
		inputs = next
	}
	f, done, err := tempFile(v.tmp)
	if err != nil {
		return Object{}, err
	}
	defer done()
	o, sum, err := w.mergeInto(ctx, f, inputs)
	if err != nil {
		return Object{}, err
	}
	if o.MinTXID == 1 && sum != o.Post {
		return Object{}, damaged(v.Key(list[len(list)-1]), "with the files before it it gives checksum %016x, the commit had %016x", sum, o.Post)
	}
	return w.store(ctx, v, f, o, level)
}

// room asks for room for files, of which one of so many bytes is stored: encrypted it is there twice.
func (w *Writer) room(v *View, files, stored int64) (func(), error) {
	if w.opts.Room == nil {
		return func() {}, nil
	}
	if v.keys != nil {
		files += stored
	}
	release, err := w.opts.Room(files)
	if err != nil {
		return nil, fmt.Errorf("make a file of up to %d bytes: %w", stored, err)
	}
	return release, nil
}

// store puts a file that was made and reads it back.
func (w *Writer) store(ctx context.Context, v *View, f *os.File, o Object, level int) (Object, error) {
	made, index, err := describe(bufio.NewReaderSize(moving{ctx: ctx, r: io.NewSectionReader(f, 0, o.Size)}, readBuffer))
	if err != nil {
		return Object{}, fmt.Errorf("read back %s: %w", f.Name(), err)
	}
	if made.Checksum != o.Checksum || made.Size != o.Size {
		return Object{}, fmt.Errorf("read back %s: checksum %016x, written was %016x: %w", f.Name(), made.Checksum, o.Checksum, snapshot.ErrCorrupt)
	}
	o.Level = level
	if o, err = w.putFile(ctx, o, f, index); err != nil {
		return Object{}, err
	}
	return o, v.VerifyObject(ctx, o)
}

// VerifyObject reads a file of the archive to its end.
func (v *View) VerifyObject(ctx context.Context, o Object) error {
	in, err := v.openFile(ctx, o)
	if err != nil {
		return err
	}
	defer in.c.Close()
	for {
		if _, err := in.next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// openSmall is openFile, with a small file fetched whole.
func (v *View) openSmall(ctx context.Context, o Object) (*file, error) {
	if o.Stored > prefetchLimit {
		return v.openFile(ctx, o)
	}
	b, err := v.content(ctx, o, true)
	if err != nil {
		return nil, err
	}
	return v.newFile(v.Key(o), o, bytes.NewReader(b), io.NopCloser(nil))
}

// mergeInto merges files into f and returns what they give, and the checksum of
// the pages.
func (w *Writer) mergeInto(ctx context.Context, f *os.File, inputs []input) (Object, uint64, error) {
	files, errs := make([]*file, len(inputs)), make([]error, len(inputs))
	slots := make(chan struct{}, fetchAtOnce)
	var wg sync.WaitGroup
	for i, in := range inputs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			files[i], errs[i] = in.open(ctx)
		})
	}
	wg.Wait()
	readers := make([]*snapshot.FileReader, len(files))
	for i, in := range files {
		if in != nil {
			defer in.c.Close()
			readers[i] = in.FileReader
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Object{}, 0, err
	}
	out := bufio.NewWriterSize(f, writeBuffer)
	sum, pages := snapshot.ChecksumFlag, 0
	info, err := snapshot.Merge(out, readers, func(fr snapshot.Frame) error {
		sum = snapshot.Roll(sum, fr.Sum)
		if pages++; pages%1024 == 0 {
			progressed(ctx)
			return ctx.Err()
		}
		return nil
	})
	var at *snapshot.MergeError
	if errors.As(err, &at) {
		return Object{}, 0, fileError(files[at.Index].key, err)
	}
	if err != nil {
		return Object{}, 0, err
	}
	for _, in := range files {
		if err := in.verify(); err != io.EOF {
			return Object{}, 0, err
		}
	}
	if err := out.Flush(); err != nil {
		return Object{}, 0, fmt.Errorf("write %s: %w", f.Name(), err)
	}
	last := inputs[len(inputs)-1].o
	o := objectOf(info)
	o.Time, o.Post = last.Time, last.Post
	return o, sum, nil
}

// frameOverhead is what a page in a file takes beside its data, at most: its header, and its entry in the index.
const frameOverhead = 40

// Image is a database that is read at one position while others write it.
type Image interface {
	// Position is what the image shows.
	Position() (txid uint64, time int64, checksum uint64)
	PageSize() uint32
	PageCount() uint32
	// ReadPage fills data, of the page's size.
	ReadPage(pgno uint32, data []byte) error
}

// SnapshotOf archives a whole database as it is now: the first time, where a
// database was not archived from its first commit on, and where commits are
// missing. Those between the last one archived and the image are entered as a
// gap: they cannot be restored one by one. What was before the first snapshot
// of an archive is none: its history begins there.
func (w *Writer) SnapshotOf(ctx context.Context, img Image) error {
	if err := w.snapshotOf(ctx, img); err != nil {
		return fmt.Errorf("make snapshot of %s: %w", w.View().state.Name, err)
	}
	return nil
}

func (w *Writer) snapshotOf(ctx context.Context, img Image) error {
	v := w.View()
	s := v.state
	txid, commit, want := img.Position()
	if txid <= s.Last.MaxTXID {
		return fmt.Errorf("the image has transaction %016x, archived is %016x: %w", txid, s.Last.MaxTXID, errInvalidChange)
	}
	if s.PageSize != 0 && img.PageSize() != s.PageSize {
		return fmt.Errorf("the image has pages of %d bytes, the archive of %d: %w", img.PageSize(), s.PageSize, errInvalidChange)
	}
	size := int64(img.PageCount()) * int64(img.PageSize()+frameOverhead)
	release, err := w.room(v, size, size)
	if err != nil {
		return err
	}
	defer release()
	f, done, err := tempFile(v.tmp)
	if err != nil {
		return err
	}
	defer done()
	buf := bufio.NewWriterSize(f, writeBuffer)
	out, err := snapshot.NewFileWriter(buf, snapshot.FileHeader{PageSize: img.PageSize(), PageCount: img.PageCount(), MinTXID: 1, MaxTXID: txid, CommitTimeMillis: commit / 1000})
	if err != nil {
		return err
	}
	sum, page, lock := snapshot.ChecksumFlag, make([]byte, img.PageSize()), snapshot.LockPgno(img.PageSize())
	for pgno := uint32(1); pgno <= img.PageCount() && pgno != 0; pgno++ {
		if pgno == lock {
			continue
		}
		if pgno%1024 == 0 {
			progressed(ctx)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := img.ReadPage(pgno, page); err != nil {
			return fmt.Errorf("read page %d: %w", pgno, err)
		}
		fr, err := out.Page(pgno, page)
		if err != nil {
			return err
		}
		sum = snapshot.Roll(sum, fr.Sum)
	}
	if sum != want {
		return fmt.Errorf("the pages of the image have checksum %016x, want %016x", sum, want)
	}
	info, err := out.Close()
	if err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	o := objectOf(info)
	o.Time, o.Post = commit, want
	var changes []change
	if s.PageSize == 0 {
		changes = append(changes, change{kind: changePageSize, pageSize: img.PageSize()})
	}
	// Storing reads the file back with the page size of the manifest.
	back := &View{Archive: v.Archive, state: s.clone(), dir: v.dir}
	back.state.PageSize = img.PageSize()
	if o, err = w.store(ctx, back, f, o, SnapshotLevel); err != nil {
		return err
	}
	if s.Last.MaxTXID > 0 && txid > s.Last.MaxTXID+1 {
		changes = append(changes, change{kind: changeGap, gap: Gap{s.Last.MaxTXID + 1, txid - 1}})
	}
	return w.journal(ctx, append(changes, change{kind: changeAdd, object: o})...)
}

// Label keeps the last state that is archived, as a snapshot that retention
// does not drop.
func (w *Writer) Label(ctx context.Context, name string) (Point, error) {
	p, err := w.snapshot(ctx)
	if err != nil {
		return Point{}, err
	}
	return p, w.journalAlone(ctx, change{kind: changeLabel, label: Label{Name: name, TXID: p.TXID}})
}

// Unlabel gives a labelled state back to retention.
func (w *Writer) Unlabel(ctx context.Context, name string) error {
	return w.journalAlone(ctx, change{kind: changeUnlabel, label: Label{Name: name}})
}
