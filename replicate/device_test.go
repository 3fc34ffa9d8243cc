package replicate

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/pagesums"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/wal"
)

// A failed sync of anything that a service writes stops its node; another error of the same device does not.
func TestEveryFailedSyncIsOneOfTheDevice(t *testing.T) {
	for name, kind := range map[string]error{
		"database": wal.ErrSync, "page checksums": pagesums.ErrSync, "raft log": logstore.ErrSync, "backlog": archive.ErrSync,
	} {
		s := &Service{log: NewFSM(nil, nil).log, fatal: make(chan error, 1)}
		s.stopIfSyncFailed(fmt.Errorf("persist: %w: %w", kind, syscall.EIO))
		select {
		case err := <-s.Fatal():
			if !errors.Is(err, ErrDevice) || !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: the node stops with %v", name, err)
			}
		default:
			t.Errorf("%s: the node goes on", name)
		}
		s.stopIfSyncFailed(syscall.EIO)
		if len(s.Fatal()) != 0 {
			t.Errorf("%s: the node stops after a read that failed", name)
		}
	}
}
