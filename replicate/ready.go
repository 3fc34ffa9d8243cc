package replicate

import (
	"fmt"
	"hash/crc32"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// readyPages keeps pages of a transaction that is yet to begin, compressed, in a file. What comes back is compared with a
// checksum: behind it nobody would find out before the transaction is decided. A nil one has none.
type readyPages struct {
	file   *spool
	at     map[uint32]readyPage
	window []byte // of the file, from
	from   int64
}

type readyPage struct {
	offset int64
	image  uint64
	size   uint32
	crc    uint32
}

// readyWindow is how much is read at a time.
const readyWindow = 1 << 20

func newReadyPages(s *spools) (*readyPages, error) {
	file, err := s.create(NewEntryID())
	if err != nil {
		return nil, err
	}
	return &readyPages{file: file, at: map[uint32]readyPage{}}, nil
}

func (r *readyPages) close() { r.file.release() }

func (r *readyPages) has(pgno uint32) bool {
	if r == nil {
		return false
	}
	_, ok := r.at[pgno]
	return ok
}

func (r *readyPages) put(f snapshot.PackedPage) error {
	e := readyPage{r.file.written, f.Image, uint32(len(f.Bytes)), crc32.Checksum(f.Bytes, castagnoli)}
	if _, err := r.file.Write(f.Bytes); err != nil {
		return fmt.Errorf("keep page %d: %w", f.Pgno, err)
	}
	r.at[f.Pgno] = e
	r.window = r.window[:0]
	return nil
}

// get returns a page, which is valid until the next call.
func (r *readyPages) get(pgno uint32) (snapshot.PackedPage, error) {
	e := r.at[pgno]
	if e.offset < r.from || e.offset+int64(e.size) > r.from+int64(len(r.window)) {
		n := max(int64(e.size), min(readyWindow, r.file.written-e.offset))
		if int64(cap(r.window)) < n {
			r.window = make([]byte, n)
		}
		r.window, r.from = r.window[:n], e.offset
		if _, err := r.file.file.ReadAt(r.window, e.offset); err != nil {
			r.window = r.window[:0]
			return snapshot.PackedPage{}, fmt.Errorf("read page %d back: %w", pgno, err)
		}
	}
	b := r.window[e.offset-r.from:][:e.size]
	if crc32.Checksum(b, castagnoli) != e.crc {
		return snapshot.PackedPage{}, fmt.Errorf("read page %d back: it is not what was written", pgno)
	}
	return snapshot.PackedPage{Pgno: pgno, Image: e.image, Bytes: b}, nil
}
