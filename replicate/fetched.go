package replicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// While a database is fetched, the spool has two files of it. The pages file has each page that was fetched where the
// database file has it, and holes elsewhere: what a page is worth its checksum tells, so a fetch that was cut off goes
// on with what is there. The target file says what the database is to become: it is written once all pages are here,
// and lies until that is installed and recorded.
//
//	target  magic "HASQTGT1", 16 database id, 8 TXID, 8 checksum, 4 page size, 4 pages,
//	        8 checksum of each page, 4 CRC-32C of everything before; little-endian
const (
	pagesSuffix      = ".pages"
	targetSuffix     = ".target"
	targetMagic      = "HASQTGT1"
	targetHeaderSize = 8 + 16 + 8 + 8 + 4 + 4
)

// target is a state of a database at a peer.
type target struct {
	position Position
	pageSize uint32
	sums     sumTable
	// cloned says that the pages are a clone of files whose pages have these checksums: they are read later, paced.
	cloned bool
}

func (t *target) pageCount() uint32 { return uint32(len(t.sums)) }

func (t *target) encode(id DatabaseID) []byte {
	b := make([]byte, 0, targetHeaderSize+8*len(t.sums)+4)
	b = append(b, targetMagic...)
	b = append(b, id[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.position.TXID))
	b = binary.LittleEndian.AppendUint64(b, uint64(t.position.Checksum))
	b = binary.LittleEndian.AppendUint32(b, t.pageSize)
	b = binary.LittleEndian.AppendUint32(b, t.pageCount())
	for _, s := range t.sums {
		b = binary.LittleEndian.AppendUint64(b, s)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeTarget(b []byte, id DatabaseID) (*target, error) {
	if len(b) < targetHeaderSize+4 || string(b[:8]) != targetMagic {
		return nil, fmt.Errorf("decode the target of a catch-up: %d bytes without its magic", len(b))
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(body):]) {
		return nil, errors.New("decode the target of a catch-up: checksum differs")
	}
	if got := DatabaseID(body[8:24]); got != id {
		return nil, fmt.Errorf("decode the target of a catch-up: it is of database %s", got)
	}
	t := &target{
		position: Position{TXID(binary.LittleEndian.Uint64(body[24:])), Checksum(binary.LittleEndian.Uint64(body[32:]))},
		pageSize: binary.LittleEndian.Uint32(body[40:]),
	}
	n := binary.LittleEndian.Uint32(body[44:])
	if rest := len(body) - targetHeaderSize; rest%8 != 0 || uint64(n) != uint64(rest/8) || n == 0 || !snapshot.ValidPageSize(t.pageSize) {
		return nil, fmt.Errorf("decode the target of a catch-up: %d pages of %d bytes announced, %d bytes follow", n, t.pageSize, rest)
	}
	t.sums = make(sumTable, n)
	for i := range t.sums {
		t.sums[i] = binary.LittleEndian.Uint64(body[targetHeaderSize+8*i:])
	}
	if sum := t.sums.checksum(); sum != t.position.Checksum {
		return nil, fmt.Errorf("decode the target of a catch-up: its pages give checksum %s, not %s", sum, t.position)
	}
	return t, nil
}

func (s *Service) spoolDir() string { return filepath.Join(s.opts.Dir, "spool") }

func (d *replica) targetPath() string {
	return filepath.Join(d.svc.spoolDir(), d.id.String()+targetSuffix)
}
func (d *replica) pagesPath() string {
	return filepath.Join(d.svc.spoolDir(), d.id.String()+pagesSuffix)
}

// fetched is the pages file of a database.
type fetched struct {
	file     *os.File
	pageSize uint32
	sums     []uint64 // of the pages that are there, 0 where nothing but zeros is; by page number minus one
	placed   bool     // the file is the database file now, and closed here
}

// openFetched opens the pages file, and reads what an earlier attempt or life of this node has left in it.
func (d *replica) openFetched() (_ *fetched, err error) {
	if err := os.MkdirAll(d.svc.spoolDir(), 0o770); err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	f, err := d.openPages()
	if err != nil {
		return nil, err
	}
	p := &fetched{file: f, pageSize: d.pageSize}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	pages := st.Size() / int64(d.pageSize)
	if pages > maxPages {
		return nil, fmt.Errorf("open the spool: %d pages", pages)
	}
	p.sums = make([]uint64, pages)
	batch := make([]byte, max(fetchedBatch/int(d.pageSize), 1)*int(d.pageSize))
	for pgno := uint32(1); int64(pgno) <= pages; {
		n := min(len(batch), int(pages-int64(pgno)+1)*int(d.pageSize))
		if _, err := f.ReadAt(batch[:n], p.offset(pgno)); err != nil {
			return nil, fmt.Errorf("read the spool: %w", err)
		}
		for at := 0; at < n; at += int(d.pageSize) {
			if page := batch[at : at+int(d.pageSize)]; !allZero(page) { // a hole most of the time
				p.sums[pgno-1] = pageSum(d.pageSize, pgno, page)
			}
			pgno++
		}
	}
	return p, nil
}

const (
	maxPages     = 1<<32 - 2
	fetchedBatch = 1 << 20
)

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (p *fetched) offset(pgno uint32) int64 { return int64(pgno-1) * int64(p.pageSize) }

// has reports that the page with this checksum is there.
func (p *fetched) has(pgno uint32, sum uint64) bool {
	return int(pgno) <= len(p.sums) && p.sum(pgno) == sum
}

// sum is the checksum of a page that is there. A page of the database may be all zeros, as a hole is: that is not known
// before it is asked for.
func (p *fetched) sum(pgno uint32) uint64 {
	if sum := p.sums[pgno-1]; sum != 0 {
		return sum
	}
	return pageSum(p.pageSize, pgno, zeros[:p.pageSize])
}

// zeros are of the largest page.
var zeros [64 << 10]byte

// openTarget opens the pages file that a target is made of. That of a clone is not read.
func (d *replica) openTarget(t *target) (*fetched, error) {
	if !t.cloned {
		return d.openFetched()
	}
	f, err := d.openPages()
	if err != nil {
		return nil, err
	}
	return &fetched{file: f, pageSize: d.pageSize, sums: append([]uint64{}, t.sums...)}, nil
}

// openPages opens the pages file for reading and writing, and makes it if there is none.
func (d *replica) openPages() (*os.File, error) {
	if err := d.disownPlaced(); err != nil {
		return nil, err
	}
	return openSpoolFile(d.pagesPath())
}

// disownPlaced takes the name in the spool from a file that is the database file, too. What is written by that name goes
// into the database under everybody who reads it, and who closes a descriptor of it drops this process's locks (RULES
// A6). A node that was killed before it could do this finds both names.
func (d *replica) disownPlaced() error {
	pages, err := os.Lstat(d.pagesPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the spool: %w", err)
	}
	db, err := os.Lstat(d.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(pages, db) {
		return nil
	}
	if err == nil {
		err = os.Remove(d.pagesPath())
	}
	if err != nil {
		return fmt.Errorf("look at the spool: %w", err)
	}
	return nil
}

// openSpoolFile opens a file of the spool for reading and writing, and makes it if there is none.
func openSpoolFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o660)
	if err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	return f, nil
}

// put writes consecutive pages from pgno on, with their checksums.
func (p *fetched) put(pgno uint32, data []byte, sums []uint64) error {
	if n := int(pgno) - 1 + len(sums); n > len(p.sums) {
		p.sums = append(p.sums, make([]uint64, n-len(p.sums))...)
	}
	clear(p.sums[pgno-1 : int(pgno)-1+len(sums)]) // torn, if it fails
	if _, err := p.file.WriteAt(data, p.offset(pgno)); err != nil {
		return fmt.Errorf("spool %d pages from %d: %w", len(sums), pgno, err)
	}
	copy(p.sums[pgno-1:], sums)
	return nil
}

// check compares a page that was read with the checksum that it should have.
func (p *fetched) check(pgno uint32, sum uint64, data []byte) error {
	if got := pageSum(p.pageSize, pgno, data); got != sum {
		p.sums[pgno-1] = got
		return fmt.Errorf("page %d in the spool has checksum %016x, not %016x: %w", pgno, got, sum, errIncomplete)
	}
	return nil
}

// verify reads every page and checks that it is the one with its checksum.
func (p *fetched) verify(sums sumTable) error {
	pgnos := make([]uint32, 0, len(sums))
	for i, sum := range sums {
		if sum != 0 { // not the lock page
			pgnos = append(pgnos, uint32(i)+1)
		}
	}
	next, stop := p.readAhead(pgnos, sums)
	defer stop()
	for {
		if _, err := next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// readAhead reads pages, which ascend, and checks that they are the ones with these checksums, ahead of the one who
// takes them by next: that returns io.EOF after the last. A page's data is good until the next call. stop ends it.
func (p *fetched) readAhead(pgnos []uint32, sums sumTable) (next func() (wal.Page, error), stop func()) {
	type batch struct {
		pgnos []uint32
		data  []byte
		err   error
	}
	size := int(p.pageSize)
	full, empty := make(chan batch, fetchedAhead), make(chan []byte, fetchedAhead)
	for range fetchedAhead {
		empty <- make([]byte, max(fetchedRun/size, 1)*size)
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(full)
		for len(pgnos) > 0 {
			var buf []byte
			select {
			case buf = <-empty:
			case <-quit:
				return
			}
			n := sideBySide(pgnos, cap(buf)/size)
			b := batch{pgnos: pgnos[:n], data: buf[:n*size]}
			pgnos = pgnos[n:]
			if _, err := p.file.ReadAt(b.data, p.offset(b.pgnos[0])); err != nil {
				b.err = fmt.Errorf("read %d pages from %d from the spool: %w", n, b.pgnos[0], err)
			}
			for i, pgno := range b.pgnos {
				if b.err == nil {
					b.err = p.check(pgno, sums[pgno-1], b.data[i*size:(i+1)*size])
				}
			}
			full <- b // there is room for as many as there are buffers
			if b.err != nil {
				return
			}
		}
	}()
	var b batch
	at := 0
	next = func() (wal.Page, error) {
		if at == len(b.pgnos) {
			if b.data != nil {
				empty <- b.data
			}
			var ok bool
			if b, ok = <-full; !ok {
				return wal.Page{}, io.EOF
			}
			at = 0
		}
		if b.err != nil {
			return wal.Page{}, b.err
		}
		at++
		return wal.Page{Pgno: b.pgnos[at-1], Data: b.data[(at-1)*size : at*size]}, nil
	}
	return next, func() {
		close(quit)
		<-ended
	}
}

const (
	fetchedRun   = 256 << 10 // bytes that are read at a time
	fetchedAhead = 4         // of them, in memory
)

// sideBySide returns how many of the first page numbers follow each other, most at most.
func sideBySide(pgnos []uint32, most int) int {
	n := 1
	for n < most && n < len(pgnos) && pgnos[n] == pgnos[0]+uint32(n) {
		n++
	}
	return n
}

// errIncomplete says that a page is missing that has to come from a peer.
var errIncomplete = errors.New("a page has to be fetched from a peer")

// writeTarget makes the target durable. Pages are synced by the caller where that matters.
func (d *replica) writeTarget(t *target) error {
	if err := writeFileSync(d.targetPath(), t.encode(d.id)); err != nil {
		return fmt.Errorf("catch up database %q: %w", d.name, err)
	}
	return nil
}

// loadTarget returns what a former life of this node had fetched and maybe not installed, nil if there is nothing.
func (d *replica) loadTarget() *target {
	b, err := os.ReadFile(d.targetPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var t *target
	if err == nil {
		t, err = decodeTarget(b, d.id)
	}
	if err == nil && t.pageSize != d.pageSize {
		err = fmt.Errorf("pages of %d bytes, the database's have %d", t.pageSize, d.pageSize)
	}
	if err != nil {
		d.log.Warn("what a catch-up left behind cannot be used", "err", err)
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.position.TXID < d.base.TXID {
		return nil
	}
	return t
}

// dropCatchupLocked removes what was fetched: the files have it or something later, or are gone.
func (d *replica) dropCatchupLocked() {
	d.pending, d.behind, d.progress = nil, d.lacksLocked(), progress{}
	for _, path := range []string{d.targetPath(), d.pagesPath()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.log.Warn("what a catch-up fetched stays behind", "err", err)
		}
	}
}

// clearSpool removes what is no file of a catch-up that can go on.
func (s *Service) clearSpool() error {
	entries, err := os.ReadDir(s.spoolDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear the spool: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), pagesSuffix)
		if !ok {
			name, ok = strings.CutSuffix(e.Name(), targetSuffix)
		}
		if _, err := ParseDatabaseID(name); ok && err == nil {
			continue
		}
		if err := os.Remove(filepath.Join(s.spoolDir(), e.Name())); err != nil {
			return fmt.Errorf("clear the spool: %w", err)
		}
	}
	return nil
}
