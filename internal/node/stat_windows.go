package node

import (
	"os"

	"github.com/uglyer/ha-sqlite/replicate"
)

func fileStat(st os.FileInfo) replicate.FileStat {
	return replicate.FileStat{SizeBytes: st.Size(), ModTimeNanos: st.ModTime().UnixNano()}
}
