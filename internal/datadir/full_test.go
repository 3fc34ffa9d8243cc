package datadir_test

import (
	"path/filepath"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/datadir"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// A node that ended on a full disk has to start on it. What it tries at its start must not need a block.
func TestDirectoryOnAFullDiskIsOpened(t *testing.T) {
	disk, err := testcluster.NewDisk(t, filepath.Join(t.TempDir(), "disk"), "ext4", 16<<20)
	if err != nil {
		t.Logf("NO DISK IS FILLED: this machine mounts no disks for tests (%v)", err)
		return
	}
	want := datadir.Want{NodeID: "n1"}
	path := filepath.Join(disk.Dir, "n1")
	d, err := datadir.Open(path, want)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Fill(0); err != nil {
		t.Fatal(err)
	}
	if d, err = datadir.Open(path, want); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
