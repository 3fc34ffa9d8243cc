package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// memorySink is a raft.SnapshotSink in memory.
type memorySink struct {
	bytes.Buffer
	closed, cancelled bool
}

func (s *memorySink) ID() string    { return "memory" }
func (s *memorySink) Close() error  { s.closed = true; return nil }
func (s *memorySink) Cancel() error { s.cancelled = true; return nil }

func manifestOf(t testing.TB, f *FSM) []byte {
	t.Helper()
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	var sink memorySink
	if err := snap.Persist(&sink); err != nil {
		t.Fatal(err)
	}
	if !sink.closed || sink.cancelled {
		t.Fatal("manifest was not closed")
	}
	return sink.Bytes()
}

func restored(t testing.TB, manifest []byte) *FSM {
	t.Helper()
	f := NewFSM(nil, nil)
	if err := f.Restore(io.NopCloser(bytes.NewReader(manifest))); err != nil {
		t.Fatal(err)
	}
	return f
}

// playedScript returns an FSM with some of everything in it.
func playedScript(t testing.TB) *script {
	s := newScript(t, nil)
	for i := range 5 {
		id := s.create(fmt.Sprintf("tenant-%d/db", i))
		for range i * 3 {
			s.commit(id)
		}
		tx := s.next(id)
		tx.CommitTime = 0
		s.apply(tx) // rejected
	}
	gone := s.create("gone")
	s.apply(&Delete{DB: gone})
	gone = s.create("gone")
	s.apply(&Delete{DB: gone})
	s.create("gone")
	s.apply(&Member{ID: "n1", RaftAddr: "127.0.0.1:1", HTTPAddr: "127.0.0.1:2", CodecVersion: 1})
	s.apply(&Member{ID: "n2", RaftAddr: "127.0.0.1:3", CodecVersion: 1})
	s.startTerm()
	for i := range 2 {
		s.applyParts(s.large(s.f.List()[i].ID), i+1)
	}
	return s
}

func TestManifestHoldsTheWholeState(t *testing.T) {
	s := playedScript(t)
	m := manifestOf(t, s.f)
	f := restored(t, m)
	if again := manifestOf(t, f); !bytes.Equal(again, m) {
		t.Fatal("the restored state has another manifest")
	}
	if got, want := f.List(), s.f.List(); !slices.Equal(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if !reflect.DeepEqual(f.s.tombstones, s.f.s.tombstones) || !reflect.DeepEqual(f.s.incarnations, s.f.s.incarnations) ||
		!reflect.DeepEqual(f.Members(), s.f.Members()) || len(f.Running()) != 2 || !slices.Equal(f.Running(), s.f.Running()) || f.Applied() != s.f.Applied() || f.StartedTerm() != 2 || f.Cluster() != testCluster {
		t.Fatal("tombstones, members, index, term or cluster differ")
	}
	if id, n := f.NextID(testCluster, "gone"); n != 2 || id != NewDatabaseID(testCluster, "gone", 2) {
		t.Fatalf("incarnation %d", n)
	}
}

func TestManifestIsOfTheMomentOfTheSnapshot(t *testing.T) {
	s := playedScript(t)
	want := manifestOf(t, s.f)
	snap, err := s.f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, db := range s.f.List() {
		for range 3 * acceptedWindow {
			s.commit(db.ID)
		}
	}
	s.apply(&Delete{DB: s.f.List()[0].ID})
	s.create("later")
	var sink memorySink
	if err := snap.Persist(&sink); err != nil || !bytes.Equal(sink.Bytes(), want) {
		t.Fatalf("the manifest shows what came later, %v", err)
	}
}

// logStep is an entry of a random log.
type logStep struct {
	term  uint64
	entry []byte
}

// randomLog makes a log in which much is refused, and the transactions in it.
func randomLog(t testing.TB, r *rand.Rand, n int) ([]logStep, []*Transaction) {
	s := newScript(t, nil)
	var txs []*Transaction
	log := []logStep{{1, mustEncodeEntry(t, &TermStart{Node: "n1", Cluster: testCluster})}}
	add := func(e any) {
		b := mustEncodeEntry(t, e)
		s.applyBytes(b)
		log = append(log, logStep{s.term, b})
	}
	names := []string{"a", "b", "c/d", "c/e", "f"}
	for len(log) < n {
		name := names[r.IntN(len(names))]
		db, ok := s.f.Lookup(name)
		switch k := r.IntN(100); {
		case !ok || k < 3:
			id, inc := s.f.NextID(testCluster, name)
			if r.IntN(8) == 0 {
				inc++
			}
			add(&Create{ID: id, Name: name, Incarnation: inc, PageSize: 512 << r.IntN(8), CommitTime: int64(len(log))})
		case k < 5:
			add(&Delete{DB: db.ID})
		case k < 8:
			s.term++
			add(&TermStart{Node: "n2", Cluster: testCluster})
		case k < 10:
			add(&Member{ID: names[r.IntN(5)], RaftAddr: fmt.Sprint(k), CodecVersion: 1, Removed: r.IntN(2) == 0})
		case k < 11:
			add(&Version{Cluster: 1})
		default:
			tx := s.next(db.ID)
			for i := range tx.ID { // from the seed
				tx.ID[i] = byte(r.Uint32())
			}
			switch r.IntN(8) {
			case 0:
				tx.Pre.Checksum ^= 1
			case 1:
				tx.Term--
			case 2:
				if len(txs) > 0 { // a late or doubled entry
					tx = txs[r.IntN(len(txs))]
				}
			}
			txs = append(txs, tx)
			add(tx)
		}
	}
	return log, txs
}

func TestEveryNodeDecidesTheSameWhereverItWasRestored(t *testing.T) {
	const length, seed = 1200, 20260801
	r := rand.New(rand.NewPCG(seed, 1))
	log, txs := randomLog(t, r, length)
	ended, cancel := context.WithCancel(t.Context())
	cancel()

	play := func(restoreEvery func() bool) (*FSM, []Decision) {
		f := NewFSM(nil, nil)
		var decisions []Decision
		for i, step := range log {
			d := f.Apply(&raft.Log{Index: uint64(i + 1), Term: step.term, Data: step.entry}).(*Decision)
			decisions = append(decisions, *d)
			if restoreEvery() {
				f = restored(t, manifestOf(t, f))
			}
		}
		return f, decisions
	}
	first, want := play(func() bool { return false })
	accepted := 0
	for _, d := range want {
		if d.Accepted {
			accepted++
		}
	}
	t.Logf("seed %d: %d of %d entries accepted", seed, accepted, len(want))
	wantManifest := manifestOf(t, first)
	for _, test := range []struct {
		name string
		when func() bool
	}{
		{"after every entry", func() bool { return true }},
		{"seldom", func() bool { return r.IntN(100) == 0 }},
		{"often", func() bool { return r.IntN(10) == 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, got := play(test.when)
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("seed %d: entry %d: got %+v, want %+v", seed, i+1, got[i], want[i])
				}
			}
			if !bytes.Equal(manifestOf(t, f), wantManifest) {
				t.Fatalf("seed %d: states differ at the end", seed)
			}
			for _, tx := range txs {
				v1, p1, i1, err1 := first.Wait(ended, tx.DB, tx.Pre.TXID, tx.ID, tx.Term)
				v2, p2, i2, err2 := f.Wait(ended, tx.DB, tx.Pre.TXID, tx.ID, tx.Term)
				if v1 != v2 || p1 != p2 || i1 != i2 || (err1 == nil) != (err2 == nil) {
					t.Fatalf("seed %d: verdict of %s: %v %v %d %v, restored %v %v %d %v", seed, tx.ID, v1, p1, i1, err1, v2, p2, i2, err2)
				}
			}
		})
	}
}

func TestPersistHookComesFirstAndItsErrorAbandonsTheManifest(t *testing.T) {
	s := playedScript(t)
	refused := errors.New("file is behind")
	var asked []DatabaseState
	s.f.OnPersist = func(_ context.Context, states []DatabaseState) error {
		asked = states
		return refused
	}
	snap, _ := s.f.Snapshot()
	var sink memorySink
	if err := snap.Persist(&sink); !errors.Is(err, refused) {
		t.Fatalf("got %v, want %v", err, refused)
	}
	if sink.Len() != 0 || sink.closed || !sink.cancelled {
		t.Fatal("something was written")
	}
	if !slices.Equal(asked, s.f.List()) {
		t.Fatalf("hook was asked about %+v", asked)
	}

	var ctx context.Context
	s.f.OnPersist = func(c context.Context, _ []DatabaseState) error { ctx = c; return nil }
	snap, _ = s.f.Snapshot()
	if err := snap.Persist(&memorySink{}); err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	s.f.Close()
	if ctx.Err() == nil {
		t.Fatal("the hook's context outlives the FSM")
	}
}

func TestRestoreHookSeesTheNewStateAndItsErrorPutsTheOldOneBack(t *testing.T) {
	s := playedScript(t)
	m := manifestOf(t, s.f)
	f := NewFSM(nil, nil)
	behind := errors.New("no peer has the pages")
	var seen []DatabaseState
	f.OnRestore = func(states []DatabaseState) error {
		seen = states
		if got, ok := f.Get(states[0].ID); !ok || got != states[0] {
			t.Errorf("the hook sees %+v", got)
		}
		return behind
	}
	empty := manifestOf(t, f)
	if err := f.Restore(io.NopCloser(bytes.NewReader(m))); !errors.Is(err, behind) {
		t.Fatalf("got %v, want %v", err, behind)
	}
	if !slices.Equal(seen, s.f.List()) || !bytes.Equal(manifestOf(t, f), empty) {
		t.Fatal("the state is not the former one")
	}
}

func TestRestoreAnswersThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead, behind := newScript(t, nil), newScript(t, nil)
		id := ahead.create("shop.db")
		tx := ahead.commit(id)
		verdict := behind.asking(t.Context(), tx)
		reached := make(chan error, 1)
		go func() { reached <- behind.f.WaitIndex(t.Context(), ahead.index) }()
		synctest.Wait()
		if err := behind.f.Restore(io.NopCloser(bytes.NewReader(manifestOf(t, ahead.f)))); err != nil {
			t.Fatal(err)
		}
		if a := <-verdict; a.verdict != VerdictAccepted || a.index != 3 {
			t.Fatalf("got %+v", a)
		}
		if err := <-reached; err != nil {
			t.Fatal(err)
		}
	})
}

// resumManifest corrects length and checksum of an edited manifest.
func resumManifest(b []byte) []byte {
	binary.LittleEndian.PutUint64(b[5:], uint64(len(b)))
	binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
	return b
}

func TestRestoreRefusesDamageAndKeepsTheState(t *testing.T) {
	good := manifestOf(t, playedScript(t).f)
	s := newScript(t, nil)
	s.create("kept")
	before := manifestOf(t, s.f)
	refuse := func(what string, b []byte, want error) {
		t.Helper()
		if err := s.f.Restore(io.NopCloser(bytes.NewReader(b))); err == nil || want != nil && !errors.Is(err, want) {
			t.Fatalf("%s: got %v, want %v", what, err, want)
		}
	}
	for n := range good {
		refuse(fmt.Sprintf("first %d bytes", n), good[:n], nil)
		if n > 17 && n%11 == 0 {
			refuse(fmt.Sprintf("first %d bytes, checksum right", n), resumManifest(slices.Clone(good[:n])), ErrCorruptManifest)
		}
	}
	refuse("a byte more", append(slices.Clone(good), 0), ErrCorruptManifest)
	refuse("a byte more, checksum right", resumManifest(append(slices.Clone(good), 0)), ErrCorruptManifest)
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 0x10
		refuse(fmt.Sprintf("byte %d flipped", i), b, nil)
	}
	edit := func(f func([]byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return resumManifest(b)
	}
	const version = manifestPrefixSize + 16 + 8 + 8 + 8
	const databases = version + 1 + 8
	refuse("newer version", edit(func(b []byte) { b[4] = manifestVersion + 1 }), ErrNewerVersion)
	refuse("newer cluster version", edit(func(b []byte) { b[version] = CodecVersion + 1 }), ErrNewerVersion)
	refuse("count of 4 billion databases", edit(func(b []byte) { binary.LittleEndian.PutUint32(b[databases:], 0xffffffff) }), ErrCorruptManifest)
	refuse("databases out of order", edit(func(b []byte) { b[databases+4] = 0xff }), ErrCorruptManifest)
	huge := slices.Clone(good)
	binary.LittleEndian.PutUint64(huge[5:], 1<<40)
	refuse("stated length of a terabyte", huge, ErrCorruptManifest)
	if !bytes.Equal(manifestOf(t, s.f), before) {
		t.Fatal("a refused manifest changed the state")
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(manifestOf(f, playedScript(f).f))
	f.Add(manifestOf(f, NewFSM(nil, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 17 {
			b = resumManifest(slices.Clone(b))
		}
		s, err := decodeManifest(b)
		if err != nil {
			return
		}
		if again := s.manifest().encode(nil); !bytes.Equal(again, b) {
			t.Fatalf("encoded again: %x, want %x", again, b)
		}
	})
}

func BenchmarkManifestOf10000Databases(b *testing.B) {
	s := newScript(b, nil)
	for i := range 10000 {
		s.commit(s.create(fmt.Sprintf("tenant/%d", i)))
	}
	b.ReportAllocs()
	b.Run("take", func(b *testing.B) {
		for b.Loop() {
			_ = s.f.s.manifest()
		}
	})
	m := s.f.s.manifest()
	var encoded []byte
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			encoded = m.encode(encoded[:0])
		}
		b.SetBytes(int64(len(encoded)))
	})
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			if _, err := decodeManifest(encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
}
