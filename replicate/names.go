package replicate

import (
	"iter"
	"slices"
	"sort"
	"strings"
)

// nameBlock is the most names in one block of a nameIndex.
const nameBlock = 256

// nameIndex keeps names in order. They lie in sorted blocks of bounded length, so that finding, adding and removing
// one compares O(log n) names and moves few. No block is empty.
type nameIndex struct {
	blocks [][]string
}

// find returns where a name is, or belongs.
func (x *nameIndex) find(name string) (block, at int, found bool) {
	block = sort.Search(len(x.blocks), func(i int) bool { return x.blocks[i][0] > name }) - 1
	if block < 0 {
		return 0, 0, false
	}
	at, found = slices.BinarySearch(x.blocks[block], name)
	return block, at, found
}

// add adds a name; one that is there stays as it is.
func (x *nameIndex) add(name string) {
	i, at, found := x.find(name)
	switch {
	case found:
		return
	case len(x.blocks) == 0:
		x.blocks = [][]string{{name}}
		return
	}
	b := x.blocks[i]
	if len(b) == nameBlock {
		half := slices.Clone(b[nameBlock/2:])
		clear(b[nameBlock/2:])
		x.blocks[i] = b[:nameBlock/2]
		x.blocks = slices.Insert(x.blocks, i+1, half)
		if at > nameBlock/2 {
			i, at = i+1, at-nameBlock/2
		}
	}
	x.blocks[i] = slices.Insert(x.blocks[i], at, name)
}

// remove removes a name if it is there.
func (x *nameIndex) remove(name string) {
	i, at, found := x.find(name)
	if !found {
		return
	}
	if x.blocks[i] = slices.Delete(x.blocks[i], at, at+1); len(x.blocks[i]) == 0 {
		x.blocks = slices.Delete(x.blocks, i, i+1)
	}
}

// list goes through the names that begin with prefix and come after another name, in order.
func (x *nameIndex) list(prefix, after string) iter.Seq[string] {
	return func(yield func(string) bool) {
		i, at, found := x.find(max(prefix, after))
		if found && after >= prefix { // after itself is not wanted
			at++
		}
		for ; i < len(x.blocks); i, at = i+1, 0 {
			for _, name := range x.blocks[i][at:] {
				if !strings.HasPrefix(name, prefix) || !yield(name) {
					return
				}
			}
		}
	}
}
