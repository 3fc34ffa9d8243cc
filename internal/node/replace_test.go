package node

import (
	"bytes"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// countedContent counts how often each page is read.
type countedContent struct {
	*stateFile
	mu    sync.Mutex
	reads map[uint32]int
}

// ReadPage implements replicate.Content.
func (c *countedContent) ReadPage(pgno uint32, buf []byte) error {
	c.mu.Lock()
	c.reads[pgno]++
	c.mu.Unlock()
	return c.stateFile.ReadPage(pgno, buf)
}

// What differs is put together before the write lock is taken, once, however many rounds there are; what somebody writes
// between that and the lock is replaced too (RULES A7).
func TestReplacementsAreReadyBeforeTheLock(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	db := c.open(0, "shop.db")
	exec(t, db, `CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE late(a)`)
	exec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, randomblob(1000) FROM n`)
	f, err := n.scratchFile()
	if err != nil {
		t.Fatal(err)
	}
	defer dropScratch(f)
	if _, err := n.svc.Copy(t.Context(), "shop.db", f, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	was, _ := n.svc.Lookup("shop.db")
	content := &countedContent{stateFile: &stateFile{f: f, pageSize: was.PageSize, pageCount: was.PageCount}, reads: map[uint32]int{}}
	_, want := c.export(0, "shop.db", api.Moment{})
	exec(t, db, `UPDATE t SET b = randomblob(1000)`)
	_, changed := c.export(0, "shop.db", api.Moment{})
	o := replicate.Overwrite{PageSize: was.PageSize, Hold: time.Nanosecond, Wait: 10 * time.Second}
	if _, err := n.svc.Overwrite(t.Context(), was.ID, content, o); !errors.Is(err, replicate.ErrHeldLong) {
		t.Fatalf("%v, want ErrHeldLong", err)
	}
	size := int(was.PageSize)
	for pgno := 2; pgno <= len(want)/size; pgno++ {
		at, reads := (pgno-1)*size, 1 // to compare it
		if !bytes.Equal(want[at:at+size], changed[at:at+size]) {
			reads++
		}
		if got := content.reads[uint32(pgno)]; got != reads {
			t.Fatalf("page %d was read %d times in five rounds, want %d", pgno, got, reads)
		}
	}
	o.Hold = time.Minute
	var once sync.Once
	o.Progress = func(step string, done, total int64) {
		if step == "prepare" && done == total { // nothing is locked
			once.Do(func() { exec(t, db, `INSERT INTO late VALUES(1)`) })
		}
	}
	clear(content.reads)
	done, err := n.svc.Overwrite(t.Context(), was.ID, content, o)
	if err != nil || done.Rounds != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, got := c.export(0, "shop.db", api.Moment{}); !bytes.Equal(counters(got), counters(want)) {
		t.Error("it has not got the content")
	}
	if got := query[int](t, db, `SELECT count(*) FROM late`); got != 0 {
		t.Errorf("%d rows of what came between", got)
	}
	// Once more: nothing differs but the counters, which is no difference.
	again, err := n.svc.Overwrite(t.Context(), was.ID, content, o)
	if err != nil || again.Before != done.After || again.After != done.After || again.Pages != 0 {
		t.Errorf("%+v, %v, it was at %s", again, err, done.After)
	}
	o.DryRun = true
	if dry, err := n.svc.Overwrite(t.Context(), was.ID, content, o); err != nil || dry.Pages != 0 || dry.After != done.After {
		t.Errorf("%+v, %v", dry, err)
	}
	db.Close()
}

// A replacement by what is there already adds no transaction.
func TestImportReplacesOnlyWhatDiffers(t *testing.T) {
	c := newCluster(t, 1, func(_ int, cfg *Config) { cfg.VerifyFull = false })
	dir := t.TempDir()
	one := makeFile(t, filepath.Join(dir, "one"), "PRAGMA page_size=4096", 20000)
	two := makeFile(t, filepath.Join(dir, "two"), "PRAGMA page_size=4096", 20000)
	if _, err := c.importBytes(0, "shop.db", one, false); err != nil {
		t.Fatal(err)
	}
	replace := func(b []byte, holdMS int64) (api.ImportReport, error) {
		req := api.ImportRequest{Name: "shop.db", Size: int64(len(b)), Replace: true, HoldMS: holdMS}
		return backend{c.nodes[0]}.Import(t.Context(), req, bytes.NewReader(b), func(api.Progress) {})
	}
	first, err := replace(two, 60000)
	if err != nil || first.Previous == nil || first.Commit.TXID == first.Previous.TXID {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := replace(two, 0)
	if err != nil || again.Commit.Bookmark != first.Commit.Bookmark || again.Previous == nil || again.Previous.Bookmark != first.Commit.Bookmark {
		t.Errorf("%+v, %v, it was at %+v", again, err, first.Commit)
	}
	if _, err := replace(one, -1); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if _, got := c.export(0, "shop.db", api.Moment{}); !bytes.Equal(counters(got), counters(header(two))) {
		t.Error("it is not what it was given")
	}
}
