package wal

import "fmt"

// hashRegion is the region that indexes frame n (from 1).
func hashRegion(n uint32) int {
	return int((uint64(n) + framesPerRegion - framesInRegion0 - 1) / framesPerRegion)
}

// regionBase is how many frames the regions before this one index.
func regionBase(region int) uint32 {
	if region == 0 {
		return 0
	}
	return framesInRegion0 + uint32(region-1)*framesPerRegion
}

// pagesOffset is where the page numbers of a region start.
func pagesOffset(region int) int {
	if region == 0 {
		return indexPagesOffset
	}
	return 0
}

// insertFrame adds frame n, which holds page pgno, to its region's table. Frames
// are added in order; maxFrame is the last frame published. Readers that look
// at the same time ignore frames beyond their own last one.
func insertFrame(mem []byte, n, pgno, maxFrame uint32) error {
	region := hashRegion(n)
	pages := pagesOffset(region)
	idx := n - regionBase(region)
	if idx == 1 {
		clear(mem[pages:RegionSize])
	} else if loadWord(mem, pages+4*int(idx-1)) != 0 {
		// A writer died between its first entry and the publication.
		if hashRegion(maxFrame) != region || maxFrame == 0 {
			return fmt.Errorf("index frame %d: entry in use in region %d: %w", n, region, ErrCorrupt)
		}
		forgetFrames(mem, maxFrame)
	}
	// The page number first, then the slot that leads to it.
	table := slots(mem)
	slot := pgno * hashFactor % hashSlots
	for tries := idx; table[slot] != 0; tries-- {
		if tries == 0 {
			return fmt.Errorf("index frame %d: hash table of region %d is full: %w", n, region, ErrCorrupt)
		}
		slot = (slot + 1) % hashSlots
	}
	storeWord(mem, pages+4*int(idx-1), pgno)
	storeSlot(mem, slot, idx)
	return nil
}

// forgetFrames removes the frames beyond maxFrame from the region that indexes
// maxFrame. Later regions are cleared when their first frame is added.
func forgetFrames(mem []byte, maxFrame uint32) {
	region := hashRegion(maxFrame)
	limit := maxFrame - regionBase(region)
	for i, idx := range slots(mem) {
		if uint32(idx) > limit {
			storeSlot(mem, uint32(i), 0)
		}
	}
	clear(mem[pagesOffset(region)+4*int(limit) : hashOffset])
}

// findFrame returns the last frame in minFrame..maxFrame that holds page pgno,
// or 0. Entries beyond maxFrame may change meanwhile.
func findFrame(shm Shm, pgno, minFrame, maxFrame uint32) (uint32, error) {
	if maxFrame == 0 || minFrame > maxFrame {
		return 0, nil
	}
	for region := hashRegion(maxFrame); region >= hashRegion(minFrame); region-- {
		mem, err := shm.Map(region)
		if err != nil {
			return 0, fmt.Errorf("map wal-index region %d: %w", region, err)
		}
		base, pages := regionBase(region), pagesOffset(region)
		found, tries := uint32(0), hashSlots
		for slot := pgno * hashFactor % hashSlots; ; slot = (slot + 1) % hashSlots {
			idx := loadSlot(mem, slot)
			if idx == 0 {
				break
			}
			if tries--; tries == 0 {
				return 0, fmt.Errorf("look up page %d in region %d: no free slot: %w", pgno, region, ErrCorrupt)
			}
			n := base + idx
			if idx <= framesPerRegion && n >= minFrame && n <= maxFrame && loadWord(mem, pages+4*int(idx-1)) == pgno {
				found = max(found, n)
			}
		}
		if found != 0 {
			return found, nil
		}
	}
	return 0, nil
}
