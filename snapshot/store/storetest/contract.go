package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// Contract checks that s, which is empty, keeps the contract of store.Store.
func Contract(t *testing.T, s store.Store, large int64) {
	ctx := t.Context()
	commit := time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC)
	put := func(t *testing.T, key, text string) {
		t.Helper()
		if err := s.Put(ctx, key, strings.NewReader(text), int64(len(text)), commit); err != nil {
			t.Fatal(err)
		}
	}
	read := func(t *testing.T, key string, offset, length int64) (string, error) {
		t.Helper()
		r, err := s.Get(ctx, key, offset, length)
		if err != nil {
			return "", err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), err
	}

	t.Run("what was put is read, whole and in ranges", func(t *testing.T) {
		put(t, "a/one", "0123456789")
		for _, tt := range []struct {
			offset, length int64
			want           string
		}{{0, -1, "0123456789"}, {0, 10, "0123456789"}, {3, 4, "3456"}, {9, 1, "9"}, {4, -1, "456789"}} {
			if got, err := read(t, "a/one", tt.offset, tt.length); err != nil || got != tt.want {
				t.Errorf("%d bytes from %d: got %q, %v, want %q", tt.length, tt.offset, got, err, tt.want)
			}
		}
	})
	t.Run("an empty object is one", func(t *testing.T) {
		put(t, "a/empty", "")
		if got, err := read(t, "a/empty", 0, -1); err != nil || got != "" {
			t.Errorf("got %q, %v", got, err)
		}
		if info, err := s.Stat(ctx, "a/empty"); err != nil || info.Size != 0 {
			t.Errorf("got %+v, %v", info, err)
		}
	})
	t.Run("a range that the object has not got is an error", func(t *testing.T) {
		put(t, "a/short", "abc")
		if got, err := read(t, "a/short", 5, 2); err == nil {
			t.Errorf("2 bytes from 5 of 3: got %q", got)
		}
		if got, err := read(t, "a/short", 1, 5); err == nil {
			t.Errorf("5 bytes from 1 of 3: got %q", got)
		}
	})
	t.Run("the commit time is kept to the microsecond", func(t *testing.T) {
		put(t, "t/x", "abc")
		info, err := s.Stat(ctx, "t/x")
		if err != nil || !info.Time.Equal(commit) || info.Size != 3 || info.Key != "t/x" {
			t.Fatalf("got %+v, %v", info, err)
		}
	})
	t.Run("an object never changes", func(t *testing.T) {
		put(t, "a/fixed", "first")
		if err := s.Put(ctx, "a/fixed", strings.NewReader("second"), 6, commit); !errors.Is(err, store.ErrExists) {
			t.Errorf("second put: got %v, want ErrExists", err)
		}
		if got, _ := read(t, "a/fixed", 0, -1); got != "first" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("what is not there is not found", func(t *testing.T) {
		if _, err := read(t, "a/none", 0, -1); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("get: %v", err)
		}
		if _, err := s.Stat(ctx, "none/none"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("stat: %v", err)
		}
		if err := s.Delete(ctx, "a/none", "none/none"); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
	t.Run("lists are in order, of one directory, and go on behind a name", func(t *testing.T) {
		for i := range 25 {
			put(t, fmt.Sprintf("list/%02d", i), strings.Repeat("x", i))
		}
		put(t, "list/deeper/one", "x")
		put(t, "list/also/two", "x")
		for _, after := range []string{"", "00", "13", "24", "~"} {
			var got []string
			if err := s.List(ctx, "list", after, func(i store.Info) error {
				if want := fmt.Sprintf("list/%02d", i.Size); i.Key != want {
					return fmt.Errorf("%s has %d bytes", i.Key, i.Size)
				}
				got = append(got, strings.TrimPrefix(i.Key, "list/"))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			var want []string
			for i := range 25 {
				if name := fmt.Sprintf("%02d", i); name > after {
					want = append(want, name)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("behind %q: got %v, want %v", after, got, want)
			}
		}
		if dirs, err := s.Dirs(ctx, "list"); err != nil || fmt.Sprint(dirs) != "[also deeper]" {
			t.Errorf("directories: got %v, %v", dirs, err)
		}
		if dirs, err := s.Dirs(ctx, "nowhere"); err != nil || len(dirs) != 0 {
			t.Errorf("directories of nothing: got %v, %v", dirs, err)
		}
		if err := s.List(ctx, "nowhere", "", func(i store.Info) error { return fmt.Errorf("found %s", i.Key) }); err != nil {
			t.Error(err)
		}
		stop := errors.New("stop")
		if err := s.List(ctx, "list", "", func(store.Info) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("an error of the callback: got %v", err)
		}
	})
	t.Run("deleted objects are gone", func(t *testing.T) {
		put(t, "d/1", "x")
		put(t, "d/2", "x")
		if err := s.Delete(ctx, "d/1", "d/2"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(ctx, "d/2"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("names with odd characters", func(t *testing.T) {
		for _, key := range []string{"odd/a b+c", "odd/äß", "odd/50%", "odd/a?b#c", "odd/\\x", "odd/'q'", "odd/@x"} {
			put(t, key, key)
			if got, err := read(t, key, 0, -1); err != nil || got != key {
				t.Errorf("%s: got %q, %v", key, got, err)
			}
			found := false
			if err := s.List(ctx, "odd", "", func(i store.Info) error { found = found || i.Key == key; return nil }); err != nil || !found {
				t.Errorf("%s is not listed: %v", key, err)
			}
		}
	})
	t.Run("keys that lead out are refused", func(t *testing.T) {
		for _, key := range []string{"", "/x", "a//b", "a/../b", "..", "a/.", "a/", "a\x00b", strings.Repeat("x", 1025)} {
			if err := s.Put(ctx, key, strings.NewReader("x"), 1, commit); !errors.Is(err, store.ErrInvalidKey) {
				t.Errorf("%q: got %v", key, err)
			}
		}
	})
	t.Run("one of many writers wins", func(t *testing.T) {
		if !s.Conditional() {
			t.Fatal("the store does not tell which")
		}
		for round := range 5 {
			key := fmt.Sprintf("race/%d", round)
			var wg sync.WaitGroup
			errs := make([]error, 8)
			for i := range errs {
				wg.Go(func() { errs[i] = s.Put(ctx, key, strings.NewReader(fmt.Sprint(i)), 1, commit) })
			}
			wg.Wait()
			winner := -1
			for i, err := range errs {
				switch {
				case err == nil && winner >= 0:
					t.Fatalf("round %d: %d and %d won", round, winner, i)
				case err == nil:
					winner = i
				case !errors.Is(err, store.ErrExists):
					t.Fatalf("round %d: %v", round, err)
				}
			}
			if got, err := read(t, key, 0, -1); err != nil || got != fmt.Sprint(winner) {
				t.Fatalf("round %d: got %q, %v, winner %d", round, got, err, winner)
			}
		}
	})
	t.Run("a body that ends early leaves nothing", func(t *testing.T) {
		if err := s.Put(ctx, "a/torn", strings.NewReader("abc"), 10, commit); err == nil {
			t.Error("put has taken it")
		}
		if _, err := s.Stat(ctx, "a/torn"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a large object is one", func(t *testing.T) {
		body := bytes.Repeat([]byte("0123456789abcdef"), int(large/16))
		for i := 0; i < len(body); i += 4096 {
			body[i] = byte(i >> 12)
		}
		if err := s.Put(ctx, "large/x", bytes.NewReader(body), int64(len(body)), commit); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(ctx, "large/x", bytes.NewReader(body), int64(len(body)), commit); !errors.Is(err, store.ErrExists) {
			t.Errorf("second put: got %v", err)
		}
		got, err := read(t, "large/x", 0, -1)
		if err != nil || got != string(body) {
			t.Errorf("%d bytes differ: %v", len(got), err)
		}
		info, err := s.Stat(ctx, "large/x")
		if err != nil || info.Size != int64(len(body)) || !info.Time.Equal(commit) {
			t.Errorf("got %+v, %v", info, err)
		}
	})
	t.Run("a context that has ended ends the call", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Put(gone, "a/late", strings.NewReader("x"), 1, commit); !errors.Is(err, context.Canceled) {
			t.Errorf("put: %v", err)
		}
		if _, err := s.Stat(ctx, "a/late"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}
