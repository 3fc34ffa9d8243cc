package archive

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/wal"
)

var testID = Identity{Cluster: "0123456789abcdef0123456789abcdef", Lineage: 1, Database: "00112233445566778899aabbccddeeff", Name: "acme/shop.db"}

// epoch is the time of the first commit.
var epoch = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// recorder is a SQLite database of which every commit is recorded.
type recorder struct {
	t        testing.TB
	path     string
	db       *sql.DB
	rand     *rand.Rand
	now      time.Time
	pageSize uint32
	image    []byte
	commits  []Commit
	images   [][]byte // after each commit
	keep     bool
}

func newRecorder(t testing.TB, seed uint64, pageSize uint32, autoVacuum int) *recorder {
	t.Helper()
	r := &recorder{t: t, path: filepath.Join(t.TempDir(), "db"), rand: rand.New(rand.NewPCG(seed, 1)), now: epoch, pageSize: pageSize, keep: true}
	db, err := sql.Open("sqlite3", "file:"+r.path+"?_synchronous=OFF&_journal_mode=MEMORY")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	r.db = db
	r.exec(fmt.Sprintf("PRAGMA page_size=%d", pageSize))
	r.exec(fmt.Sprintf("PRAGMA auto_vacuum=%d", autoVacuum))
	r.exec("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, data BLOB)")
	r.commit()
	r.exec("CREATE INDEX item_name ON item(name)")
	r.commit()
	return r
}

func (r *recorder) exec(query string, args ...any) {
	r.t.Helper()
	if _, err := r.db.Exec(query, args...); err != nil {
		r.t.Fatalf("%s: %v", query, err)
	}
}

// commit records the difference to the state before as a transaction.
func (r *recorder) commit() {
	r.t.Helper()
	b, err := os.ReadFile(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.record(b)
}

func (r *recorder) record(b []byte) {
	r.t.Helper()
	n := int(r.pageSize)
	var pages []wal.Page
	sum := snapshot.ChecksumFlag
	for at := 0; at < len(b); at += n {
		pgno := uint32(at/n + 1)
		sum = snapshot.Roll(sum, snapshot.PageSum(pgno, b[at:at+n]))
		if at+n > len(r.image) || !bytes.Equal(b[at:at+n], r.image[at:at+n]) {
			pages = append(pages, wal.Page{Pgno: pgno, Data: b[at : at+n]})
		}
	}
	r.now = r.now.Add(time.Duration(1+r.rand.IntN(1_500_000)) * time.Microsecond)
	c := Commit{TXID: uint64(len(r.commits) + 1), Time: r.now.UnixMicro(), Post: sum}
	f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: r.pageSize, PageCount: uint32(len(b) / n), TXID: c.TXID, CommitTimeMillis: c.Time / 1000}, pages)
	if err != nil {
		r.t.Fatal(err)
	}
	c.LTX = bytes.NewReader(f)
	r.commits = append(r.commits, c)
	r.image = b
	if r.keep {
		r.images = append(r.images, b)
	}
}

// step makes a random commit.
func (r *recorder) step() {
	r.t.Helper()
	blob := func(n int) []byte {
		b := make([]byte, n)
		for i := 0; i < n; i += 8 {
			b[i] = byte(r.rand.Uint32())
		}
		return b
	}
	switch k := r.rand.IntN(20); {
	case k < 9:
		r.exec("INSERT INTO item(name, data) VALUES(?, ?)", fmt.Sprint(r.rand.Uint32()), blob(r.rand.IntN(2*int(r.pageSize))))
	case k < 12:
		r.exec("UPDATE item SET data=? WHERE id % 7 = ?", blob(r.rand.IntN(300)), r.rand.IntN(7))
	case k < 14:
		r.exec("DELETE FROM item WHERE id % 3 = ?", r.rand.IntN(3))
	case k < 15:
		r.exec("VACUUM")
	case k < 16:
		r.exec("PRAGMA incremental_vacuum(3)")
	case k < 17: // nothing: an empty transaction
	case k < 18:
		for range 12 {
			r.exec("INSERT INTO item(name, data) VALUES(?, ?)", fmt.Sprint(r.rand.Uint32()), blob(3*int(r.pageSize)))
		}
	case k < 19:
		r.exec("DELETE FROM item WHERE id > 5")
		r.exec("VACUUM")
	default:
		r.exec(fmt.Sprintf("CREATE TABLE IF NOT EXISTS t%d(a, b)", r.rand.IntN(8)))
	}
	r.commit()
}

func openDir(t testing.TB) *store.Dir {
	t.Helper()
	d, err := store.OpenDir(filepath.Join(t.TempDir(), "archive"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func claim(t testing.TB, s store.Store, keys *Keys) *Archive {
	t.Helper()
	a, err := Claim(t.Context(), s, testID.Cluster, Options{Keys: keys, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func openWriter(t testing.TB, a *Archive, o WriterOptions) *Writer {
	t.Helper()
	w, err := a.Writer(t.Context(), testID, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// quick are options with which a test sees all levels within minutes of its
// clock.
func quick() WriterOptions {
	return WriterOptions{
		Intervals: [TopLevel + 1]time.Duration{1: 5 * time.Second, 2: 20 * time.Second, 3: time.Minute},
		MinInputs: [TopLevel + 1]int{1: 1, 2: 1, 3: 1},
		Keep:      [TopLevel + 1]time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute},
		Snapshot:  50 * time.Second,
		Snapshots: 4 * time.Minute,
		Fanout:    4,
	}
}

// memory is a Target.
type memory struct{ b []byte }

func (m *memory) Truncate(n int64) error { m.b = make([]byte, n); return nil }
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	return copy(m.b[off:off+int64(len(p))], p), nil
}

func restorePlan(ctx context.Context, v *View, p *Plan) ([]byte, error) {
	var m memory
	if err := v.Restore(ctx, p, &m, nil); err != nil {
		return nil, err
	}
	return m.b, nil
}

// restoreTX restores the state after a transaction.
func restoreTX(ctx context.Context, v *View, txid uint64) ([]byte, error) {
	p, err := v.PointOf(ctx, txid)
	if err != nil {
		return nil, err
	}
	plan, err := v.Plan(ctx, p)
	if err != nil {
		return nil, err
	}
	return restorePlan(ctx, v, plan)
}
