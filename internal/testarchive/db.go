// Package testarchive makes archives of databases for tests.
//
// Owns: a database of plain SQLite whose commits go into an archive.
// Imports: snapshot, snapshot/archive, snapshot/store and wal.
// Invariant: commit n has transaction number n and was made n seconds after Start, where no other pace was set.
package testarchive

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // the SQLite that makes the commits

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/wal"
)

// Start is a second before the first commit.
var Start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// DB is a database and its archive.
type DB struct {
	ID      archive.Identity
	Archive *archive.Archive
	Writer  *archive.Writer
	Images  [][]byte // after each commit, where KeepImages is set
	SQL     *sql.DB

	t       testing.TB
	paces   []pace
	path    string
	db, log *os.File
	reader  *wal.Reader
	size    uint32
	sums    []uint64 // of pages
	sum     uint64
	keep    bool
	commits []archive.Commit
}

// pace is how far commits are apart from one on.
type pace struct {
	from int
	at   time.Time
	step time.Duration
}

// New makes a database whose header says WAL, as those of a cluster, and has
// no commit yet. Parameters of pragma are run before its first page is made.
func New(t testing.TB, s store.Store, keys *archive.Keys, name string, pragmas ...string) *DB {
	t.Helper()
	d := &DB{ID: archive.Identity{Cluster: "c1", Lineage: 1, Database: strings.Repeat("0f", 16), Name: name}, t: t, path: filepath.Join(t.TempDir(), "db"), paces: []pace{{0, Start, time.Second}}, keep: true, sum: snapshot.ChecksumFlag}
	var err error
	if d.Archive, err = archive.Claim(t.Context(), s, d.ID.Cluster, archive.Options{Keys: keys, TempDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if d.Writer, err = d.Archive.Writer(t.Context(), d.ID, archive.WriterOptions{PackFrom: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if d.SQL, err = sql.Open("sqlite3", "file:"+d.path+"?_synchronous=OFF"); err != nil {
		t.Fatal(err)
	}
	d.SQL.SetMaxOpenConns(1)
	t.Cleanup(func() { d.SQL.Close() })
	for _, p := range append(pragmas, "PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0") {
		if _, err := d.SQL.Exec(p); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
	}
	if err := d.SQL.QueryRow("PRAGMA page_size").Scan(&d.size); err != nil {
		t.Fatal(err)
	}
	return d
}

// InDir makes a database with an archive in a directory.
func InDir(t testing.TB, name string, pragmas ...string) (*DB, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "archive")
	s, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	return New(t, s, nil, name, pragmas...), root
}

// Base makes the database as it is now the first snapshot of the archive, with
// a transaction number of its own, and keeps no images from then on: it is large.
func (d *DB) Base() {
	d.t.Helper()
	d.keep = false
	d.open()
	if _, err := d.SQL.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		d.t.Fatal(err)
	}
	i, err := d.db.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	img := image{d, uint32(i.Size() / int64(d.size))}
	d.sums = make([]uint64, img.count)
	page := make([]byte, d.size)
	for pgno := uint32(1); pgno <= img.count; pgno++ {
		if err := img.ReadPage(pgno, page); err != nil {
			d.t.Fatal(err)
		}
		d.roll(pgno, page)
	}
	if err := d.Writer.SnapshotOf(d.t.Context(), img); err != nil {
		d.t.Fatal(err)
	}
}

// image is the database as its file has it.
type image struct {
	d     *DB
	count uint32
}

func (i image) Position() (uint64, int64, uint64) { return 1, i.d.Time(1).UnixMicro(), i.d.sum }
func (i image) PageSize() uint32                  { return i.d.size }
func (i image) PageCount() uint32                 { return i.count }
func (i image) ReadPage(pgno uint32, data []byte) error {
	_, err := i.d.db.ReadAt(data, int64(pgno-1)*int64(i.d.size))
	return err
}

// open opens the file. SQLite in this process has it open too and loses its
// locks; nobody else uses it.
func (d *DB) open() {
	if d.db != nil {
		return
	}
	var err error
	if d.db, err = os.Open(d.path); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { d.db.Close() })
}

func (d *DB) roll(pgno uint32, page []byte) {
	if pgno == snapshot.LockPgno(d.size) {
		return
	}
	if old := d.sums[pgno-1]; old != 0 {
		d.sum = snapshot.Roll(d.sum, old)
	}
	d.sums[pgno-1] = snapshot.PageSum(pgno, page)
	d.sum = snapshot.Roll(d.sum, d.sums[pgno-1])
}

// Exec makes a commit of each text and archives them.
func (d *DB) Exec(texts ...string) {
	d.t.Helper()
	for _, text := range texts {
		if _, err := d.SQL.Exec(text); err != nil {
			d.t.Fatalf("%s: %v", text, err)
		}
		d.commit(text)
	}
	if err := d.Writer.Append(d.t.Context(), d.commits); err != nil {
		d.t.Fatal(err)
	}
	d.commits = nil
}

// Time is that of a commit.
func (d *DB) Time(txid int) time.Time {
	p := d.paces[0]
	for _, next := range d.paces[1:] {
		if next.from < txid {
			p = next
		}
	}
	return p.at.Add(time.Duration(txid-p.from) * p.step)
}

// Pace sets how far the commits that follow are apart, and whether those of one
// Exec share objects, as those of a node do.
func (d *DB) Pace(step time.Duration, packed bool) {
	d.t.Helper()
	last := int(d.Writer.Position())
	d.paces = append(d.paces, pace{last, d.Time(last), step})
	o := archive.WriterOptions{}
	if !packed {
		o.PackFrom = 1 << 30
	}
	var err error
	if d.Writer, err = d.Archive.Writer(d.t.Context(), d.ID, o); err != nil {
		d.t.Fatal(err)
	}
}

func (d *DB) commit(text string) {
	d.t.Helper()
	d.open()
	if d.reader == nil {
		var err error
		if d.log, err = os.Open(d.path + "-wal"); err == nil {
			d.reader, err = wal.NewReader(d.log)
		}
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { d.log.Close() })
	}
	c, err := d.reader.Next()
	if err != nil {
		d.t.Fatalf("%s made no commit: %v", text, err)
	}
	pages, err := d.reader.ReadPages(c)
	if err != nil {
		d.t.Fatal(err)
	}
	if len(d.sums) == 0 && pages[0].Pgno != 1 {
		d.t.Fatalf("%s: the first commit does not have page 1", text)
	}
	for pgno := c.PageCount + 1; pgno <= uint32(len(d.sums)); pgno++ {
		if old := d.sums[pgno-1]; old != 0 {
			d.sum = snapshot.Roll(d.sum, old)
		}
	}
	d.sums = append(d.sums, make([]uint64, max(0, int(c.PageCount)-len(d.sums)))...)[:c.PageCount]
	for _, p := range pages {
		d.roll(p.Pgno, p.Data)
	}
	txid := d.Writer.Position() + uint64(len(d.commits)) + 1
	when := d.Time(int(txid))
	f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: d.size, PageCount: c.PageCount, TXID: txid, CommitTimeMillis: when.UnixMilli()}, pages)
	if err != nil {
		d.t.Fatal(err)
	}
	d.commits = append(d.commits, archive.Commit{TXID: txid, Time: when.UnixMicro(), Post: d.sum, LTX: bytes.NewReader(f)})
	if !d.keep {
		return
	}
	img := make([]byte, int(c.PageCount)*int(d.size))
	if n := len(d.Images); n > 0 {
		copy(img, d.Images[n-1])
	}
	for _, p := range pages {
		copy(img[int(p.Pgno-1)*int(d.size):], p.Data)
	}
	d.Images = append(d.Images, img)
}

// Bookmark is that of a commit.
func (d *DB) Bookmark(txid int) string {
	d.t.Helper()
	p, err := d.Writer.View().PointOf(d.t.Context(), uint64(txid))
	if err != nil {
		d.t.Fatal(err)
	}
	return fmt.Sprintf("%016x/%016x@%s", p.TXID, p.Checksum, d.ID.Database)
}
