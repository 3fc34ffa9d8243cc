package logstore

import (
	"math"
	"math/rand/v2"
	"testing"
)

// What the entries behind one take is the sum of what each takes, however the log grew and was cut at both ends.
func TestSizesAreThoseOfTheEntries(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 7))
		var z sizes
		var list []uint32
		for range 200 {
			switch rng.IntN(4) {
			case 0:
				n := rng.IntN(len(list) + 1)
				z.dropHead(n)
				list = list[n:]
			case 1:
				n := rng.IntN(len(list) + 1)
				z.dropTail(n)
				list = list[:len(list)-n]
			default:
				for range rng.IntN(20) {
					b := rng.Uint32N(1 << 20)
					z.add(b)
					list = append(list, b)
				}
			}
			sum := int64(0)
			for n := len(list); ; n-- {
				if got := z.after(n); got != sum || n == 0 && got != z.total() {
					t.Fatalf("seed %d: %d of %d entries behind the first %d, want %d", seed, got, len(list), n, sum)
				}
				if n == 0 {
					break
				}
				sum += int64(list[n-1])
			}
		}
	}
}

// A compaction changes neither how far apart two entries are nor what comes after one that it removed.
func TestOffsetsOutliveACompaction(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		if a, b := s.Offset(0), s.Offset(math.MaxUint64); a != b {
			t.Errorf("an empty log goes from %d to %d", a, b)
		}
		must(t, s.StoreLogs(entries(1, 100, 1)))
		told := s.Offset(40)
		since := func() int64 { return s.Offset(math.MaxUint64) - told }
		want := s.BytesAfter(40)
		if got := since(); got != want {
			t.Fatalf("%d bytes since entry 40, want %d", got, want)
		}
		s.Covered(90, 1)
		must(t, s.Compact(80))
		if got := since(); got != want || s.BytesAfter(40) >= want {
			t.Errorf("after a compaction %d bytes since entry 40, of which %d are left, want %d", got, s.BytesAfter(40), want)
		}
		must(t, s.StoreLogs(entries(101, 110, 1)))
		want += s.BytesAfter(100)
		if got := since(); got != want {
			t.Errorf("%d bytes since entry 40 after ten more, want %d", got, want)
		}
		if got := s.Offset(110) - s.Offset(100); got != s.BytesAfter(100) {
			t.Errorf("%d bytes from 100 to 110, want %d", got, s.BytesAfter(100))
		}
	})
}
