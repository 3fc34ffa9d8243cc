package pagesums

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	segmentSuffix = ".sums"
	// segmentBytes is the size at which a segment is followed by a new one.
	segmentBytes = 16 << 20
)

// Store keeps the records of all databases of a node. Its methods may be called from any goroutine.
type Store struct {
	dir string
	// segmentBytes is the constant, smaller in tests.
	segmentBytes int64

	mu       sync.Mutex
	segments []*segment // ascending, the last one is written
	chains   map[[16]byte]*chain
	live     int64 // bytes of all chains
	broken   error // a write or sync failed in a way that cannot be undone
	// syncing is held while a file is synced; it is taken before mu.
	syncing sync.Mutex
}

// segment is one file.
type segment struct {
	number uint64
	file   *os.File
	size   int64 // whole records
	synced int64 // bytes known to be durable, under Store.syncing
	// marks counts words written in place, marked those that are durable.
	marks, marked uint64
}

// part is where one record is.
type part struct {
	seg *segment
	off int64
	len int64
}

// chain is the newest record that holds all checksums and the deltas after it.
type chain struct {
	Record
	parts []part
	bytes int64
	// damaged is set when later records were lost: the next one cannot continue it.
	damaged bool
}

// Open reads what the directory holds, which is made if there is none. A torn tail is cut off.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, segmentBytes: segmentBytes, chains: map[[16]byte]*chain{}}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open page checksums in %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.dir, 0o770); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		number, err := strconv.ParseUint(name, 16, 64)
		if !ok || err != nil {
			continue
		}
		s.segments = append(s.segments, &segment{number: number})
	}
	slices.SortFunc(s.segments, func(a, b *segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	for i := 0; i < len(s.segments); i++ {
		g := s.segments[i]
		if g.file, err = os.OpenFile(s.path(g.number), os.O_RDWR, 0); err != nil {
			return err
		}
		whole, err := s.scan(g, i == len(s.segments)-1)
		if err != nil {
			return err
		}
		if whole {
			continue
		}
		if i == len(s.segments)-1 { // what was not synced when the node stopped
			if g.size == 0 {
				s.segments = s.segments[:i]
				return errors.Join(g.file.Close(), os.Remove(s.path(g.number)), s.rollLocked())
			}
			if err := g.file.Truncate(g.size); err != nil {
				return err
			}
			continue
		}
		// A segment that was synced has lost records: with them it may have lost that files were opened.
		for _, c := range s.chains {
			c.Closed = nil
		}
	}
	if n := len(s.segments); n > 0 && s.segments[n-1].size < s.segmentBytes {
		return nil
	}
	return s.rollLocked()
}

func (s *Store) path(number uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
}

// scan reads the headers of a segment, and the bodies where what was not synced may be torn. It reports whether the
// segment ends with a whole record.
func (s *Store) scan(g *segment, bodies bool) (whole bool, err error) {
	st, err := g.file.Stat()
	if err != nil {
		return false, err
	}
	in := bufio.NewReaderSize(io.NewSectionReader(g.file, 0, st.Size()), 64<<10)
	var head [segmentHeaderSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return false, ignoreEOF(err)
	}
	if string(head[:8]) != segmentMagic || binary.LittleEndian.Uint64(head[8:]) != g.number {
		return false, nil
	}
	g.size = segmentHeaderSize
	for g.size < st.Size() {
		var b [headerSize]byte
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return false, ignoreEOF(err)
		}
		h, err := decodeHeader(b[:])
		if err != nil {
			return false, nil
		}
		n := h.bodySize()
		if n > st.Size()-g.size-headerSize {
			return false, nil
		}
		if bodies {
			sum := crc32.New(castagnoli)
			if _, err := io.CopyN(sum, in, n); err != nil {
				return false, ignoreEOF(err)
			}
			if sum.Sum32() != h.bodySum {
				return false, nil
			}
		} else {
			for skip := n; skip > 0; {
				k, err := in.Discard(int(min(skip, 1<<20)))
				if skip -= int64(k); err != nil {
					return false, ignoreEOF(err)
				}
			}
		}
		s.addLocked(h, part{g, g.size, headerSize + n})
		g.size += headerSize + n
	}
	g.synced = 0 // a killed process may have left it in the page cache only
	return true, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// addLocked makes a record that is in a segment count.
func (s *Store) addLocked(h header, p part) {
	c := s.chains[h.ID]
	switch h.kind {
	case kindGone:
		s.dropLocked(h.ID)
		return
	case kindAll:
		s.dropLocked(h.ID)
		c = &chain{}
		s.chains[h.ID] = c
	case kindDelta:
		if c == nil || c.TXID != h.prev || c.PageSize != h.PageSize {
			s.dropLocked(h.ID)
			return
		}
	}
	c.Record = h.Record
	c.parts = append(c.parts, p)
	c.bytes += p.len
	s.live += p.len
}

func (s *Store) dropLocked(id [16]byte) {
	if c := s.chains[id]; c != nil {
		s.live -= c.bytes
		delete(s.chains, id)
	}
}

// rollLocked begins a new segment. The one before it is synced first.
func (s *Store) rollLocked() error {
	number := uint64(1)
	if n := len(s.segments); n > 0 {
		last := s.segments[n-1]
		number = last.number + 1
		if err := fsync(last.file); err != nil {
			s.broken = fmt.Errorf("segment %x: %w: %w", last.number, ErrSync, err)
			return s.broken
		}
	}
	f, err := os.OpenFile(s.path(number), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint64([]byte(segmentMagic), number)
	if _, err = f.WriteAt(head, 0); err == nil {
		if err = fsync(f); err == nil {
			err = syncDir(s.dir)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrSync, err)
			s.broken = err
		}
	}
	if err != nil {
		f.Close()
		os.Remove(s.path(number))
		return fmt.Errorf("begin segment %x: %w", number, err)
	}
	s.segments = append(s.segments, &segment{number: number, file: f, size: segmentHeaderSize, synced: segmentHeaderSize})
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return fsync(d)
}

// fsync makes a file durable. Tests only: they let it fail.
var fsync = (*os.File).Sync

// Find returns the newest record of a database.
func (s *Store) Find(id [16]byte) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.chains[id]; c != nil {
		return c.Record, true
	}
	return Record{}, false
}

// Len returns how many databases have a record.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.chains)
}

// Load reads the page checksums of a database with the record they belong to. If the newest record is damaged
// the one before it is returned, as one that is not closed; ok is false if there is none.
func (s *Store) Load(id [16]byte) (_ Record, sums []uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loadLocked(id)
}

func (s *Store) loadLocked(id [16]byte) (Record, []uint64, bool) {
	c := s.chains[id]
	if c == nil {
		return Record{}, nil, false
	}
	var sums []uint64
	var last Record
	for i, p := range c.parts {
		b := make([]byte, p.len)
		_, err := p.seg.file.ReadAt(b, p.off)
		var h header
		if err == nil {
			h, err = decodeHeader(b)
		}
		if err == nil && (h.ID != id || headerSize+h.bodySize() != p.len) {
			err = ErrCorrupt
		}
		if err == nil {
			var next []uint64
			if next, err = h.applyBody(sums, b[headerSize:]); err == nil {
				sums, last = next, h.Record
				continue
			}
		}
		// Only what was written later is lost: the state before is a lower bound as well.
		if i == 0 {
			s.dropLocked(id)
			return Record{}, nil, false
		}
		for _, gone := range c.parts[i:] {
			c.bytes -= gone.len
			s.live -= gone.len
		}
		c.parts, c.damaged = c.parts[:i], true
		last.Closed = nil
		c.Record = last
		return last, sums, true
	}
	last.Closed = c.Closed
	return last, sums, true
}

// WantsAll reports that the next record of a database, which continues one at TXID prev and changes n of pages
// checksums, is to hold all of them: there is nothing to continue, or the deltas are long enough.
func (s *Store) WantsAll(id [16]byte, prev uint64, n, pages int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wantsAllLocked(id, prev, n, pages)
}

func (s *Store) wantsAllLocked(id [16]byte, prev uint64, n, pages int) bool {
	c := s.chains[id]
	if c == nil || c.TXID != prev || c.damaged {
		return true
	}
	grown := c.bytes + headerSize + deltaEntrySize*int64(n)
	return grown > 2*(headerSize+8*int64(pages))+4096
}

// PutAll adds a record with the checksums of all pages. It is durable after the next Sync.
func (s *Store) PutAll(r Record, sums []uint64) error {
	if int(r.PageCount) != len(sums) {
		return fmt.Errorf("%d page checksums for %d pages", len(sums), r.PageCount)
	}
	h := header{Record: r, kind: kindAll}
	b := h.encode(sums, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.putLocked(h, b)
}

// PutChanges adds a record with the checksums that changed since the record at TXID prev. It is durable after the
// next Sync. It fails, and adds nothing, if that is not the newest record.
func (s *Store) PutChanges(r Record, prev uint64, changes []Change) error {
	h := header{Record: r, kind: kindDelta, prev: prev}
	b := h.encode(nil, changes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.chains[r.ID]; c == nil || c.TXID != prev {
		return fmt.Errorf("the record does not continue transaction %016x", prev)
	}
	return s.putLocked(h, b)
}

// Forget drops the record of a database that does not exist any more, or whose record is of no use.
func (s *Store) Forget(id [16]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chains[id] == nil {
		return nil
	}
	h := header{Record: Record{ID: id}, kind: kindGone}
	return s.putLocked(h, h.encode(nil, nil))
}

func (s *Store) putLocked(h header, b []byte) error {
	if s.broken != nil {
		return s.broken
	}
	g := s.segments[len(s.segments)-1]
	if g.size > segmentHeaderSize && g.size+int64(len(b)) > s.segmentBytes {
		if err := s.rollLocked(); err != nil {
			return fmt.Errorf("record page checksums: %w", err)
		}
		g = s.segments[len(s.segments)-1]
	}
	if _, err := g.file.WriteAt(b, g.size); err != nil {
		// What is there of it is behind the end, and overwritten by the next record.
		return fmt.Errorf("record page checksums in segment %x: %w", g.number, err)
	}
	s.addLocked(h, part{g, g.size, int64(len(b))})
	g.size += int64(len(b))
	return nil
}

// Sync makes all records durable.
func (s *Store) Sync() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	g, err := s.segments[len(s.segments)-1], s.broken
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.syncSegment(g) // those before it were synced when it began
}

// syncSegment needs s.syncing.
func (s *Store) syncSegment(g *segment) error {
	s.mu.Lock()
	size, marks := g.size, g.marks
	s.mu.Unlock()
	if g.synced >= size && g.marked >= marks {
		return nil
	}
	if err := fsync(g.file); err != nil {
		err = fmt.Errorf("segment %x: %w: %w", g.number, ErrSync, err)
		s.mu.Lock()
		s.broken = err // the next sync may succeed and lie
		s.mu.Unlock()
		return err
	}
	g.synced, g.marked = size, marks
	return nil
}

// Opened makes certain that the record of a database is not taken for that of a closed one any more. It returns
// when that is durable. The files change from then on: a record that came back after a power failure could look as
// if it described them, because a checkpoint syncs the pages of the file and not its times.
func (s *Store) Opened(id [16]byte) error {
	s.mu.Lock()
	c := s.chains[id]
	if c == nil || c.Closed == nil {
		s.mu.Unlock()
		return nil
	}
	if s.broken != nil {
		defer s.mu.Unlock()
		return s.broken
	}
	p := c.parts[len(c.parts)-1]
	// In place, which needs no space on a disk that is full.
	var zero [8]byte
	if _, err := p.seg.file.WriteAt(zero[:], p.off+closedOffset); err != nil {
		s.mu.Unlock()
		return fmt.Errorf("note that database %x is open: %w", id, err)
	}
	c.Closed = nil
	p.seg.marks++
	s.mu.Unlock()
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	there := slices.Contains(s.segments, p.seg)
	s.mu.Unlock()
	if !there {
		return nil // a compaction has moved the record as it is now, and synced that
	}
	return s.syncSegment(p.seg)
}

// Compact rewrites what is left in old segments and removes them, until at most about half of the space is waste.
func (s *Store) Compact() error {
	for {
		s.syncing.Lock()
		more, err := s.compactOldest()
		s.syncing.Unlock()
		if err != nil {
			return fmt.Errorf("compact page checksums: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// compactOldest needs s.syncing.
func (s *Store) compactOldest() (bool, error) {
	s.mu.Lock()
	var total int64
	for _, g := range s.segments {
		total += g.size
	}
	if len(s.segments) < 2 || total <= 2*s.live+2*s.segmentBytes {
		s.mu.Unlock()
		return false, nil
	}
	oldest := s.segments[0]
	var ids [][16]byte
	for id, c := range s.chains {
		if c.parts[0].seg == oldest {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		if err := s.move(id, oldest); err != nil {
			return false, err
		}
	}
	s.mu.Lock()
	g := s.segments[len(s.segments)-1]
	s.mu.Unlock()
	if err := s.syncSegment(g); err != nil {
		return false, err
	}
	if err := os.Remove(s.path(oldest.number)); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = s.segments[1:]
	return true, oldest.file.Close()
}

// move writes a record of the oldest segment again.
func (s *Store) move(id [16]byte, oldest *segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.chains[id]; c == nil || c.parts[0].seg != oldest {
		return nil // replaced meanwhile
	}
	r, sums, ok := s.loadLocked(id)
	if !ok {
		return nil
	}
	h := header{Record: r, kind: kindAll}
	return s.putLocked(h, h.encode(sums, nil))
}

// Close makes everything durable and closes the files.
func (s *Store) Close() error {
	err := s.Sync()
	return errors.Join(err, s.closeFiles())
}

func (s *Store) closeFiles() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, g := range s.segments {
		if g.file != nil {
			errs = append(errs, g.file.Close())
		}
	}
	s.broken = cmpErr(s.broken, os.ErrClosed)
	return errors.Join(errs...)
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
