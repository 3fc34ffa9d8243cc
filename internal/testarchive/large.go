package testarchive

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/wal"
)

// LargePageSize is the size of the pages of Large, in bytes.
const LargePageSize = 4096

// Large says what a large archive is made of.
type Large struct {
	Pages   int // of its database
	Commits int // of 1 to 6 pages each, behind a snapshot of all
	Upload  int // commits in an upload
}

// largeImage is a database in memory with its checksum. It is no database of SQLite.
type largeImage struct {
	b    []byte
	sums []uint64
	sum  uint64
	txid uint64
	time int64
}

func (i *largeImage) Position() (uint64, int64, uint64) { return i.txid, i.time, i.sum }
func (i *largeImage) PageSize() uint32                  { return LargePageSize }
func (i *largeImage) PageCount() uint32                 { return uint32(len(i.sums)) }
func (i *largeImage) ReadPage(pgno uint32, data []byte) error {
	copy(data, i.b[int(pgno-1)*LargePageSize:])
	return nil
}

// change writes a page that compresses to about a half.
func (i *largeImage) change(r *rand.Rand, pgno uint32) wal.Page {
	data := i.b[int(pgno-1)*LargePageSize:][:LargePageSize]
	for at := 0; at < LargePageSize; at += 16 {
		binary.LittleEndian.PutUint64(data[at:], r.Uint64())
	}
	if i.sums[pgno-1] != 0 {
		i.sum = snapshot.Roll(i.sum, i.sums[pgno-1])
	}
	i.sums[pgno-1] = snapshot.PageSum(pgno, data)
	i.sum = snapshot.Roll(i.sum, i.sums[pgno-1])
	return wal.Page{Pgno: pgno, Data: data}
}

// Write writes the archive and returns the database as its last commit left it. Commit n has transaction number n+1.
func (l Large) Write(ctx context.Context, w *archive.Writer) ([]byte, error) {
	r := rand.New(rand.NewPCG(1, 2))
	img := &largeImage{b: make([]byte, l.Pages*LargePageSize), sums: make([]uint64, l.Pages), sum: snapshot.ChecksumFlag, txid: 1, time: Start.UnixMicro()}
	for pgno := range l.Pages {
		img.change(r, uint32(pgno+1))
	}
	if err := w.SnapshotOf(ctx, img); err != nil {
		return nil, err
	}
	var batch []archive.Commit
	for txid := uint64(2); txid <= uint64(l.Commits+1); txid++ {
		at := 1 + r.IntN(l.Pages-8)
		var pages []wal.Page
		for range 1 + r.IntN(6) {
			pages = append(pages, img.change(r, uint32(at)))
			at++
		}
		img.txid, img.time = txid, Start.Add(time.Duration(txid)*20*time.Millisecond).UnixMicro()
		f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: LargePageSize, PageCount: uint32(l.Pages), TXID: txid, CommitTimeMillis: img.time / 1000}, pages)
		if err != nil {
			return nil, err
		}
		batch = append(batch, archive.Commit{TXID: txid, Time: img.time, Post: img.sum, LTX: bytes.NewReader(f)})
		if len(batch) == l.Upload || txid == uint64(l.Commits+1) {
			if err := w.Append(ctx, batch); err != nil {
				return nil, err
			}
			batch = nil
		}
	}
	return img.b, nil
}
