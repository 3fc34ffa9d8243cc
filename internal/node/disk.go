package node

import "github.com/uglyer/ha-sqlite/replicate"

// ErrDevice is wrapped by what Wait returns after a sync failed.
var ErrDevice = replicate.ErrDevice

const (
	maxSegmentBytes = 64 << 20
	minSegmentBytes = 4 << 20
	maxReserveBytes = 64 << 20
	minReserveBytes = 4 << 20
)

// segmentBytes is what the raft log allocates at a time: 64 MiB for the default limit and above, else a 32nd of it.
func segmentBytes(limit int64) int64 {
	if limit >= DefaultLogLimit {
		return maxSegmentBytes
	}
	return max(minSegmentBytes, limit/32)
}

// reserveBytes is what is kept for a full disk.
func reserveBytes(limit int64) int64 {
	return min(maxReserveBytes, max(minReserveBytes, limit/16))
}
