package node

const (
	// descriptorsPerDatabase is what an open database takes: its file, its log and its wal-index, the first two again
	// for checkpoints.
	descriptorsPerDatabase = 5
	// mostUnattended bounds the memory of databases that are open and used by no application here, 30 to 60 KiB each.
	mostUnattended = 1024
)

// maxUnattended is how many databases the node keeps open that no application on this machine uses: a quarter of what
// the process may open, the rest is for those that are used, and for connections.
func maxUnattended() int { return unattendedWithin(descriptorLimit()) }

func unattendedWithin(descriptors uint64) int {
	return int(max(8, min(descriptors/4/descriptorsPerDatabase, mostUnattended)))
}
