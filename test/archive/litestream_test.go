package archive

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/s3store"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
	"github.com/uglyer/ha-sqlite/wal"
)

var every = flag.Bool("every", false, "compare with litestream on databases of all page sizes")

var id = archive.Identity{Cluster: "0123456789abcdef0123456789abcdef", Lineage: 1, Database: "00112233445566778899aabbccddeeff", Name: "acme/shop.db"}

// record makes commits with SQLite and returns them, and the file after each.
func record(t *testing.T, pageSize, autoVacuum int) ([]archive.Commit, [][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite3", "file:"+path+"?_synchronous=OFF")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	statements := []string{
		fmt.Sprintf("PRAGMA page_size=%d; PRAGMA auto_vacuum=%d; CREATE TABLE item(id INTEGER PRIMARY KEY, data BLOB)", pageSize, autoVacuum),
		"INSERT INTO item(data) VALUES(randomblob(100))",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60) INSERT INTO item(data) SELECT randomblob(3000) FROM n",
		"CREATE INDEX item_data ON item(substr(data, 1, 8))",
		"DELETE FROM item WHERE id > 20",
		"VACUUM",
		"UPDATE item SET data = zeroblob(10) WHERE id % 2",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<80) INSERT INTO item(data) SELECT randomblob(2000) FROM n",
		"SELECT 1", // an empty transaction
		"INSERT INTO item(data) VALUES('x')",
		"DELETE FROM item",
		"VACUUM",
		"INSERT INTO item(data) VALUES('last but one')",
		"INSERT INTO item(data) VALUES('last')",
	}
	var commits []archive.Commit
	var images [][]byte
	var before []byte
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for i, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var pages []wal.Page
		sum := snapshot.ChecksumFlag
		for at := 0; at < len(image); at += pageSize {
			pgno, data := uint32(at/pageSize+1), image[at:at+pageSize]
			sum = snapshot.Roll(sum, snapshot.PageSum(pgno, data))
			if at+pageSize > len(before) || !bytes.Equal(data, before[at:at+pageSize]) {
				pages = append(pages, wal.Page{Pgno: pgno, Data: data})
			}
		}
		now = now.Add(1500*time.Millisecond + 7*time.Microsecond)
		f, err := snapshot.EncodeTransaction(nil, snapshot.Header{
			PageSize: uint32(pageSize), PageCount: uint32(len(image) / pageSize), TXID: uint64(i + 1), CommitTimeMillis: now.UnixMilli(),
		}, pages)
		if err != nil {
			t.Fatal(err)
		}
		commits = append(commits, archive.Commit{TXID: uint64(i + 1), Time: now.UnixMicro(), Post: sum, LTX: bytes.NewReader(f)})
		images, before = append(images, image), image
	}
	return commits, images
}

// target is an archive and what litestream calls it.
type target struct {
	store  store.Store
	config func(dir string) string
}

func TestLitestreamRestoresOurArchives(t *testing.T) {
	g := storetest.StartGateway(t)
	for _, kind := range []string{"file", "s3", "packed file"} {
		sizes := []int{map[string]int{"file": 512, "s3": 4096, "packed file": 1024}[kind]}
		if *every {
			sizes = []int{512, 4096, 65536}
		}
		for _, pageSize := range sizes {
			t.Run(fmt.Sprintf("%s, pages of %d", kind, pageSize), func(t *testing.T) {
				prefix := fmt.Sprintf("cluster-%d", pageSize)
				var tg target
				if kind != "s3" {
					root := t.TempDir()
					d, err := store.OpenDir(root)
					if err != nil {
						t.Fatal(err)
					}
					tg = target{d, func(dir string) string { return "type: file\n      path: " + filepath.Join(root, dir) }}
				} else {
					o, err := s3store.ParseURL(g.URL(prefix))
					if err != nil {
						t.Fatal(err)
					}
					s, err := s3store.Open(t.Context(), o)
					if err != nil {
						t.Fatal(err)
					}
					tg = target{s, func(dir string) string {
						return fmt.Sprintf("type: s3\n      bucket: %s\n      path: %s/%s\n      endpoint: %s\n      region: us-east-1\n      force-path-style: true\n      access-key-id: %s\n      secret-access-key: %s",
							g.Bucket, prefix, dir, g.Endpoint, storetest.AccessKey, storetest.SecretKey)
					}}
				}
				compare(t, tg, pageSize, strings.HasPrefix(kind, "packed"))
			})
		}
	}
}

// compare restores every commit with both programs. Of commits in packs litestream knows those that end one upload.
func compare(t *testing.T, tg target, pageSize int, packed bool) {
	ctx := t.Context()
	commits, images := record(t, pageSize, pageSize/512%3)
	a, err := archive.Claim(ctx, tg.store, id.Cluster, archive.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	packFrom := 1 << 30
	if packed {
		packFrom = 2
	}
	w, err := a.Writer(ctx, id, archive.WriterOptions{
		Intervals: [archive.TopLevel + 1]time.Duration{1: 2 * time.Second, 2: 4 * time.Second, 3: 8 * time.Second},
		MinInputs: [archive.TopLevel + 1]int{1: 1, 2: 1, 3: 1},
		Keep:      [archive.TopLevel + 1]time.Duration{6 * time.Second, 10 * time.Second, time.Minute, time.Hour},
		Snapshot:  9 * time.Second,
		Fanout:    3,
		PackFrom:  packFrom,
	})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "litestream.yml")
	text := "dbs:\n  - path: /nowhere/shop.db\n    replica:\n      " + tg.config(fmt.Sprintf("acme/shop.db/_%s-1", id.Database)) + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		do   func() error
		all  bool // every commit can still be restored
	}{
		{"level 0 alone", func() error { return w.Append(ctx, commits[:9]) }, true},
		{"all levels and a snapshot", func() error {
			return errors.Join(w.Append(ctx, commits[9:]), w.Compact(ctx, time.UnixMicro(commits[len(commits)-1].Time).Add(time.Hour)))
		}, true},
		{"old commits removed", func() error {
			n, err := w.Retain(ctx, time.UnixMicro(commits[len(commits)-1].Time))
			if err == nil && n == 0 {
				err = errors.New("nothing was removed")
			}
			return err
		}, false},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		v, err := a.Load(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		last := images[v.Last().TXID-1]
		if got := runLitestream(t, config); !bytes.Equal(got, last) {
			t.Errorf("%s: litestream restores another last state", step.what)
		}
		points, inPacks := 0, 0
		if err := v.Commits(ctx, 0, func(p archive.Point) error {
			points++
			want := images[p.TXID-1]
			if got := ours(t, ctx, v, p); !bytes.Equal(got, want) {
				t.Errorf("%s: we restore another state of %d", step.what, p.TXID)
			}
			if o := p.File(); o.PackMax != 0 && !slices.ContainsFunc(v.State().Ranges, func(r archive.Object) bool { return r.MaxTXID == p.TXID }) {
				inPacks++
				return nil
			}
			if got := runLitestream(t, config, "-txid", fmt.Sprintf("%016x", p.TXID)); !bytes.Equal(got, want) {
				t.Errorf("%s: litestream restores another state of -txid %d", step.what, p.TXID)
			}
			// Its time is exclusive.
			when := p.Time.Add(time.Microsecond).Format(time.RFC3339Nano)
			if got := runLitestream(t, config, "-timestamp", when); !bytes.Equal(got, want) {
				t.Errorf("%s: litestream restores another state of -timestamp %s, of %d", step.what, when, p.TXID)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if step.all && points != int(v.Last().TXID) || points < 3 {
			t.Errorf("%s: %d states of %d", step.what, points, v.Last().TXID)
		}
		if step.all && (inPacks > 0) != packed {
			t.Errorf("%s: %d states are in packs", step.what, inPacks)
		}
		t.Logf("%s: %d states, all but %d by -txid and -timestamp", step.what, points, inPacks)
	}
}

func ours(t *testing.T, ctx context.Context, v *archive.View, p archive.Point) []byte {
	t.Helper()
	plan, err := v.Plan(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out.db")
	if err := v.RestoreFile(ctx, plan, path, archive.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func runLitestream(t *testing.T, config string, args ...string) []byte {
	t.Helper()
	bin, err := storetest.Litestream()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.db")
	args = append([]string{"restore", "-config", config, "-o", out}, append(args, "/nowhere/shop.db")...)
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append(os.Environ(), "AWS_CA_BUNDLE=") // with one it cannot make a client at all
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("litestream %s: %v: %s", strings.Join(args, " "), err, text)
		return nil
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Error(err)
	}
	return b
}
