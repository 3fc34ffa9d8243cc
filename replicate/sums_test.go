package replicate

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// memoryPages is a database in memory, the oracle of sumTable.
type memoryPages [][]byte

func (m memoryPages) PageCount() uint32 { return uint32(len(m)) }

func (m memoryPages) ReadPage(pgno uint32, buf []byte) error {
	copy(buf, m[pgno-1])
	return nil
}

func TestSumTableFollowsTheDatabase(t *testing.T) {
	const pageSize = 512
	rng := rand.New(rand.NewPCG(1, 2))
	var db memoryPages
	var table sumTable
	sum := Checksum(snapshot.ChecksumFlag)
	page := func() []byte {
		b := make([]byte, pageSize)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for step := range 300 {
		count := uint32(max(1, len(db)+rng.IntN(9)-4))
		var pages []wal.Page
		var sums []uint64
		for pgno := uint32(1); pgno <= count; pgno++ {
			if int(pgno) > len(db) || rng.IntN(4) == 0 {
				p := wal.Page{Pgno: pgno, Data: page()}
				pages, sums = append(pages, p), append(sums, snapshot.PageSum(pgno, p.Data))
			}
		}
		delta, after, err := table.step(sum, pageSize, count, pages, sums)
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		for len(db) < int(count) {
			db = append(db, nil)
		}
		db = db[:count]
		for _, p := range pages {
			db[p.Pgno-1] = bytes.Clone(p.Data)
		}
		table, sum = table.apply(delta), after
		want, wantSum, err := readSums(db, pageSize)
		if err != nil {
			t.Fatal(err)
		}
		if sum != wantSum || len(table) != len(want) {
			t.Fatalf("step %d: checksum %s of %d pages, want %s of %d", step, sum, len(table), wantSum, len(want))
		}
		for i := range want {
			if table[i] != want[i] {
				t.Fatalf("step %d: page %d has sum %x, want %x", step, i+1, table[i], want[i])
			}
		}
	}
}

func TestSumTableRefusesWhatIsNoTransaction(t *testing.T) {
	data := make([]byte, 512)
	page := func(pgno uint32) wal.Page { return wal.Page{Pgno: pgno, Data: data} }
	for name, tc := range map[string]struct {
		count uint32
		pages []wal.Page
		sums  int
	}{
		"a page beyond the end":         {2, []wal.Page{page(3)}, 1},
		"page 0":                        {2, []wal.Page{page(0)}, 1},
		"growth with a page left out":   {5, []wal.Page{page(3), page(5)}, 2},
		"growth with the last left out": {5, []wal.Page{page(3), page(4)}, 2},
		"growth with no pages":          {4, nil, 0},
		"fewer checksums than pages":    {2, []wal.Page{page(1), page(2)}, 1},
	} {
		table := sumTable{1, 2}
		if _, _, err := table.step(7, 512, tc.count, tc.pages, make([]uint64, tc.sums)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzCommitRequest(f *testing.F) {
	entry, err := EncodeTransaction(nil, &Transaction{DB: DatabaseID{1}, ID: EntryID{2}, Pre: Position{1, 1}, Post: Position{2, 2}, PageSize: 512, PageCount: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(make([]byte, commitHeaderSize), entry...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodeCommit(b)
		if err == nil && len(p.entry) != len(b)-commitHeaderSize {
			t.Fatal("the entry is not the rest of the request")
		}
	})
}

// The log and its cache keep entries: one must not keep the room that its pages could have taken.
func TestAnEntryKeepsNoMoreThanItsBytes(t *testing.T) {
	page := make([]byte, 4096)
	page[100] = 1
	d := &replica{pageSize: 4096, id: DatabaseID{1}}
	sums := make(sumTable, 2)
	for i := range sums {
		sums[i] = pageSum(4096, uint32(i+1), make([]byte, 4096))
	}
	for range 3 { // with a new buffer and with used ones
		l := &localCommit{id: NewEntryID(), pre: Position{5, Checksum(snapshot.ChecksumFlag)}, post: Position{TXID: 6}}
		entry, err := l.encode(d, sums, 2, []wal.Page{{Pgno: 1, Data: page}, {Pgno: 2, Data: page}})
		if err != nil {
			t.Fatal(err)
		}
		if cap(entry) > 2*len(entry) {
			t.Errorf("an entry of %d bytes keeps %d", len(entry), cap(entry))
		}
		var back Transaction
		if err := decodeTransaction(entry, &back); err != nil || back.ID != l.id || back.Post != l.post {
			t.Errorf("decoded %+v: %v", back, err)
		}
	}
}
