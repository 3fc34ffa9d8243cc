package node

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/api"
)

// quotaCluster is three nodes, of which the last has no quotas and the first two have these. One of those leads.
func quotaCluster(t *testing.T, quotas ...Quota) (c *cluster, limited, free int) {
	t.Helper()
	c = newCluster(t, 3, func(i int, cfg *Config) {
		if i < 2 {
			cfg.Quotas = quotas
		}
	})
	c.lead(0)
	return c, 1, 2
}

// lead makes a node the leader.
func (c *cluster) lead(i int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("node %d leads", i), func() error {
		l := c.leader()
		if l == i {
			return nil
		}
		return errors.Join(errors.New("another leads"), backend{c.nodes[l]}.TransferLeadership(c.t.Context(), api.TransferRequest{ID: c.cfgs[i].ID}))
	})
}

func full(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.Code == sqlite3.ErrFull
}

func TestQuotaOfDatabases(t *testing.T) {
	c, limited, free := quotaCluster(t, Quota{Pattern: "acme/*", Databases: 5})
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			_, err := backend{c.nodes[i%3]}.CreateDatabase(t.Context(), api.CreateDatabaseRequest{Name: fmt.Sprint("acme/", i), PageSize: 4096})
			switch {
			case err == nil:
				made.Add(1)
			case errors.Is(err, api.ErrQuota):
				refused.Add(1)
			default:
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 5 || refused.Load() != 7 {
		t.Fatalf("%d made and %d refused, want 5 and 7", made.Load(), refused.Load())
	}
	for _, i := range []int{limited, free} {
		if _, err := c.open(i, "acme/by/an/application").ExecContext(t.Context(), `CREATE TABLE t(v)`); !full(err) {
			t.Errorf("node %d: an application made one more: %v", i, err)
		}
		exec(t, c.open(i, fmt.Sprint("other/", i)), `CREATE TABLE t(v)`)
	}
	st, err := backend{c.nodes[limited]}.Status(t.Context(), api.DatabaseQuery{Prefix: "acme/"})
	if err != nil {
		t.Fatal(err)
	}
	if want := (api.QuotaStatus{Pattern: "acme/*", Databases: 5, MaxDatabases: 5}); len(st.Quotas) != 1 || st.Quotas[0] != want || len(st.Databases) != 5 || st.Totals.Databases != 7 {
		t.Errorf("quotas %+v, %d of %d databases listed", st.Quotas, len(st.Databases), st.Totals.Databases)
	}
	// A place that is given back can be taken again, also after all counts were read from the log.
	if err := (backend{c.nodes[free]}).DeleteDatabase(t.Context(), st.Databases[0].Name, false); err != nil {
		t.Fatal(err)
	}
	for i := range c.nodes {
		c.stop(i)
	}
	for i := range c.nodes {
		c.start(i)
	}
	for i := range c.nodes {
		c.ready(i)
	}
	c.lead(0)
	exec(t, c.open(limited, "acme/new"), `CREATE TABLE t(v)`)
	if _, err := c.open(limited, "acme/newer").ExecContext(t.Context(), `CREATE TABLE t(v)`); !full(err) {
		t.Errorf("one more than the quota after a restart: %v", err)
	}
}

func TestQuotaOfSize(t *testing.T) {
	c, limited, free := quotaCluster(t, Quota{Pattern: "small/*", Size: 256 << 10})
	exec(t, c.open(0, "small/db"), `CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)`)
	c.equal("small/db")
	// Its own node says so, or the leader where the node has no quotas.
	for _, i := range []int{limited, free} {
		db := c.open(i, "small/db")
		rows := query[int](t, db, `SELECT count(*) FROM t`)
		var err error
		for range 100 {
			if _, err = db.ExecContext(t.Context(), `INSERT INTO t(v) VALUES(randomblob(20000))`); err != nil {
				break
			}
			rows++
		}
		if !full(err) {
			t.Fatalf("node %d: after %d rows: %v, want SQLITE_FULL", i, rows, err)
		}
		if got := query[int](t, db, `SELECT count(*) FROM t`); got != rows {
			t.Errorf("node %d: %d rows, %d were acknowledged", i, got, rows)
		}
		// What does not let it grow is allowed.
		exec(t, db, `UPDATE t SET v = randomblob(20000) WHERE id = 1`)
		exec(t, db, `DELETE FROM t WHERE id > 2`)
		exec(t, db, `INSERT INTO t(v) VALUES(randomblob(20000))`) // into the free pages
		exec(t, db, `VACUUM`)
		c.equal("small/db")
	}
	d, err := backend{c.nodes[limited]}.Database(t.Context(), "small/db")
	if want := (api.DatabaseQuota{Pattern: "small/*", MaxBytes: 256 << 10}); err != nil || d.Quota == nil || *d.Quota != want {
		t.Errorf("quota in status %+v, want %+v: %v", d.Quota, want, err)
	}
	// A leader without quotas takes everything, and nobody who has some differs for that.
	c.lead(free)
	db := c.open(free, "small/db")
	for range 30 {
		exec(t, db, `INSERT INTO t(v) VALUES(randomblob(20000))`)
	}
	c.equal("small/db")
	if _, err := c.open(limited, "small/db").ExecContext(t.Context(), `INSERT INTO t(v) VALUES(randomblob(20000))`); !full(err) {
		t.Errorf("a node with quotas under a leader without: %v", err)
	}
	c.equal("small/db")
}

func TestQuotaOfTransactions(t *testing.T) {
	c, limited, free := quotaCluster(t, Quota{Pattern: "*", Transaction: 1 << 20})
	exec(t, c.open(0, "db"), `CREATE TABLE t(v BLOB)`)
	c.equal("db")
	const large = `WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i < 300) INSERT INTO t SELECT %s FROM c`
	for _, row := range []struct {
		name, value string
		node        int
	}{
		{"its own node", "randomblob(4000)", limited},
		{"the leader, of parts", "randomblob(4000)", free},
		{"the leader, of one entry", "zeroblob(4000)", free},
	} {
		db := c.open(row.node, "db")
		if _, err := db.ExecContext(t.Context(), fmt.Sprintf(large, row.value)); !full(err) {
			t.Errorf("%s: a transaction of 1.2 MB: %v, want SQLITE_FULL", row.name, err)
		}
		if got := query[int](t, db, `SELECT count(*) FROM t`); got != 0 {
			t.Errorf("%s: %d rows of what was refused", row.name, got)
		}
	}
	for _, i := range []int{0, limited, free} {
		exec(t, c.open(i, "db"), `INSERT INTO t VALUES(randomblob(500000))`)
	}
	c.equal("db")
}

// A fork begins with the pages of the state that it is of: those count, not what the source has now.
func TestQuotaOfSizeIsForForksToo(t *testing.T) {
	c := newCluster(t, 1, func(i int, cfg *Config) {
		ownArchives(i, cfg)
		cfg.Quotas = []Quota{{Pattern: "small/*", Size: 64 << 10}}
	})
	src := c.open(0, "src.db")
	exec(t, src, `CREATE TABLE t(v)`)
	small, _ := c.export(0, "src.db", api.Moment{})
	exec(t, src, `INSERT INTO t VALUES(randomblob(100000))`)
	large, _ := c.export(0, "src.db", api.Moment{})
	refuses := func(name string, m api.Moment) {
		t.Helper()
		if _, err := (backend{c.nodes[0]}).Fork(t.Context(), api.ForkRequest{Source: "src.db", Name: name, Moment: m}, func(api.Progress) {}); !errors.Is(err, api.ErrQuota) {
			t.Errorf("%s, a fork of %d bytes: %v, want ErrQuota", name, large.SizeBytes, err)
		}
		if st, ok := c.nodes[0].svc.Lookup(name); ok {
			t.Errorf("it is there: %+v", st)
		}
	}
	refuses("small/now.db", api.Moment{})
	c.fork(0, "src.db", "large.db", api.Moment{})
	c.fork(0, "src.db", "small/past.db", api.Moment{To: small.Commit.Bookmark})
	exec(t, src, `DELETE FROM t`)
	exec(t, src, `VACUUM`)
	refuses("small/large.db", api.Moment{To: large.Commit.Bookmark})
	c.fork(0, "src.db", "small/now.db", api.Moment{})
}
