package history

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

const everything = "SELECT count(*) || ' ' || coalesce(sum(id), 0) || ' ' || coalesce(max(pad), '') || ' ' || coalesce(sum(length(name)), 0) FROM t"

// layered makes an archive with files of several levels, some of them with an
// index, and returns what everything gives after each commit.
func layered(t *testing.T) (*testarchive.DB, string, []string) {
	t.Helper()
	d, root := example(t, 25)
	if err := errors.Join(d.Writer.Compact(t.Context(), d.Time(25).Add(10*time.Minute)), d.Writer.Snapshot(t.Context())); err != nil {
		t.Fatal(err)
	}
	d.Exec("UPDATE t SET name = 'changed' WHERE id % 5 = 0", "INSERT INTO t(pad) SELECT randomblob(3000) FROM t", "DELETE FROM t WHERE id % 7 = 3")
	want := make([]string, len(d.Images)+1)
	for txid := 1; txid <= len(d.Images); txid++ {
		want[txid] = text(t, open(t, uri(root, fmt.Sprintf("to=%016x", txid))), everything)
	}
	if err := d.Writer.Manifest(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	return d, root, want
}

// ask opens a state as a query does, and returns what everything gives.
func ask(t *testing.T, s store.Store, txid int) (string, error) {
	a, err := archive.Open(t.Context(), s, archive.Options{TempDir: t.TempDir()})
	if err != nil {
		return "", err
	}
	f, err := moment.Moment{TXID: uint64(txid)}.Find(t.Context(), a, "acme/shop.db")
	if err != nil {
		return "", err
	}
	d, err := Open(t.Context(), f, 0)
	if err != nil {
		return "", err
	}
	defer d.Close()
	db, err := sql.Open("sqlite3", d.DSN())
	if err != nil {
		return "", err
	}
	defer db.Close()
	var got string
	if err := db.QueryRow(everything).Scan(&got); err != nil {
		if d.Err() == nil {
			t.Errorf("commit %d: %v, and nobody says why", txid, err)
		}
		return "", d.Err()
	}
	return got, nil
}

// Whatever is wrong with an object, a query names it or gives the right answer.
func TestDamageIsNamedAndNeverAnAnswer(t *testing.T) {
	d, root, want := layered(t)
	var keys []string
	bodies := map[string][]byte{}
	if err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		keys, bodies[path] = append(keys, path), b
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(4, 4))
	foreign, foreignRoot := testarchive.InDir(t, "acme/shop.db")
	foreign.Exec("CREATE TABLE t(id INTEGER PRIMARY KEY, name, pad)", "INSERT INTO t(name) VALUES('of another database')")
	stranger, err := filepath.Glob(filepath.Join(foreignRoot, "acme/shop.db/_*/ltx/0/*"))
	if err != nil || len(stranger) == 0 {
		t.Fatal(stranger, err)
	}
	theirs, err := os.ReadFile(stranger[0])
	if err != nil {
		t.Fatal(err)
	}
	store, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]int{}
	for i, path := range keys {
		body := bodies[path]
		flipped := bytes.Clone(body)
		flipped[r.IntN(len(body))] ^= 1 << r.IntN(8)
		damages := map[string][]byte{"flipped": flipped, "truncated": body[:r.IntN(len(body))], "missing": nil, "foreign": theirs}
		if other := keys[(i+1)%len(keys)]; filepath.Dir(other) == filepath.Dir(path) {
			damages["swapped"] = bodies[other]
		}
		for what, damage := range damages {
			if i%3 != len(what)%3 { // a third of them each
				continue
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if damage != nil {
				if err := os.WriteFile(path, damage, 0o640); err != nil {
					t.Fatal(err)
				}
			}
			for txid := 1; txid < len(want); txid += 3 {
				got, err := ask(t, store, txid)
				switch {
				case err == nil && got != want[txid]:
					t.Fatalf("%s %s: commit %d gives another answer", what, path, txid)
				case err == nil:
					continue
				}
				refused[what]++
				if errors.Is(err, archive.ErrNotArchived) || errors.Is(err, archive.ErrNoDatabase) || filepath.Base(path) == "_archive.json" {
					continue // a journal entry at the end is gone, or the only manifest
				}
				var named *archive.ObjectError
				if !errors.As(err, &named) || !errors.Is(err, archive.ErrDamaged) || !strings.HasSuffix(path, named.Key) {
					t.Fatalf("%s %s: commit %d: %v", what, path, txid, err)
				}
			}
			_ = os.Remove(path) // it may be missing
			if err := os.WriteFile(path, body, 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, what := range []string{"flipped", "truncated", "missing", "foreign", "swapped"} {
		if refused[what] == 0 {
			t.Errorf("nothing that was %s was met", what)
		}
	}
	t.Logf("%d objects of %d commits, refused: %v", len(keys), len(d.Images), refused)
}

// A store that fails, or tears its answers, gives errors and right answers.
func TestAStoreThatFailsGivesNoAnswer(t *testing.T) {
	_, root, want := layered(t)
	dir, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	s := storetest.NewFaulty(dir, 11)
	answers, failures := 0, 0
	for round := range 60 {
		s.Rate(float64(round%4) * 0.02)
		txid := 1 + round%(len(want)-1)
		got, err := ask(t, s, txid)
		switch {
		case err == nil && got != want[txid]:
			t.Fatalf("commit %d gives another answer", txid)
		case err == nil:
			answers++
		case !errors.Is(err, storetest.ErrInjected):
			t.Fatalf("commit %d: %v", txid, err)
		default:
			failures++
		}
	}
	if answers < 15 || failures < 5 {
		t.Errorf("%d answers, %d failures", answers, failures)
	}
}

// A connection whose read failed says why, and works again with the store.
func TestAConnectionSurvivesItsStore(t *testing.T) {
	d, root, want := layered(t)
	dir, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	s := storetest.NewFaulty(dir, 12)
	a, err := archive.Open(t.Context(), s, archive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := moment.Moment{TXID: 28}.Find(t.Context(), a, d.ID.Name)
	if err != nil {
		t.Fatal(err)
	}
	past, err := Open(t.Context(), f, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer past.Close()
	db := open(t, past.DSN())
	if got := text(t, db, "SELECT count(*) FROM sqlite_schema"); got != "1" {
		t.Fatal(got)
	}
	if _, err := db.Exec("PRAGMA cache_size=2"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.Down(true)
		if err := db.QueryRow(everything).Scan(new(string)); err == nil {
			t.Fatal("there is an answer")
		}
		if got := text(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, "injected fault") || !strings.Contains(got, "page") {
			t.Errorf("got %q", got)
		}
		s.Down(false)
		if got := text(t, db, everything); got != want[28] {
			t.Errorf("got %q", got)
		}
	}
}
