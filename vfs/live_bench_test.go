package vfs

import (
	"context"
	"fmt"
	"testing"

	"github.com/uglyer/ha-sqlite/wal"
)

// BenchmarkApply appends transactions to a live database, in the page cache, with
// the checkpoints that go with them.
func BenchmarkApply(b *testing.B) {
	const pageSize = 4096
	for _, pages := range []int{2, 78} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			l := openTest(b, pageSize, 0)
			tx := transaction{pageCount: 2000}
			for i := range pages {
				tx.pages = append(tx.pages, wal.Page{Pgno: uint32(2 + 25*i), Data: make([]byte, pageSize)})
			}
			first := transaction{pageCount: 2000}
			for i := uint32(1); i <= 2000; i++ {
				first.pages = append(first.pages, wal.Page{Pgno: i, Data: make([]byte, pageSize)})
			}
			copy(first.pages[0].Data, Image(pageSize, 0))
			apply(b, l, first)
			b.SetBytes(int64(pages * pageSize))
			b.ReportAllocs()
			for b.Loop() {
				txn, err := l.Begin(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				f, err := txn.Append(tx.pages, tx.pageCount)
				if err != nil {
					b.Fatal(err)
				}
				if err := txn.End(); err != nil {
					b.Fatal(err)
				}
				if f.MaxFrame > 4000 {
					if _, _, err := l.Checkpoint(false); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
		})
	}
}

// BenchmarkBeginEnd is the cost of a transaction that writes nothing.
func BenchmarkBeginEnd(b *testing.B) {
	l := openTest(b, 4096, 0)
	b.ReportAllocs()
	for b.Loop() {
		txn, err := l.Begin(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if err := txn.End(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadPage reads pages, of which half are in the log.
func BenchmarkReadPage(b *testing.B) {
	l := openTest(b, 4096, 0)
	tx := transaction{pageCount: 1000}
	for i := uint32(1); i <= 1000; i++ {
		tx.pages = append(tx.pages, wal.Page{Pgno: i, Data: make([]byte, 4096)})
	}
	copy(tx.pages[0].Data, Image(4096, 0))
	apply(b, l, tx)
	if _, _, err := l.Checkpoint(true); err != nil {
		b.Fatal(err)
	}
	apply(b, l, transaction{tx.pages[:500], 1000})
	snap, err := l.Pin()
	if err != nil {
		b.Fatal(err)
	}
	defer snap.Close()
	buf := make([]byte, 4096)
	b.SetBytes(4096)
	pgno := uint32(0)
	for b.Loop() {
		if err := snap.ReadPage(pgno%1000+1, buf); err != nil {
			b.Fatal(err)
		}
		pgno += 617
	}
}
