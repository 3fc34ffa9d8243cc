package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/uglyer/ha-sqlite/snapshot"
)

const (
	readBuffer    = 256 << 10
	writeBuffer   = 1 << 20
	writeBuffers  = 4
	prefetchLimit = 256 << 10 // larger files are read as they are used
	prefetchAhead = 32
)

// file is an LTX file of the archive that is being read.
type file struct {
	*snapshot.FileReader
	key string
	o   Object
	c   io.Closer
}

// openFile opens the file of an object, whose header has to be the one that the
// manifest lists.
func (v *View) openFile(ctx context.Context, o Object) (*file, error) {
	key := v.Key(o)
	if o.packed() {
		b, err := v.content(ctx, o, true)
		if err != nil {
			return nil, err
		}
		return v.newFile(key, o, bytes.NewReader(b), io.NopCloser(nil))
	}
	r, err := v.open(ctx, key)
	if err != nil {
		return nil, err
	}
	f, err := v.newFile(key, o, bufio.NewReaderSize(r, int(min(readBuffer, max(o.Size, 16)))), r)
	if err != nil {
		r.Close()
		return nil, err
	}
	return f, nil
}

func (v *View) newFile(key string, o Object, r io.Reader, c io.Closer) (*file, error) {
	in, err := snapshot.NewFileReader(r)
	if err != nil {
		return nil, fileError(key, err)
	}
	h := in.Header()
	if h.MinTXID != o.MinTXID || h.MaxTXID != o.MaxTXID || h.PageSize != v.state.PageSize || h.PageCount != o.PageCount || h.CommitTimeMillis != o.Time/1000 {
		return nil, damaged(key, "its header says %016x-%016x, %d pages of %d bytes, %d ms; that is another file", h.MinTXID, h.MaxTXID, h.PageCount, h.PageSize, h.CommitTimeMillis)
	}
	return &file{FileReader: in, key: key, o: o, c: c}, nil
}

// fileError makes what the codec says about a file damage of the archive.
func fileError(key string, err error) error {
	var named *ObjectError
	if errors.As(err, &named) {
		return err
	}
	if errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged(key, "%w", err)
	}
	return &ObjectError{key, err}
}

// next returns the next page, and at the end of the file, once it is verified,
// io.EOF.
func (f *file) next() (snapshot.Frame, error) {
	fr, err := f.Next()
	switch {
	case err == io.EOF:
		return fr, f.verify()
	case err != nil:
		return fr, fileError(f.key, err)
	}
	return fr, nil
}

// verify compares a file that was read to its end with the manifest.
func (f *file) verify() error {
	if i := f.Info(); i.Checksum != f.o.Checksum || i.Size != f.o.Size || uint32(i.Pages) != f.o.Pages {
		return damaged(f.key, "it has checksum %016x, %d bytes and %d pages, the manifest lists %016x, %d and %d: another file",
			i.Checksum, i.Size, i.Pages, f.o.Checksum, f.o.Size, f.o.Pages)
	}
	return io.EOF
}

// Progress is told of bytes of the plan that were read.
type Progress func(done, total int64)

// Target is what a database is restored into.
type Target interface {
	io.WriterAt
	Truncate(size int64) error
}

// Restore writes the database to w, which is empty, page by page in no order.
// Only a nil error says that w is the recorded state: every file of the plan was
// verified to its end, and the checksum of all pages is that of the commit.
func (v *View) Restore(ctx context.Context, p *Plan, w Target, progress Progress) error {
	if err := v.restore(ctx, p, w, progress); err != nil {
		return fmt.Errorf("restore transaction %016x of %s: %w", p.Target.TXID, v.state.Name, err)
	}
	return nil
}

func (v *View) restore(ctx context.Context, p *Plan, w Target, progress Progress) (err error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	pageSize := v.state.PageSize
	if err := w.Truncate(int64(p.Target.PageCount) * int64(pageSize)); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := newPageWriter(w, pageSize, int(min(writeBuffer, int64(p.Target.PageCount)*int64(pageSize))))
	defer func() {
		if closeErr := out.close(); err == nil {
			err = closeErr
		}
	}()
	// The newest file first: each page is written once.
	have := make([]uint64, p.Target.PageCount/64+1)
	limit, count, sum := p.Target.PageCount, uint32(0), snapshot.ChecksumFlag
	files := v.prefetch(ctx, p.Objects)
	done := int64(0)
	for i := len(p.Objects) - 1; i >= 0; i-- {
		o := p.Objects[i]
		limit = min(limit, o.PageCount)
		f, err := files()
		if err != nil {
			return err
		}
		for {
			fr, err := f.next()
			if err == io.EOF {
				break
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				f.c.Close()
				return err
			}
			if fr.Pgno > limit || have[fr.Pgno/64]>>(fr.Pgno%64)&1 != 0 {
				continue
			}
			have[fr.Pgno/64] |= 1 << (fr.Pgno % 64)
			count++
			sum = snapshot.Roll(sum, fr.Sum)
			if err := out.write(fr.Pgno, fr.Data); err != nil {
				f.c.Close()
				return err
			}
			if fr.Pgno%1024 == 0 {
				progress(done+min(o.Stored, fr.Offset), p.Bytes)
			}
		}
		f.c.Close()
		done += o.Stored
		progress(done, p.Bytes)
	}
	want := p.Target.PageCount
	if want >= snapshot.LockPgno(pageSize) {
		want--
	}
	last := v.Key(p.Objects[len(p.Objects)-1])
	if count != want {
		return damaged(last, "with the files before it it gives %d pages of %d", count, want)
	}
	if sum != p.Target.Checksum {
		return damaged(last, "with the files before it it gives checksum %016x, the commit had %016x", sum, p.Target.Checksum)
	}
	return nil
}

// prefetch returns a function that returns the files of a plan, from the last
// to the first; small ones are fetched several at once.
func (v *View) prefetch(ctx context.Context, list []Object) func() (*file, error) {
	type fetched struct {
		body []byte
		err  error
	}
	futures := make([]chan fetched, len(list))
	queue := make(chan int)
	ahead := make(chan struct{}, prefetchAhead)
	for i, o := range list {
		if o.Stored <= prefetchLimit {
			futures[i] = make(chan fetched, 1)
		}
	}
	for range fetchAtOnce {
		go func() {
			for i := range queue {
				body, err := v.content(ctx, list[i], true)
				futures[i] <- fetched{body, err}
			}
		}()
	}
	go func() {
		defer close(queue)
		for i := len(list) - 1; i >= 0; i-- {
			if futures[i] == nil {
				continue
			}
			select {
			case ahead <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case queue <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	i := len(list)
	return func() (*file, error) {
		i--
		if futures[i] == nil {
			return v.openFile(ctx, list[i])
		}
		select {
		case f := <-futures[i]:
			<-ahead
			if f.err != nil {
				return nil, f.err
			}
			return v.newFile(v.Key(list[i]), list[i], bytes.NewReader(f.body), io.NopCloser(nil))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pageWriter writes runs of pages, in a goroutine of its own.
type pageWriter struct {
	w        io.WriterAt
	pageSize int
	run      pageRun
	full     chan pageRun
	empty    chan []byte
	failed   chan error // closed at the end, with the first error in it
}

type pageRun struct {
	first uint32
	data  []byte
}

func newPageWriter(w io.WriterAt, pageSize uint32, buffer int) *pageWriter {
	p := &pageWriter{w: w, pageSize: int(pageSize), full: make(chan pageRun), empty: make(chan []byte, writeBuffers), failed: make(chan error, 1)}
	for range writeBuffers {
		p.empty <- make([]byte, 0, buffer)
	}
	p.run.data = <-p.empty
	go func() {
		defer close(p.failed)
		for run := range p.full {
			if _, err := w.WriteAt(run.data, int64(run.first-1)*int64(pageSize)); err != nil {
				p.failed <- fmt.Errorf("write pages from %d on: %w", run.first, err)
				return
			}
			p.empty <- run.data[:0]
		}
	}()
	return p
}

func (p *pageWriter) write(pgno uint32, data []byte) error {
	if n := len(p.run.data); n > 0 && (p.run.first+uint32(n/p.pageSize) != pgno || n+len(data) > cap(p.run.data)) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if len(p.run.data) == 0 {
		p.run.first = pgno
	}
	p.run.data = append(p.run.data, data...)
	return nil
}

func (p *pageWriter) flush() error {
	if len(p.run.data) == 0 {
		return nil
	}
	select {
	case p.full <- p.run:
	case err := <-p.failed:
		return p.fail(err)
	}
	select {
	case data := <-p.empty:
		p.run = pageRun{data: data}
		return nil
	case err := <-p.failed:
		return p.fail(err)
	}
}

// fail keeps the error for close.
func (p *pageWriter) fail(err error) error {
	p.run = pageRun{}
	return err
}

func (p *pageWriter) close() error {
	err := p.flush()
	close(p.full)
	if late := <-p.failed; err == nil {
		err = late
	}
	return err
}

// RestoreOptions say how RestoreFile works.
type RestoreOptions struct {
	Progress Progress
	Check    func(path string) error // looks at the file before it gets its name
}

// ErrTargetExists is returned where there is a file already, or one that
// SQLite would take for a part of the database.
var ErrTargetExists = errors.New("the file exists")

// RestoreFile restores into a file that appears whole and durable, or not at
// all. It never replaces one.
func (v *View) RestoreFile(ctx context.Context, p *Plan, path string, o RestoreOptions) error {
	err := CreateFile(path, func(f *os.File) error { return v.Restore(ctx, p, f, o.Progress) }, o.Check)
	if err != nil {
		return fmt.Errorf("restore into %s: %w", path, err)
	}
	return nil
}

// CreateFile makes a database file of what fill writes, durably: it appears
// whole, once check has looked at it, or not at all. It never replaces a file,
// nor appears beside one that SQLite would take for a part of the database.
func CreateFile(path string, fill func(*os.File) error, check func(path string) error) (err error) {
	for _, suffix := range []string{"", "-wal", "-journal", "-shm"} {
		if _, err := os.Lstat(path + suffix); err == nil {
			return fmt.Errorf("%s%s: %w", path, suffix, ErrTargetExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".restore-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if rm := os.Remove(f.Name()); err == nil {
			err = rm
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(0o640); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if check != nil {
		if err := check(f.Name()); err != nil {
			return fmt.Errorf("check the file: %w", err)
		}
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", path, ErrTargetExists)
	} else if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
