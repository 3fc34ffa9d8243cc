package nodecmd

// heapFloorBytes is what a node's heap may grow by between two collections, beside what Go's runtime allows: as much
// as lives.
const heapFloorBytes = 32 << 20

// heapFloor is never read or written, so that the system gives it no memory. The garbage collector counts it as
// living all the same, and comes half as often to a node of which some 20 MiB live (decision 036).
var heapFloor []byte

// raiseHeap is called once, at the start: memory that the runtime has used before it would clear, and the system
// give.
func raiseHeap() {
	if heapFloor == nil {
		heapFloor = make([]byte, heapFloorBytes)
	}
}
