package node

// descriptorLimit is how many files this process may have open: handles are bounded by memory here.
func descriptorLimit() uint64 { return 1 << 20 }
