package archive

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

var (
	largePages   = flag.Int("large-pages", 4096, "pages of 4 KiB of the database that restores are measured on")
	largeCommits = flag.Int("large-commits", 200, "commits behind its snapshot")
)

// reads counts what is read of a store.
type reads struct {
	store.Store
	requests, bytes atomic.Int64
}

// Get implements store.Store.
func (c *reads) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.requests.Add(1)
	r, err := c.Store.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(r, countWriter{&c.bytes}), r}, nil
}

type countWriter struct{ n *atomic.Int64 }

func (c countWriter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// A large database is restored to the same bytes by us and by litestream, and
// one page of it is read for little. With -large-pages=262144
// -large-commits=10000 the times are those that docs/history.md gives.
func TestLargeDatabaseIsRestoredByBoth(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	counted := &reads{Store: d}
	a, err := archive.Claim(ctx, counted, id.Cluster, archive.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	w, err := a.Writer(ctx, id, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	img, err := testarchive.Large{Pages: *largePages, Commits: *largeCommits, Upload: 500}.Write(ctx, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB and %d commits archived: %v", len(img)>>20, *largeCommits, time.Since(began))
	out := t.TempDir()
	copied := filepath.Join(out, "copy.db")
	config := filepath.Join(out, "litestream.yml")
	text := fmt.Sprintf("dbs:\n  - path: /nowhere/shop.db\n    replica:\n      type: file\n      path: %s/acme/shop.db/_%s-1\n", root, id.Database)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bin, err := storetest.Litestream()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"every commit a file", "compacted"} {
		if step == "compacted" {
			began := time.Now()
			if err := w.Compact(ctx, testarchive.Start.Add(2*time.Hour)); err != nil {
				t.Fatal(err)
			}
			t.Logf("compaction: %v", time.Since(began))
		}
		v, err := a.Load(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		plan, err := v.Plan(ctx, v.Last())
		if err != nil {
			t.Fatal(err)
		}
		mine := filepath.Join(out, "ours.db")
		if err := v.RestoreFile(ctx, plan, mine, archive.RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		if got, err := os.ReadFile(mine); err != nil || !bytes.Equal(got, img) {
			t.Fatalf("%s: we restore another database: %v", step, err)
		}
		if err := os.Remove(mine); err != nil {
			t.Fatal(err)
		}
		theirs := filepath.Join(out, "theirs.db")
		began = time.Now()
		if text, err := exec.CommandContext(ctx, bin, "restore", "-config", config, "-o", theirs, "/nowhere/shop.db").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		litestreamTook := time.Since(began)
		if got, err := os.ReadFile(theirs); err != nil || !bytes.Equal(got, img) {
			t.Fatalf("%s: litestream restores another database: %v", step, err)
		}
		if err := os.Remove(theirs); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if err := writeSynced(copied, img); err != nil {
			t.Fatal(err)
		}
		copyTook := time.Since(began)
		t.Logf("%s: ours %v from %d files, litestream %v, plain write with fsync %v: %.2f of litestream, %.1f of the write",
			step, took, len(plan.Objects), litestreamTook, copyTook, took.Seconds()/litestreamTook.Seconds(), took.Seconds()/copyTook.Seconds())

		counted.requests.Store(0)
		counted.bytes.Store(0)
		in := v.NewReader(ctx, plan, 0)
		for _, pgno := range []uint32{1, uint32(*largePages / 2), uint32(*largePages / 3), uint32(*largePages)} {
			got, err := in.Page(pgno)
			if err != nil || !bytes.Equal(got, img[int(pgno-1)*testarchive.LargePageSize:][:testarchive.LargePageSize]) {
				t.Fatalf("page %d: %v", pgno, err)
			}
		}
		t.Logf("%s: 4 pages read on their own: %d requests, %d KiB", step, counted.requests.Load(), counted.bytes.Load()>>10)
		if step == "compacted" && counted.bytes.Load() > 1<<20 {
			t.Errorf("4 pages took %d bytes", counted.bytes.Load())
		}
	}
}

func writeSynced(path string, b []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}
