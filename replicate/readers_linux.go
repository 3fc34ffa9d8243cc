package replicate

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

const (
	// slotOffset is the byte of a wal-index that lock slot 0 locks, UNIX_SHM_BASE of SQLite.
	slotOffset = 120
	lockSlots  = 8
	// everyoneSlot is locked by all who have the wal-index open. The kernel shows it and its neighbour, the last
	// slot of readers, as one lock where one process holds both.
	everyoneSlot = 8
)

// slotHolders reads the table of the kernel. Devices are not compared: on some file systems stat tells
// another one than the table; an inode that another device has too would show a reader that is none.
func slotHolders() map[uint64][]slotHolder {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return parseLocks(f)
}

// parseLocks finds the record locks on lock slots:
//
//	1: POSIX  ADVISORY  READ  1234 fe:01:5678 123 123
//	2: POSIX  ADVISORY  READ  1235 fe:01:5678 127 128
func parseLocks(r io.Reader) map[uint64][]slotHolder {
	all := map[uint64][]slotHolder{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 8 || f[1] != "POSIX" { // a process that waits has "->" more
			continue
		}
		at := strings.LastIndexByte(f[5], ':')
		inode, err1 := strconv.ParseUint(f[5][at+1:], 10, 64)
		first, err2 := strconv.Atoi(f[6])
		last, err3 := strconv.Atoi(f[7])
		if err1 != nil || err2 != nil || err3 != nil || first < slotOffset || last > slotOffset+everyoneSlot || first > last {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		if err != nil || pid < 0 {
			pid = 0
		}
		for b := first; b <= min(last, slotOffset+lockSlots-1); b++ {
			all[inode] = append(all[inode], slotHolder{slot: b - slotOffset, pid: pid})
		}
	}
	return all
}
