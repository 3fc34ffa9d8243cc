package logstore

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// The bytes of the log follow every way in which it changes, and a new start counts the same.
func TestBytesFollowTheLog(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 1))
		want := map[uint64]int64{}
		check := func(when string) {
			t.Helper()
			var total int64
			for _, n := range want {
				total += n
			}
			if got := s.Bytes(); got != total {
				t.Fatalf("seed %d: %s: %d bytes, want %d", seed, when, got, total)
			}
			first, last := s.Bounds()
			for range 3 {
				after := first + r.Uint64N(last-first+2)
				var rest int64
				for i, n := range want {
					if i > after {
						rest += n
					}
				}
				if got := s.BytesAfter(after); got != rest {
					t.Fatalf("seed %d: %s: %d bytes after %d of %d to %d, want %d", seed, when, got, after, first, last, rest)
				}
			}
		}
		next := uint64(1)
		for range 40 {
			switch first, last := s.Bounds(); {
			case last > first+2 && r.IntN(4) == 0:
				to := first + r.Uint64N(last-first)
				s.Covered(to, 1)
				must(t, s.Compact(to+1))
				for i := first; i <= to; i++ {
					delete(want, i)
				}
				check("after a compaction")
			case last > first+2 && r.IntN(4) == 0:
				from := first + 1 + r.Uint64N(last-first)
				must(t, s.DeleteRange(from, last))
				for i := from; i <= last; i++ {
					delete(want, i)
				}
				next = from
				check("after the tail was replaced")
			case r.IntN(8) == 0:
				s = open()
				s.Covered(0, 1)
				if last > 0 {
					check("after a start")
				}
			}
			var logs []*raft.Log
			for range 1 + r.IntN(5) {
				l := entry(next, 1, strings.Repeat("x", r.IntN(2000)))
				logs = append(logs, l)
				want[next] = int64(len(l.Data)) + storedOverhead
				next++
			}
			must(t, s.StoreLogs(logs))
			check("after a store")
		}
	})
}

func TestCompactKeepsWhatNoSnapshotHolds(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		must(t, s.Compact(5))
		must(t, s.StoreLogs(entries(1, 20, 1)))
		one := s.Bytes() / 20
		for _, c := range []struct {
			limit   int64
			entries uint64
			want    uint64
		}{
			{math.MaxInt64, math.MaxUint64, 1}, {math.MaxInt64, 7, 14}, {4 * (one + 1), 100, 17}, {0, 100, 20}, {math.MaxInt64, 0, 20},
		} {
			if got := s.Newest(c.limit, c.entries); got != c.want {
				t.Errorf("%d bytes, %d entries: from %d, want %d", c.limit, c.entries, got, c.want)
			}
		}
		must(t, s.Compact(15))
		if first, last := s.Bounds(); first != 1 || last != 20 {
			t.Fatalf("the log is %d to %d without a snapshot", first, last)
		}
		s.Covered(10, 1)
		must(t, s.Compact(15))
		if first, last := s.Bounds(); first != 11 || last != 20 {
			t.Fatalf("the log is %d to %d with a snapshot of 10", first, last)
		}
		s.Covered(20, 1)
		must(t, s.Compact(100))
		if first, last := s.Bounds(); first != 20 || last != 20 {
			t.Fatalf("the log is %d to %d, its last entry stays", first, last)
		}
	})
}
