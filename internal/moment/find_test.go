package moment

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
	"github.com/uglyer/ha-sqlite/wal"
)

const pageSize = 512

// page is a database of one page that remembers who wrote it.
func page(branch byte, txid uint64) []byte {
	b := make([]byte, pageSize)
	b[0], b[1] = branch, byte(txid)
	return b
}

func sum(b []byte) uint64 { return snapshot.Roll(snapshot.ChecksumFlag, snapshot.PageSum(1, b)) }

// at is a time so many seconds behind now.
func at(seconds float64) time.Time { return now.Add(time.Duration(seconds * float64(time.Second))) }

// branch is a database in the archive. Commit n is made n seconds behind now.
type branch struct {
	t  *testing.T
	by byte
	id archive.Identity
	w  *archive.Writer
}

func newBranch(t *testing.T, a *archive.Archive, by byte, db string, lineage uint64) *branch {
	t.Helper()
	id := archive.Identity{Cluster: a.Cluster(), Lineage: lineage, Database: strings.Repeat(db, 16), Name: "shop.db"}
	w, err := a.Writer(t.Context(), id, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &branch{t, by, id, w}
}

func (b *branch) commit(from, to uint64, late float64) {
	b.t.Helper()
	var commits []archive.Commit
	for txid := from; txid <= to; txid++ {
		when, p := at(float64(txid)+late), page(b.by, txid)
		f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: pageSize, PageCount: 1, TXID: txid, CommitTimeMillis: when.UnixMilli()}, []wal.Page{{Pgno: 1, Data: p}})
		if err != nil {
			b.t.Fatal(err)
		}
		commits = append(commits, archive.Commit{TXID: txid, Time: when.UnixMicro(), Post: sum(p), LTX: bytes.NewReader(f)})
	}
	if err := b.w.Append(b.t.Context(), commits); err != nil {
		b.t.Fatal(err)
	}
}

// image is the state that a branch left after a commit.
type image struct {
	by   byte
	txid uint64
}

func (i image) Position() (uint64, int64, uint64) {
	return i.txid, at(float64(i.txid)).UnixMicro(), sum(page(i.by, i.txid))
}
func (i image) PageSize() uint32                     { return pageSize }
func (i image) PageCount() uint32                    { return 1 }
func (i image) ReadPage(_ uint32, data []byte) error { copy(data, page(i.by, i.txid)); return nil }

func (b *branch) snapshot(of byte, txid uint64) {
	b.t.Helper()
	if err := b.w.SnapshotOf(b.t.Context(), image{of, txid}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *branch) bookmark(of byte, txid uint64) string {
	return fmt.Sprintf("%016x/%016x@%s", txid, sum(page(of, txid)), b.id.Database)
}

func testArchive(t *testing.T) *archive.Archive {
	t.Helper()
	d, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a, err := archive.Claim(t.Context(), d, "c1", archive.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// After a recovery the archive has two lineages of one database: a bookmark means the one whose state it is, a number the
// newest that has it, a time the one that begins last at or before it.
func TestLineagesOfADatabase(t *testing.T) {
	a := testArchive(t)
	old, recovered := newBranch(t, a, 'a', "0f", 0), newBranch(t, a, 'b', "0f", 1)
	old.commit(1, 9, 0)
	recovered.snapshot('a', 6) // 7 to 9 were lost with the other nodes
	if f, err := (Moment{}).Find(t.Context(), a, "shop.db"); err != nil || f.View.State().Lineage != 1 || f.Point.TXID != 6 {
		t.Errorf("the last state is of lineage %d: %+v, %v", f.View.State().Lineage, f.Point, err)
	}
	recovered.commit(7, 8, 100)
	for _, tt := range []struct {
		at      float64
		to      string
		lineage uint64
		txid    uint64
	}{
		{to: old.bookmark('a', 3), lineage: 0, txid: 3},
		{to: old.bookmark('a', 6), lineage: 1, txid: 6},
		{to: old.bookmark('a', 8), lineage: 0, txid: 8},
		{to: old.bookmark('b', 8), lineage: 1, txid: 8},
		{to: old.bookmark('a', 9), lineage: 0, txid: 9},
		{to: old.bookmark('a', 8)[:33], lineage: 0, txid: 8},
		{to: "0000000000000003", lineage: 0, txid: 3},
		{to: "0000000000000008", lineage: 1, txid: 8},
		{to: "0000000000000009", lineage: 0, txid: 9},
		{at: 5.5, lineage: 0, txid: 5},
		{at: 6, lineage: 1, txid: 6},
		{at: 8.5, lineage: 1, txid: 6},
		{at: 107.5, lineage: 1, txid: 7},
	} {
		var m Moment
		var err error
		if m.Time, m.Now = at(tt.at), at(1000); tt.to != "" {
			m, err = Parse("", tt.to, now)
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := m.Find(t.Context(), a, "shop.db")
		if err != nil || f.View.State().Lineage != tt.lineage || f.Point.TXID != tt.txid || f.Dropped {
			t.Errorf("at %v to %q: lineage %d, %+v, dropped %v, %v", tt.at, tt.to, f.View.State().Lineage, f.Point, f.Dropped, err)
		}
	}
	for to, says := range map[string]string{
		old.bookmark('c', 8): "of another history",
		"000000000000000a":   "0000000000000008 before it and nothing behind it",
		"0000000000000008/" + old.bookmark('a', 8)[17:33] + "@" + strings.Repeat("0e", 16): "the bookmark is of database",
	} {
		m, err := Parse("", to, now)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := m.Find(t.Context(), a, "shop.db"); !errors.Is(err, archive.ErrNotArchived) || !strings.Contains(err.Error(), says) || f.View == nil {
			t.Errorf("%s: %v, want %q", to, err, says)
		}
	}
}

// docs/history.md says what a restore costs: this many listings.
func TestFindingAStateTakesThreeListings(t *testing.T) {
	d, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := storetest.NewFaulty(d, 1)
	a, err := archive.Claim(t.Context(), s, "c1", archive.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	listings := func() int { return s.Calls("list") + s.Calls("dirs") }
	for lineage, want := range []int{3, 5} {
		newBranch(t, a, 'a', "0f", uint64(lineage)).commit(1, 5, 0)
		before := listings()
		f, err := Moment{TXID: 3}.Find(t.Context(), a, "shop.db")
		if err != nil {
			t.Fatal(err)
		}
		plan, err := f.View.Plan(t.Context(), f.Point)
		if err == nil {
			err = f.View.RestoreFile(t.Context(), plan, filepath.Join(t.TempDir(), "db"), archive.RestoreOptions{})
		}
		if got := listings() - before; err != nil || got != want {
			t.Errorf("%d databases: %d listings, want %d, %v", lineage+1, got, want, err)
		}
	}
}

// A state behind which commits are missing is said to be one, and is not taken for that of the time.
func TestStatesBeforeWhatIsMissing(t *testing.T) {
	a := testArchive(t)
	old, late := newBranch(t, a, 'a', "0f", 0), newBranch(t, a, 'a', "0f", 1)
	old.commit(1, 3, 0)
	old.snapshot('a', 9)
	late.snapshot('a', 14) // 10 to 13 are in no archive
	again := newBranch(t, a, 'b', "0e", 1)
	again.commit(1, 2, 100) // it was deleted and made again
	for _, tt := range []struct {
		at         float64
		txid, next uint64 // next: where it is not exact
	}{
		{1, 1, 0}, {2.5, 2, 0}, {3, 3, 0}, {3.000001, 3, 9}, {8, 3, 9}, {9, 9, 0}, {9.5, 9, 14}, {14, 14, 0}, {50, 14, 0}, {101, 1, 0}, {200, 2, 0},
	} {
		f, err := Moment{Time: at(tt.at), Now: at(1000)}.Find(t.Context(), a, "shop.db")
		if err != nil || f.Point.TXID != tt.txid || f.Dropped != (tt.next != 0) || f.Next.TXID != tt.next {
			t.Errorf("at %v: %+v, dropped %v before %d, %v, want %+v", tt.at, f.Point, f.Dropped, f.Next.TXID, err, tt)
			continue
		}
		err = f.Exact()
		if tt.next == 0 {
			if err != nil {
				t.Errorf("at %v: %v", tt.at, err)
			}
			continue
		}
		for _, want := range []string{f.Bookmark(), TimeText(at(float64(tt.txid))), old.bookmark('a', tt.next), TimeText(at(float64(tt.next)))} {
			if !errors.Is(err, archive.ErrNotArchived) || !strings.Contains(err.Error(), want) {
				t.Errorf("at %v: %v, want %q in it", tt.at, err, want)
			}
		}
	}
	var before *archive.RangeError
	if _, err := (Moment{Time: at(0.5), Now: at(1000)}).Find(t.Context(), a, "shop.db"); !errors.As(err, &before) || !before.First.Equal(at(1)) || !before.Last.Equal(at(102)) {
		t.Errorf("before all of them: %v", err)
	}
}

// A database that is damaged is in the way of a state that it could be, and not of one that a bookmark names.
func TestADamagedNamesakeIsInTheWayOfGuessesOnly(t *testing.T) {
	root := t.TempDir()
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	a, err := archive.Claim(t.Context(), d, "c1", archive.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	bad, good := newBranch(t, a, 'a', "0f", 0), newBranch(t, a, 'b', "0e", 0)
	bad.commit(1, 3, 0)
	good.commit(1, 3, 100)
	manifests, err := filepath.Glob(filepath.Join(root, "shop.db", "_"+bad.id.Database+"-0", "hasqlite", "manifest", "*"))
	if err != nil || len(manifests) == 0 {
		t.Fatalf("%q, %v", manifests, err)
	}
	for _, name := range manifests {
		if err := errors.Join(os.Remove(name), os.WriteFile(name, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		at    float64
		to    string
		found bool
		says  string
	}{
		{to: good.bookmark('b', 2), found: true},
		{to: good.bookmark('b', 2)[:33], found: true},
		{to: bad.bookmark('a', 2), says: bad.id.Database},
		{to: bad.bookmark('a', 2)[:33], says: bad.id.Database},
		{to: "0000000000000002", says: "bookmark"},
		{at: 102.5, says: "bookmark"},
		{says: "bookmark"},
	} {
		var m Moment
		if tt.to != "" {
			if m, err = Parse("", tt.to, now); err != nil {
				t.Fatal(err)
			}
		} else if tt.at != 0 {
			m.Time, m.Now = at(tt.at), at(1000)
		}
		f, err := m.Find(t.Context(), a, "shop.db")
		switch {
		case tt.found && (err != nil || f.View.State().Database != good.id.Database || f.Point.TXID != 2):
			t.Errorf("%+v: %+v, %v", tt, f.Point, err)
		case !tt.found && (!errors.Is(err, archive.ErrDamaged) || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
