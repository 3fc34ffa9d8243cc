package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/wal"
)

var (
	largePages   = flag.Int("large-pages", 4096, "pages of 4 KiB of the database that restores are measured on")
	largeCommits = flag.Int("large-commits", 200, "commits behind its snapshot")
)

// image is a database in memory with its checksum.
type image struct {
	b    []byte
	sums []uint64
	sum  uint64
	txid uint64
	time int64
}

const largePageSize = 4096

func (i *image) Position() (uint64, int64, uint64) { return i.txid, i.time, i.sum }
func (i *image) PageSize() uint32                  { return largePageSize }
func (i *image) PageCount() uint32                 { return uint32(len(i.sums)) }
func (i *image) ReadPage(pgno uint32, data []byte) error {
	copy(data, i.b[int(pgno-1)*largePageSize:])
	return nil
}

// change writes a page that compresses to about a half.
func (i *image) change(r *rand.Rand, pgno uint32) wal.Page {
	data := i.b[int(pgno-1)*largePageSize:][:largePageSize]
	for at := 0; at < largePageSize; at += 16 {
		binary.LittleEndian.PutUint64(data[at:], r.Uint64())
	}
	if i.sums[pgno-1] != 0 {
		i.sum = snapshot.Roll(i.sum, i.sums[pgno-1])
	}
	i.sums[pgno-1] = snapshot.PageSum(pgno, data)
	i.sum = snapshot.Roll(i.sum, i.sums[pgno-1])
	return wal.Page{Pgno: pgno, Data: data}
}

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
	r := rand.New(rand.NewPCG(1, 2))
	start := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	img := &image{b: make([]byte, *largePages*largePageSize), sums: make([]uint64, *largePages), sum: snapshot.ChecksumFlag, txid: 1, time: start.UnixMicro()}
	for pgno := range *largePages {
		img.change(r, uint32(pgno+1))
	}
	began := time.Now()
	if err := w.SnapshotOf(ctx, img); err != nil {
		t.Fatal(err)
	}
	t.Logf("snapshot of %d MiB: %v", len(img.b)>>20, time.Since(began))
	began = time.Now()
	var batch []archive.Commit
	for txid := uint64(2); txid <= uint64(*largeCommits+1); txid++ {
		at := 1 + r.IntN(*largePages-8)
		var pages []wal.Page
		for range 1 + r.IntN(6) {
			pages = append(pages, img.change(r, uint32(at)))
			at++
		}
		img.txid, img.time = txid, start.Add(time.Duration(txid)*20*time.Millisecond).UnixMicro()
		f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: largePageSize, PageCount: uint32(*largePages), TXID: txid, CommitTimeMillis: img.time / 1000}, pages)
		if err != nil {
			t.Fatal(err)
		}
		batch = append(batch, archive.Commit{TXID: txid, Time: img.time, Post: img.sum, LTX: bytes.NewReader(f)})
		if len(batch) == 500 || txid == uint64(*largeCommits+1) {
			if err := w.Append(ctx, batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	t.Logf("%d commits archived: %v", *largeCommits, time.Since(began))
	out := t.TempDir()
	copied := filepath.Join(out, "copy.db")
	config := filepath.Join(out, "litestream.yml")
	text := fmt.Sprintf("dbs:\n  - path: /nowhere/shop.db\n    replica:\n      type: file\n      path: %s/acme/shop.db/_%s-1\n", root, id.Database)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bin, err := litestream()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"every commit a file", "compacted"} {
		if step == "compacted" {
			began := time.Now()
			if err := w.Compact(ctx, start.Add(2*time.Hour)); err != nil {
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
		if got, err := os.ReadFile(mine); err != nil || !bytes.Equal(got, img.b) {
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
		if got, err := os.ReadFile(theirs); err != nil || !bytes.Equal(got, img.b) {
			t.Fatalf("%s: litestream restores another database: %v", step, err)
		}
		if err := os.Remove(theirs); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if err := writeSynced(copied, img.b); err != nil {
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
			if err != nil || !bytes.Equal(got, img.b[int(pgno-1)*largePageSize:][:largePageSize]) {
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
