package node

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

var (
	rollbackMegabytes = flag.Int("rollback-megabytes", 16, "size of the database that is rolled back")
	rollbackCommits   = flag.Int("rollback-commits", 100, "commits that are undone")
)

func (c *cluster) rollback(i int, name string, m api.Moment) api.RollbackReport {
	c.t.Helper()
	r, err := backend{c.nodes[i]}.Rollback(c.t.Context(), api.RollbackRequest{Name: name, Moment: m}, func(api.Progress) {})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// counters are the bytes of page 1 that a rollback does not take back.
func counters(b []byte) []byte {
	b = bytes.Clone(b)
	for _, at := range []int{24, 40, 92} {
		clear(b[at : at+4])
	}
	return b
}

// differ counts the pages in which two states differ.
func differ(a, b []byte, pageSize int) (n uint32) {
	for at := 0; at < len(b); at += pageSize {
		if at >= len(a) || !bytes.Equal(a[at:at+pageSize], b[at:at+pageSize]) {
			n++
		}
	}
	return n
}

// Accounts whose sum is the same in every committed state, and a counter that is kept in two places: who sees a mixture of
// two states sees another sum.
const accounts = 200

// A rollback under readers and a writer: only what differs travels, nobody sees a state in between, and a rollback to the
// bookmark that was printed gives everything back but the counters.
func TestRollbackUnderReadersAndAWriter(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) {
		ownArchives(0, cfg)
		cfg.VerifyFull = false // every commit would read all of it
		cfg.LogLimit = 2 << 30
	})
	path := filepath.Join(t.TempDir(), "f")
	src, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, src, `CREATE TABLE account(id INTEGER PRIMARY KEY, v INTEGER); CREATE TABLE one(n INTEGER); CREATE TABLE two(n INTEGER); CREATE TABLE bulk(id INTEGER PRIMARY KEY, b BLOB)`)
	exec(t, src, fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 1000 FROM n`, accounts))
	exec(t, src, fmt.Sprintf(`INSERT INTO one VALUES(0); INSERT INTO two VALUES(0);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO bulk SELECT i, randomblob(3800) FROM n`, *rollbackMegabytes*256))
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	c.importFile(0, "bank.db", path)
	writer := c.open(c.leader(), "bank.db", "_txlock=immediate")
	writer.SetMaxOpenConns(1)
	rnd := rand.New(rand.NewPCG(1, 2))
	step := func(ctx context.Context) error {
		tx, err := writer.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
		from, to, n := 1+rnd.IntN(accounts), 1+rnd.IntN(accounts), rnd.IntN(100)
		for _, q := range []string{
			fmt.Sprintf(`UPDATE account SET v = v - %d WHERE id = %d`, n, from), `UPDATE one SET n = n + 1`,
			fmt.Sprintf(`UPDATE bulk SET b = randomblob(3800) WHERE id = %d`, 1+rnd.IntN(*rollbackMegabytes*256)),
			fmt.Sprintf(`UPDATE account SET v = v + %d WHERE id = %d`, n, to), `UPDATE two SET n = n + 1`,
		} {
			if _, err := tx.ExecContext(ctx, q); err != nil {
				return err
			}
		}
		return tx.Commit()
	}
	start, startBytes := c.export(0, "bank.db", api.Moment{})
	for range *rollbackCommits {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop, wrote := make(chan struct{}), atomic.Int64{}
	var wg sync.WaitGroup
	for i := range 8 {
		db := c.open(i%3, "bank.db")
		db.SetMaxOpenConns(1)
		wg.Go(func() {
			for reads := 0; ; reads++ {
				select {
				case <-stop:
					if reads == 0 {
						t.Errorf("reader %d read nothing", i)
					}
					return
				default:
				}
				if err := bankIsWhole(db); err != nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := step(context.Background()); err != nil {
				t.Errorf("writer: %v", err)
				return
			}
			wrote.Add(1)
		}
	})
	began := time.Now()
	r := c.rollback(c.follower(), "bank.db", api.Moment{To: start.Commit.Bookmark})
	took := time.Since(began)
	after := wrote.Load()
	eventually(t, "the writer goes on", func() error {
		if wrote.Load() < after+3 {
			return fmt.Errorf("%d commits", wrote.Load()-after)
		}
		return nil
	})
	back := c.rollback(c.leader(), "bank.db", api.Moment{To: r.Previous.Bookmark})
	close(stop)
	wg.Wait()
	_, rolled := c.export(0, "bank.db", api.Moment{To: r.Commit.Bookmark})
	_, previous := c.export(1, "bank.db", api.Moment{To: r.Previous.Bookmark})
	_, restored := c.export(2, "bank.db", api.Moment{To: back.Commit.Bookmark})
	if !bytes.Equal(counters(rolled), counters(startBytes)) {
		t.Error("the state after the rollback is not the one at the start")
	}
	if !bytes.Equal(counters(restored), counters(previous)) {
		t.Error("the state after the rollback to the bookmark printed is not the one before")
	}
	if want := differ(previous, rolled, int(start.PageSize)); r.Shipped != want {
		t.Errorf("%d pages travelled, %d differ", r.Shipped, want)
	}
	if r.Target.Bookmark != start.Commit.Bookmark || r.Rounds != 1 {
		t.Errorf("%+v", r)
	}
	c.equal("bank.db")
	t.Logf("%d MiB, %d commits undone in %v: %d of %d pages travelled; %d commits of the writer meanwhile", *rollbackMegabytes, *rollbackCommits,
		took.Round(time.Millisecond), r.Shipped, r.Commit.Pages, wrote.Load())
	writer.Close()
}

func (c *cluster) importFile(i int, name, path string) {
	c.t.Helper()
	f, size := openFile(c.t, path)
	defer f.Close()
	if _, err := (backend{c.nodes[i]}).Import(c.t.Context(), api.ImportRequest{Name: name, Size: size}, f, func(api.Progress) {}); err != nil {
		c.t.Fatal(err)
	}
}

func bankIsWhole(db *sql.DB) error {
	var sum, one, two int
	err := db.QueryRow(`SELECT (SELECT sum(v) FROM account), (SELECT n FROM one), (SELECT n FROM two)`).Scan(&sum, &one, &two)
	if err == nil && (sum != 1000*accounts || one != two) {
		err = fmt.Errorf("the sum is %d, the counters are %d and %d", sum, one, two)
	}
	return err
}

// A connection has cached the schema of what is undone; other DDL would come to the same schema cookie. It has to read the
// schema again: otherwise it writes rows without the entries of an index that it does not know (RULES A7).
func TestRollbackDoesNotBringASchemaCookieBack(t *testing.T) {
	c := newCluster(t, 1, ownArchives)
	db := c.open(0, "shop.db")
	exec(t, db, `CREATE TABLE t(a, b)`)
	exec(t, db, `INSERT INTO t VALUES(1, 'one')`)
	before, first := c.export(0, "shop.db", api.Moment{})
	exec(t, db, `CREATE INDEX i ON t(a)`)
	cached, err := c.open(0, "shop.db").Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer cached.Close()
	if _, err := cached.ExecContext(t.Context(), `UPDATE t SET a = a WHERE a = 1`); err != nil {
		t.Fatal(err)
	}
	_, undone := c.export(0, "shop.db", api.Moment{})
	r := c.rollback(0, "shop.db", api.Moment{To: before.Commit.Bookmark})
	_, rolled := c.export(0, "shop.db", api.Moment{To: r.Commit.Bookmark})
	for _, at := range []int{24, 40, 92} {
		if got, now := be32(rolled[at:]), be32(undone[at:]); got != now+1 {
			t.Errorf("bytes %d to %d are %d after %d", at, at+3, got, now)
		}
	}
	if !bytes.Equal(counters(rolled), counters(first)) {
		t.Error("the rest is not what it was")
	}
	exec(t, db, `CREATE INDEX j ON t(b)`) // as many changes of the schema as the connection has seen
	if _, err := cached.ExecContext(t.Context(), `INSERT INTO t VALUES(2, 'two')`); err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, db, `PRAGMA integrity_check`); got != "ok" {
		t.Error(got)
	}
	if n := query[int](t, db, `SELECT count(*) FROM t INDEXED BY j WHERE b = 'two'`); n != 1 {
		t.Errorf("%d rows by the new index", n)
	}
	db.Close()
}

// The write lock is held for no longer than allowed: the database stays what it is, and its writers go on.
func TestRollbackGivesTheLockBack(t *testing.T) {
	c := newCluster(t, 1, ownArchives)
	db := c.open(0, "shop.db")
	exec(t, db, `CREATE TABLE t(a INTEGER PRIMARY KEY, b)`)
	exec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, randomblob(1000) FROM n`)
	f, err := c.nodes[0].scratchFile()
	if err != nil {
		t.Fatal(err)
	}
	defer dropScratch(f)
	if _, err := c.nodes[0].svc.Copy(t.Context(), "shop.db", f, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	exec(t, db, `UPDATE t SET b = randomblob(1000)`)
	st, _ := c.nodes[0].svc.Lookup("shop.db")
	o := replicate.Overwrite{PageSize: st.PageSize, Hold: time.Nanosecond, Wait: 10 * time.Second}
	content := &stateFile{f: f, pageSize: st.PageSize, pageCount: st.PageCount}
	if _, err := c.nodes[0].svc.Overwrite(t.Context(), st.ID, content, o); !errors.Is(err, replicate.ErrHeldLong) {
		t.Fatalf("%v, want ErrHeldLong", err)
	}
	if now, _ := c.nodes[0].svc.Lookup("shop.db"); now.Position != st.Position {
		t.Errorf("it is at %v, it was at %v", now.Position, st.Position)
	}
	exec(t, db, `INSERT INTO t(b) VALUES('goes on')`)
	o.Hold = 0
	done, err := c.nodes[0].svc.Overwrite(t.Context(), st.ID, content, o)
	if err != nil || done.Rounds != 1 || done.After.TXID != st.Position.TXID+2 {
		t.Errorf("%+v, %v", done, err)
	}
	db.Close()
}

// A rollback over a VACUUM and a regrowth, to a time, to a state that is the newest one, and to one that is not there.
func TestRollbackToTimesAndSizes(t *testing.T) {
	c := newCluster(t, 1, ownArchives)
	db := c.open(0, "shop.db")
	exec(t, db, `CREATE TABLE t(a INTEGER PRIMARY KEY, b)`)
	exec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 500) INSERT INTO t SELECT i, randomblob(1000) FROM n`)
	large, largeBytes := c.export(0, "shop.db", api.Moment{})
	exec(t, db, `DELETE FROM t WHERE a > 10`)
	exec(t, db, `VACUUM`)
	small, smallBytes := c.export(0, "shop.db", api.Moment{})
	if len(smallBytes) >= len(largeBytes) {
		t.Fatal("it did not shrink")
	}
	if r := c.rollback(0, "shop.db", api.Moment{At: large.Commit.Time.Format(time.RFC3339Nano)}); r.Target.Bookmark != large.Commit.Bookmark {
		t.Errorf("%+v, want %+v", r.Target, large.Commit)
	}
	if _, got := c.export(0, "shop.db", api.Moment{}); !bytes.Equal(counters(got), counters(largeBytes)) {
		t.Error("it has not grown back")
	}
	if n := query[int](t, db, `SELECT count(*) FROM t`); n != 500 {
		t.Errorf("%d rows", n)
	}
	c.rollback(0, "shop.db", api.Moment{To: small.Commit.Bookmark})
	if _, got := c.export(0, "shop.db", api.Moment{}); !bytes.Equal(counters(got), counters(smallBytes)) {
		t.Error("it has not shrunk again")
	}
	if r := c.rollback(0, "shop.db", api.Moment{At: "now"}); r.Commit.Bookmark != r.Previous.Bookmark || r.Shipped != 0 {
		t.Errorf("a rollback to the present: %+v", r)
	}
	dry, err := backend{c.nodes[0]}.Rollback(t.Context(), api.RollbackRequest{Name: "shop.db", Moment: api.Moment{To: large.Commit.Bookmark}, DryRun: true}, func(api.Progress) {})
	if now, _ := c.nodes[0].svc.Lookup("shop.db"); err != nil || !dry.DryRun || dry.Shipped < 100 || uint64(now.Position.TXID) != uint64(dry.Previous.TXID) {
		t.Errorf("%+v, %v", dry, err)
	}
	for what, m := range map[string]api.Moment{
		"before it was made": {At: "2020-01-01T00:00:00Z"}, "of the future": {To: "00000000000000ff"}, "nothing": {},
		"of another history": {To: fmt.Sprintf("%016x/%016x", uint64(small.Commit.TXID), uint64(1)<<63|1)},
	} {
		if _, err := (backend{c.nodes[0]}).Rollback(t.Context(), api.RollbackRequest{Name: "shop.db", Moment: m}, func(api.Progress) {}); err == nil {
			t.Errorf("a state %s: no error", what)
		}
	}
	if n := query[int](t, db, `SELECT count(*) FROM t`); n != 10 {
		t.Errorf("%d rows", n)
	}
	db.Close()
}
