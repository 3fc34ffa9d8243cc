package replicate

import (
	"fmt"
	"slices"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// Transactions that wait in the queue are written to the files together, as one transaction with the newest image
// of each page: a node that is behind writes, syncs and publishes less often than the log was. Readers see whole
// transactions all the same, the last of each group.
const (
	maxMergedItems = 1024
	// maxMergedBytes bounds the pages of a group in memory.
	maxMergedBytes = 8 << 20
)

// batchLocked returns what of the queue may be written together: at least the first item.
func (d *replica) batchLocked() []item {
	n := 0
	for n < len(d.queue) && n < maxMergedItems && d.queue[n].mergeable() && (d.local == nil || d.queue[n].id != d.local.id) {
		n++
	}
	return slices.Clone(d.queue[:max(n, 1)])
}

// mergeable reports that an item is a transaction of one entry.
func (it *item) mergeable() bool { return !it.deleted && it.spool == nil && it.fork == nil }

// merged is a group of transactions as one.
type merged struct {
	base      sumTable // before the first
	floor     uint32   // the pages of base that are still there
	pageSize  uint32
	pageCount uint32
	lock      uint32
	position  Position
	sums      map[uint32]uint64 // of the pages that changed
	images    map[uint32][]byte
	free      [][]byte // of pages that were cut off
	arena     []byte
	grown     int // size of the last arena
}

func newMerged(base sumTable, pageSize uint32, at Position) *merged {
	return &merged{base: base, floor: uint32(len(base)), pageSize: pageSize, pageCount: uint32(len(base)), position: at,
		lock: snapshot.LockPgno(pageSize), sums: map[uint32]uint64{}, images: map[uint32][]byte{}}
}

func (m *merged) sum(pgno uint32) uint64 {
	if s, ok := m.sums[pgno]; ok || pgno > m.floor {
		return s
	}
	return m.base[pgno-1]
}

// check returns the checksum after a transaction, if its pages are all that it needs. See sumTable.step.
func (m *merged) check(pageCount uint32, pages []wal.Page, sums []uint64) (Checksum, error) {
	if len(sums) != len(pages) {
		return 0, fmt.Errorf("%d checksums for %d pages", len(sums), len(pages))
	}
	acc := uint64(m.position.Checksum)
	next := m.pageCount + 1 // the first page that has to be there if the database grows
	if next == m.lock {
		next++
	}
	for i, p := range pages {
		if p.Pgno == 0 || p.Pgno > pageCount {
			return 0, fmt.Errorf("page %d in a transaction that leaves %d pages", p.Pgno, pageCount)
		}
		if p.Pgno <= m.pageCount {
			acc ^= m.sum(p.Pgno)
		} else {
			if p.Pgno != next {
				return 0, fmt.Errorf("page %d is missing in a transaction that grows the database to %d pages", next, pageCount)
			}
			if next++; next == m.lock {
				next++
			}
		}
		acc ^= sums[i]
	}
	if next <= pageCount {
		return 0, fmt.Errorf("page %d is missing in a transaction that grows the database to %d pages", next, pageCount)
	}
	for pgno := pageCount + 1; pgno <= m.pageCount; pgno++ {
		acc ^= m.sum(pgno)
	}
	return Checksum(acc | snapshot.ChecksumFlag), nil
}

// add takes the next transaction, whose checksum is that of position to. Nothing changes if it is not.
func (m *merged) add(to Position, pageCount uint32, pages []wal.Page, sums []uint64) error {
	sum, err := m.check(pageCount, pages, sums)
	if err != nil {
		return err
	}
	if sum != to.Checksum {
		return fmt.Errorf("checksum %s after transaction %s, the log says %s: %w", sum, to.TXID, to.Checksum, errDiverged)
	}
	for i, p := range pages {
		image := m.images[p.Pgno]
		if image == nil {
			image = m.image()
			m.images[p.Pgno] = image
		}
		copy(image, p.Data)
		m.sums[p.Pgno] = sums[i]
	}
	if pageCount < m.pageCount {
		for pgno, image := range m.images {
			if pgno > pageCount {
				m.free = append(m.free, image)
				delete(m.images, pgno)
				delete(m.sums, pgno)
			}
		}
		m.floor = min(m.floor, pageCount)
	}
	m.pageCount, m.position = pageCount, to
	return nil
}

// image returns memory for a page.
func (m *merged) image() []byte {
	if n := len(m.free); n > 0 {
		b := m.free[n-1]
		m.free = m.free[:n-1]
		return b
	}
	size := int(m.pageSize)
	if len(m.arena) < size { // most groups are small
		m.grown = min(max(2*m.grown, 8*size), max(size, 256<<10))
		m.arena = make([]byte, m.grown)
	}
	b := m.arena[:size:size]
	m.arena = m.arena[size:]
	return b
}

func (m *merged) bytes() int { return len(m.images) * int(m.pageSize) }

// transaction returns the pages by number, and what they do to the table.
func (m *merged) transaction() ([]wal.Page, *sumDelta) {
	pages := make([]wal.Page, 0, len(m.images))
	for pgno, image := range m.images {
		pages = append(pages, wal.Page{Pgno: pgno, Data: image})
	}
	slices.SortFunc(pages, func(a, b wal.Page) int { return int(a.Pgno) - int(b.Pgno) })
	d := &sumDelta{pageCount: m.pageCount, pgnos: make([]uint32, len(pages)), sums: make([]uint64, len(pages))}
	for i, p := range pages {
		d.pgnos[i], d.sums[i] = p.Pgno, m.sums[p.Pgno]
	}
	return pages, d
}

// applyMerged writes the first transactions of a batch, as many as fit into memory, and returns how many are in the
// files now.
func (d *replica) applyMerged(batch []item) (done int, err error) {
	ctx := d.svc.ctx
	d.lockApplier()
	defer d.unlockApplier()
	if err := d.locateIO(ctx); err != nil {
		return 0, err
	}
	live, err := d.openIO()
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	if !d.known { // closed between the two
		d.mu.Unlock()
		return 0, deviceError{fmt.Errorf("apply to database %q: its files were just closed", d.name)}
	}
	if d.behind {
		d.mu.Unlock()
		return 0, errIncomplete
	}
	d.lastUsed = time.Now()
	m := newMerged(d.sums, d.pageSize, d.position)
	d.mu.Unlock()
	start, size, merged := time.Now(), 0, 0
	for _, it := range batch {
		if it.position.TXID <= m.position.TXID && merged == 0 { // the files have it
			if it.position.TXID == m.position.TXID && it.position != m.position {
				return done, fmt.Errorf("the files show %s, the log %s: %w", m.position, it.position, errDiverged)
			}
			done++
			continue
		}
		if m.bytes() >= maxMergedBytes {
			break
		}
		var n int
		if n, err = d.mergeItem(m, it); err != nil {
			break
		}
		size += n
		done++
		merged++
	}
	if merged == 0 {
		return done, err
	}
	// What is good goes first; the transaction that is not is the next one's first.
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		return 0, err
	}
	defer txn.End()
	pages, delta := m.transaction()
	if err := d.appendIO(txn, m.position, m.pageCount, pages, delta); err != nil {
		return 0, err
	}
	d.svc.metrics.apply(merged, size, time.Since(start))
	return done, nil
}

// mergeItem adds a decided transaction to a group and returns the bytes of its payload.
func (d *replica) mergeItem(m *merged, it item) (int, error) {
	if it.pre != m.position {
		return 0, fmt.Errorf("the files show %s, the log continues from %s: %w", m.position, it.pre, errDiverged)
	}
	payload := it.ltx
	if payload == nil {
		var err error
		if payload, err = d.svc.payload(it.index); err != nil {
			return 0, err
		}
	}
	decoder := decoders.Get().(*snapshot.Decoder)
	defer decoders.Put(decoder)
	hdr, pages, err := decoder.Decode(payload, maxSinglePages)
	if err != nil {
		return 0, err
	}
	if hdr.PageSize != m.pageSize {
		return 0, fmt.Errorf("pages of %d bytes, the database's have %d: %w", hdr.PageSize, m.pageSize, errDiverged)
	}
	return len(payload), m.add(it.position, hdr.PageCount, pages, decoder.Sums())
}
