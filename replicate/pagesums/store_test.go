package pagesums

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func id(n int) [16]byte { return [16]byte{byte(n), byte(n >> 8), 1} }

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.closeFiles() })
	return s
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// oracle is what a store has to hold.
type oracle map[[16]byte]state

type state struct {
	rec  Record
	sums []uint64
}

func (o oracle) check(t testing.TB, s *Store) {
	t.Helper()
	for id, want := range o {
		rec, sums, ok := s.Load(id)
		if !ok || !same(rec, want.rec) || !slices.Equal(sums, want.sums) {
			t.Fatalf("database %x: %+v with %d checksums, %v; want %+v with %d", id, rec, len(sums), ok, want.rec, len(want.sums))
		}
	}
	if s.Len() != len(o) {
		t.Fatalf("%d records, want %d", s.Len(), len(o))
	}
}

func same(a, b Record) bool {
	if (a.Closed == nil) != (b.Closed == nil) || a.Closed != nil && *a.Closed != *b.Closed {
		return false
	}
	a.Closed, b.Closed = nil, nil
	return a == b
}

// step changes one database at random, in the store and in the oracle.
func step(t testing.TB, rng *rand.Rand, s *Store, o oracle, databases int) {
	t.Helper()
	k := id(rng.IntN(databases))
	st := o[k]
	prev := st.rec.TXID
	st.rec = Record{ID: k, TXID: prev + 1, Checksum: rng.Uint64(), PageSize: 4096}
	if rng.IntN(3) == 0 {
		st.rec.Closed = &Stat{rng.Int64(), rng.Int64(), rng.Int64(), rng.Uint64()}
	}
	switch rng.IntN(12) {
	case 0:
		try(t, s.Forget(k))
		delete(o, k)
		return
	case 1:
		if prev != 0 {
			try(t, s.Opened(k))
			st = o[k]
			st.rec.Closed = nil
			o[k] = st
		}
		return
	}
	n := max(1, len(st.sums)+rng.IntN(5)-2)
	var changes []Change
	st.sums = slices.Clone(st.sums[:min(n, len(st.sums))])
	for len(st.sums) < n {
		st.sums = append(st.sums, rng.Uint64())
		changes = append(changes, Change{uint32(len(st.sums)), st.sums[len(st.sums)-1]})
	}
	for range rng.IntN(3) {
		i := rng.IntN(n)
		st.sums[i] = rng.Uint64()
		changes = append(changes, Change{uint32(i) + 1, st.sums[i]})
	}
	if len(changes) > n {
		changes = changes[:0]
		prev = 0
	}
	st.rec.PageCount = uint32(n)
	if s.WantsAll(k, prev, len(changes), n) {
		try(t, s.PutAll(st.rec, st.sums))
	} else {
		try(t, s.PutChanges(st.rec, prev, changes))
	}
	o[k] = st
}

func (o oracle) clone() oracle {
	c := oracle{}
	for k, v := range o {
		c[k] = v
	}
	return c
}

func TestRecordsComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	s := open(t, dir)
	s.segmentBytes = 4 << 10
	o := oracle{}
	for i := range 4000 {
		step(t, rng, s, o, 20)
		if i%97 == 0 {
			try(t, s.Compact())
		}
		if i%211 == 0 {
			o.check(t, s)
			try(t, s.Close())
			s = open(t, dir)
			s.segmentBytes = 4 << 10
			o.check(t, s)
		}
	}
	o.check(t, s)
}

// A database of half a million pages of which ten changed costs a few hundred bytes, not the whole table.
func TestFewChangesAreFewBytes(t *testing.T) {
	s := open(t, t.TempDir())
	sums := make([]uint64, 512<<10)
	try(t, s.PutAll(Record{ID: id(1), TXID: 1, PageSize: 4096, PageCount: uint32(len(sums))}, sums))
	before := s.segments[len(s.segments)-1].size
	for txid := uint64(2); txid < 100; txid++ {
		if s.WantsAll(id(1), txid-1, 10, len(sums)) {
			t.Fatal("all checksums are wanted")
		}
		try(t, s.PutChanges(Record{ID: id(1), TXID: txid, PageSize: 4096, PageCount: uint32(len(sums))}, txid-1, make10(txid)))
	}
	if n := (s.segments[len(s.segments)-1].size - before) / 98; n > 300 {
		t.Errorf("%d bytes a record", n)
	}
}

func make10(txid uint64) (c []Change) {
	for i := range uint32(10) {
		c = append(c, Change{i + 1, txid})
	}
	return c
}

func TestSpaceIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.segmentBytes = 64 << 10
	rng := rand.New(rand.NewPCG(3, 4))
	o := oracle{}
	most := 0
	for i := range 30000 {
		step(t, rng, s, o, 50)
		if i%100 == 0 {
			try(t, s.Compact())
			most = max(most, len(s.segments))
		}
	}
	if most > 8 {
		t.Errorf("%d segments for %d bytes of records", most, s.live)
	}
	o.check(t, s)
}

// A node may lose power at any moment: what was synced is there, what was not is there whole or not at all. Every
// length that the last segment can have is tried.
func TestTornTail(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	dir := t.TempDir()
	s := open(t, dir)
	o := oracle{}
	for range 50 {
		step(t, rng, s, o, 5)
	}
	try(t, s.Sync())
	path := s.path(s.segments[0].number)
	// Words that are written in place change what was synced: they are left out of what follows.
	states := map[int64]oracle{s.segments[0].size: o.clone()}
	first := s.segments[0].size
	for range 12 {
		k := id(rng.IntN(5))
		st := o[k]
		st.rec = Record{ID: k, TXID: st.rec.TXID + 1, PageSize: 4096, PageCount: 3, Closed: &Stat{1, 2, 3, 4}}
		st.sums = []uint64{rng.Uint64(), 2, 3 | 1<<63}
		try(t, s.PutAll(st.rec, st.sums))
		o[k] = st
		states[s.segments[0].size] = o.clone()
	}
	end := s.segments[0].size
	whole, err := os.ReadFile(path)
	try(t, err)
	want := states[first]
	for n := first; n <= end; n++ {
		if next, ok := states[n]; ok {
			want = next
		}
		for _, tail := range []string{"cut", "zeros", "garbage"} {
			torn := t.TempDir()
			b := slices.Clone(whole[:n])
			if tail != "cut" && n < end {
				b = append(b, make([]byte, 200)...)
				for i := n; tail == "garbage" && i < int64(len(b)); i++ {
					b[i] = byte(rng.Uint32())
				}
			}
			try(t, os.WriteFile(filepath.Join(torn, filepath.Base(path)), b, 0o600))
			again, err := Open(torn)
			try(t, err)
			want.check(t, again)
			if n%40 != 0 {
				again.closeFiles()
				os.RemoveAll(torn)
				continue
			}
			// And it goes on from there.
			try(t, again.PutAll(Record{ID: id(9), TXID: 1, PageSize: 512, PageCount: 1}, []uint64{7}))
			try(t, again.Close())
			again, err = Open(torn)
			try(t, err)
			if _, sums, ok := again.Load(id(9)); !ok || sums[0] != 7 {
				t.Fatal("the record after a torn tail is lost")
			}
			again.closeFiles()
			os.RemoveAll(torn)
		}
	}
}

// A flipped bit costs records, never gives a wrong one.
func TestDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	dir := t.TempDir()
	s := open(t, dir)
	was := map[string]bool{} // every state that any record ever had
	o := oracle{}
	for range 30 {
		step(t, rng, s, o, 3)
		for _, st := range o {
			was[fmt.Sprint(st.rec.ID, st.rec.TXID, st.rec.Checksum, st.sums)] = true
		}
	}
	try(t, s.Close())
	path := s.path(s.segments[0].number)
	whole, err := os.ReadFile(path)
	try(t, err)
	for i := range whole {
		b := slices.Clone(whole)
		b[i] ^= 1 << rng.IntN(8)
		try(t, os.WriteFile(path, b, 0o600))
		again, err := Open(dir)
		try(t, err)
		for n := range 3 {
			rec, sums, ok := again.Load(id(n))
			if ok && !was[fmt.Sprint(rec.ID, rec.TXID, rec.Checksum, sums)] {
				t.Fatalf("byte %d flipped: database %d has transaction %d with checksums it never had", i, n, rec.TXID)
			}
		}
		again.closeFiles()
	}
}

// A segment that was synced and has lost records may have lost the word that files were opened: nothing counts as
// closed.
func TestDamageInAFormerSegment(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.segmentBytes = 300
	for n := range 6 {
		try(t, s.PutAll(Record{ID: id(n), TXID: 1, PageSize: 512, PageCount: 1, Closed: &Stat{Inode: 1}}, []uint64{7}))
	}
	path := s.path(s.segments[1].number)
	try(t, s.Close())
	b, err := os.ReadFile(path)
	try(t, err)
	b[len(b)-50] ^= 1
	try(t, os.WriteFile(path, b, 0o600))
	s = open(t, dir)
	for n := range 2 {
		if rec, ok := s.Find(id(n)); ok && rec.Closed != nil {
			t.Errorf("database %d counts as closed", n)
		}
	}
}

func TestRecordIsNotThatOfAClosedFileAfterOpened(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	try(t, s.PutAll(Record{ID: id(1), TXID: 1, PageSize: 512, PageCount: 1, Closed: &Stat{Inode: 1}}, []uint64{7}))
	try(t, s.Opened(id(1)))
	for range 2 {
		rec, sums, ok := s.Load(id(1))
		if !ok || rec.Closed != nil || len(sums) != 1 {
			t.Fatalf("%+v, %v, %v", rec, sums, ok)
		}
		s.closeFiles() // as a kill does
		s = open(t, dir)
	}
}

func TestChangesContinueTheNewestRecordOnly(t *testing.T) {
	s := open(t, t.TempDir())
	if s.PutChanges(Record{ID: id(1), TXID: 2, PageCount: 1}, 1, nil) == nil {
		t.Error("changes to nothing are accepted")
	}
	try(t, s.PutAll(Record{ID: id(1), TXID: 2, PageCount: 1, PageSize: 512}, []uint64{1}))
	if s.PutChanges(Record{ID: id(1), TXID: 4, PageCount: 1, PageSize: 512}, 3, nil) == nil {
		t.Error("changes to another record are accepted")
	}
	if s.PutAll(Record{ID: id(1), TXID: 2, PageCount: 2}, []uint64{1}) == nil {
		t.Error("one checksum for two pages is accepted")
	}
}

func TestNothingIsWrittenAfterAFailedSync(t *testing.T) {
	s := open(t, t.TempDir())
	s.broken = errors.New("sync failed")
	if s.PutAll(Record{ID: id(1), TXID: 1, PageCount: 1}, []uint64{1}) == nil || s.Sync() == nil || s.Opened(id(1)) != nil {
		t.Error("the store goes on")
	}
}

// A sync that fails anywhere is the last one, also where a new segment begins: what it was to make durable may be gone,
// and the next sync would call it good.
func TestNoSyncIsTriedAgain(t *testing.T) {
	former := fsync
	defer func() { fsync = former }()
	put := func(s *Store, txid uint64) error {
		return s.PutAll(Record{ID: id(1), TXID: txid, PageCount: 1, PageSize: 512}, []uint64{1})
	}
	for n := range 3 { // the segment before, the head of the new one, the directory
		s := open(t, t.TempDir())
		s.segmentBytes = 1
		try(t, put(s, 1))
		calls := 0
		fsync = func(f *os.File) error {
			if calls++; calls == n+1 {
				return syscall.EIO
			}
			return former(f)
		}
		if err := put(s, 2); !errors.Is(err, ErrSync) || !errors.Is(err, syscall.EIO) {
			t.Errorf("sync %d of a new segment fails: %v", n, err)
		}
		for what, err := range map[string]error{"another record": put(s, 3), "a sync": s.Sync()} {
			if !errors.Is(err, ErrSync) {
				t.Errorf("%s after sync %d failed: %v", what, n, err)
			}
		}
		fsync = former
	}
}

// Half-written compactions leave both copies of a record: the newer one counts, and it is the same.
func TestCompactionCutOff(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.segmentBytes = 1 << 10
	rng := rand.New(rand.NewPCG(9, 10))
	o := oracle{}
	for range 300 {
		step(t, rng, s, o, 10)
	}
	oldest := s.segments[0]
	ids := 0
	for k, c := range s.chains {
		if c.parts[0].seg == oldest {
			try(t, s.move(k, oldest))
			ids++
		}
	}
	o.check(t, s)
	s.closeFiles()
	o.check(t, open(t, dir))
}

func FuzzRecord(f *testing.F) {
	all := header{Record: Record{ID: id(1), TXID: 3, Checksum: 4, PageSize: 4096, PageCount: 2, Closed: &Stat{1, 2, 3, 4}}, kind: kindAll}
	f.Add(all.encode([]uint64{8, 9}, nil))
	delta := header{Record: Record{ID: id(1), TXID: 3, Checksum: 4, PageSize: 4096, PageCount: 3}, kind: kindDelta, prev: 2}
	f.Add(delta.encode(nil, []Change{{3, 4}}))
	gone := header{Record: Record{ID: id(1)}, kind: kindGone}
	f.Add(gone.encode(nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil {
			return
		}
		if h.bodySize() > int64(len(b)-headerSize) {
			return
		}
		body := b[headerSize : headerSize+h.bodySize()]
		sums, err := h.applyBody([]uint64{1, 2}, body)
		if err == nil && h.kind != kindGone && len(sums) != int(h.PageCount) {
			t.Fatalf("%d checksums for %d pages", len(sums), h.PageCount)
		}
	})
}

func FuzzSegment(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	for n := range 3 {
		if err := s.PutAll(Record{ID: id(n), TXID: 1, PageSize: 512, PageCount: 1}, []uint64{7}); err != nil {
			f.Fatal(err)
		}
	}
	path := s.path(1)
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.closeFiles()
		for n := range 3 {
			s.Load(id(n))
		}
		try(t, s.PutAll(Record{ID: id(1), TXID: 9, PageCount: 1, PageSize: 512}, []uint64{1}))
		if _, sums, ok := s.Load(id(1)); !ok || len(sums) != 1 {
			t.Fatal("a record is lost at once")
		}
	})
}
