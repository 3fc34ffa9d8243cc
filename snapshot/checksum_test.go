package snapshot

import (
	"bytes"
	"hash/crc64"
	"math/rand/v2"
	"testing"

	"github.com/superfly/ltx"
)

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestStateEqualsTableDrivenCRCAtEveryLength(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	table := crc64.MakeTable(crc64.ISO)
	for n := range 700 {
		p := randomBytes(r, n)
		start := r.Uint64()
		want := crc64.Update(start, table, p)
		if got := ^crcUpdate(^start, p); got != want {
			t.Fatalf("%d bytes: got %016x, want %016x", n, got, want)
		}
		if got := ^crcWords(^start, p); got != want {
			t.Fatalf("%d bytes in words: got %016x, want %016x", n, got, want)
		}
	}
}

func TestPageSumEqualsLTX(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for size := uint32(512); size <= 65536; size *= 2 {
		data := randomBytes(r, int(size))
		pgno := r.Uint32()
		if got, want := PageSum(pgno, data), uint64(ltx.ChecksumPage(pgno, data)); got != want {
			t.Fatalf("page size %d: got %016x, want %016x", size, got, want)
		}
		if got, want := LockPgno(size), ltx.LockPgno(size); got != want {
			t.Fatalf("lock page of page size %d: got %d, want %d", size, got, want)
		}
	}
}

func TestRollEqualsChecksumOfWholeDatabase(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	db := randomBytes(r, 20*1024)
	sum := ChecksumFlag
	for i := range uint32(20) {
		sum = Roll(sum, PageSum(i+1, db[i*1024:(i+1)*1024]))
	}
	want, err := ltx.ChecksumReader(bytes.NewReader(db), 1024)
	if err != nil {
		t.Fatal(err)
	}
	if sum != uint64(want) {
		t.Fatalf("got %016x, want %v", sum, want)
	}
	last := PageSum(20, db[19*1024:])
	want, _ = ltx.ChecksumReader(bytes.NewReader(db[:19*1024]), 1024)
	if got := Roll(sum, last); got != uint64(want) {
		t.Fatalf("without the last page: got %016x, want %v", got, want)
	}
}

func TestZerosAppendsZeroBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, n := range []int{0, 1, 7, 8, 63, 512, 4096, 70001} {
		c := r.Uint64()
		if got, want := multiply(c, zeros(uint64(n))), crcUpdate(c, make([]byte, n)); got != want {
			t.Fatalf("%d bytes: got %016x, want %016x", n, got, want)
		}
	}
	for size := uint32(512); size <= 65536; size *= 2 {
		c := r.Uint64()
		if got, want := shiftOfPage(size).apply(c), crcUpdate(c, make([]byte, size)); got != want {
			t.Fatalf("page of %d bytes: got %016x, want %016x", size, got, want)
		}
	}
}

func BenchmarkPageSum4096(b *testing.B) {
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), 4096)
	b.SetBytes(4096)
	for b.Loop() {
		PageSum(7, data)
	}
}

func BenchmarkPageSum4096LTX(b *testing.B) {
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), 4096)
	b.SetBytes(4096)
	for b.Loop() {
		ltx.ChecksumPage(7, data)
	}
}
