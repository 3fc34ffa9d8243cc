package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// What a client reads through a node is what the node's store has.
func TestArchiveIsReadThroughANode(t *testing.T) {
	ctx := t.Context()
	defer func(n int) { archiveListed = n }(archiveListed)
	archiveListed = 20
	dir, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC)
	put := func(key, text string) {
		t.Helper()
		if err := dir.Put(ctx, key, strings.NewReader(text), int64(len(text)), at); err != nil {
			t.Fatal(err)
		}
	}
	put("a b/ü?#%/one", "0123456789")
	put("a b/empty", "")
	for i := range archiveListed + 7 {
		put(fmt.Sprintf("many/%05d", i), "x")
	}
	put("many/deeper/x", "y")
	c, _ := newPair(t, &fakeBackend{store: dir})
	s, err := c.ArchiveStore(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.LevelDir(9) != dir.LevelDir(9) || !strings.Contains(s.URL(), dir.URL()) {
		t.Errorf("level 9 in %s of %s", s.LevelDir(9), s.URL())
	}
	read := func(key string, offset, length int64) (string, error) {
		r, err := s.Get(ctx, key, offset, length)
		if err != nil {
			return "", err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), err
	}
	for _, tt := range []struct {
		offset, length int64
		want           string
	}{{0, -1, "0123456789"}, {3, 4, "3456"}, {4, -1, "456789"}, {9, 1, "9"}} {
		if got, err := read("a b/ü?#%/one", tt.offset, tt.length); err != nil || got != tt.want {
			t.Errorf("%d bytes from %d: got %q, %v", tt.length, tt.offset, got, err)
		}
	}
	if got, err := read("a b/empty", 0, -1); err != nil || got != "" {
		t.Errorf("got %q, %v", got, err)
	}
	for what, r := range map[string][2]int64{"behind the end": {20, 2}, "over the end": {5, 50}} {
		if got, err := read("a b/ü?#%/one", r[0], r[1]); err == nil {
			t.Errorf("%s: got %q", what, got)
		}
	}
	i, err := s.Stat(ctx, "a b/ü?#%/one")
	if err != nil || i.Size != 10 || !i.Time.Equal(at) || i.Key != "a b/ü?#%/one" {
		t.Errorf("got %+v, %v", i, err)
	}
	if _, err := s.Stat(ctx, "a b/none"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("stat of nothing: %v", err)
	}
	if _, err := read("a b/none", 0, -1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nothing: %v", err)
	}
	for _, key := range []string{"../x", "a/../../x", "", "/etc/passwd"} {
		if got, err := read(key, 0, -1); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q: got %q, %v", key, got, err)
		}
	}
	for _, after := range []string{"", "00010", "00026"} {
		n := 0
		if err := s.List(ctx, "many", after, func(i store.Info) error {
			if i.Key <= "many/"+after {
				return fmt.Errorf("%s is not behind %s", i.Key, after)
			}
			n++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		want := 0
		if err := dir.List(ctx, "many", after, func(store.Info) error { want++; return nil }); err != nil || n != want {
			t.Errorf("behind %q: %d objects, want %d, %v", after, n, want, err)
		}
	}
	if dirs, err := s.Dirs(ctx, "many"); err != nil || fmt.Sprint(dirs) != "[deeper]" {
		t.Errorf("got %v, %v", dirs, err)
	}
	if err := errors.Join(s.Put(ctx, "x", strings.NewReader(""), 0, at), s.Delete(ctx, "many/00001")); err == nil {
		t.Error("it can be written")
	}
	if _, err := dir.Stat(ctx, "many/00001"); err != nil {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Get(gone, "many/00001", 0, -1); err == nil {
		t.Error("a context that has ended does not end the call")
	}
}

func TestLabelsAreRefused(t *testing.T) {
	for _, label := range []string{"", strings.Repeat("x", maxLabel+1), "a\nb", "a\x00", "\xff"} {
		c, _ := newPair(t, &fakeBackend{})
		if _, err := c.Label(t.Context(), SnapshotRequest{Name: "a", Label: label}, func(Progress) {}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", label, err)
		}
	}
}
