package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/superfly/ltx"

	"github.com/uglyer/ha-sqlite/wal"
)

const testLimit = 64 << 20

// testPage returns an image that compresses about as well as a table's page.
func testPage(r *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := size / 4; i < size; i++ {
		b[i] = "the quick brown fox "[(i+int(r.Uint32()&3))%20]
	}
	copy(b[size/2:], randomBytes(r, size/4))
	return b
}

func testPages(r *rand.Rand, size int, pgnos ...uint32) []wal.Page {
	pages := make([]wal.Page, len(pgnos))
	for i, pgno := range pgnos {
		pages[i] = wal.Page{Pgno: pgno, Data: testPage(r, size)}
	}
	return pages
}

func equalPages(a, b []wal.Page) bool {
	return slices.EqualFunc(a, b, func(a, b wal.Page) bool { return a.Pgno == b.Pgno && bytes.Equal(a.Data, b.Data) })
}

func mustEncode(t testing.TB, h Header, pages []wal.Page) []byte {
	t.Helper()
	b, err := EncodeTransaction(nil, h, pages)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// encodeLTX makes the same file with the reference encoder.
func encodeLTX(t testing.TB, h Header, pages []wal.Page) []byte {
	t.Helper()
	var buf bytes.Buffer
	enc, err := ltx.NewEncoder(&buf)
	if err != nil {
		t.Fatal(err)
	}
	hdr := ltx.Header{
		Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: h.PageSize, Commit: h.PageCount,
		MinTXID: ltx.TXID(h.TXID), MaxTXID: ltx.TXID(h.TXID), Timestamp: h.CommitTimeMillis,
	}
	if err := enc.EncodeHeader(hdr); err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if err := enc.EncodePage(ltx.PageHeader{Pgno: p.Pgno}, p.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// decodeLTX reads the file with the reference decoder.
func decodeLTX(b []byte) (Header, []wal.Page, error) {
	dec := ltx.NewDecoder(bytes.NewReader(b))
	if err := dec.DecodeHeader(); err != nil {
		return Header{}, nil, err
	}
	h := dec.Header()
	var pages []wal.Page
	for {
		var ph ltx.PageHeader
		data := make([]byte, h.PageSize)
		err := dec.DecodePage(&ph, data)
		if err == io.EOF {
			break
		} else if err != nil {
			return Header{}, nil, err
		}
		pages = append(pages, wal.Page{Pgno: ph.Pgno, Data: data})
	}
	if err := dec.Close(); err != nil {
		return Header{}, nil, err
	}
	return Header{PageSize: h.PageSize, PageCount: h.Commit, TXID: uint64(h.MaxTXID), CommitTimeMillis: h.Timestamp}, pages, nil
}

func TestFileIsTheOneThatTheReferenceEncoderWrites(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	for size := uint32(512); size <= 65536; size *= 2 {
		for _, pgnos := range [][]uint32{nil, {1}, {1, 2}, {2, 3, 5, 8, 13, 200, 70000}} {
			h := Header{PageSize: size, PageCount: 100000, TXID: 2 + r.Uint64N(1<<40), CommitTimeMillis: 1790000000123}
			pages := testPages(r, int(size), pgnos...)
			prefix := []byte("entry header")
			got, sums, err := EncodeTransactionSums(slices.Clone(prefix), h, pages, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(got, prefix) {
				t.Fatal("what stood in the buffer before is gone")
			}
			got = got[len(prefix):]
			if want := encodeLTX(t, h, pages); !bytes.Equal(got, want) {
				t.Fatalf("page size %d, pages %v: got %d bytes, want the %d bytes of the reference", size, pgnos, len(got), len(want))
			}
			gotHeader, gotPages, err := decodeLTX(got)
			if err != nil || gotHeader != h || !equalPages(gotPages, pages) {
				t.Fatalf("reference decoder: header %+v, %d pages, %v", gotHeader, len(gotPages), err)
			}
			var d Decoder
			gotHeader, gotPages, err = d.Decode(got, testLimit)
			if err != nil || gotHeader != h || !equalPages(gotPages, pages) {
				t.Fatalf("decoder: header %+v, %d pages, %v", gotHeader, len(gotPages), err)
			}
			for i, p := range pages {
				if want := PageSum(p.Pgno, p.Data); sums[i] != want || d.Sums()[i] != want {
					t.Fatalf("sum of page %d: encoder %016x, decoder %016x, want %016x", p.Pgno, sums[i], d.Sums()[i], want)
				}
			}
			if peeked, err := PeekHeader(got); err != nil || peeked != h {
				t.Fatalf("peek: %+v, %v", peeked, err)
			}
		}
	}
}

func TestIncompressiblePagesSurvive(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 9))
	for size := uint32(512); size <= 65536; size *= 2 {
		h := Header{PageSize: size, PageCount: 9, TXID: 4}
		pages := []wal.Page{{Pgno: 3, Data: randomBytes(r, int(size))}, {Pgno: 4, Data: make([]byte, size)}, {Pgno: 9, Data: randomBytes(r, int(size))}}
		b := mustEncode(t, h, pages)
		if max := TransactionBound(size, len(pages)); len(b) > max {
			t.Fatalf("page size %d: %d bytes, bound is %d", size, len(b), max)
		}
		_, got, err := DecodeTransaction(b, testLimit)
		if err != nil || !equalPages(got, pages) {
			t.Fatalf("page size %d: %v", size, err)
		}
	}
}

func TestTransactionWithoutPagesIsValid(t *testing.T) {
	h := Header{PageSize: 4096, PageCount: 3, TXID: 2, CommitTimeMillis: 5}
	b := mustEncode(t, h, nil)
	if len(b) != 131 {
		t.Fatalf("got %d bytes, want 131", len(b))
	}
	got, pages, err := DecodeTransaction(b, 0)
	if err != nil || got != h || len(pages) != 0 {
		t.Fatalf("got %+v, %d pages, %v", got, len(pages), err)
	}
}

func TestDecoderReusesItsMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 9))
	h := Header{PageSize: 4096, PageCount: 50, TXID: 4}
	b := mustEncode(t, h, testPages(r, 4096, 3, 9))
	var d Decoder
	if n := testing.AllocsPerRun(20, func() {
		if _, _, err := d.Decode(b, testLimit); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Fatalf("%v allocations per decoded transaction", n)
	}
	other := testPages(r, 4096, 1, 2, 3, 4)
	if _, got, err := d.Decode(mustEncode(t, h, other), testLimit); err != nil || !equalPages(got, other) {
		t.Fatalf("larger transaction after a smaller one: %v", err)
	}
}

func TestEncoderAllocatesNothingWhereThereIsRoom(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 9))
	h := Header{PageSize: 4096, PageCount: 50, TXID: 4}
	pages := testPages(r, 4096, 3, 9)
	buf := make([]byte, 0, TransactionBound(4096, 2))
	sums := make([]uint64, 0, 2)
	if n := testing.AllocsPerRun(50, func() {
		if _, _, err := EncodeTransactionSums(buf, h, pages, sums, true); err != nil {
			t.Fatal(err)
		}
	}); n > 0.5 {
		t.Fatalf("%v allocations per encoded transaction", n)
	}
}

func TestEncoderRefusesWhatIsNoTransaction(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 9))
	good := Header{PageSize: 512, PageCount: 10, TXID: 2}
	for _, test := range []struct {
		name  string
		edit  func(*Header)
		pages []wal.Page
	}{
		{"page size that is no power of two", func(h *Header) { h.PageSize = 1000 }, nil},
		{"page size over 64 KiB", func(h *Header) { h.PageSize = 131072 }, nil},
		{"database of no pages", func(h *Header) { h.PageCount = 0 }, nil},
		{"transaction number 0", func(h *Header) { h.TXID = 0 }, nil},
		{"page 0", nil, testPages(r, 512, 0)},
		{"page beyond the end", nil, testPages(r, 512, 11)},
		{"pages out of order", nil, testPages(r, 512, 3, 2)},
		{"page twice", nil, testPages(r, 512, 3, 3)},
		{"lock page", func(h *Header) { h.PageCount = 1 << 30 }, testPages(r, 512, LockPgno(512))},
		{"short image", nil, testPages(r, 511, 3)},
		{"transaction 1 without page 1", func(h *Header) { h.TXID, h.PageCount = 1, 2 }, testPages(r, 512, 2)},
		{"transaction 1 with a hole", func(h *Header) { h.TXID, h.PageCount = 1, 3 }, testPages(r, 512, 1, 3)},
		{"transaction 1 without the last page", func(h *Header) { h.TXID, h.PageCount = 1, 3 }, testPages(r, 512, 1, 2)},
		{"transaction 1 without pages", func(h *Header) { h.TXID, h.PageCount = 1, 1 }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := good
			if test.edit != nil {
				test.edit(&h)
			}
			b, err := EncodeTransaction([]byte("kept"), h, test.pages)
			if !errors.Is(err, ErrInvalidTransaction) || string(b) != "kept" {
				t.Fatalf("got %q, %v, want %v", b, err, ErrInvalidTransaction)
			}
		})
	}
}

func TestTransaction1OfWholeDatabaseSurvives(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 9))
	h := Header{PageSize: 1024, PageCount: 3, TXID: 1}
	pages := testPages(r, 1024, 1, 2, 3)
	_, got, err := DecodeTransaction(mustEncode(t, h, pages), testLimit)
	if err != nil || !equalPages(got, pages) {
		t.Fatal(err)
	}
}

func TestDecoderRefusesEveryTruncationAndExtension(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 9))
	b := mustEncode(t, Header{PageSize: 512, PageCount: 10, TXID: 2}, testPages(r, 512, 1, 7))
	for n := range b {
		if _, _, err := DecodeTransaction(b[:n:n], testLimit); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("first %d of %d bytes: got %v, want %v", n, len(b), err, ErrCorrupt)
		}
	}
	for _, more := range [][]byte{{0}, make([]byte, 8), b} {
		if _, _, err := DecodeTransaction(append(slices.Clone(b), more...), testLimit); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes more: got %v, want %v", len(more), err, ErrCorrupt)
		}
	}
}

func TestDecoderRefusesEveryFlippedBit(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	b := mustEncode(t, Header{PageSize: 512, PageCount: 10, TXID: 2, CommitTimeMillis: 77}, testPages(r, 512, 1, 7))
	var d Decoder
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, _, err := d.Decode(b, testLimit); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d of byte %d: got %v, want %v", i%8, i/8, err, ErrCorrupt)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestDecoderRefusesDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	good := mustEncode(t, Header{PageSize: 512, PageCount: 10, TXID: 2}, testPages(r, 512, 1, 7))
	for _, test := range []struct {
		name string
		edit func([]byte)
	}{
		{"block size of 4 GiB", func(b []byte) { binary.BigEndian.PutUint32(b[106:], 0xffffffff) }},
		{"block size of 2 GiB", func(b []byte) { binary.BigEndian.PutUint32(b[106:], 1<<31) }},
		{"block size over the bound of a page", func(b []byte) { binary.BigEndian.PutUint32(b[106:], 600) }},
		{"block size 0", func(b []byte) { binary.BigEndian.PutUint32(b[106:], 0) }},
		{"frame of the old format", func(b []byte) { b[105] = 0 }},
		{"flag of checksums", func(b []byte) { b[7] = 0 }},
		{"range of transactions", func(b []byte) { b[31]++ }},
		{"WAL fields", func(b []byte) { b[55] = 1 }},
		{"reserved bytes", func(b []byte) { b[99] = 1 }},
		{"pre-apply checksum", func(b []byte) { b[40] = 0x80 }},
		{"post-apply checksum", func(b []byte) { b[len(b)-16] = 0x80 }},
		{"page beyond the end", func(b []byte) { binary.BigEndian.PutUint32(b[12:], 6) }},
		{"page 0 with flags", func(b []byte) { binary.BigEndian.PutUint32(b[100:], 0) }},
		{"checksum without its flag", func(b []byte) { b[len(b)-8] &= 0x7f }},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := slices.Clone(good)
			test.edit(b)
			if _, _, err := DecodeTransaction(b, testLimit); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("got %v, want %v", err, ErrCorrupt)
			}
		})
	}
}

func TestDecoderRefusesMorePagesThanAllowedBeforeItExpandsThem(t *testing.T) {
	pages := make([]wal.Page, 1000)
	zero := make([]byte, 65536)
	for i := range pages {
		pages[i] = wal.Page{Pgno: uint32(i + 1), Data: zero}
	}
	b := mustEncode(t, Header{PageSize: 65536, PageCount: 1000, TXID: 2}, pages)
	t.Logf("%d bytes hold %d pages of 64 KiB", len(b), len(pages))
	var d Decoder
	if _, _, err := d.Decode(b, 8<<20); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v, want %v", err, ErrTooLarge)
	}
	if cap(d.image) != 0 {
		t.Fatalf("%d bytes allocated", cap(d.image))
	}
	if _, _, err := d.Decode(b, 1000*65536); err != nil {
		t.Fatal(err)
	}
}

func TestRestampGivesTheFileOfTheOtherCommitTime(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 9))
	for _, pgnos := range [][]uint32{nil, {1, 2}, {1, 4, 9, 16, 25, 36, 49}} {
		for _, to := range []int64{0, 1, 1790000000123, -5} {
			h := Header{PageSize: 4096, PageCount: 50, TXID: 9, CommitTimeMillis: 1789999999999}
			pages := testPages(r, 4096, pgnos...)
			got := mustEncode(t, h, pages)
			if err := Restamp(got, to); err != nil {
				t.Fatal(err)
			}
			h.CommitTimeMillis = to
			if want := mustEncode(t, h, pages); !bytes.Equal(got, want) {
				t.Fatalf("%d pages, time %d: not the file that the encoder writes", len(pages), to)
			}
		}
	}
	if err := Restamp(make([]byte, 200), 5); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v, want %v", err, ErrCorrupt)
	}
}

func FuzzDecodeTransaction(f *testing.F) {
	r := rand.New(rand.NewPCG(11, 9))
	f.Add(mustEncode(f, Header{PageSize: 512, PageCount: 10, TXID: 2}, testPages(r, 512, 1, 7)))
	f.Add(mustEncode(f, Header{PageSize: 4096, PageCount: 10, TXID: 3}, nil))
	f.Add(mustEncode(f, Header{PageSize: 512, PageCount: 2, TXID: 1}, testPages(r, 512, 1, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = Restamp(slices.Clone(b), 7)
		h, pages, err := DecodeTransaction(b, 1<<20)
		if err != nil {
			return
		}
		// LZ4 blocks are not unique; all else is.
		again := mustEncode(t, h, pages)
		h2, pages2, err := DecodeTransaction(again, 1<<20)
		if err != nil || h2 != h || !equalPages(pages, pages2) {
			t.Fatalf("encoded again: %+v, %v", h2, err)
		}
		h3, pages3, err := decodeLTX(b)
		if err != nil || h3 != h || !equalPages(pages, pages3) {
			t.Fatalf("reference decoder: %+v, %v", h3, err)
		}
	})
}

func benchmarkPages(n int) (Header, []wal.Page) {
	r := rand.New(rand.NewPCG(12, 9))
	pages := make([]wal.Page, n)
	for i := range pages {
		pages[i] = wal.Page{Pgno: uint32(i + 2), Data: testPage(r, 4096)}
	}
	return Header{PageSize: 4096, PageCount: uint32(n + 10), TXID: 9, CommitTimeMillis: 1790000000123}, pages
}

func benchmarkSizes(b *testing.B, f func(b *testing.B, h Header, pages []wal.Page)) {
	for _, n := range []int{2, 2000} {
		b.Run(map[int]string{2: "2pages", 2000: "2000pages"}[n], func(b *testing.B) {
			h, pages := benchmarkPages(n)
			b.SetBytes(int64(n) * 4096)
			b.ReportAllocs()
			f(b, h, pages)
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, h Header, pages []wal.Page) {
		buf := make([]byte, 0, TransactionBound(h.PageSize, len(pages)))
		for b.Loop() {
			if _, err := EncodeTransaction(buf, h, pages); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, h Header, pages []wal.Page) {
		file := mustEncode(b, h, pages)
		var d Decoder
		for b.Loop() {
			if _, _, err := d.Decode(file, testLimit); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReferenceEncode(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, h Header, pages []wal.Page) {
		for b.Loop() {
			encodeLTX(b, h, pages)
		}
	})
}

func BenchmarkReferenceDecode(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, h Header, pages []wal.Page) {
		file := mustEncode(b, h, pages)
		for b.Loop() {
			if _, _, err := decodeLTX(file); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRestamp(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, h Header, pages []wal.Page) {
		file := mustEncode(b, h, pages)
		i := int64(0)
		for b.Loop() {
			i++
			if err := Restamp(file, i); err != nil {
				b.Fatal(err)
			}
		}
	})
}
