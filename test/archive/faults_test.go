package archive

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/s3store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

var (
	storms = flag.Int("storms", 1, "rounds of TestStoreInTrouble, of all its troubles each")
	seed   = flag.Uint64("seed", 0, "seed of TestStoreInTrouble; 0 takes one from the clock")
)

// diskBytes are enough for the objects of many rounds.
const diskBytes = 256 << 20

// storm is a store in trouble while writers work and leaders die.
type storm struct {
	t       *testing.T
	rand    *rand.Rand
	gateway *storetest.Gateway
	disk    *testcluster.Disk // that the gateway's objects are on; nil where none can be mounted
	proxy   *storetest.Proxy
	cluster *localcluster.Cluster
}

// wait waits until something holds.
func (s *storm) wait(ctx context.Context, what string, f func() error) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("%s: %v", what, err)
		}
	}
}

// writes waits until the writers have made so many more transactions: the trouble has to last while there are some.
func (s *storm) writes(ctx context.Context, acked func() int, more int) {
	until := acked() + more
	s.wait(ctx, "the writers go on", func() error {
		if n := acked(); n < until {
			return fmt.Errorf("%d transactions of %d", n, until)
		}
		return nil
	})
}

// trouble is what happens to the store until its function has returned.
type trouble struct {
	name string
	run  func(during func())
}

func (s *storm) troubles(ctx context.Context) []trouble {
	signal := func(sig os.Signal) {
		if err := s.gateway.Process().Signal(sig); err != nil {
			s.t.Error(err)
		}
	}
	return []trouble{
		{"killed", func(during func()) {
			s.gateway.Stop()
			during()
			s.gateway.Start()
		}},
		{"paused", func(during func()) {
			signal(syscall.SIGSTOP)
			during()
			signal(syscall.SIGCONT)
		}},
		{"503", func(during func()) {
			s.proxy.Refuse(func(n int, _ *http.Request) int { return map[bool]int{true: http.StatusServiceUnavailable}[n%3 != 0] })
			during()
			s.proxy.Refuse(nil)
		}},
		{"slow", func(during func()) {
			s.proxy.Slow(300 * time.Millisecond)
			during()
			s.proxy.Slow(0)
		}},
		{"without room", func(during func()) {
			// What a store without room answers to every write; the rest still works.
			s.proxy.Refuse(func(_ int, r *http.Request) int {
				return map[bool]int{true: http.StatusInsufficientStorage}[r.Method == http.MethodPut]
			})
			during()
			s.proxy.Refuse(nil)
		}},
		{"on a full disk", func(during func()) { s.fill(ctx, during) }},
		{"cut off", func(during func()) {
			// The object is stored, and the answer lost.
			s.proxy.Lose(func(n int, r *http.Request) bool { return r.Method == http.MethodPut && n%2 == 0 })
			during()
			s.proxy.Lose(nil)
		}},
	}
}

// fill takes the room of the server's disk away, then gives it some blocks, which are enough for one object of an upload
// and not for the next, and takes those, too.
func (s *storm) fill(ctx context.Context, during func()) {
	if s.disk == nil {
		return
	}
	before, _ := s.proxy.Writes()
	tried := func(enough func(stored, failed int) bool) {
		first, second := s.proxy.Writes()
		s.wait(ctx, "an upload is tried on a full disk", func() error {
			if stored, failed := s.proxy.Writes(); !enough(stored-first, failed-second) {
				return fmt.Errorf("%d objects stored, %d not", stored-first, failed-second)
			}
			return nil
		})
	}
	filler, err := s.disk.Fill(0)
	if err != nil {
		s.t.Fatal(err)
	}
	during()
	tried(func(_, failed int) bool { return failed > 0 })
	i, err := os.Stat(filler)
	if err == nil {
		err = os.Truncate(filler, i.Size()-int64(1+s.rand.IntN(16))*4096)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	tried(func(stored, failed int) bool { return stored+failed > 0 })
	if _, err := s.disk.Fill(0); err != nil {
		s.t.Fatal(err)
	}
	stored, failed := s.proxy.Writes()
	s.t.Logf("%d objects were stored on a full disk, %d uploads have failed", stored-before, failed)
	if err := os.Remove(filler); err != nil {
		s.t.Fatal(err)
	}
}

// TestStoreInTrouble: the store fails in every way during a write load with dying leaders. Afterwards the archive is
// complete, without a hole and without a gap, and each state in it is the one that was decided.
func TestStoreInTrouble(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test ./test/archive -run %s -storms %d -seed %d", t.Name(), *storms, *seed)
	ctx := testcluster.Context(t, time.Duration(*storms)*3*time.Minute)
	s := &storm{t: t, rand: rand.New(rand.NewPCG(*seed, 0))}
	root := filepath.Join(t.TempDir(), "disk")
	var err error
	if s.disk, err = testcluster.NewDisk(t, root, "ext4", diskBytes); err != nil {
		t.Logf("NO DISK IS FILLED: this machine mounts no disks for tests (%v). A proxy answers that the store has no room", err)
		root = t.TempDir()
	}
	s.gateway = storetest.StartGatewayIn(t, root)
	if s.proxy, err = storetest.NewProxy(s.gateway.Endpoint); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.proxy.Close() })
	// A short log: what is not archived has to be kept beside it.
	s.cluster = archived(t, s.gateway.URLAt(s.proxy.Endpoint, "a"), "--snapshot-entries", "200", "--trailing-entries", "50", "--archive-levels", "1s,3s,9s")
	acked, stop := s.write(ctx)
	for range *storms {
		all := s.troubles(ctx)
		for _, i := range s.rand.Perm(len(all)) {
			t.Logf("store %s", all[i].name)
			all[i].run(func() {
				s.writes(ctx, acked, 30)
				if s.rand.IntN(2) == 0 {
					s.killLeader(ctx)
				}
				s.writes(ctx, acked, 30)
			})
			s.writes(ctx, acked, 10)
		}
	}
	stop()
	complete(ctx, t, s.cluster)
	s.judge(ctx, acked())
}

func (s *storm) killLeader(ctx context.Context) {
	leader, err := s.cluster.WaitLeader(ctx)
	if err == nil {
		err = leader.Kill()
	}
	if err == nil {
		err = leader.Start()
	}
	if err == nil {
		err = leader.WaitReady(ctx)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// write has a writer for each database, on each node one. A row is counted once its transaction was acknowledged.
func (s *storm) write(ctx context.Context) (acked func() int, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	count := 0
	var wg sync.WaitGroup
	for i, n := range s.cluster.Nodes() {
		testcluster.Exec(s.t, testcluster.Open(s.t, n, name(i)), `CREATE TABLE t(id INTEGER PRIMARY KEY, v)`)
		wg.Go(func() {
			var db *sql.DB
			defer func() {
				if db != nil {
					db.Close()
				}
			}()
			for ctx.Err() == nil {
				if db == nil {
					var err error
					if db, err = sql.Open("sqlite3", n.DSN(name(i))); err != nil {
						s.t.Error(err)
						return
					}
				}
				_, err := db.ExecContext(ctx, `INSERT INTO t(v) VALUES(randomblob(300))`)
				var e sqlite3.Error
				switch {
				case err == nil:
					mu.Lock()
					count++
					mu.Unlock()
				case ctx.Err() != nil:
				case errors.As(err, &e): // its node is down, or the outcome is not known
					db.Close()
					db = nil
				default:
					s.t.Errorf("insert: %v", err)
					return
				}
			}
		})
	}
	return func() int { mu.Lock(); defer mu.Unlock(); return count }, func() { cancel(); wg.Wait() }
}

// judge compares the archive with the databases.
func (s *storm) judge(ctx context.Context, acked int) {
	o, err := s3store.ParseURL(s.gateway.URL("a"))
	if err != nil {
		s.t.Fatal(err)
	}
	st, err := s3store.Open(ctx, o)
	if err != nil {
		s.t.Fatal(err)
	}
	a, err := archive.Open(ctx, st, archive.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	rows := 0
	for i, n := range s.cluster.Nodes() {
		views, err := a.Views(ctx, name(i), nil)
		if err = errors.Join(err, views.Damaged()); err != nil {
			s.t.Fatal(err)
		}
		v := views.List[0]
		if len(v.State().Gaps) != 0 {
			s.t.Errorf("%s has gaps %v", name(i), v.State().Gaps)
		}
		pos, err := s.cluster.WaitConverged(ctx, name(i))
		if err != nil {
			s.t.Fatal(err)
		}
		if got := fmt.Sprintf("%016x/%016x", v.Last().TXID, v.Last().Checksum); got != pos.String() {
			s.t.Errorf("%s is archived up to %s, decided is %s", name(i), got, pos)
		}
		next, states := uint64(1), 0
		if err := v.Commits(ctx, 0, func(p archive.Point) error {
			if p.TXID != next {
				return fmt.Errorf("commit %d is followed by %d", next-1, p.TXID)
			}
			next++
			if states++; states%7 != 0 && p.TXID != v.Last().TXID { // each is a restore of its own
				return nil
			}
			plan, err := v.Plan(ctx, p)
			if err != nil {
				return err
			}
			return v.Restore(ctx, plan, nowhere{}, nil)
		}); err != nil {
			s.t.Errorf("%s: %v", name(i), err)
		}
		report, err := v.Verify(ctx, nil)
		if err != nil || len(report.Problems) > 0 {
			s.t.Errorf("%s: verify: %+v, %v", name(i), report, err)
		}
		live, restored := testcluster.Query(s.t, testcluster.Open(s.t, n, name(i)), `SELECT count(*) FROM t`), testcluster.Query(s.t, restore(s.t, s.gateway.URL("a"), name(i)), `SELECT count(*) FROM t`)
		if live != restored {
			s.t.Errorf("%s has %s rows, restored %s", name(i), live, restored)
		}
		k, err := strconv.Atoi(restored)
		if err != nil {
			s.t.Fatal(err)
		}
		rows += k
	}
	if rows < acked {
		s.t.Errorf("%d rows were acknowledged, %d are restored", acked, rows)
	}
	s.t.Logf("%d transactions acknowledged, %d restored", acked, rows)
}

// nowhere takes a restored database and keeps nothing.
type nowhere struct{}

// Truncate implements archive.Target.
func (nowhere) Truncate(int64) error { return nil }

// WriteAt implements io.WriterAt.
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
