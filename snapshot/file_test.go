package snapshot

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/superfly/ltx"

	"github.com/uglyer/ha-sqlite/wal"
)

func writeFile(t testing.TB, h FileHeader, pages []wal.Page) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewFileWriter(&buf, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		fr, err := w.Page(p.Pgno, p.Data)
		if err != nil {
			t.Fatal(err)
		}
		if fr.Sum != PageSum(p.Pgno, p.Data) {
			t.Fatalf("page %d: wrong sum", p.Pgno)
		}
	}
	info, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != int64(buf.Len()) || info.Pages != len(pages) || info.FileHeader != h {
		t.Fatalf("%+v of %d bytes and %d pages", info, buf.Len(), len(pages))
	}
	return buf.Bytes()
}

func readFile(b []byte) (FileInfo, []wal.Page, error) {
	r, err := NewFileReader(bytes.NewReader(b))
	if err != nil {
		return FileInfo{}, nil, err
	}
	var pages []wal.Page
	for {
		fr, err := r.Next()
		if err == io.EOF {
			return r.Info(), pages, nil
		}
		if err != nil {
			return FileInfo{}, nil, err
		}
		if one, err := ExpandFrame(b[fr.Offset:fr.Offset+int64(fr.Size)], r.Header().PageSize); err != nil || one.Sum != fr.Sum || !bytes.Equal(one.Data, fr.Data) {
			return FileInfo{}, nil, errors.New("a frame read on its own is another")
		}
		pages = append(pages, wal.Page{Pgno: fr.Pgno, Data: bytes.Clone(fr.Data)})
	}
}

func TestFileOfOneTransactionIsTheTransaction(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	for _, size := range []int{512, 4096, 65536} {
		pages := testPages(r, size, 1, 3, 7)
		want := mustEncode(t, Header{PageSize: uint32(size), PageCount: 9, TXID: 5, CommitTimeMillis: 77}, pages)
		got := writeFile(t, FileHeader{PageSize: uint32(size), PageCount: 9, MinTXID: 5, MaxTXID: 5, CommitTimeMillis: 77}, pages)
		if !bytes.Equal(got, want) {
			t.Errorf("page size %d: the bytes differ", size)
		}
	}
}

func TestFileOfARangeIsTheOneOfTheReferenceEncoder(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 9))
	pages := testPages(r, 1024, 1, 2, 3)
	h := FileHeader{PageSize: 1024, PageCount: 3, MinTXID: 1, MaxTXID: 1000, CommitTimeMillis: 5}
	var buf bytes.Buffer
	enc, err := ltx.NewEncoder(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := enc.EncodeHeader(ltx.Header{Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 1024, Commit: 3, MinTXID: 1, MaxTXID: 1000, Timestamp: 5}); err != nil {
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
	b := writeFile(t, h, pages)
	if !bytes.Equal(b, buf.Bytes()) {
		t.Error("the bytes differ")
	}
	info, got, err := readFile(b)
	if err != nil || !equalPages(got, pages) || info.FileHeader != h || info.Size != int64(len(b)) || info.Checksum != uint64(enc.Trailer().FileChecksum) {
		t.Errorf("read back as %+v, %v", info, err)
	}
}

func TestFileReaderRefusesEveryDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 9))
	b := writeFile(t, FileHeader{PageSize: 512, PageCount: 9, MinTXID: 5, MaxTXID: 8, CommitTimeMillis: 77}, testPages(r, 512, 1, 3, 7))
	for n := range b {
		if _, _, err := readFile(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes of %d: %v", n, len(b), err)
		}
	}
	if _, _, err := readFile(append(bytes.Clone(b), 0)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a byte too many: %v", err)
	}
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, err := readFile(bad); err == nil {
			t.Fatalf("bit %d of byte %d flipped: not noticed", i%8, i/8)
		}
	}
}

func TestFileWriterRefusesWhatIsNoFile(t *testing.T) {
	page := make([]byte, 512)
	for _, tt := range []struct {
		what  string
		h     FileHeader
		pages []uint32
	}{
		{"page size", FileHeader{PageSize: 500, PageCount: 1, MinTXID: 1, MaxTXID: 1}, nil},
		{"no pages", FileHeader{PageSize: 512, MinTXID: 1, MaxTXID: 1}, nil},
		{"no transaction", FileHeader{PageSize: 512, PageCount: 1, MaxTXID: 1}, nil},
		{"order of transactions", FileHeader{PageSize: 512, PageCount: 1, MinTXID: 3, MaxTXID: 2}, nil},
		{"page twice", FileHeader{PageSize: 512, PageCount: 9, MinTXID: 2, MaxTXID: 3}, []uint32{1, 1}},
		{"page behind the end", FileHeader{PageSize: 512, PageCount: 9, MinTXID: 2, MaxTXID: 3}, []uint32{10}},
		{"page 0", FileHeader{PageSize: 512, PageCount: 9, MinTXID: 2, MaxTXID: 3}, []uint32{0}},
		{"lock page", FileHeader{PageSize: 512, PageCount: 1 << 30, MinTXID: 2, MaxTXID: 3}, []uint32{LockPgno(512)}},
		{"whole file with a hole", FileHeader{PageSize: 512, PageCount: 3, MinTXID: 1, MaxTXID: 3}, []uint32{1, 3}},
		{"whole file that ends early", FileHeader{PageSize: 512, PageCount: 3, MinTXID: 1, MaxTXID: 3}, []uint32{1, 2}},
	} {
		w, err := NewFileWriter(io.Discard, tt.h)
		for _, pgno := range tt.pages {
			if err == nil {
				_, err = w.Page(pgno, page)
			}
		}
		if err == nil {
			_, err = w.Close()
		}
		if !errors.Is(err, ErrInvalidTransaction) {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
	w, err := NewFileWriter(io.Discard, FileHeader{PageSize: 512, PageCount: 9, MinTXID: 2, MaxTXID: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Page(1, page[:100]); !errors.Is(err, ErrInvalidTransaction) {
		t.Errorf("short page: %v", err)
	}
}

// model is a database as the transactions leave it.
type model struct {
	pages [][]byte
}

func (m *model) apply(h FileHeader, pages []wal.Page) {
	for len(m.pages) < int(h.PageCount) {
		m.pages = append(m.pages, nil)
	}
	m.pages = m.pages[:h.PageCount]
	for _, p := range pages {
		m.pages[p.Pgno-1] = p.Data
	}
}

// Random transactions, merged in random cuts, give the database that they give
// one by one.
func TestMergeGivesWhatTheFilesGiveOneByOne(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 17))
		const size = 512
		var want model
		var files [][]byte // of transactions 1 to n
		count := 1 + r.IntN(8)
		for txid := uint64(1); txid <= uint64(2+r.IntN(12)); txid++ {
			before := count
			if txid > 1 {
				count = max(1, count+r.IntN(9)-4)
			}
			var pages []wal.Page
			for pgno := 1; pgno <= count; pgno++ {
				if txid == 1 || pgno > before || r.IntN(3) == 0 {
					pages = append(pages, wal.Page{Pgno: uint32(pgno), Data: testPage(r, size)})
				}
			}
			h := FileHeader{PageSize: size, PageCount: uint32(count), MinTXID: txid, MaxTXID: txid, CommitTimeMillis: int64(txid)}
			want.apply(h, pages)
			files = append(files, writeFile(t, h, pages))
		}
		for len(files) > 1 {
			i := r.IntN(len(files) - 1)
			n := 2 + r.IntN(len(files)-i-1)
			var readers []*FileReader
			for _, f := range files[i : i+n] {
				in, err := NewFileReader(bytes.NewReader(f))
				if err != nil {
					t.Fatal(err)
				}
				readers = append(readers, in)
			}
			var out bytes.Buffer
			if _, err := Merge(&out, readers, nil); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			files = append(files[:i], append([][]byte{out.Bytes()}, files[i+n:]...)...)
		}
		info, pages, err := readFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		var got model
		got.apply(info.FileHeader, pages)
		if len(got.pages) != len(want.pages) {
			t.Fatalf("seed %d: %d pages, want %d", seed, len(got.pages), len(want.pages))
		}
		for i := range got.pages {
			if !bytes.Equal(got.pages[i], want.pages[i]) {
				t.Fatalf("seed %d: page %d differs", seed, i+1)
			}
		}
	}
}

func TestMergeOfFilesThatOverlap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 9))
	a := testPages(r, 512, 1, 2, 3, 4)
	b := testPages(r, 512, 2, 3)
	c := testPages(r, 512, 3)
	file := func(lo, hi uint64, count uint32, pages []wal.Page) *FileReader {
		in, err := NewFileReader(bytes.NewReader(writeFile(t, FileHeader{PageSize: 512, PageCount: count, MinTXID: lo, MaxTXID: hi}, pages)))
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	var out bytes.Buffer
	if _, err := Merge(&out, []*FileReader{file(1, 4, 4, a), file(3, 6, 3, b), file(6, 7, 3, c)}, nil); err != nil {
		t.Fatal(err)
	}
	info, got, err := readFile(out.Bytes())
	if err != nil || info.MinTXID != 1 || info.MaxTXID != 7 || !equalPages(got, []wal.Page{a[0], b[0], c[0]}) {
		t.Errorf("%+v, %v", info, err)
	}
	for what, in := range map[string][]*FileReader{
		"a hole":       {file(2, 4, 4, a), file(6, 7, 3, b)},
		"the same end": {file(2, 4, 4, a), file(3, 4, 4, b)},
		"backwards":    {file(3, 4, 4, a), file(2, 5, 4, b)},
		"nothing":      {},
	} {
		if _, err := Merge(io.Discard, in, nil); !errors.Is(err, ErrNotContiguous) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestMergeNamesTheFileThatIsCorrupt(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 9))
	one := writeFile(t, FileHeader{PageSize: 512, PageCount: 9, MinTXID: 2, MaxTXID: 2}, testPages(r, 512, 1, 2, 3, 4))
	two := writeFile(t, FileHeader{PageSize: 512, PageCount: 9, MinTXID: 3, MaxTXID: 3}, testPages(r, 512, 1, 2))
	two[len(two)-1] ^= 1 // found behind the last page only
	var in []*FileReader
	for _, b := range [][]byte{one, two} {
		f, err := NewFileReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, f)
	}
	var at *MergeError
	if _, err := Merge(io.Discard, in, nil); !errors.As(err, &at) || at.Index != 1 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func FuzzFileReader(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 9))
	f.Add(writeFile(f, FileHeader{PageSize: 512, PageCount: 9, MinTXID: 5, MaxTXID: 8, CommitTimeMillis: 77}, testPages(r, 512, 1, 3, 7)))
	f.Add(writeFile(f, FileHeader{PageSize: 1024, PageCount: 2, MinTXID: 1, MaxTXID: 8}, testPages(r, 1024, 1, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, pages, err := readFile(b)
		if err != nil {
			return
		}
		// Another compressor may have made it, so only the content is the same.
		again, back, err := readFile(writeFile(t, info.FileHeader, pages))
		if err != nil || again.FileHeader != info.FileHeader || !equalPages(back, pages) {
			t.Errorf("written again it reads as %+v, %v", again, err)
		}
		dec := ltx.NewDecoder(bytes.NewReader(b))
		if err := dec.Verify(); err != nil {
			t.Errorf("the reference decoder refuses it: %v", err)
		}
	})
}

func FuzzExpandFrame(f *testing.F) {
	r := rand.New(rand.NewPCG(8, 9))
	b := writeFile(f, FileHeader{PageSize: 512, PageCount: 9, MinTXID: 5, MaxTXID: 8}, testPages(r, 512, 1))
	f.Add(b[100:160], uint32(512))
	f.Fuzz(func(t *testing.T, b []byte, size uint32) {
		if fr, err := ExpandFrame(b, size); err == nil && len(fr.Data) != int(size) {
			t.Errorf("%d bytes of page size %d", len(fr.Data), size)
		}
	})
}
