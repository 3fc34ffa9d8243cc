package logstore

import (
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
