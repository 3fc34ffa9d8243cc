//go:build unix

package node

import "syscall"

// descriptorLimit is how many files this process may have open. Go's runtime has raised the soft limit to the hard
// one when the process started.
func descriptorLimit() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return uint64(l.Cur)
}
