package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// An object that is there was perhaps made by a process that died before it was durable.
func TestWhatExistsIsMadeDurableBeforeItIsSaid(t *testing.T) {
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put := func() error { return d.Put(t.Context(), "a/b", strings.NewReader("x"), 1, time.Time{}) }
	if err := put(); err != nil {
		t.Fatal(err)
	}
	var synced []string
	d.sync = func(path string) error {
		rel, err := filepath.Rel(d.root, path)
		synced = append(synced, rel)
		return err
	}
	if err := put(); !errors.Is(err, ErrExists) || !slices.Equal(synced, []string{"a/b", "a"}) {
		t.Errorf("synced %q: %v", synced, err)
	}
	d.sync = func(string) error { return fmt.Errorf("the disk fails") }
	if err := put(); err == nil || errors.Is(err, ErrExists) {
		t.Errorf("a sync that fails: %v", err)
	}
}
