//go:build unix

package node

import (
	"os"
	"syscall"

	"github.com/uglyer/ha-sqlite/replicate"
)

func fileStat(st os.FileInfo) replicate.FileStat {
	r := replicate.FileStat{SizeBytes: st.Size(), ModTimeNanos: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		r.Inode = uint64(sys.Ino)
		r.ChangeNanos = changeTime(sys)
	}
	return r
}
