package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// ErrNotInBacklog is returned for commits that a backlog has dropped, or never
// had. The caller gets them from a peer, or makes a snapshot.
var ErrNotInBacklog = errors.New("the commits are not in the backlog")

const (
	backlogFile   = 8 << 20 // bytes after which the next file begins
	backlogExt    = ".backlog"
	backlogHeader = 5 * 8
)

// Backlog keeps commits that are not archived yet, of many databases, in files.
// Past its limit it drops all that it has of the database that has most. What
// was added is durable after Sync. It is safe for concurrent use.
//
// A file has commits that follow each other, each as
//
//	TXID 8 | time 8 | post checksum 8 | size 8 | CRC-64 of these 8 | LTX file
//
// little-endian, and is named by its first TXID.
type Backlog struct {
	dir   string
	limit int64

	// Whoever changes anything holds work, over writes and syncs too, and mu beside it while it changes what is below.
	// So with mu alone one reads, and with work alone whoever writes; nobody waits for the disk who only asks.
	work sync.Mutex

	mu      sync.Mutex
	dbs     map[string]*pending
	bytes   int64
	dropped uint64 // commits, since the start
	broken  error  // of a sync that failed; guarded by work
}

// fsync makes a file durable. Tests only: they let it fail.
var fsync = (*os.File).Sync

type pending struct {
	records []record
	bytes   int64
	dirty   map[string]bool // files to sync; guarded by work
}

// record is where a commit is.
type record struct {
	txid uint64
	time int64
	post uint64
	file uint64 // first TXID of the file
	at   int64  // of the LTX file in it
	size int64
}

// OpenBacklog opens the backlog in a directory, which is made if absent. What a
// crash has torn is cut off.
func OpenBacklog(dir string, limit int64) (*Backlog, error) {
	b := &Backlog{dir: dir, limit: limit, dbs: map[string]*pending{}}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open backlog: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open backlog: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := b.load(e.Name()); err != nil {
			return nil, fmt.Errorf("open backlog of %s: %w", e.Name(), err)
		}
	}
	return b, nil
}

func (b *Backlog) path(db string, file uint64) string {
	return filepath.Join(b.dir, db, fmt.Sprintf("%016x%s", file, backlogExt))
}

// load reads what there is of a database.
func (b *Backlog) load(db string) error {
	names, err := filepath.Glob(filepath.Join(b.dir, db, "*"+backlogExt))
	if err != nil {
		return err
	}
	slices.Sort(names)
	p := &pending{dirty: map[string]bool{}}
	cut := false
	for _, name := range names {
		var first uint64
		if _, err := fmt.Sscanf(strings.TrimSuffix(filepath.Base(name), backlogExt), "%016x", &first); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n := len(p.records); cut || n > 0 && p.records[n-1].txid+1 != first {
			// What is behind a hole is of no use: the hole decides.
			cut = true
			if err := os.Remove(name); err != nil {
				return err
			}
			continue
		}
		whole, size, err := p.scan(name, first)
		if err != nil {
			return err
		}
		if size > whole {
			cut = true
			if err := os.Truncate(name, whole); err != nil {
				return err
			}
		}
		if whole == 0 {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	if len(p.records) == 0 {
		return os.RemoveAll(filepath.Join(b.dir, db))
	}
	b.dbs[db] = p
	b.bytes += p.bytes
	return nil
}

// scan reads the records of a file up to the first that is not whole.
func (p *pending) scan(name string, first uint64) (whole, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	size = info.Size()
	r := bufio.NewReaderSize(f, readBuffer)
	next := first
	for {
		var head [backlogHeader]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return whole, size, ignoreEnd(err)
		}
		rec, ok := decodeRecord(head[:], first, whole, size)
		if !ok || rec.txid != next {
			return whole, size, nil
		}
		body := io.LimitReader(r, rec.size)
		i, err := snapshot.VerifyFile(bufio.NewReader(body))
		if err != nil || i.Size != rec.size || i.MinTXID != rec.txid || i.MaxTXID != rec.txid {
			return whole, size, ignoreCorrupt(err)
		}
		p.records = append(p.records, rec)
		p.bytes += backlogHeader + rec.size
		whole += backlogHeader + rec.size
		next++
	}
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func ignoreCorrupt(err error) error {
	if errors.Is(err, snapshot.ErrCorrupt) {
		return nil
	}
	return err
}

func encodeRecord(c Commit) []byte {
	b := make([]byte, 0, backlogHeader)
	for _, v := range []uint64{c.TXID, uint64(c.Time), c.Post, uint64(c.LTX.Size())} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return binary.LittleEndian.AppendUint64(b, crc(b))
}

// decodeRecord reads a header at an offset of a file of so many bytes.
func decodeRecord(b []byte, file uint64, at, size int64) (record, bool) {
	v := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	if len(b) != backlogHeader || crc(b[:32]) != v(4) || v(3) == 0 || v(3) > uint64(max(size-at-backlogHeader, 0)) || v(0) == 0 {
		return record{}, false
	}
	return record{txid: v(0), time: int64(v(1)), post: v(2), file: file, at: at + backlogHeader, size: int64(v(3))}, true
}

// Add keeps a commit. One that is there already is not kept twice; behind a hole
// what was before it is dropped.
func (b *Backlog) Add(db string, c Commit) error {
	if db == "" || db != filepath.Base(db) || strings.HasPrefix(db, ".") {
		return fmt.Errorf("keep commit %016x: database id %q", c.TXID, db)
	}
	b.work.Lock()
	defer b.work.Unlock()
	if err := b.addLocked(db, c); err != nil {
		return fmt.Errorf("keep commit %016x of %s: %w", c.TXID, db, err)
	}
	for b.bytes > b.limit {
		most := ""
		for name, p := range b.dbs {
			if most == "" || p.bytes > b.dbs[most].bytes || p.bytes == b.dbs[most].bytes && name < most {
				most = name
			}
		}
		if most == "" {
			break
		}
		if err := b.dropLocked(most); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backlog) addLocked(db string, c Commit) error {
	p := b.dbs[db]
	if p != nil {
		last := p.records[len(p.records)-1]
		if c.TXID <= last.txid && c.TXID >= p.records[0].txid {
			return nil
		}
		if c.TXID != last.txid+1 {
			if err := b.dropLocked(db); err != nil {
				return err
			}
			p = nil
		}
	}
	if p == nil {
		if err := os.MkdirAll(filepath.Join(b.dir, db), 0o750); err != nil {
			return err
		}
		p = &pending{dirty: map[string]bool{}}
	}
	file, at := c.TXID, int64(0)
	if n := len(p.records); n > 0 {
		if last := p.records[n-1]; last.at+last.size < backlogFile {
			file, at = last.file, last.at+last.size
		}
	}
	name := b.path(db, file)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	err = func() error {
		w := io.NewOffsetWriter(f, at)
		if _, err := w.Write(encodeRecord(c)); err != nil {
			return err
		}
		if n, err := io.Copy(w, io.NewSectionReader(c.LTX, 0, c.LTX.Size())); err != nil {
			return err
		} else if n != c.LTX.Size() {
			return fmt.Errorf("%d bytes of %d: %w", n, c.LTX.Size(), io.ErrUnexpectedEOF)
		}
		return nil
	}()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return errors.Join(err, os.Truncate(name, at))
	}
	p.dirty[name] = true
	b.mu.Lock()
	defer b.mu.Unlock()
	p.records = append(p.records, record{c.TXID, c.Time, c.Post, file, at + backlogHeader, c.LTX.Size()})
	p.bytes += backlogHeader + c.LTX.Size()
	b.bytes += backlogHeader + c.LTX.Size()
	b.dbs[db] = p
	return nil
}

// Sync makes durable what was added. After an error with ErrSync it is not tried again.
func (b *Backlog) Sync() error {
	b.work.Lock()
	defer b.work.Unlock()
	if b.broken != nil {
		return b.broken
	}
	for db, p := range b.dbs {
		if len(p.dirty) == 0 {
			continue
		}
		for _, name := range append(slices.Collect(maps.Keys(p.dirty)), filepath.Join(b.dir, db), b.dir) {
			f, err := os.Open(name)
			if err == nil {
				if err = fsync(f); err != nil {
					b.broken = fmt.Errorf("%s: %w: %w", name, ErrSync, err)
					err = b.broken
				}
				if closeErr := f.Close(); err == nil {
					err = closeErr
				}
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("sync backlog: %w", err)
			}
		}
		clear(p.dirty)
	}
	return nil
}

// Trim forgets the commits of a database up to one that is archived.
func (b *Backlog) Trim(db string, txid uint64) error {
	b.work.Lock()
	defer b.work.Unlock()
	p := b.dbs[db]
	if p == nil {
		return nil
	}
	if p.records[len(p.records)-1].txid <= txid {
		b.forgetLocked(db)
		return os.RemoveAll(filepath.Join(b.dir, db))
	}
	// Files go as a whole: a commit before the end of one stays there.
	n := 0
	for n < len(p.records) && p.records[n].txid <= txid {
		n++
	}
	for n > 0 && p.records[n].file == p.records[n-1].file {
		n--
	}
	gone := p.records[:n]
	b.mu.Lock()
	for _, r := range gone {
		b.bytes -= backlogHeader + r.size
		p.bytes -= backlogHeader + r.size
	}
	p.records = slices.Clone(p.records[n:])
	b.mu.Unlock()
	var errs []error
	for i, r := range gone {
		if i+1 < n && gone[i+1].file == r.file {
			continue
		}
		name := b.path(db, r.file)
		delete(p.dirty, name)
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("trim backlog of %s: %w", db, err))
		}
	}
	return errors.Join(errs...)
}

// Drop forgets all commits of a database.
func (b *Backlog) Drop(db string) error {
	b.work.Lock()
	defer b.work.Unlock()
	return b.dropLocked(db)
}

func (b *Backlog) dropLocked(db string) error {
	p := b.dbs[db]
	if p == nil {
		return nil
	}
	b.mu.Lock()
	b.dropped += uint64(len(p.records))
	b.mu.Unlock()
	b.forgetLocked(db)
	if err := os.RemoveAll(filepath.Join(b.dir, db)); err != nil {
		return fmt.Errorf("drop backlog of %s: %w", db, err)
	}
	return nil
}

// forgetLocked takes a database out of the index.
func (b *Backlog) forgetLocked(db string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes -= b.dbs[db].bytes
	delete(b.dbs, db)
}

// Bounds returns the first and the last commit that it has of a database, and
// the time of both.
func (b *Backlog) Bounds(db string) (first, last Commit, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.dbs[db]
	if p == nil {
		return Commit{}, Commit{}, false
	}
	commit := func(r record) Commit { return Commit{TXID: r.txid, Time: r.time, Post: r.post} }
	return commit(p.records[0]), commit(p.records[len(p.records)-1]), true
}

// Bytes returns how many bytes it has of a database.
func (b *Backlog) Bytes(db string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.dbs[db]; p != nil {
		return p.bytes
	}
	return 0
}

// Databases returns the ids of those that it has commits of.
func (b *Backlog) Databases() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.dbs))
}

// BacklogStatus is what a backlog has.
type BacklogStatus struct {
	Databases int
	Bytes     int64
	Limit     int64
	Dropped   uint64 // commits that were dropped for want of room or behind a hole, since the start
}

// Status says what the backlog has.
func (b *Backlog) Status() BacklogStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BacklogStatus{len(b.dbs), b.bytes, b.limit, b.dropped}
}

// Batch is commits that follow each other. Close it.
type Batch struct {
	Commits []Commit
	files   []*os.File
	release func()
}

// NewBatch makes a batch of commits that are kept elsewhere; release, unless
// nil, is called when it is closed.
func NewBatch(commits []Commit, release func()) *Batch {
	return &Batch{Commits: commits, release: release}
}

// Close closes the files that the commits are in.
func (b *Batch) Close() {
	for _, f := range b.files {
		f.Close()
	}
	if b.release != nil {
		b.release()
	}
}

// Range returns the commits of a database from one on, at least one and at most
// so many of so many bytes. None at all is no error where from is the next one.
func (b *Backlog) Range(db string, from uint64, count int, bytes int64) (*Batch, error) {
	b.mu.Lock()
	p := b.dbs[db]
	var records []record
	gone := false
	if p != nil {
		first, last := p.records[0].txid, p.records[len(p.records)-1].txid
		switch {
		case from < first || from > last+1:
			gone = true
		default:
			records = p.records[from-first:]
			records = slices.Clone(records[:min(len(records), count)])
		}
	}
	b.mu.Unlock()
	if gone {
		return nil, fmt.Errorf("commit %016x of %s: %w", from, db, ErrNotInBacklog)
	}
	batch := &Batch{}
	open := map[uint64]*os.File{}
	for _, r := range records {
		if bytes -= r.size; bytes < 0 && len(batch.Commits) > 0 {
			break
		}
		f := open[r.file]
		if f == nil {
			var err error
			if f, err = os.Open(b.path(db, r.file)); err != nil {
				batch.Close()
				if errors.Is(err, fs.ErrNotExist) {
					err = ErrNotInBacklog // it was just dropped
				}
				return nil, fmt.Errorf("commit %016x of %s: %w", r.txid, db, err)
			}
			open[r.file] = f
			batch.files = append(batch.files, f)
		}
		batch.Commits = append(batch.Commits, Commit{TXID: r.txid, Time: r.time, Post: r.post, LTX: io.NewSectionReader(f, r.at, r.size)})
	}
	return batch, nil
}
