package node

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/api"
)

// makeFile makes a SQLite file with some tables and returns its bytes. What is written last can be left in the log.
func makeFile(t *testing.T, path, pragmas string, rows int) []byte {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	exec(t, db, pragmas)
	exec(t, db, `CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB); CREATE INDEX item_name ON item(name)`)
	exec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?) INSERT INTO item SELECT i, 'name ' || i, randomblob(300) FROM n`, rows)
	exec(t, db, `DELETE FROM item WHERE id % 7 = 0`)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *cluster) importBytes(i int, name string, b []byte, replace bool) (api.ImportReport, error) {
	return backend{c.nodes[i]}.Import(c.t.Context(), api.ImportRequest{Name: name, Size: int64(len(b)), Replace: replace}, bytes.NewReader(b), func(api.Progress) {})
}

func (c *cluster) export(i int, name string, m api.Moment) (api.ExportHead, []byte) {
	c.t.Helper()
	head, r, err := backend{c.nodes[i]}.Export(c.t.Context(), name, m)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != head.SizeBytes {
		c.t.Fatalf("%d bytes of %d: %v", len(b), head.SizeBytes, err)
	}
	return head, b
}

func openFile(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// header gives a file the header that a replicated database has.
func header(b []byte) []byte {
	b = bytes.Clone(b)
	b[18], b[19] = 2, 2
	return b
}

// An import is the file, byte for byte but for the journal mode, whatever its page size and auto_vacuum mode are, through
// any node; an export is the import.
func TestImportIsTheFileAndExportGivesItBack(t *testing.T) {
	c := newCluster(t, 3, nil)
	dir := t.TempDir()
	for n, pragmas := range []string{
		"PRAGMA page_size=512; PRAGMA auto_vacuum=1; PRAGMA journal_mode=DELETE",
		"PRAGMA page_size=4096; PRAGMA journal_mode=WAL",
		"PRAGMA page_size=65536; PRAGMA auto_vacuum=2; PRAGMA journal_mode=PERSIST; PRAGMA user_version=7",
	} {
		name := fmt.Sprint("import", n)
		want := makeFile(t, filepath.Join(dir, name), pragmas, 500)
		r, err := c.importBytes(n, name, want, false)
		if err != nil {
			t.Fatal(err)
		}
		head, got := c.export((n+1)%3, name, api.Moment{})
		if !bytes.Equal(got, header(want)) {
			t.Errorf("%s: the export differs from the file", pragmas)
		}
		if head.Commit.Bookmark != r.Commit.Bookmark || head.Commit.Time.IsZero() || !head.Commit.Time.Equal(r.Commit.Time) {
			t.Errorf("exported %+v, imported %+v", head.Commit, r.Commit)
		}
		if v := c.equal(name); v.Position.TXID != 2 {
			t.Errorf("%s takes %d transactions", pragmas, v.Position.TXID)
		}
		db := c.open((n+2)%3, name)
		exec(t, db, `INSERT INTO item(name) VALUES('later')`) // it is a database like any other
		if got := query[string](t, db, `PRAGMA integrity_check`); got != "ok" {
			t.Error(got)
		}
		db.Close()
	}
}

// Content larger than a transaction should be comes in several; who reads meanwhile sees an empty database or all of it.
func TestImportInSeveralTransactionsAppearsAtOnce(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.MaxTransaction = 1 << 20 })
	want := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=4096", 12000)
	if len(want) < 4<<20 {
		t.Fatalf("%d bytes", len(want))
	}
	leader := c.leader()
	db := c.open(leader, "big.db")
	seen := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			var tables, rows int
			err := db.QueryRow(`SELECT count(*) FROM sqlite_schema`).Scan(&tables)
			if err == nil && tables != 0 {
				err = db.QueryRow(`SELECT count(*) FROM item`).Scan(&rows)
				if err == nil && rows != 12000-12000/7 {
					err = fmt.Errorf("%d tables, %d rows", tables, rows)
				}
			}
			select {
			case <-stop:
				seen <- err
				return
			default:
			}
			if err != nil {
				seen <- err
				return
			}
		}
	}()
	r, err := c.importBytes(c.follower(), "big.db", want, true)
	close(stop)
	if serr := <-seen; serr != nil || err != nil {
		t.Fatal(err, serr)
	}
	if v := c.equal("big.db"); v.Position.TXID < 5 || r.Commit.TXID != v.Position.TXID {
		t.Errorf("%+v at %+v", r, v.Position)
	}
	_, got := c.export(leader, "big.db", api.Moment{})
	if !bytes.Equal(got, header(want)) {
		t.Error("the export differs from the file")
	}
	db.Close()
}

// A name that exists keeps what it has, unless asked; then one transaction replaces it, with counters that nobody has
// cached, and open connections find the new content.
func TestImportOverADatabaseThatExists(t *testing.T) {
	c := newCluster(t, 1, nil)
	db := c.open(0, "shop.db")
	exec(t, db, `CREATE TABLE old(a); INSERT INTO old VALUES(1)`)
	before, _ := c.export(0, "shop.db", api.Moment{})
	want := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=4096", 300)
	if _, err := c.importBytes(0, "shop.db", want, false); !errors.Is(err, api.ErrExists) {
		t.Fatalf("%v, want ErrExists", err)
	}
	if n := query[int](t, db, `SELECT a FROM old`); n != 1 {
		t.Error(n)
	}
	r, err := c.importBytes(0, "shop.db", want, true)
	if err != nil {
		t.Fatal(err)
	}
	if r.Previous == nil || r.Previous.Bookmark != before.Commit.Bookmark || !r.Replaced || r.Commit.TXID != before.Commit.TXID+1 {
		t.Errorf("%+v, before %+v", r, before)
	}
	if n := query[int](t, db, `SELECT count(*) FROM item`); n != 300-300/7 {
		t.Error(n)
	}
	if _, err := db.Exec(`SELECT a FROM old`); err == nil {
		t.Error("the old table is still there")
	}
	other := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=8192", 3)
	if _, err := c.importBytes(0, "shop.db", other, true); !errors.Is(err, api.ErrInvalid) || !strings.Contains(err.Error(), "8192") {
		t.Errorf("%v, want a refusal of another page size", err)
	}
	db.Close()
}

// What SQLite does not find whole makes no database.
func TestImportRefusesWhatIsDamaged(t *testing.T) {
	c := newCluster(t, 1, nil)
	good := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=1024", 2000)
	rnd := rand.New(rand.NewPCG(1, 2))
	for name, b := range map[string][]byte{
		"empty": {}, "short": good[:99], "cut": good[:len(good)-1024], "magic": append([]byte("x"), good[1:]...),
		"page size": append(append(bytes.Clone(good[:16]), 3, 3), good[18:]...),
		"flipped": func() []byte {
			b := bytes.Clone(good)
			for i := range b[2048:] {
				if rnd.IntN(50) == 0 {
					b[2048+i] ^= byte(1 + rnd.IntN(255))
				}
			}
			return b
		}(),
	} {
		if _, err := c.importBytes(0, "x.db", b, false); !errors.Is(err, api.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		if _, ok := c.nodes[0].svc.Lookup("x.db"); ok {
			t.Fatalf("%s: it made a database", name)
		}
	}
	// Less than was announced.
	_, err := backend{c.nodes[0]}.Import(t.Context(), api.ImportRequest{Name: "x.db", Size: int64(len(good)) + 1}, bytes.NewReader(good), func(api.Progress) {})
	if !errors.Is(err, api.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if left, err := filepath.Glob(filepath.Join(c.cfgs[0].Data, "spool", "content-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A database that was made for an import that fails goes again.
func TestImportThatFailsLeavesNothingBehind(t *testing.T) {
	c := newCluster(t, 1, func(_ int, cfg *Config) {
		cfg.Quotas = []Quota{{Pattern: "small*", Size: 64 << 10}}
	})
	b := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=1024", 2000)
	if _, err := c.importBytes(0, "small.db", b, false); err == nil {
		t.Fatal("it is over the quota")
	}
	if st, ok := c.nodes[0].svc.Lookup("small.db"); ok {
		t.Errorf("left behind: %+v", st)
	}
}

// The leader changes while an import is under way: what was refused is sent again, and the import is whole.
func TestImportOutlivesItsLeader(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.MaxTransaction, cfg.VerifyFull = 1<<20, false })
	want := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=4096", 20000)
	var once sync.Once
	moved := make(chan error, 1)
	asked := c.follower()
	onPart(t, func(uint32) {
		if st, ok := c.nodes[asked].svc.Lookup("big.db"); ok && st.Position.TXID >= 3 {
			once.Do(func() {
				go func() { moved <- c.nodes[asked].svc.TransferLeadership(context.Background(), "") }()
			})
		}
	})
	if _, err := c.importBytes(asked, "big.db", want, false); err != nil {
		t.Fatal(err)
	}
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	c.equal("big.db")
	if _, got := c.export(asked, "big.db", api.Moment{}); !bytes.Equal(got, header(want)) {
		t.Error("the export differs from the file")
	}
}
