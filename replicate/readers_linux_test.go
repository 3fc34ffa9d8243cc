package replicate

import (
	"reflect"
	"strings"
	"testing"
)

func TestLocksOfTheWalIndexAreFound(t *testing.T) {
	const table = `1: POSIX  ADVISORY  READ  1234 fe:01:5678 123 123
1: -> POSIX  ADVISORY  WRITE 1240 fe:01:5678 123 123
2: POSIX  ADVISORY  READ  1235 fe:01:5678 127 128
3: POSIX  ADVISORY  READ  1236 fe:01:5678 128 128
4: FLOCK  ADVISORY  WRITE 1237 fe:01:5678 0 EOF
5: POSIX  ADVISORY  WRITE 1238 00:2f:5678 124 125
6: POSIX  ADVISORY  READ  -1 00:2f:99 126 126
7: OFDLCK ADVISORY  READ  -1 00:2f:5678 126 126
8: POSIX  ADVISORY  READ  1239 fe:01:5678 1073741826 1073742335
9: POSIX  ADVISORY  READ  x fe:01:5678 a b
10: POSIX
`
	want := map[uint64][]slotHolder{
		5678: {{3, 1234}, {7, 1235}, {4, 1238}, {5, 1238}},
		99:   {{6, 0}},
	}
	if got := parseLocks(strings.NewReader(table)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A table that cannot be understood names nobody, and breaks nothing.
func FuzzParseLocks(f *testing.F) {
	f.Add("1: POSIX  ADVISORY  READ  1234 fe:01:5678 123 123\n")
	f.Add("2: POSIX  ADVISORY  READ  1235 :18446744073709551616 120 128\n")
	f.Add("3: POSIX  ADVISORY  READ  1235 5678 127 9223372036854775807\n")
	f.Fuzz(func(t *testing.T, table string) {
		for _, holders := range parseLocks(strings.NewReader(table)) {
			for _, h := range holders {
				if h.slot < 0 || h.slot >= lockSlots || h.pid < 0 {
					t.Errorf("%+v", h)
				}
			}
		}
	})
}
