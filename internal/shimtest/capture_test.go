package shimtest

import (
	"database/sql"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/link"
)

var (
	steps = flag.Int("steps", 1500, "steps of the capture fuzz, over all its cases")
	seed  = flag.Uint64("seed", 1, "seed of the random tests")
)

// TestCapture runs random operations on two connections and compares, all the
// while, the files with the mirror that the commits alone make.
func TestCapture(t *testing.T) {
	type variant struct {
		pageSize, autoVacuum, refuse int
		memory                       int // capture_memory: with little of it pages are read back from the WAL
	}
	var cases []variant
	for _, size := range []int{512, 1024, 4096, 16384, 65536} {
		for vacuum := range 3 {
			for _, refuse := range []int{0, 25} {
				memory := []int{0, 3 * size, 1 << 20}[len(cases)%3]
				cases = append(cases, variant{size, vacuum, refuse, memory})
			}
		}
	}
	perCase := max(*steps/len(cases), 1)
	total := fuzzStats{}
	for i, c := range cases {
		name := fmt.Sprintf("page size %d, auto_vacuum %d, %d%% refused, %d bytes kept", c.pageSize, c.autoVacuum, c.refuse, c.memory)
		t.Run(name, func(t *testing.T) {
			f := newFuzzer(t, *seed+uint64(i), c.pageSize, c.autoVacuum, c.refuse, c.memory)
			for range perCase {
				f.step()
			}
			f.check()
			f.checkRecovered()
			total.add(f)
		})
	}
	t.Logf("seed %d: %+v", *seed, total)
}

type fuzzStats struct {
	Steps, Commits, Refused, Pages, Pieces, Checks, Recoveries, Statements, Failed int
}

func (s *fuzzStats) add(f *fuzzer) {
	st := f.db.Snapshot()
	s.Steps += f.stats.Steps
	s.Commits += st.Commits
	s.Refused += st.Refused
	s.Pages += st.Pages
	s.Pieces += st.Pieces
	s.Checks += f.stats.Checks
	s.Recoveries += f.stats.Recoveries
	s.Statements += f.stats.Statements
	s.Failed += f.stats.Failed
}

// fuzzer is one run of random operations.
type fuzzer struct {
	t       *testing.T
	r       *rand.Rand
	node    *Node
	db      *Database
	uri     string
	conns   [2]*sql.DB
	refuse  atomic.Int32 // per cent
	nextRow int
	stats   fuzzStats
	// verdicts is the node's source of chance, apart from r: it is used on
	// another goroutine.
	verdicts *rand.Rand
}

func newFuzzer(t *testing.T, seed uint64, pageSize, autoVacuum, refuse, memory int) *fuzzer {
	f := &fuzzer{t: t, r: rand.New(rand.NewPCG(seed, 0)), node: startNode(t), verdicts: rand.New(rand.NewPCG(seed, 1))}
	f.db = f.node.Database("fuzz.db")
	f.uri = dsn(f.node, "fuzz.db", fmt.Sprintf("page_size=%d", pageSize), fmt.Sprintf("auto_vacuum=%d", autoVacuum),
		fmt.Sprintf("capture_memory=%d", memory))
	f.reopen(0)
	f.reopen(1)
	f.node.Set(func(h *Hooks) {
		h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) {
			if f.verdicts.IntN(100) < int(f.refuse.Load()) {
				return link.Refused, "injected"
			}
			return link.Accepted, ""
		}
	})
	f.exec(0, "CREATE TABLE t(id INTEGER PRIMARY KEY, k INT, b BLOB)")
	f.exec(0, "CREATE INDEX tk ON t(k)")
	f.exec(0, "CREATE TABLE log(n)")
	f.refuse.Store(int32(refuse))
	if size, vacuum := f.db.Created(); int(size) != pageSize || int(vacuum) != autoVacuum {
		t.Fatalf("created with page size %d, auto_vacuum %d", size, vacuum)
	}
	return f
}

func (f *fuzzer) reopen(i int) {
	if f.conns[i] != nil {
		if err := f.conns[i].Close(); err != nil {
			f.t.Fatalf("close: %v", err)
		}
	}
	f.conns[i] = open(f.t, f.uri)
	pragmas := []string{"PRAGMA busy_timeout=0", "PRAGMA synchronous=" + []string{"OFF", "NORMAL", "FULL"}[f.r.IntN(3)]}
	if f.r.IntN(2) == 0 {
		pragmas = append(pragmas, "PRAGMA cache_size=5")
	}
	mustExec(f.t, f.conns[i], pragmas...)
}

// exec runs one statement; a failure must be one that a refused or concurrent
// transaction explains.
func (f *fuzzer) exec(i int, q string, args ...any) bool {
	f.stats.Statements++
	_, err := f.conns[i].Exec(q, args...)
	if err == nil {
		return true
	}
	f.stats.Failed++
	switch code := codeOf(err); {
	case code == 517, code&0xff == 5, code&0xff == 6:
	case strings.Contains(err.Error(), "no such table"), strings.Contains(err.Error(), "already exists"),
		strings.Contains(err.Error(), "no transaction is active"), strings.Contains(err.Error(), "within a transaction"),
		strings.Contains(err.Error(), "no such savepoint"), strings.Contains(err.Error(), "VACUUM"),
		strings.Contains(err.Error(), "duplicate column"), strings.Contains(err.Error(), "in progress"):
	default:
		f.t.Fatalf("seed %d step %d: %s: %v (code %d)", *seed, f.stats.Steps, q, err, codeOf(err))
	}
	return false
}

// digest is what a connection sees.
func (f *fuzzer) digest(i int) string {
	f.t.Helper()
	return queryText(f.t, f.conns[i], "SELECT (SELECT count(*)||':'||ifnull(sum(id),0)||':'||ifnull(sum(k),0)||':'||ifnull(sum(length(b)),0) FROM t)"+
		"||':'||(SELECT count(*)||':'||ifnull(sum(n),0) FROM log)")
}

func (f *fuzzer) step() {
	f.stats.Steps++
	i := f.r.IntN(2)
	other := 1 - i
	before := f.digest(other)
	commits := f.db.Snapshot().Commits
	switch f.r.IntN(16) {
	case 0, 1, 2, 3:
		f.change(i)
	case 4, 5, 6:
		f.transaction(i)
	case 7:
		f.exec(i, "UPDATE t SET b=randomblob(?) WHERE k%7=?", f.r.IntN(3000), f.r.IntN(7))
	case 8:
		f.exec(i, "DELETE FROM t WHERE id%2=?", f.r.IntN(2))
	case 9:
		f.exec(i, "VACUUM")
	case 10:
		f.exec(i, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", f.r.IntN(50)))
	case 11:
		f.ddl(i)
	case 12, 13:
		mode := []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"}[f.r.IntN(4)]
		if err := f.db.Checkpoint(mode); err != nil {
			f.t.Fatal(err)
		}
	case 14:
		f.reopen(i)
	case 15:
		f.appCheckpoint(i)
	}
	after := f.digest(other)
	if f.db.Snapshot().Commits == commits && after != before {
		f.t.Fatalf("seed %d step %d: no commit was accepted, yet the other connection sees %s after %s", *seed, f.stats.Steps, after, before)
	}
	if got := f.digest(i); got != after {
		f.t.Fatalf("seed %d step %d: the connections see %s and %s", *seed, f.stats.Steps, got, after)
	}
	if f.stats.Steps%10 == 0 {
		f.check()
	}
	if f.stats.Steps%15 == 0 {
		f.checkRecovered()
	}
}

// change is one small autocommit statement.
func (f *fuzzer) change(i int) {
	f.nextRow++
	f.exec(i, "INSERT INTO t(k,b) VALUES(?,randomblob(?))", f.nextRow, f.r.IntN(4000))
}

// transaction is many changes with savepoints, big enough to spill.
func (f *fuzzer) transaction(i int) {
	begin := []string{"BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"}[f.r.IntN(3)]
	if !f.exec(i, begin) {
		return
	}
	depth := 0
	for range 1 + f.r.IntN(12) {
		ok := true
		switch f.r.IntN(9) {
		case 0, 1, 2:
			ok = f.exec(i, "INSERT INTO t(k,b) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<?) SELECT n,randomblob(?) FROM c",
				1+f.r.IntN(40), f.r.IntN(2500))
		case 3:
			ok = f.exec(i, "UPDATE t SET k=k+1 WHERE id%3=?", f.r.IntN(3))
		case 4:
			ok = f.exec(i, "DELETE FROM t WHERE id%5=?", f.r.IntN(5))
		case 5:
			ok = f.exec(i, "INSERT INTO log VALUES(?)", f.r.IntN(1000))
		case 6:
			depth++
			ok = f.exec(i, fmt.Sprintf("SAVEPOINT s%d", depth))
		case 7:
			if depth > 0 {
				ok = f.exec(i, fmt.Sprintf("ROLLBACK TO s%d", 1+f.r.IntN(depth)))
			}
		case 8:
			if depth > 0 {
				ok = f.exec(i, fmt.Sprintf("RELEASE s%d", depth))
				depth--
			}
		}
		if !ok {
			break
		}
	}
	if f.r.IntN(5) == 0 || !f.exec(i, "COMMIT") {
		_, _ = f.conns[i].Exec("ROLLBACK")
	}
}

func (f *fuzzer) ddl(i int) {
	switch f.r.IntN(4) {
	case 0:
		f.exec(i, "CREATE TABLE extra AS SELECT * FROM t")
	case 1:
		f.exec(i, "DROP TABLE extra")
	case 2:
		f.exec(i, "CREATE INDEX extra_k ON extra(k)")
	case 3:
		f.exec(i, "DROP INDEX IF EXISTS tk")
		f.exec(i, "CREATE INDEX tk ON t(k,id)")
	}
}

// appCheckpoint is refused, and harmless.
func (f *fuzzer) appCheckpoint(i int) {
	mode := []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"}[f.r.IntN(4)]
	var busy, frames, done int
	if err := f.conns[i].QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &frames, &done); err != nil {
		f.t.Fatalf("checkpoint by an application: %v", err)
	}
	if busy != 1 {
		f.t.Fatalf("checkpoint by an application: busy=%d frames=%d done=%d", busy, frames, done)
	}
}

// check compares file and mirror.
func (f *fuzzer) check() {
	f.t.Helper()
	f.stats.Checks++
	checkMirror(f.t, f.db)
}

// checkRecovered copies file and WAL without the wal-index, recovers them with
// plain SQLite, and compares with the mirror.
func (f *fuzzer) checkRecovered() {
	f.t.Helper()
	f.stats.Recoveries++
	dir := shortDir(f.t)
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "db")
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(f.db.Path+suffix, path+suffix); err != nil {
			f.t.Fatal(err)
		}
	}
	plain, err := sql.Open("sqlite3", "file:"+path+"?vfs=unix")
	if err != nil {
		f.t.Fatal(err)
	}
	if got := queryText(f.t, plain, "PRAGMA integrity_check"); got != "ok" {
		f.t.Fatalf("integrity_check of the recovered copy: %s", got)
	}
	mustExec(f.t, plain, "PRAGMA wal_checkpoint(TRUNCATE)")
	if err := plain.Close(); err != nil {
		f.t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	want, err := f.db.Mirror()
	if err != nil {
		f.t.Fatal(err)
	}
	size, _ := f.db.Created()
	if diff := firstDifference(got, want, int(size)); diff != "" {
		f.t.Fatalf("seed %d step %d: the recovered copy and the mirror differ: %s", *seed, f.stats.Steps, diff)
	}
}
