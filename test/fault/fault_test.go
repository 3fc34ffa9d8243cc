package fault

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/superfly/ltx"

	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	rounds   = flag.Int("rounds", 20, "rounds of TestClusterKeepsItsWord, each with one nemesis")
	seed     = flag.Uint64("seed", 0, "seed of TestClusterKeepsItsWord; 0 takes one from the clock")
	only     = flag.String("nemesis", "", "run this nemesis in every round")
	roundsDB = flag.Int("rounds-per-database", 10, "rounds before a new database is begun")
)

// roundLimit bounds one round with all its waits.
const roundLimit = 3 * time.Minute

func TestMain(m *testing.M) {
	testcluster.Main(m, map[string]func([]string) error{"writer": runWriter, "reader": runReader, "crowd": runCrowd})
}

func TestClusterKeepsItsWord(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test ./test/fault -run %s -rounds %d -seed %d", t.Name(), *rounds, *seed)
	w := newWorld(t, *seed)
	order := schedule(w, *rounds)
	for i, n := range order {
		ctx := testcluster.Context(t, roundLimit)
		if i%*roundsDB == 0 {
			if err := w.newDatabase(ctx, fmt.Sprintf("fault/%d.db", i / *roundsDB)); err != nil {
				t.Fatal(err)
			}
		}
		w.logf("round %d of %d: %s", i+1, len(order), n.name)
		if err := w.round(ctx, n); err != nil {
			w.logStatus(t.Context())
			t.Fatalf("round %d, %s: %v", i+1, n.name, err)
		}
		last := i+1 == len(order) || (i+1)%*roundsDB == 0
		if err := w.check(ctx, last); err != nil {
			w.logStatus(t.Context())
			t.Fatalf("after round %d, %s: %v", i+1, n.name, err)
		}
		if t.Failed() {
			t.Fatalf("seed %d, round %d: %s", *seed, i+1, n.name)
		}
		if last {
			if err := w.retire(ctx); err != nil {
				t.Fatal(err)
			}
			w.recoverCopies(ctx)
			continue
		}
		if err := w.resume(); err != nil {
			t.Fatal(err)
		}
	}
}

// schedule draws the nemeses: every one comes before one comes again.
func schedule(w *world, count int) []nemesis {
	var out []nemesis
	for len(out) < count {
		for _, i := range w.rng.Perm(len(nemeses)) {
			if *only == "" || nemeses[i].name == *only {
				out = append(out, nemeses[i])
			}
		}
		if len(out) == 0 {
			w.t.Fatalf("no nemesis %q", *only)
		}
	}
	return out[:count]
}

// round lets the writers work, hurts the cluster, heals it, and stops the writers.
func (w *world) round(ctx context.Context, n nemesis) error {
	w.wait(ctx, 300*time.Millisecond, 900*time.Millisecond)
	if err := n.run(ctx, w); err != nil {
		return err
	}
	w.wait(ctx, 100*time.Millisecond, 500*time.Millisecond)
	if err := w.heal(ctx); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	return w.pause(ctx)
}

// check judges what is there while the writers are stopped. Deep reads every page on every node.
func (w *world) check(ctx context.Context, deep bool) error {
	pos, err := w.cluster.WaitConverged(ctx, w.database)
	if err != nil {
		return err
	}
	txns, err := w.histories()
	if err != nil {
		return err
	}
	for _, c := range w.complaints() {
		w.t.Error(c)
	}
	var first Final
	for i, s := range w.slots {
		final, err := w.readNode(ctx, s, deep)
		if err != nil {
			return fmt.Errorf("read on %s: %w", s.node.ID, err)
		}
		if i == 0 {
			first = final
			for _, v := range judge(txns, final) {
				w.t.Error(v)
			}
		} else if !reflect.DeepEqual(first, final) {
			w.t.Errorf("%s shows other rows than %s at the same position %v", s.node.ID, w.slots[0].node.ID, pos)
		}
		if deep {
			if _, err := s.node.Verify(ctx, w.database, true); err != nil {
				w.t.Error(err)
			}
		}
	}
	counts := make(map[Fate]int)
	for _, x := range txns {
		counts[x.Fate]++
	}
	w.logf("position %v, %d rows, transactions %v", pos, len(first.Rows), counts)
	return nil
}

func (w *world) readNode(ctx context.Context, s *slot, integrity bool) (Final, error) {
	db := open(w.dsn(s))
	defer db.Close()
	if integrity {
		var answer string
		if err := db.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&answer); err != nil {
			return Final{}, fmt.Errorf("integrity_check: %w", err)
		}
		if answer != "ok" {
			w.t.Errorf("integrity_check on %s: %s", s.node.ID, answer)
		}
	}
	return readFinal(ctx, db)
}

// recoverCopies copies the files of each node without -shm while the node stands still, lets plain SQLite recover them,
// and compares the recovered bytes with the position that the node reports.
func (w *world) recoverCopies(ctx context.Context) {
	pos, err := w.cluster.WaitConverged(ctx, w.database)
	if err != nil {
		w.t.Error(err)
		return
	}
	for _, s := range w.slots {
		from := testcluster.DatabaseFile(w.t, s.node, w.database)
		to := filepath.Join(w.t.TempDir(), "copy.db")
		if err := s.node.Pause(); err != nil {
			w.t.Error(err)
			return
		}
		testcluster.CopyFile(w.t, from, to)
		if _, err := os.Stat(from + "-wal"); err == nil {
			testcluster.CopyFile(w.t, from+"-wal", to+"-wal")
		}
		if err := s.node.Resume(); err != nil {
			w.t.Error(err)
			return
		}
		sum, err := recoverFile(ctx, to)
		if err != nil {
			w.t.Errorf("recover copy of %s: %v", s.node.ID, err)
			continue
		}
		if sum != pos.Checksum {
			w.t.Errorf("the recovered copy of %s has checksum %s, its node reports %v", s.node.ID, sum, pos)
		}
	}
}

// recoverFile opens a copy with plain SQLite, brings everything into the database file, and gives its rolling checksum.
func recoverFile(ctx context.Context, path string) (string, error) {
	db := open("file:" + path)
	defer db.Close()
	var answer string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&answer); err != nil || answer != "ok" {
		return "", fmt.Errorf("integrity_check: %s %w", answer, err)
	}
	var pageSize, busy, frames, done int
	if err := db.QueryRowContext(ctx, "PRAGMA page_size").Scan(&pageSize); err != nil {
		return "", fmt.Errorf("page_size: %w", err)
	}
	if err := db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &done); err != nil || busy != 0 {
		return "", fmt.Errorf("checkpoint: busy %d: %w", busy, err)
	}
	if err := db.Close(); err != nil {
		return "", err
	}
	file, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	lock := ltx.LockPgno(uint32(pageSize))
	sum := ltx.ChecksumFlag
	pgno := uint32(0)
	for page := range slices.Chunk(file, pageSize) {
		if pgno++; pgno != lock {
			sum = ltx.ChecksumFlag | (sum ^ ltx.ChecksumPage(pgno, page))
		}
	}
	return fmt.Sprintf("%016x", uint64(sum)), nil
}
