package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
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

func TestAWriterRemovesWhatADeadProcessLeft(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "_tmp"), 0o750); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"old": 48 * time.Hour, "young": time.Minute, "written": 48 * time.Hour} {
		path := filepath.Join(root, "_tmp", name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (names []string) {
		entries, err := os.ReadDir(filepath.Join(root, "_tmp"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	f, err := os.Open(filepath.Join(root, "_tmp", "written")) // by a process that runs
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if dirs, err := d.Dirs(t.Context(), ""); err != nil || len(dirs) != 0 {
		t.Errorf("directories of databases: %v, %v", dirs, err)
	}
	if got := left(); len(got) != 3 {
		t.Errorf("a reader left %v", got)
	}
	if err := d.Put(t.Context(), "a", strings.NewReader("x"), 1, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if got := left(); len(got) != 2 || got[0] != "written" || got[1] != "young" {
		t.Errorf("a writer left %v", got)
	}
}

// slowly reads a body whose reader looks at the directory meanwhile.
type slowly struct {
	*strings.Reader
	meanwhile func()
}

func (s slowly) ReadAt(p []byte, off int64) (int, error) {
	s.meanwhile()
	return s.Reader.ReadAt(p, off)
}

func TestAnObjectOfLongAgoIsNotRemovedWhileItIsWritten(t *testing.T) {
	root := t.TempDir()
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-1000 * time.Hour)
	looked := false
	if err := d.Put(t.Context(), "a/old", slowly{strings.NewReader("abc"), func() {
		entries, err := os.ReadDir(filepath.Join(root, "_tmp"))
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
		// As it is right before it gets its name.
		if err := os.Chtimes(filepath.Join(root, "_tmp", entries[0].Name()), old, old); err != nil {
			t.Fatal(err)
		}
		other, err := store.OpenDir(root)
		if err == nil {
			err = other.Put(t.Context(), "a/other", strings.NewReader("x"), 1, time.Time{})
		}
		if err != nil {
			t.Fatal(err)
		}
		looked = true
	}}, 3, old); err != nil || !looked {
		t.Errorf("looked %v: %v", looked, err)
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
