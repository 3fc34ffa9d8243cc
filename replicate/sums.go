package replicate

import (
	"fmt"
	"math/bits"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// sumTable holds the checksum of every page, by page number minus one. The entry of the lock page,
// which SQLite never writes, is zero.
type sumTable []uint64

// sumDelta is what one transaction does to a sumTable.
type sumDelta struct {
	pageCount uint32
	pgnos     []uint32
	sums      []uint64
}

// pageSum is the checksum of one page, or zero for the lock page.
func pageSum(pageSize, pgno uint32, data []byte) uint64 {
	if pgno == snapshot.LockPgno(pageSize) {
		return 0
	}
	return snapshot.PageSum(pgno, data)
}

// step computes the delta and the checksum after a transaction that follows checksum pre. sums are the
// checksums of the pages, which ascend, have the database's size and are no lock page: the LTX codec has
// checked that.
func (t sumTable) step(pre Checksum, pageSize, pageCount uint32, pages []wal.Page, sums []uint64) (*sumDelta, Checksum, error) {
	if len(sums) != len(pages) {
		return nil, 0, fmt.Errorf("%d checksums for %d pages", len(sums), len(pages))
	}
	st := t.steps(pre, pageSize, pageCount)
	st.delta.pgnos, st.delta.sums = make([]uint32, 0, len(pages)), sums[:0]
	for i, p := range pages {
		if err := st.add(t, p.Pgno, sums[i]); err != nil {
			return nil, 0, err
		}
	}
	return st.end(t)
}

// sumStep is step for a transaction whose pages come one by one. The table is given to each call and must
// be the same.
type sumStep struct {
	delta *sumDelta
	acc   uint64
	lock  uint32
	next  uint32 // the first page that has to be in a transaction that grows the database
}

func (t sumTable) steps(pre Checksum, pageSize, pageCount uint32) *sumStep {
	st := &sumStep{delta: &sumDelta{pageCount: pageCount}, acc: uint64(pre), lock: snapshot.LockPgno(pageSize), next: uint32(len(t))}
	st.advance()
	return st
}

func (st *sumStep) advance() {
	if st.next++; st.next == st.lock {
		st.next++
	}
}

// add takes the next page.
func (st *sumStep) add(t sumTable, pgno uint32, sum uint64) error {
	switch {
	case pgno == 0 || pgno > st.delta.pageCount:
		return fmt.Errorf("page %d in a transaction that leaves %d pages", pgno, st.delta.pageCount)
	case pgno <= uint32(len(t)):
		st.acc ^= t[pgno-1]
	case pgno != st.next:
		return st.missing()
	default:
		st.advance()
	}
	st.delta.pgnos = append(st.delta.pgnos, pgno)
	st.delta.sums = append(st.delta.sums, sum)
	st.acc ^= sum
	return nil
}

func (st *sumStep) missing() error {
	return fmt.Errorf("page %d is missing in a transaction that grows the database to %d pages", st.next, st.delta.pageCount)
}

// end returns what all pages together do.
func (st *sumStep) end(t sumTable) (*sumDelta, Checksum, error) {
	if st.next <= st.delta.pageCount {
		return nil, 0, st.missing()
	}
	for pgno := st.delta.pageCount + 1; pgno <= uint32(len(t)); pgno++ {
		st.acc ^= t[pgno-1]
	}
	return st.delta, Checksum(st.acc | snapshot.ChecksumFlag), nil
}

// apply changes the table in place and returns it.
func (t sumTable) apply(d *sumDelta) sumTable {
	if int(d.pageCount) <= len(t) {
		t = t[:d.pageCount]
	} else {
		t = append(t, make([]uint64, int(d.pageCount)-len(t))...)
	}
	for i, pgno := range d.pgnos {
		t[pgno-1] = d.sums[i]
	}
	return t
}

// pageSet is a set of page numbers.
type pageSet struct {
	words []uint64
	n     int
}

func (s *pageSet) add(pgno uint32) {
	i, bit := int(pgno/64), uint64(1)<<(pgno%64)
	if i >= len(s.words) {
		s.words = append(s.words, make([]uint64, i+1-len(s.words))...)
	}
	if s.words[i]&bit == 0 {
		s.words[i] |= bit
		s.n++
	}
}

// each calls f with every number, ascending.
func (s *pageSet) each(f func(pgno uint32)) {
	for i, w := range s.words {
		for ; w != 0; w &= w - 1 {
			f(uint32(64*i + bits.TrailingZeros64(w)))
		}
	}
}

// checksum is that of the whole database whose pages have these checksums.
func (t sumTable) checksum() Checksum {
	acc := uint64(snapshot.ChecksumFlag)
	for _, s := range t {
		acc ^= s
	}
	return Checksum(acc | snapshot.ChecksumFlag)
}

// pageReader reads pages of one consistent state.
type pageReader interface {
	PageCount() uint32
	ReadPage(pgno uint32, buf []byte) error
}

// readSums reads every page and returns their checksums and the whole database's.
func readSums(r pageReader, pageSize uint32) (sumTable, Checksum, error) {
	t := make(sumTable, r.PageCount())
	acc := uint64(snapshot.ChecksumFlag)
	buf := make([]byte, pageSize)
	for i := range t {
		pgno := uint32(i) + 1
		if pgno == snapshot.LockPgno(pageSize) {
			continue
		}
		if err := r.ReadPage(pgno, buf); err != nil {
			return nil, 0, unread(fmt.Errorf("read page %d: %w", pgno, err))
		}
		t[i] = snapshot.PageSum(pgno, buf)
		acc ^= t[i]
	}
	return t, Checksum(acc | snapshot.ChecksumFlag), nil
}
