package archive

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// States share the memory of their lists: whatever is made of one, it stays as it was.
func TestAStateStaysAsItWas(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := exampleState(t)
	type kept struct {
		state          *State
		recent, ranges []Object // copies of what it had
		segments       []Segment
	}
	var all []kept
	kinds := map[int]int{}
	for range 2000 {
		all = append(all, kept{s, slices.Clone(s.Recent), slices.Clone(s.Ranges), slices.Clone(s.Segments)})
		next := s.clone()
		for range 1 + rng.IntN(4) {
			var c change
			last := next.Last
			switch n := rng.IntN(13); {
			case n < 6: // a commit
				last.Level, last.MinTXID, last.MaxTXID, last.Time = 0, last.MaxTXID+1, last.MaxTXID+1, last.Time+1
				last.IndexSize, last.PackMax = 0, 0
				c = change{kind: changeAdd, object: last}
			case n < 9: // a range anywhere, before or behind those that there are
				at := 1 + rng.Uint64N(last.MaxTXID)
				last.Level, last.MinTXID, last.MaxTXID, last.PackMax = RangeLevel, at, at, 0
				c = change{kind: changeAdd, object: last}
			case n < 11:
				if list := *next.list([]int{0, RangeLevel}[rng.IntN(2)]); len(list) > 0 {
					c = change{kind: changeRemove, object: list[rng.IntN(len(list))]}
				}
			case n < 12:
				if len(next.Segments) > 3 {
					c = change{kind: changeUnseal, segment: next.Segments[rng.IntN(len(next.Segments))]}
				}
			case len(next.Recent) > 20:
				c = change{kind: changeSeal, segment: Segment{MinTXID: next.Recent[0].MinTXID, MaxTXID: next.Recent[9].MaxTXID, Count: 10}}
			}
			if next.apply(c) == nil {
				kinds[c.kind]++
			}
		}
		if rng.IntN(4) > 0 { // else it is as if its entry had not been written
			s = next
		}
		if len(all) > 8 {
			i := rng.IntN(len(all))
			all = slices.Delete(all, i, i+1)
		}
		for _, k := range all {
			if !slices.Equal(k.state.Recent, k.recent) || !slices.Equal(k.state.Ranges, k.ranges) || !slices.Equal(k.state.Segments, k.segments) {
				t.Fatalf("after %v: a state of %d commits, %d ranges and %d segments is no more what it was", kinds, len(k.recent), len(k.ranges), len(k.segments))
			}
		}
	}
	if kinds[changeAdd] < 1000 || kinds[changeRemove] < 100 || kinds[changeSeal] < 10 || kinds[changeUnseal] < 10 {
		t.Errorf("changes made: %v", kinds)
	}
}
