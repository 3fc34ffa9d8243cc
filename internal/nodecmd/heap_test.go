package nodecmd

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestHeapMayGrow(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	defer func() { heapFloor = nil }()
	room := func() uint64 {
		runtime.GC()
		sample := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}, {Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64() - sample[1].Value.Uint64()
	}
	before := room()
	raiseHeap()
	if after := room(); before >= heapFloorBytes || after < heapFloorBytes {
		t.Errorf("the heap may grow by %d bytes, by %d before, want %d or more", after, before, heapFloorBytes)
	}
}
