package large

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	sizeMiB = flag.Int("size", 16, "MiB that the large transactions insert")
	anonMiB = flag.Int("anon", 512, "MiB of anonymous memory that a node may have")
	rounds  = flag.Int("rounds", 1, "rounds of the tests that kill")
)

func TestMain(m *testing.M) {
	testcluster.Main(m, map[string]func([]string) error{"bulk": runBulk})
}

// rowBytes makes about 1.03 pages for each four rows.
const rowBytes = 1000

const (
	createBig = `CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB)`
	insertBig = `INSERT INTO big(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<?) SELECT randomblob(1000) FROM c`
)

func rows() int { return *sizeMiB << 20 / rowBytes }

// runBulk is an application that inserts in one transaction.
func runBulk(args []string) error {
	db, err := sql.Open("sqlite3", args[0])
	if err != nil {
		return err
	}
	fmt.Println("begin")
	n, err := strconv.Atoi(args[1])
	if err == nil {
		_, err = db.Exec(insertBig, n)
	}
	fmt.Println("end", err)
	return err
}

func start(t *testing.T, args ...string) *localcluster.Cluster {
	limit := max(64, *sizeMiB*3)
	return testcluster.Start(t, localcluster.Options{Args: append([]string{"--log-limit", fmt.Sprint(limit, "MiB")}, args...)})
}

func code(err error) int {
	var e sqlite3.Error
	if errors.As(err, &e) {
		return int(e.ExtendedCode)
	}
	return -1
}

// anon returns the anonymous resident memory of a process in bytes.
func anon(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(strings.NewReader(string(b)))
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// sampler watches memory while something runs.
type sampler struct {
	stop func()
	max  map[string]int64
	wg   sync.WaitGroup
}

func sample(nodes []*localcluster.Node) *sampler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sampler{stop: cancel, max: map[string]int64{}}
	s.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, n := range nodes {
				s.max[n.ID] = max(s.max[n.ID], anon(n.Process().PID()))
			}
			s.max["application"] = max(s.max["application"], anon(os.Getpid()))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return s
}

func (s *sampler) done() map[string]int64 {
	s.stop()
	s.wg.Wait()
	return s.max
}

// others commits one row after the other to another database until stopped, and returns the latencies.
func others(t *testing.T, n *localcluster.Node) (stop func() []time.Duration) {
	db := testcluster.Open(t, n, "small.db", "_busy_timeout=20000")
	testcluster.Exec(t, db, `CREATE TABLE IF NOT EXISTS t(a)`)
	ctx, cancel := context.WithCancel(t.Context())
	var took []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			begin := time.Now()
			if _, err := db.Exec(`INSERT INTO t VALUES(1)`); err != nil {
				t.Errorf("commit to another database meanwhile: %v", err)
				return
			}
			took = append(took, time.Since(begin))
		}
	})
	return func() []time.Duration {
		cancel()
		wg.Wait()
		return took
	}
}

func worst(took []time.Duration) (mean, longest time.Duration) {
	for _, d := range took {
		mean += d
		longest = max(longest, d)
	}
	return mean / time.Duration(max(1, len(took))), longest
}

func term(t *testing.T, n *localcluster.Node) uint64 {
	t.Helper()
	s, err := n.Status(testcluster.Context(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return s.Cluster.Term
}

// A transaction of -size MiB, and the VACUUM of its database, commit on three nodes in bounded memory and
// without an election, and other databases' commits pass between their parts.
func TestLargeTransaction(t *testing.T) {
	c := start(t)
	nodes := testcluster.LeaderFirst(t, c)
	before := term(t, nodes[0])
	for _, from := range []*localcluster.Node{nodes[0], nodes[1]} {
		name := fmt.Sprintf("big-%s.db", from.ID)
		db := testcluster.Open(t, from, name, "_busy_timeout=20000", "commit_timeout=30000")
		testcluster.Exec(t, db, createBig)
		for _, step := range []string{"insert", "vacuum"} {
			meanwhile := others(t, nodes[2])
			mem := sample(nodes)
			begin := time.Now()
			if step == "insert" {
				testcluster.Exec(t, db, insertBig, rows())
			} else {
				testcluster.Exec(t, db, `VACUUM`)
			}
			took := time.Since(begin)
			mean, longest := worst(meanwhile())
			pos := testcluster.Converged(t, c, name)
			all := time.Since(begin)
			used := mem.done()
			t.Logf("%s of %d MiB on %s: %.2f s, %.0f MB/s; in all files after %.2f s; other commits %v on average, %v at most; anonymous memory %s; position %s",
				step, *sizeMiB, from.ID, took.Seconds(), float64(*sizeMiB<<20)/1e6/took.Seconds(), all.Seconds(), mean.Round(10*time.Microsecond),
				longest.Round(time.Millisecond), mib(used), pos)
			for who, n := range used {
				if n > int64(*anonMiB)<<20 {
					t.Errorf("%s: %s has %d MiB of anonymous memory, at most %d are allowed", step, who, n>>20, *anonMiB)
				}
			}
		}
		for _, n := range nodes {
			got := testcluster.Query(t, testcluster.Open(t, n, name), `SELECT count(*)||' '||sum(length(b)) FROM big`)
			if want := fmt.Sprintf("%d %d", rows(), rows()*rowBytes); got != want {
				t.Errorf("node %s: %s, want %s", n.ID, got, want)
			}
		}
	}
	if after := term(t, nodes[0]); after != before {
		t.Errorf("term %d, it was %d: there was an election", after, before)
	}
	noParts(t, c)
}

func mib(used map[string]int64) string {
	var out []string
	for _, who := range []string{"n1", "n2", "n3", "application"} {
		out = append(out, fmt.Sprintf("%s %d MiB", who, used[who]>>20))
	}
	return strings.Join(out, ", ")
}

// parts returns the bytes of the files of parts of a node.
func parts(n *localcluster.Node) (bytes int64, files int) {
	entries, _ := os.ReadDir(filepath.Join(n.Data, "parts"))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			bytes += info.Size()
			files++
		}
	}
	return bytes, files
}

// noParts waits until no node keeps parts of a transaction.
func noParts(t *testing.T, c *localcluster.Cluster) {
	t.Helper()
	begin := time.Now()
	err := localcluster.Poll(testcluster.Context(t, 20*time.Second), 10*time.Millisecond, func() (bool, error) {
		for _, n := range c.Nodes() {
			if bytes, files := parts(n); files > 0 {
				return false, fmt.Errorf("node %s keeps %d bytes in %d files", n.ID, bytes, files)
			}
		}
		return true, nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("the last file of parts went %.2f s after", time.Since(begin).Seconds())
}
