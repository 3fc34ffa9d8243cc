package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// Names of the measures of a restore.
const (
	restoreOurs   = "restore from files, hasqlite"
	restoreTheirs = "restore from files, litestream"
	restoreCopy   = "copy of the restored file, synced"
)

const (
	restoreCommits = 10_000
	restoreUpload  = 500 // commits, what a busy node stores in a second
)

// restores compares a restore of the newest state with that by stock litestream from the same directory, and with a
// copy of the file that comes of it. What is restored is compared each time.
func restores(ctx context.Context, r *Report, dir string, o options) error {
	litestream, err := storetest.Litestream()
	if err != nil {
		return err
	}
	ours := filepath.Join(dir, "hasqlite")
	if text, err := exec.CommandContext(ctx, "go", "build", "-o", ours, "github.com/uglyer/ha-sqlite/cmd/hasqlite").CombinedOutput(); err != nil {
		return fmt.Errorf("build hasqlite: %w\n%s", err, text)
	}
	root := filepath.Join(dir, "archive")
	id := archive.Identity{Cluster: "c1", Lineage: 1, Database: strings.Repeat("0f", 16), Name: "large.db"}
	sum, err := largeArchive(ctx, root, id, o.restore)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "litestream.yml")
	text := fmt.Sprintf("dbs:\n  - path: /nowhere/large.db\n    replica:\n      type: file\n      path: %s/%s/_%s-%d\n", root, id.Name, id.Database, id.Lineage)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	out, copied := filepath.Join(dir, "out.db"), filepath.Join(dir, "copy.db")
	command := func(name string, args ...string) func() error {
		return func() error {
			if text, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, text)
			}
			return nil
		}
	}
	for range o.rounds {
		for _, step := range []struct {
			name string
			file string // that it makes
			f    func() error
		}{
			{restoreTheirs, out, command(litestream, "restore", "-config", config, "-o", out, "/nowhere/large.db")},
			{restoreOurs, out, command(ours, "restore", "--db", id.Name, "--archive", root, "-o", out)},
			{restoreCopy, copied, func() error { return copySynced(copied, out) }},
		} {
			if err := os.Remove(step.file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			begun := time.Now()
			if err := step.f(); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			r.add(step.name, "s", time.Since(begun).Seconds())
			if got, err := fileSum(step.file); err != nil || got != sum {
				return fmt.Errorf("%s: the file is not what was archived: %w", step.name, err)
			}
		}
	}
	at := fmt.Sprintf("restore of %d MiB with %d commits", o.restore, restoreCommits)
	for _, row := range []struct {
		over  string
		under string
		want  float64
	}{{" / litestream", restoreTheirs, 0.5}, {" / copy of the file", restoreCopy, 4}} {
		r.Rows = append(r.Rows, Row{Name: at + row.over, Value: r.measure(restoreOurs).Median / r.measure(row.under).Median, Want: row.want, Most: true})
	}
	return nil
}

// largeArchive makes the archive of a database of so many MiB and returns the checksum of its last state.
func largeArchive(ctx context.Context, root string, id archive.Identity, mebibytes int) ([sha256.Size]byte, error) {
	var none [sha256.Size]byte
	s, err := store.OpenDir(root)
	if err != nil {
		return none, err
	}
	a, err := archive.Claim(ctx, s, id.Cluster, archive.Options{TempDir: filepath.Dir(root)})
	if err != nil {
		return none, err
	}
	w, err := a.Writer(ctx, id, archive.WriterOptions{})
	if err != nil {
		return none, err
	}
	image, err := testarchive.Large{Pages: mebibytes << 20 / testarchive.LargePageSize, Commits: restoreCommits, Upload: restoreUpload}.Write(ctx, w)
	if err != nil {
		return none, fmt.Errorf("make an archive: %w", err)
	}
	return sha256.Sum256(image), nil
}

func copySynced(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

func fileSum(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	h.Sum(sum[:0])
	return sum, err
}
