package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func someTarget(n int) *target {
	t := &target{pageSize: 512, position: Position{TXID: 7}}
	for i := range n {
		t.sums = append(t.sums, uint64(1)<<63|uint64(i)*77)
	}
	t.position.Checksum = t.sums.checksum()
	return t
}

func TestTargetRefusesDamage(t *testing.T) {
	id := DatabaseID{1}
	b := someTarget(3).encode(id)
	if got, err := decodeTarget(b, id); err != nil || got.position != someTarget(3).position {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := decodeTarget(b, DatabaseID{2}); err == nil {
		t.Error("a target of another database is accepted")
	}
	for n := range b {
		if _, err := decodeTarget(b[:n], id); err == nil {
			t.Fatalf("%d of %d bytes decode", n, len(b))
		}
		damaged := bytes.Clone(b)
		damaged[n] ^= 1
		if _, err := decodeTarget(damaged, id); err == nil {
			t.Fatalf("a target with byte %d flipped decodes", n)
		}
	}
}

func FuzzTarget(f *testing.F) {
	id := DatabaseID{1}
	f.Add(someTarget(2).encode(id))
	f.Add([]byte(targetMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeTarget(b, id)
		if err == nil && !bytes.Equal(got.encode(id), b) {
			t.Fatalf("%x decodes and encodes to %x", b, got.encode(id))
		}
	})
}

func roundAnswer(t *target) []byte {
	b := binary.LittleEndian.AppendUint64(nil, 99)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.position.TXID))
	b = binary.LittleEndian.AppendUint64(b, uint64(t.position.Checksum))
	b = binary.LittleEndian.AppendUint32(b, t.pageSize)
	b = binary.LittleEndian.AppendUint32(b, t.pageCount())
	for _, s := range t.sums {
		b = binary.LittleEndian.AppendUint64(b, s)
	}
	return b
}

func TestRoundAnswer(t *testing.T) {
	b := roundAnswer(someTarget(5000))
	r, err := readRound(bytes.NewReader(b), 512, 7)
	if err != nil || !r.whole || len(r.sums) != 5000 || r.token != 99 {
		t.Fatalf("%v", err)
	}
	// The peer's time was over.
	if r, err = readRound(bytes.NewReader(b[:roundHeaderSize+8*17]), 512, 7); err != nil || r.whole || len(r.sums) != 17 {
		t.Fatalf("%v", err)
	}
	for name, bad := range map[string][]byte{
		"half a checksum": b[:roundHeaderSize+12], "no head": b[:10], "more than announced": append(bytes.Clone(b), 1),
		"another checksum": func() []byte { c := bytes.Clone(b); c[roundHeaderSize] ^= 1; return c }(),
	} {
		if _, err := readRound(bytes.NewReader(bad), 512, 7); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := readRound(bytes.NewReader(b), 4096, 7); err == nil {
		t.Error("pages of another size are accepted")
	}
	if _, err := readRound(bytes.NewReader(b), 512, 8); err == nil {
		t.Error("a state that is too old is accepted")
	}
}

func FuzzRoundAnswer(f *testing.F) {
	f.Add(roundAnswer(someTarget(3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readRound(io.LimitReader(bytes.NewReader(b), 1<<20), 512, 0)
		if err == nil && r.whole && r.sums.checksum() != r.position.Checksum {
			t.Fatal("a round whose checksums do not give its position")
		}
	})
}

// Pages are read ahead in their order, and one that is not what it should be is found before it is used.
func TestReadAhead(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "pages"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, count = 512, 5000
	p := &fetched{file: f, pageSize: size}
	sums := make(sumTable, count)
	var pgnos []uint32
	for pgno := uint32(1); pgno <= count; pgno++ {
		if pgno%700 == 0 {
			continue // a hole
		}
		data := bytes.Repeat([]byte{byte(pgno), byte(pgno >> 8)}, size/2)
		sums[pgno-1] = pageSum(size, pgno, data)
		if err := p.put(pgno, data, sums[pgno-1:pgno]); err != nil {
			t.Fatal(err)
		}
		pgnos = append(pgnos, pgno)
	}
	read := func() (n int, err error) {
		next, stop := p.readAhead(pgnos, sums)
		defer stop()
		for {
			page, err := next()
			if err != nil {
				return n, err
			}
			if page.Pgno != pgnos[n] || pageSum(size, page.Pgno, page.Data) != sums[page.Pgno-1] {
				t.Fatalf("page %d comes for %d", page.Pgno, pgnos[n])
			}
			n++
		}
	}
	if n, err := read(); !errors.Is(err, io.EOF) || n != len(pgnos) {
		t.Fatalf("%d of %d pages, %v", n, len(pgnos), err)
	}
	if err := p.verify(sums); err != nil {
		t.Fatal(err)
	}
	next, stop := p.readAhead(pgnos, sums) // given up
	if _, err := next(); err != nil {
		t.Fatal(err)
	}
	stop()
	const bad = 3333
	if _, err := f.WriteAt([]byte{1}, p.offset(bad)+17); err != nil {
		t.Fatal(err)
	}
	if n, err := read(); !errors.Is(err, errIncomplete) || n > bad {
		t.Errorf("%d pages, %v", n, err)
	}
	if err := p.verify(sums); !errors.Is(err, errIncomplete) {
		t.Errorf("verified with a damaged page: %v", err)
	}
	if p.has(bad, sums[bad-1]) {
		t.Error("the damaged page still counts as fetched")
	}
	if err := f.Truncate(p.offset(4000)); err != nil {
		t.Fatal(err)
	}
	p.sums[bad-1] = 0
	if n, err := read(); err == nil || errors.Is(err, io.EOF) || n > 4000 {
		t.Errorf("of a file that was cut: %d pages, %v", n, err)
	}
}

// A page may be nothing but zeros, as a hole is: a file that is opened again has it.
func TestAFetchedPageOfZeros(t *testing.T) {
	s := newFilesNode(t)
	s.opts.Dir = t.TempDir()
	d := newCopy(s, "shop.db 16 bytes", nil)
	p, err := d.openFetched()
	if err != nil {
		t.Fatal(err)
	}
	sum := pageSum(d.pageSize, 3, zeros[:d.pageSize])
	for _, pgno := range []uint32{1, 3} {
		if err := p.put(pgno, zeros[:d.pageSize], []uint64{pageSum(d.pageSize, pgno, zeros[:d.pageSize])}); err != nil {
			t.Fatal(err)
		}
	}
	p.file.Close()
	if p, err = d.openFetched(); err != nil {
		t.Fatal(err)
	}
	defer p.file.Close()
	if !p.has(3, sum) || p.has(3, sum^1) || p.has(4, pageSum(d.pageSize, 4, zeros[:d.pageSize])) {
		t.Error("a page of zeros is not taken for what it is, or one behind the end is")
	}
}

// A snapshot that the leader sent says what was decided, and not what the files of this node show.
func TestStatusBeforeTheFilesAreReached(t *testing.T) {
	p := Position{TXID: 5, Checksum: 1 << 63}
	st := DatabaseState{Position: p}
	d := &replica{base: p, decided: p, unreached: true}
	if got := d.status(st); got.File != nil {
		t.Errorf("the files are said to be at %s", got.File)
	}
	d.mu.Lock()
	d.advanceLocked(p, d.fingerprint)
	d.mu.Unlock()
	if got := d.status(st); got.File == nil || *got.File != p {
		t.Errorf("got %v, want %s", got.File, p)
	}
}
