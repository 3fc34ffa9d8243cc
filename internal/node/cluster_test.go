package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/replicate"
	_ "github.com/uglyer/ha-sqlite/vfs"
)

// cluster is a set of nodes in the test's own process. Their applications are database/sql connections of
// the same process, through the VFS and real sockets.
type cluster struct {
	t     *testing.T
	cfgs  []Config
	nodes []*Node // nil where stopped
}

func newCluster(t *testing.T, n int, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "hs") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, nodes: make([]*Node, n)}
	var join []string
	for range n {
		join = append(join, freeAddr(t))
	}
	for i := range n {
		cfg := Config{
			Data: filepath.Join(dir, fmt.Sprint("n", i)), ID: fmt.Sprint("n", i), HTTP: "127.0.0.1:0", Raft: join[i],
			Socket: filepath.Join(dir, fmt.Sprint("s", i)), VerifyFull: true, Archive: "none",
		}
		if n > 1 {
			cfg.Join, cfg.BootstrapExpect = join, n
		}
		if change != nil {
			change(i, &cfg)
		}
		c.cfgs = append(c.cfgs, cfg)
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
		os.RemoveAll(dir)
	})
	for i := range n {
		c.ready(i)
	}
	return c
}

// ownArchives gives each node an archive of its own, as is the default outside of these tests.
func ownArchives(_ int, cfg *Config) {
	cfg.Archive, cfg.ArchiveInterval = "", archiveInterval
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := localcluster.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func (c *cluster) start(i int) {
	c.t.Helper()
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	n, err := Start(c.cfgs[i], slog.New(slog.NewTextHandler(testWriter{c.t}, &slog.HandlerOptions{Level: level})))
	if err != nil {
		c.t.Fatalf("start node %d: %v", i, err)
	}
	c.nodes[i] = n
}

// testWriter logs through the test, and drops what comes after its end.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (n int, err error) {
	defer func() {
		if recover() != nil {
			n, err = len(b), nil
		}
	}()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

var _ io.Writer = testWriter{}

func (c *cluster) stop(i int) {
	n := c.nodes[i]
	if n == nil {
		return
	}
	c.nodes[i] = nil
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil {
		c.t.Errorf("stop node %d: %v", i, err)
	}
}

func (c *cluster) ready(i int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("node %d ready", i), func() error { return backend{c.nodes[i]}.Ready(c.t.Context()) })
}

// leader returns the node that leads.
func (c *cluster) leader() int {
	c.t.Helper()
	found := -1
	eventually(c.t, "a leader", func() error {
		for i, n := range c.nodes {
			if n != nil && n.svc.LocalStatus().State == api.StateLeader {
				found = i
				return nil
			}
		}
		return errors.New("none")
	})
	return found
}

func (c *cluster) follower() int { return (c.leader() + 1) % len(c.nodes) }

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// open opens a database on a node.
func (c *cluster) open(i int, name string, params ...string) *sql.DB {
	c.t.Helper()
	v := url.Values{"vfs": {"hasqlite"}, "node": {c.cfgs[i].Socket}, "_busy_timeout": {"10000"}, "lock_timeout": {"10000"}}
	for _, p := range params {
		k, val, _ := strings.Cut(p, "=")
		v.Set(k, val)
	}
	db, err := sql.Open("sqlite3", "file:"+name+"?"+v.Encode())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { db.Close() })
	return db
}

func exec(t *testing.T, db *sql.DB, q string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), q, args...); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

func query[T any](t *testing.T, db *sql.DB, q string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), q, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return v
}

// equal waits until all running nodes have the same bytes.
func (c *cluster) equal(name string) api.VerifyReport {
	c.t.Helper()
	var r api.VerifyReport
	eventually(c.t, "the nodes have the same bytes of "+name, func() (err error) {
		r, err = backend{c.nodes[c.leader()]}.Verify(c.t.Context(), name, true)
		if err == nil && !r.Equal {
			err = fmt.Errorf("%+v", r.Nodes)
		}
		return err
	})
	return r
}

// busyOrRefused says that a write certainly did not happen.
func busyOrRefused(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.Code == sqlite3.ErrBusy
}

func TestEveryNodeWritesAndAllHaveTheSameBytes(t *testing.T) {
	c := newCluster(t, 3, nil)
	db0 := c.open(0, "shop/plan-7")
	exec(t, db0, `CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, r INTEGER, at TEXT)`)
	exec(t, db0, `CREATE TRIGGER tr AFTER INSERT ON t BEGIN UPDATE t SET r = random(), at = CURRENT_TIMESTAMP WHERE id = new.id; END`)
	for i := range 3 {
		db := c.open(i, "shop/plan-7")
		for range 20 {
			exec(t, db, `INSERT INTO t(who) VALUES(?)`, i)
		}
	}
	r := c.equal("shop/plan-7")
	if len(r.Nodes) != 3 {
		t.Fatalf("compared %d nodes", len(r.Nodes))
	}
	for i := range 3 {
		if got := query[int](t, c.open(i, "shop/plan-7"), `SELECT count(*) FROM t WHERE r IS NOT NULL`); got != 60 {
			t.Errorf("node %d has %d rows, want 60", i, got)
		}
	}
}

func TestConcurrentWritersLoseNothing(t *testing.T) {
	c := newCluster(t, 3, nil)
	exec(t, c.open(0, "db"), `CREATE TABLE t(v INTEGER)`)
	c.equal("db") // a node that is behind does not know the table yet
	const each = 40
	var wg sync.WaitGroup
	for w := range 6 {
		db := c.open(w%3, "db")
		db.SetMaxOpenConns(1)
		wg.Go(func() {
			for range each {
				for {
					// The rows are identical: only their number tells a lost or a doubled one (RULES A1).
					_, err := db.ExecContext(t.Context(), `INSERT INTO t VALUES(1)`)
					if err == nil {
						break
					}
					if !busyOrRefused(err) {
						t.Errorf("insert: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	c.equal("db")
	if got := query[int](t, c.open(1, "db", "consistency=linearizable"), `SELECT count(*) FROM t`); got != 6*each {
		t.Fatalf("%d rows, want %d", got, 6*each)
	}
}

func TestLinearizableReadSeesWhatWasAcknowledgedElsewhere(t *testing.T) {
	c := newCluster(t, 3, nil)
	w, r := c.open(c.leader(), "db"), c.open(c.follower(), "db", "consistency=linearizable")
	exec(t, w, `CREATE TABLE t(v INTEGER)`)
	c.equal("db")
	for i := range 50 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
		if got := query[int](t, r, `SELECT max(v) FROM t`); got != i {
			t.Fatalf("read %d after %d was acknowledged", got, i)
		}
	}
}

func TestBookmarkWaits(t *testing.T) {
	c := newCluster(t, 3, nil)
	w, r := c.open(c.leader(), "db"), c.open(c.follower(), "db")
	exec(t, w, `CREATE TABLE t(v INTEGER)`)
	for i := range 20 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
		mark := query[string](t, w, `PRAGMA hasqlite_position`)
		query[string](t, r, `PRAGMA hasqlite_wait='`+mark+`'`)
		if got := query[int](t, r, `SELECT count(*) FROM t`); got != i+1 {
			t.Fatalf("%d rows at bookmark %s, want %d", got, mark, i+1)
		}
	}
	mark := query[string](t, w, `PRAGMA hasqlite_position`)
	other := strings.Replace(mark, mark[17:33], "8000000000000001", 1)
	if _, err := r.Exec(`PRAGMA hasqlite_wait='` + other + `'`); err == nil || !strings.Contains(err.Error(), "history") {
		t.Errorf("a bookmark of another history: %v", err)
	}
	future := "00000000000fffff" + mark[16:]
	r2 := c.open(c.follower(), "db", "lock_timeout=100")
	if _, err := r2.Exec(`PRAGMA hasqlite_wait='` + future + `'`); err == nil {
		t.Error("a bookmark that is not reached is no error")
	}
}

func TestFollowerBehindTheLogCatchesUpFromAPeer(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
	f := c.follower()
	w := c.open(c.leader(), "db")
	exec(t, w, `CREATE TABLE t(v TEXT)`)
	c.equal("db")
	c.stop(f)
	for i := range 150 {
		exec(t, w, `INSERT INTO t VALUES(?)`, strings.Repeat("x", i*10))
	}
	eventually(t, "the log is compacted", func() error {
		for i, n := range c.nodes {
			if i == f {
				continue
			}
			if first, _ := n.store.Bounds(); first < 100 {
				return fmt.Errorf("node %d has entries from %d", i, first)
			}
		}
		return nil
	})
	c.start(f)
	c.ready(f)
	c.equal("db")
	exec(t, c.open(f, "db"), `INSERT INTO t VALUES('from the one that came back')`)
	c.equal("db")
}

func TestRestartOfAllKeepsEverything(t *testing.T) {
	for _, kind := range []string{"wal", "boltdb"} {
		t.Run(kind, func(t *testing.T) {
			c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.RaftLog = kind })
			w := c.open(0, "db")
			exec(t, w, `CREATE TABLE t(v INTEGER)`)
			for i := range 10 {
				exec(t, w, `INSERT INTO t VALUES(?)`, i)
			}
			before := c.equal("db")
			w.Close()
			for i := range 3 {
				c.stop(i)
			}
			for i := range 3 {
				c.start(i)
			}
			for i := range 3 {
				c.ready(i)
			}
			after := c.equal("db")
			if before.Position != after.Position {
				t.Errorf("position %v became %v", before.Position, after.Position)
			}
			exec(t, c.open(2, "db"), `INSERT INTO t VALUES(99)`)
			c.equal("db")
		})
	}
}

func TestForeignWriterIsFencedAndHealed(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.follower()
	w := c.open(c.leader(), "db")
	exec(t, w, `CREATE TABLE t(v TEXT)`)
	exec(t, w, `INSERT INTO t VALUES('ours')`)
	c.equal("db")
	st, _ := c.nodes[f].svc.Lookup("db")
	attached := c.open(f, "db")
	attached.SetMaxOpenConns(1)
	query[int](t, attached, `SELECT count(*) FROM t`)

	_, path, _, err := c.nodes[f].svc.Resolve("db")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := sql.Open("sqlite3", "file:"+path+"?vfs=unix")
	if err != nil {
		t.Fatal(err)
	}
	exec(t, plain, `INSERT INTO t VALUES('foreign')`)
	plain.Close()

	eventually(t, "the foreign write is noticed", func() error {
		if n := c.nodes[f].svc.Metrics().Fences; n == 0 {
			return errors.New("no fence")
		}
		return nil
	})
	c.equal("db")
	for i := range 3 {
		if got := query[int](t, c.open(i, "db"), `SELECT count(*) FROM t WHERE v = 'foreign'`); got != 0 {
			t.Errorf("node %d shows the foreign row", i)
		}
	}
	if _, err := attached.Query(`SELECT count(*) FROM t`); err == nil {
		t.Error("a handle that was open during the foreign write reads on; it must be reopened")
	}
	exec(t, c.open(f, "db"), `INSERT INTO t VALUES('after')`)
	c.equal("db")
	if st.ID == (replicate.DatabaseID{}) {
		t.Fatal("no id")
	}
}

func TestDeleteIsRefusedWhileOpenAndForcedOnDemand(t *testing.T) {
	c := newCluster(t, 3, nil)
	b := backend{c.nodes[0]}
	db := c.open(1, "db")
	db.SetMaxOpenConns(1)
	exec(t, db, `CREATE TABLE t(v)`)
	if err := b.DeleteDatabase(t.Context(), "db", false); !errors.Is(err, api.ErrInUse) {
		t.Fatalf("delete of an open database: %v", err)
	}
	if err := b.DeleteDatabase(t.Context(), "db", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the open handle sees an empty database", func() error {
		var n int
		if err := db.QueryRow(`SELECT count(*) FROM sqlite_schema`).Scan(&n); err != nil || n != 0 {
			return fmt.Errorf("%d tables, %v", n, err)
		}
		return nil
	})
	if _, err := db.Exec(`CREATE TABLE u(v)`); err == nil || !strings.Contains(err.Error(), "readonly") {
		t.Errorf("write to a deleted database: %v", err)
	}
	var again *sql.DB
	eventually(t, "node 2 knows of the deletion and makes a new database", func() error {
		again = c.open(2, "db")
		_, err := again.Exec(`CREATE TABLE fresh(v)`)
		if err != nil {
			again.Close()
		}
		return err
	})
	if got := query[int](t, again, `SELECT count(*) FROM sqlite_schema`); got != 1 {
		t.Errorf("the new database has %d objects", got)
	}
	c.equal("db")
	db.Close()
	eventually(t, "the files of the deleted database are gone", func() error {
		dirs, err := os.ReadDir(filepath.Join(c.cfgs[1].Data, "databases"))
		if err == nil && len(dirs) != 1 {
			err = fmt.Errorf("%d directories", len(dirs))
		}
		return err
	})
}

func TestIdleDatabaseIsClosedAndOpensAgain(t *testing.T) {
	c := newCluster(t, 1, func(_ int, cfg *Config) { cfg.IdleClose = time.Millisecond })
	db := c.open(0, "db")
	exec(t, db, `CREATE TABLE t(v)`)
	db.Close()
	eventually(t, "the database is closed", func() error {
		d, err := backend{c.nodes[0]}.Database(t.Context(), "db")
		if err == nil && d.State != "idle" {
			err = fmt.Errorf("state %s", d.State)
		}
		return err
	})
	db = c.open(0, "db")
	exec(t, db, `INSERT INTO t VALUES(1)`)
	c.equal("db")
}

func TestNodeJoinsLater(t *testing.T) {
	c := newCluster(t, 1, nil)
	db := c.open(0, "db")
	exec(t, db, `CREATE TABLE t(v)`)
	dir, err := os.MkdirTemp("", "hs")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for i, voter := range []bool{true, false} {
		c.cfgs = append(c.cfgs, Config{
			Data: filepath.Join(dir, fmt.Sprint("j", i)), ID: fmt.Sprint("j", i), HTTP: "127.0.0.1:0", Raft: freeAddr(t),
			Socket: filepath.Join(dir, fmt.Sprint("js", i)), Join: []string{c.cfgs[0].Raft}, NonVoter: !voter,
		})
		c.nodes = append(c.nodes, nil)
		c.start(i + 1)
		c.ready(i + 1)
	}
	eventually(t, "one more voter and one non-voter", func() error {
		var voters int
		st, err := backend{c.nodes[0]}.Cluster(t.Context())
		for _, m := range st.Members {
			if m.Voter {
				voters++
			}
		}
		if err == nil && (len(st.Members) != 3 || voters != 2) {
			err = fmt.Errorf("%+v", st.Members)
		}
		return err
	})
	exec(t, c.open(1, "db"), `INSERT INTO t VALUES(1)`)
	exec(t, c.open(2, "db"), `INSERT INTO t VALUES(2)`)
	if r := c.equal("db"); len(r.Nodes) != 3 {
		t.Errorf("compared %d nodes", len(r.Nodes))
	}
	// The joined nodes go first: one voter of two is no quorum.
	if err := (backend{c.nodes[0]}).RemoveMember(t.Context(), "j0", false); err != nil {
		t.Error(err)
	}
}

func TestAnnouncedAddress(t *testing.T) {
	for _, tc := range []struct{ addr, want, err string }{
		{"db1.lan:7441", "db1.lan:7441", ""},
		{"127.0.0.1:7441", "127.0.0.1:7441", ""},
		{"127.0.0.1:0", "", ""},
		{"0.0.0.0:7441", "", "no address at which other nodes"},
		{"[::]:7441", "", "no address at which other nodes"},
		{":7441", "", "no address at which other nodes"},
		{"db1.lan", "", "missing port"},
	} {
		got, err := announced(tc.addr)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: got %q, %v; want %q, %q", tc.addr, got, err, tc.want, tc.err)
		}
	}
}
