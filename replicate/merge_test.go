package replicate

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// A group of transactions has to leave what they leave one after the other: databases that grow, shrink and grow
// again, beyond the lock page too.
func TestMergedIsTheSameAsOneByOne(t *testing.T) {
	const pageSize = 512
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		page := func() []byte {
			b := make([]byte, pageSize)
			b[rng.IntN(pageSize)] = byte(rng.Uint32())
			return b
		}
		var db memoryPages
		for range 1 + rng.IntN(8) {
			db = append(db, page())
		}
		table, sum, err := readSums(db, pageSize)
		if err != nil {
			t.Fatal(err)
		}
		m := newMerged(slices.Clone(table), pageSize, Position{1, sum})
		files := slices.Clone(db) // what the group is written to
		for txid := TXID(2); txid < 20; txid++ {
			count := uint32(max(1, len(db)+rng.IntN(9)-4))
			var pages []wal.Page
			var sums []uint64
			for pgno := uint32(1); pgno <= count; pgno++ {
				if int(pgno) > len(db) || rng.IntN(4) == 0 {
					p := wal.Page{Pgno: pgno, Data: page()}
					pages, sums = append(pages, p), append(sums, snapshot.PageSum(pgno, p.Data))
				}
			}
			if len(pages) == 0 {
				pages, sums = []wal.Page{{Pgno: 1, Data: db[0]}}, []uint64{snapshot.PageSum(1, db[0])}
			}
			delta, after, err := table.step(sum, pageSize, count, pages, slices.Clone(sums))
			if err != nil {
				t.Fatal(err)
			}
			if err := m.add(Position{txid, after ^ 2}, count, pages, sums); !errors.Is(err, errDiverged) {
				t.Fatalf("seed %d: a wrong checksum: %v", seed, err)
			}
			if err := m.add(Position{txid, after}, count, pages, sums); err != nil {
				t.Fatalf("seed %d, transaction %d: %v", seed, txid, err)
			}
			table, sum = table.apply(delta), after
			for len(db) < int(count) {
				db = append(db, nil)
			}
			db = db[:count]
			for _, p := range pages {
				db[p.Pgno-1] = bytes.Clone(p.Data)
			}
		}
		pages, delta := m.transaction()
		for len(files) < int(m.pageCount) {
			files = append(files, nil)
		}
		files = files[:m.pageCount]
		last := uint32(0)
		for _, p := range pages {
			if p.Pgno <= last {
				t.Fatalf("seed %d: page %d after %d", seed, p.Pgno, last)
			}
			last = p.Pgno
			files[p.Pgno-1] = p.Data
		}
		for i := range db {
			if !bytes.Equal(files[i], db[i]) {
				t.Fatalf("seed %d: page %d differs", seed, i+1)
			}
		}
		if got := m.base.apply(delta); !slices.Equal(got, table) || len(files) != len(db) || m.position.Checksum != sum {
			t.Fatalf("seed %d: the table differs", seed)
		}
	}
}

func TestMergedRefusesWhatIsNoTransaction(t *testing.T) {
	data := make([]byte, 512)
	for name, pages := range map[string][]wal.Page{
		"a page beyond the end":    {{Pgno: 9, Data: data}},
		"page 0":                   {{Pgno: 0, Data: data}},
		"a new page is missing":    {{Pgno: 4, Data: data}},
		"the last page is missing": {{Pgno: 3, Data: data}},
	} {
		m := newMerged(sumTable{1, 2}, 512, Position{1, 1})
		if _, err := m.check(4, pages, make([]uint64, len(pages))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	m := newMerged(sumTable{1, 2}, 512, Position{1, 1})
	if _, err := m.check(2, []wal.Page{{Pgno: 1, Data: data}}, nil); err == nil {
		t.Error("a page without a checksum is accepted")
	}
}
