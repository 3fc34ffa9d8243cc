package snapshot

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/uglyer/ha-sqlite/wal"
)

func streamEncode(t testing.TB, h Header, pages []wal.Page) ([]byte, []uint64) {
	t.Helper()
	var out bytes.Buffer
	e, err := NewEncoder(&out, h)
	if err != nil {
		t.Fatal(err)
	}
	var sums []uint64
	for _, p := range pages {
		sum, err := e.Page(p)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if e.Pages() != len(pages) || e.Size() != int64(out.Len()) {
		t.Fatalf("%d pages in %d bytes, want %d in %d", e.Pages(), e.Size(), len(pages), out.Len())
	}
	return out.Bytes(), sums
}

func streamDecode(r io.Reader) (Header, []wal.Page, []uint64, error) {
	d, err := NewStreamDecoder(r)
	if err != nil {
		return Header{}, nil, nil, err
	}
	var pages []wal.Page
	var sums []uint64
	for {
		p, sum, err := d.Next()
		if err == io.EOF {
			if _, _, again := d.Next(); again != io.EOF {
				return Header{}, nil, nil, errors.New("no end after the end")
			}
			return d.Header(), pages, sums, nil
		}
		if err != nil {
			return Header{}, nil, nil, err
		}
		pages = append(pages, wal.Page{Pgno: p.Pgno, Data: bytes.Clone(p.Data)})
		sums = append(sums, sum)
	}
}

func TestStreamIsTheFileThatIsMadeInMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{512, 4096, 65536} {
		h := Header{PageSize: uint32(size), PageCount: 400, TXID: 7, CommitTimeMillis: 12345}
		for _, pgnos := range [][]uint32{nil, {1}, {1, 2, 3}, {2, 17, 300, 399, 400}} {
			pages := testPages(r, size, pgnos...)
			want := mustEncode(t, h, pages)
			got, sums := streamEncode(t, h, pages)
			if !bytes.Equal(got, want) {
				t.Fatalf("page size %d, pages %v: the files differ", size, pgnos)
			}
			h2, back, sums2, err := streamDecode(bytes.NewReader(want))
			if err != nil || h2 != h || !equalPages(back, pages) {
				t.Fatalf("page size %d, pages %v: read back other pages, %v", size, pgnos, err)
			}
			for i, p := range pages {
				if want := PageSum(p.Pgno, p.Data); sums[i] != want || sums2[i] != want {
					t.Fatalf("sum of page %d: encoder %016x, decoder %016x, want %016x", p.Pgno, sums[i], sums2[i], want)
				}
			}
			at, err := RestampReader(bytes.NewReader(want), int64(len(want)), len(pages), 99)
			if err != nil {
				t.Fatal(err)
			}
			got, err = io.ReadAll(at)
			if err != nil {
				t.Fatal(err)
			}
			h.CommitTimeMillis = 99
			if !bytes.Equal(got, mustEncode(t, h, pages)) {
				t.Fatalf("page size %d, pages %v: not the file of the other commit time", size, pgnos)
			}
			h.CommitTimeMillis = 12345
		}
	}
}

func TestStreamDecoderRefusesDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	b := mustEncode(t, Header{PageSize: 512, PageCount: 9, TXID: 7, CommitTimeMillis: 1}, testPages(r, 512, 1, 4, 9))
	for n := range len(b) {
		if _, _, _, err := streamDecode(bytes.NewReader(b[:n])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: got %v", n, len(b), err)
		}
		bad := bytes.Clone(b)
		bad[n] ^= 1 << (n % 8)
		if _, _, _, err := streamDecode(bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: got %v", n, err)
		}
	}
	if _, _, _, err := streamDecode(bytes.NewReader(append(bytes.Clone(b), 0))); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a byte too many: got %v", err)
	}
	fault := errors.New("fault")
	if _, _, _, err := streamDecode(io.MultiReader(bytes.NewReader(b[:200]), errReader{fault})); !errors.Is(err, fault) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("a device that fails: got %v", err)
	}
	for _, bad := range [][]byte{b[:50], b[1:], append(bytes.Clone(b[:len(b)-24]), make([]byte, 24)...)} {
		at, err := RestampReader(bytes.NewReader(bad), int64(len(bad)), 3, 5)
		if err == nil {
			_, _, _, err = streamDecode(at)
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("other commit time for %d damaged bytes: got %v", len(bad), err)
		}
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestEncoderStreamRefusesWhatIsNoTransaction(t *testing.T) {
	if _, err := NewEncoder(io.Discard, Header{PageSize: 100, PageCount: 1, TXID: 2}); !errors.Is(err, ErrInvalidTransaction) {
		t.Error(err)
	}
	h := Header{PageSize: 512, PageCount: 3, TXID: 2}
	page := func(pgno uint32, n int) wal.Page { return wal.Page{Pgno: pgno, Data: make([]byte, n)} }
	for _, pages := range [][]wal.Page{{page(4, 512)}, {page(0, 512)}, {page(2, 512), page(2, 512)}, {page(1, 1024)}} {
		e, err := NewEncoder(io.Discard, h)
		for _, p := range pages {
			if err == nil {
				_, err = e.Page(p)
			}
		}
		if !errors.Is(err, ErrInvalidTransaction) {
			t.Errorf("pages %d: got %v", pages[len(pages)-1].Pgno, err)
		}
	}
	e, err := NewEncoder(io.Discard, Header{PageSize: 512, PageCount: 3, TXID: 1})
	if err == nil {
		err = e.Close()
	}
	if !errors.Is(err, ErrInvalidTransaction) {
		t.Errorf("transaction 1 without its pages: got %v", err)
	}
}

func FuzzStreamDecoder(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	f.Add(mustEncode(f, Header{PageSize: 512, PageCount: 5, TXID: 2}, testPages(r, 512, 1, 3)), uint16(2))
	f.Add(mustEncode(f, Header{PageSize: 512, PageCount: 5, TXID: 2}, nil), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, pages uint16) {
		h, got, _, err := streamDecode(bytes.NewReader(b))
		h2, want, err2 := DecodeTransaction(b, 64<<20)
		if (err == nil) != (err2 == nil) || err == nil && (h != h2 || !equalPages(got, want)) {
			t.Fatalf("stream: %d pages, %v; memory: %d pages, %v", len(got), err, len(want), err2)
		}
		at, err := RestampReader(bytes.NewReader(b), int64(len(b)), int(pages), 7)
		if err != nil {
			return
		}
		if n, err := io.Copy(io.Discard, at); err != nil || n != int64(len(b)) {
			t.Fatalf("read %d of %d bytes, %v", n, len(b), err)
		}
	})
}

// Pages that were packed before give the file that pages give, with the same sums.
func TestPackedPagesGiveTheSameFile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	h := Header{PageSize: 4096, PageCount: 40, TXID: 7, CommitTimeMillis: 5}
	var pages []wal.Page
	for pgno := uint32(1); pgno <= 40; pgno += 1 + rnd.Uint32N(3) {
		data := make([]byte, h.PageSize)
		for i := range rnd.IntN(len(data)) {
			data[i] = byte(rnd.Uint32())
		}
		pages = append(pages, wal.Page{Pgno: pgno, Data: data})
	}
	want, wantSums := streamEncode(t, h, pages)
	p := NewPacker(h.PageSize)
	var out bytes.Buffer
	e, err := NewEncoder(&out, h)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pages {
		packed, err := p.Pack(pages[i])
		if err != nil {
			t.Fatal(err)
		}
		if sum, err := e.Packed(packed); err != nil || sum != wantSums[i] {
			t.Fatalf("page %d: sum %016x, want %016x, %v", pages[i].Pgno, sum, wantSums[i], err)
		}
		if _, err := e.Packed(packed); !errors.Is(err, ErrInvalidTransaction) {
			t.Fatalf("page %d twice: %v", pages[i].Pgno, err)
		}
	}
	if err := e.Close(); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%d bytes, want %d: %v", out.Len(), len(want), err)
	}
	if _, err := p.Pack(wal.Page{Pgno: 1, Data: make([]byte, 512)}); !errors.Is(err, ErrInvalidTransaction) {
		t.Errorf("a page of another size: %v", err)
	}
	if _, err := e.Packed(PackedPage{Pgno: 40}); !errors.Is(err, ErrInvalidTransaction) {
		t.Errorf("no bytes: %v", err)
	}
}
