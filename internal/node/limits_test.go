package node

import "testing"

func TestOpenDatabasesFitIntoTheDescriptors(t *testing.T) {
	for limit, want := range map[uint64]int{64: 8, 1024: 51, 20_000: 1000, 1 << 20: mostUnattended, 1 << 63: mostUnattended} {
		if got := unattendedWithin(limit); got != want {
			t.Errorf("with %d descriptors %d databases, want %d", limit, got, want)
		}
	}
	if got := descriptorLimit(); got < 256 {
		t.Errorf("this process may open %d files", got)
	}
}
