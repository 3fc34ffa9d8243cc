package replicate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// listOf collects at most limit names.
func listOf(x *nameIndex, prefix, after string, limit int) []string {
	var got []string
	for name := range x.list(prefix, after) {
		if len(got) == limit {
			break
		}
		got = append(got, name)
	}
	return got
}

func TestNameIndexListsWhatASortedSliceDoes(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	var x nameIndex
	var all []string
	for step := range 20_000 {
		name := fmt.Sprintf("%c%c/%d", 'a'+rng.IntN(3), 'a'+rng.IntN(26), rng.IntN(40))
		at, found := slices.BinarySearch(all, name)
		if rng.IntN(5) < 3 {
			x.add(name)
			if !found {
				all = slices.Insert(all, at, name)
			}
		} else {
			x.remove(name)
			if found {
				all = slices.Delete(all, at, at+1)
			}
		}
		if step%50 != 0 {
			continue
		}
		prefix := []string{"", "a", "b", "cz", "ab/1", "zz", name}[rng.IntN(7)]
		after := []string{"", "a", name, prefix, prefix + "/", "b~", "zzz"}[rng.IntN(7)]
		var want []string
		for _, n := range all {
			if n > after && strings.HasPrefix(n, prefix) && len(want) < 30 {
				want = append(want, n)
			}
		}
		if got := listOf(&x, prefix, after, 30); !slices.Equal(got, want) {
			t.Fatalf("seed %d, step %d: names with prefix %q after %q: got %v, want %v", seed, step, prefix, after, got, want)
		}
	}
	for _, b := range x.blocks {
		if len(b) == 0 || len(b) > nameBlock {
			t.Errorf("a block of %d names", len(b))
		}
	}
	if got := listOf(&x, "", "", len(all)+1); !slices.Equal(got, all) {
		t.Errorf("seed %d: %d names, want %d", seed, len(got), len(all))
	}
}

func TestNameIndexFindsTheEdges(t *testing.T) {
	var x nameIndex
	x.remove("none")
	for _, n := range []string{"b", "a", "c/1", "c/2", "c", "a"} {
		x.add(n)
	}
	for name, row := range map[string]struct{ prefix, after, want string }{
		"all":                       {"", "", "a b c c/1 c/2"},
		"after the first":           {"", "a", "b c c/1 c/2"},
		"after a name not there":    {"", "aa", "b c c/1 c/2"},
		"after the last":            {"", "c/2", ""},
		"a prefix that is a name":   {"c", "", "c c/1 c/2"},
		"a prefix, after its name":  {"c", "c", "c/1 c/2"},
		"a prefix, after it":        {"c/", "c/1", "c/2"},
		"after something before it": {"c/", "b", "c/1 c/2"},
		"after something behind it": {"b", "c", ""},
		"a prefix nobody has":       {"d", "", ""},
	} {
		if got := strings.Join(listOf(&x, row.prefix, row.after, 10), " "); got != row.want {
			t.Errorf("%s: got %q, want %q", name, got, row.want)
		}
	}
}
