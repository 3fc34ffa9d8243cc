package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

func TestDirKeepsTheContract(t *testing.T) {
	root := filepath.Join(t.TempDir(), "deep", "archive")
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Contract(t, d, 1<<20)
	if left, err := os.ReadDir(filepath.Join(root, "_tmp")); err != nil || len(left) != 0 {
		t.Errorf("unfinished files are left: %v, %v", left, err)
	}
}

func TestAFaultyStoreWithoutFaultsKeepsTheContract(t *testing.T) {
	d, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	storetest.Contract(t, storetest.NewFaulty(d, 1), 1<<16)
}

func TestOpenDirRemovesWhatADeadProcessLeft(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "_tmp"), 0o750); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"old": 48 * time.Hour, "young": time.Minute} {
		path := filepath.Join(root, "_tmp", name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "_tmp")); err != nil || len(left) != 1 || left[0].Name() != "young" {
		t.Errorf("left: %v, %v", left, err)
	}
	if dirs, err := d.Dirs(t.Context(), ""); err != nil || len(dirs) != 0 {
		t.Errorf("directories of databases: %v, %v", dirs, err)
	}
}

func TestOpenDirRefusesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenDir(path); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v", err)
	}
}
