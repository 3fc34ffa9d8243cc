package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// encodeEntry encodes any entry.
func encodeEntry(e any) ([]byte, error) {
	switch e := e.(type) {
	case *TermStart:
		return EncodeTermStart(nil, e)
	case *Create:
		return EncodeCreate(nil, e)
	case *Transaction:
		return EncodeTransaction(nil, e)
	case *Delete:
		return EncodeDelete(nil, e)
	case *Member:
		return EncodeMember(nil, e)
	case *Version:
		return EncodeVersion(nil, e)
	case *Part:
		return EncodePart(nil, e), nil
	case *Final:
		return EncodeFinal(nil, e), nil
	case *ForkBegin:
		return EncodeForkBegin(nil, e)
	case *ForkReady:
		return EncodeForkReady(nil, e)
	case *Archived:
		return EncodeArchived(nil, e)
	}
	panic("unknown entry")
}

func mustEncodeEntry(t testing.TB, e any) []byte {
	t.Helper()
	b, err := encodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// resum corrects the checksum of an edited entry.
func resum(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
	return b
}

func sampleEntries() []any {
	return []any{
		&TermStart{Node: "n1", Cluster: [16]byte{9}, CommitTime: 1790000000123456},
		&TermStart{},
		&Create{ID: DatabaseID{1}, Name: "acme/plan-7", Incarnation: 3, PageSize: 65536, AutoVacuum: 2, CommitTime: -1},
		&Transaction{
			DB: DatabaseID{1}, ID: EntryID{2}, Term: 7, Pre: Position{41, 1<<63 | 3}, Post: Position{42, 1<<63 | 4},
			CommitTime: 1790000000123456, PageSize: 4096, PageCount: 17, LTX: []byte("an LTX file"),
		},
		&Transaction{LTX: []byte{}},
		&Delete{DB: DatabaseID{1}, CommitTime: 5},
		&Delete{DB: DatabaseID{1}, CommitTime: 5, At: Position{41, 1<<63 | 3}},
		&Member{ID: "n1", RaftAddr: "10.0.0.1:7441", HTTPAddr: "10.0.0.1:7440", CodecVersion: 1},
		&Member{ID: "n2", Removed: true},
		&Version{Cluster: 1},
		&Part{DB: DatabaseID{1}, ID: EntryID{2}, Term: 7, Pre: Position{41, 1<<63 | 3}, Count: 9, Number: 3, Data: []byte("a part")},
		&Part{Data: []byte{}},
		&Final{
			DB: DatabaseID{1}, ID: EntryID{2}, Term: 7, Pre: Position{41, 1<<63 | 3}, Post: Position{42, 1<<63 | 4},
			CommitTime: 1790000000123456, PageSize: 4096, PageCount: 17, Pages: 16, Count: 9, Size: 1 << 40, Hash: [32]byte{3},
		},
		&Final{Abort: true, DB: DatabaseID{1}, ID: EntryID{2}},
		&Archived{Archive: 7, Positions: []ArchivedPosition{{DatabaseID{1}, 3}, {DatabaseID{2}, 1 << 40}}},
		&Archived{},
		&ForkBegin{ID: DatabaseID{3}, Source: DatabaseID{1}, Incarnation: 2, Name: "acme/fork", CommitTime: 5},
		&ForkBegin{ID: DatabaseID{3}, Source: DatabaseID{1}, Name: "f", At: Position{41, 1<<63 | 3}, PageCount: 17, StateTime: 4, CommitTime: 5},
		&ForkReady{ID: DatabaseID{3}, CommitTime: 6},
	}
}

func TestEntriesSurviveTheCodec(t *testing.T) {
	for _, e := range sampleEntries() {
		b := mustEncodeEntry(t, e)
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%T: %v", e, err)
		}
		if !reflect.DeepEqual(got, e) {
			t.Fatalf("got %+v, want %+v", got, e)
		}
	}
}

func TestEntriesThatAreCutOrHaveMoreAreCorrupt(t *testing.T) {
	for _, e := range sampleEntries() {
		b := mustEncodeEntry(t, e)
		for n := range b {
			if _, err := Decode(b[:n]); !errors.Is(err, ErrCorruptEntry) {
				t.Fatalf("%T: first %d of %d bytes: got %v", e, n, len(b), err)
			}
			cut := slices.Clone(b[:n])
			if n < 6 {
				continue
			}
			if _, err := Decode(resum(cut)); !errors.Is(err, ErrCorruptEntry) {
				t.Fatalf("%T: first %d of %d bytes with a right checksum: got %v", e, n, len(b), err)
			}
		}
		if _, err := Decode(resum(append(slices.Clone(b), 0))); !errors.Is(err, ErrCorruptEntry) {
			t.Fatalf("%T: one byte more: got %v", e, err)
		}
	}
}

func TestEveryFlippedBitOfAnEntryIsNoticed(t *testing.T) {
	for _, e := range sampleEntries() {
		b := mustEncodeEntry(t, e)
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if _, err := Decode(b); !errors.Is(err, ErrCorruptEntry) && !errors.Is(err, ErrNewerVersion) {
				t.Fatalf("%T: bit %d of byte %d: got %v", e, i%8, i/8, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	create := func() []byte { return mustEncodeEntry(t, &Create{Name: "shop.db"}) }
	for _, test := range []struct {
		name  string
		entry []byte
		want  error
	}{
		{"newer codec version, whatever follows", []byte{CodecVersion + 1, 99, 0, 0, 0, 0, 0}, ErrNewerVersion},
		{"codec version 0", resum([]byte{0, byte(KindVersion), 1, 0, 0, 0, 0}), ErrCorruptEntry},
		{"unknown kind", resum([]byte{1, 99, 0, 0, 0, 0}), ErrCorruptEntry},
		{"string longer than the entry", func() []byte {
			b := create()
			b[len(b)-len("shop.db")-6] = 200
			return resum(b)
		}(), ErrCorruptEntry},
		{"string over the limit", resum(slices.Concat([]byte{1, byte(KindTermStart)}, make([]byte, 24), []byte{0xff, 0xff}, make([]byte, 0xffff+4))), ErrCorruptEntry},
		{"string that is not UTF-8", func() []byte {
			b := create()
			b[len(b)-5] = 0xff
			return resum(b)
		}(), ErrCorruptEntry},
		{"flag that is neither 0 nor 1", resum(append([]byte{1, byte(KindMember), 1, 2}, make([]byte, 10)...)), ErrCorruptEntry},
		{"LTX longer than the entry", func() []byte {
			b := mustEncodeEntry(t, &Transaction{LTX: make([]byte, 10)})
			binary.LittleEndian.PutUint32(b[transactionLengthOffset:], 0xffffffff)
			return resum(b)
		}(), ErrCorruptEntry},
	} {
		t.Run(test.name, func(t *testing.T) {
			if e, err := Decode(test.entry); !errors.Is(err, test.want) {
				t.Fatalf("got %+v, %v, want %v", e, err, test.want)
			}
		})
	}
}

func TestEncodersRefuseWhatTheDecoderWould(t *testing.T) {
	long := strings.Repeat("x", maxStringBytes+1)
	for name, e := range map[string]any{
		"long name":       &Create{Name: long},
		"long node":       &TermStart{Node: long},
		"long address":    &Member{RaftAddr: long},
		"name not UTF-8":  &Create{Name: "a\xff"},
		"address of junk": &Member{HTTPAddr: "\xfe"},
	} {
		t.Run(name, func(t *testing.T) {
			if b, err := encodeEntry(e); err == nil {
				t.Fatalf("encoded to %d bytes", len(b))
			}
		})
	}
}

func TestPayloadAliasesTheEntry(t *testing.T) {
	b := mustEncodeEntry(t, &Transaction{LTX: []byte("payload")})
	e, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if ltx := e.(*Transaction).LTX; &ltx[0] != &b[transactionHeaderSize] {
		t.Fatal("payload was copied")
	}
}

// encodeInPlace makes an entry the way a committing node does: one buffer.
func encodeInPlace(buf []byte, t *Transaction, pages []wal.Page) ([]byte, error) {
	start := len(buf)
	buf = EncodeTransactionHeader(buf, t)
	buf, err := snapshot.EncodeTransaction(buf, snapshot.Header{
		PageSize: t.PageSize, PageCount: t.PageCount, TXID: uint64(t.Post.TXID), CommitTimeMillis: commitTimeMillis(t.CommitTime),
	}, pages)
	if err != nil {
		return nil, err
	}
	return FinishTransaction(buf, start, t.Post)
}

func sampleTransaction() (*Transaction, []wal.Page) {
	pages := []wal.Page{{Pgno: 1, Data: bytes.Repeat([]byte("a"), 4096)}, {Pgno: 3, Data: bytes.Repeat([]byte("bcd."), 1024)}}
	return &Transaction{
		DB: DatabaseID{1}, ID: EntryID{2}, Term: 7, Pre: Position{41, 1<<63 | 3}, Post: Position{42, 1<<63 | 4},
		CommitTime: 1790000000123456, PageSize: 4096, PageCount: 17,
	}, pages
}

func TestTransactionIsEncodedInPlace(t *testing.T) {
	tx, pages := sampleTransaction()
	buf := append(make([]byte, 0, 3+TransactionBound(4096, 2)), "xyz"...)
	later := *tx
	later.Post = Position{} // set by FinishTransaction
	b := EncodeTransactionHeader(buf, &later)
	b, err := snapshot.EncodeTransaction(b, snapshot.Header{PageSize: 4096, PageCount: 17, TXID: 42, CommitTimeMillis: 1790000000123}, pages)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = FinishTransaction(b, 3, tx.Post); err != nil {
		t.Fatal(err)
	}
	if &b[0] != &buf[0] || string(b[:3]) != "xyz" {
		t.Fatal("buffer was left although it has room")
	}
	got, err := Decode(b[3:])
	if err != nil {
		t.Fatal(err)
	}
	_, gotPages, err := snapshot.DecodeTransaction(got.(*Transaction).LTX, 1<<20)
	if err != nil || len(gotPages) != 2 || !bytes.Equal(gotPages[1].Data, pages[1].Data) {
		t.Fatalf("%d pages, %v", len(gotPages), err)
	}
	got.(*Transaction).LTX = nil
	if !reflect.DeepEqual(got, tx) {
		t.Fatalf("got %+v, want %+v", got, tx)
	}
}

func TestStampedTransactionIsTheOneEncodedWithTheStamp(t *testing.T) {
	tx, pages := sampleTransaction()
	got, err := encodeInPlace(nil, tx, pages)
	if err != nil {
		t.Fatal(err)
	}
	if err := StampTransaction(got, 9, 1800000000999999); err != nil {
		t.Fatal(err)
	}
	tx.Term, tx.CommitTime = 9, 1800000000999999
	want, err := encodeInPlace(nil, tx, pages)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("stamped entry differs, %v", err)
	}
	for name, b := range map[string][]byte{
		"damaged entry":  func() []byte { b := slices.Clone(got); b[50]++; return b }(),
		"other kind":     mustEncodeEntry(t, &Version{}),
		"payload no LTX": mustEncodeEntry(t, &Transaction{LTX: make([]byte, 300)}),
	} {
		before := slices.Clone(b)
		if err := StampTransaction(b, 10, 5); err == nil || !bytes.Equal(b, before) {
			t.Errorf("%s: stamped, or changed: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range sampleEntries() {
		f.Add(mustEncodeEntry(f, e))
	}
	tx, pages := sampleTransaction()
	b, _ := encodeInPlace(nil, tx, pages)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 6 {
			b = resum(slices.Clone(b)) // else the checksum would stop nearly everything
		}
		e, err := Decode(b)
		if err != nil {
			return
		}
		again, err := encodeEntry(e)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%+v encoded again: %x, want %x, %v", e, again, b, err)
		}
		if _, ok := e.(*Transaction); ok && StampTransaction(b, 5, 6000) == nil {
			if _, err := Decode(b); err != nil {
				t.Fatalf("after the stamp: %v", err)
			}
		}
	})
}

func BenchmarkEncodeTransactionInPlace2Pages(b *testing.B) {
	tx, pages := sampleTransaction()
	buf := make([]byte, 0, TransactionBound(4096, 2))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encodeInPlace(buf, tx, pages); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStampTransaction2Pages(b *testing.B) {
	tx, pages := sampleTransaction()
	buf, _ := encodeInPlace(nil, tx, pages)
	b.ReportAllocs()
	for b.Loop() {
		tx.CommitTime += 1000
		if err := StampTransaction(buf, 7, tx.CommitTime); err != nil {
			b.Fatal(err)
		}
	}
}
