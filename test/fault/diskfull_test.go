package fault

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var fills = flag.Int("fills", 1, "rounds of TestDiskFull, each with a full disk on a follower, on the leader, and on all; with more than one nodes are killed meanwhile, and disks filled by growth")

// full is a world whose disks are small.
type full struct {
	*world
	disks []*testcluster.Disk
}

// TestDiskFull fills the disk of a follower, of the leader and of all nodes under load. Who has room goes on; who has
// none says so, takes no writes and does not lead; nothing acknowledged is lost; and all goes on by itself when there is
// room again.
func TestDiskFull(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test ./test/fault -run %s -fills %d -disk %s -seed %d", t.Name(), *fills, *diskKind, *seed)
	dir, err := os.MkdirTemp("", "hasqlite-")
	if err != nil {
		t.Fatal(err)
	}
	size := int64(256 << 20)
	if *diskKind == "xfs" {
		size = 320 << 20 // the smallest it makes
	}
	mounted, err := disks(t, dir, size)
	if err != nil {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		t.Logf("NO DISK IS FILLED: this machine mounts no disks for tests (%v). TestFullDisk of package node fills one that is only told so", err)
		return
	}
	t.Setenv(envFull, "1")
	f := &full{disks: mounted}
	f.world = newWorldWith(t, *seed, localcluster.Options{
		Dir: dir, Args: []string{"--write-lease", lease.String(), "--log-limit", "256MiB"},
	})
	for i := range *fills {
		ctx := testcluster.Context(t, 10*time.Minute)
		if err := f.newDatabase(ctx, fmt.Sprintf("full/%d.db", i)); err != nil {
			t.Fatal(err)
		}
		rounds := []struct {
			name string
			run  func(context.Context) error
		}{{"follower", f.fillFollower}, {"leader", f.fillLeader}, {"all", f.fillAll}, {"application", f.fillUnderTransaction}}
		if i > 0 {
			rounds = append(rounds, struct {
				name string
				run  func(context.Context) error
			}{"growth", f.grow})
		}
		for j, r := range rounds {
			f.logf("full disk: %s", r.name)
			err := r.run(ctx)
			if err == nil {
				err = f.pause(ctx)
			}
			if err == nil {
				err = f.check(ctx, true)
			}
			if err == nil && j < len(rounds)-1 {
				err = f.resume()
			}
			if err != nil || t.Failed() {
				f.logStatus(t.Context())
				t.Fatalf("seed %d, round %d, full disk of %s: %v", *seed, i+1, r.name, err)
			}
		}
		if err := f.retire(ctx); err != nil {
			t.Fatal(err)
		}
		// Its pages make room for the next one. Its history would stay on these small disks until there is no room for rows.
		if err := f.slots[0].node.Call(ctx, http.MethodDelete, "/v1/databases/"+f.database+"?force=1", nil, nil); err != nil {
			t.Fatal(err)
		}
		for _, s := range f.slots {
			// The node may just write the last of it.
			if err := localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
				err := os.RemoveAll(filepath.Join(s.node.Data, "archive", f.database))
				return err == nil, err
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (f *full) disk(s *slot) *testcluster.Disk {
	for i := range f.slots {
		if f.slots[i] == s {
			return f.disks[i]
		}
	}
	return nil
}

// settled is for how long a disk has to stay full: a node that finds it so compacts its log, and may have room again.
const settled = 500 * time.Millisecond

// fill fills the disks of slots until the nodes say so, then what their reserves gave back.
func (f *full) fill(ctx context.Context, slots ...*slot) error {
	for _, s := range slots {
		if _, err := f.disk(s).Fill(8 << 20); err != nil {
			return err
		}
	}
	if err := f.waitFull(ctx, true, slots...); err != nil {
		return err
	}
	for _, s := range slots {
		if _, err := f.disk(s).Fill(0); err != nil {
			return err
		}
	}
	return nil
}

// fillAgain also fills what the node's log gives back, until it gives nothing back. With no block left a node cannot take a
// leader's snapshot either.
func (f *full) fillAgain(ctx context.Context, s *slot) error {
	since := time.Now()
	return localcluster.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if _, err := f.disk(s).Fill(0); err != nil {
			return false, err
		}
		st, err := s.node.Status(ctx)
		if err != nil {
			return false, err
		}
		if !st.Disk.Full {
			since = time.Now()
		}
		return time.Since(since) >= settled, fmt.Errorf("the disk of %s: %+v", s.node.ID, st.Disk)
	})
}

func (f *full) empty(ctx context.Context, slots ...*slot) error {
	for _, s := range slots {
		if err := os.Remove(filepath.Join(f.disk(s).Dir, "filler")); err != nil {
			return err
		}
	}
	if err := f.waitFull(ctx, false, slots...); err != nil {
		return err
	}
	return f.progress(ctx, f.slots...)
}

func (f *full) waitFull(ctx context.Context, want bool, slots ...*slot) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, s := range slots {
		err := localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
			st, err := s.node.Status(ctx)
			if err != nil {
				return false, err
			}
			return st.Disk.Full == want, fmt.Errorf("disk of %s: %+v", s.node.ID, st.Disk)
		})
		if err != nil {
			return fmt.Errorf("wait until the disk of %s is full (%v): %w", s.node.ID, want, err)
		}
	}
	return nil
}

// refused looks that a write through a slot's node gets BUSY, and that a read goes on.
func (f *full) refused(ctx context.Context, s *slot) error {
	db := open(s.node.DSN(f.database, "_busy_timeout=10", "lock_timeout=200"))
	defer db.Close()
	var n int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM same`).Scan(&n); err != nil {
		return fmt.Errorf("read on a full disk of %s: %w", s.node.ID, err)
	}
	_, err := db.ExecContext(ctx, `UPDATE counter SET n = n`)
	var e sqlite3.Error
	if !errors.As(err, &e) || e.Code != sqlite3.ErrBusy {
		return fmt.Errorf("write on a full disk of %s: %w; BUSY was expected", s.node.ID, err)
	}
	return nil
}

func (f *full) fillFollower(ctx context.Context) error {
	s, err := f.follower(ctx)
	if err != nil {
		return err
	}
	if err := f.fill(ctx, s); err != nil {
		return err
	}
	// The others' writers outgrow what its log still has room for.
	for range 3 {
		if err := f.progress(ctx, f.others(s)...); err != nil {
			return err
		}
		f.wait(ctx, 300*time.Millisecond, 800*time.Millisecond)
	}
	if err := f.refused(ctx, s); err != nil {
		return err
	}
	if *fills > 1 && f.rng.IntN(2) == 0 { // it has to start on a full disk
		if err := s.node.Kill(); err != nil {
			return err
		}
		if err := s.node.Start(); err != nil {
			return err
		}
		if err := s.node.WaitReady(ctx); err != nil {
			return fmt.Errorf("start on a full disk: %w", err)
		}
	}
	return f.empty(ctx, s)
}

func (f *full) fillLeader(ctx context.Context) error {
	s, err := f.leader(ctx)
	if err != nil {
		return err
	}
	if err := f.fill(ctx, s); err != nil {
		return err
	}
	begin := time.Now()
	if err := f.progress(ctx, f.others(s)...); err != nil {
		return err
	}
	f.logf("writers on the others went on after %v", time.Since(begin).Round(time.Millisecond))
	l, err := f.leader(ctx)
	if err != nil {
		return err
	}
	if l == s {
		return fmt.Errorf("%s leads with a full disk, and others have room", s.node.ID)
	}
	if *fills == 1 {
		return f.empty(ctx, s)
	}
	// Nor does it come back to lead when the new leader dies.
	if err := f.fillAgain(ctx, s); err != nil {
		return err
	}
	if err := l.node.Kill(); err != nil {
		return err
	}
	f.wait(ctx, 2*time.Second, 3*time.Second)
	for _, n := range f.others(l) {
		if st, err := n.node.Status(ctx); err == nil && st.State == "leader" && n == s {
			return fmt.Errorf("%s took the lead with a full disk", s.node.ID)
		}
	}
	if err := l.node.Start(); err != nil {
		return err
	}
	if err := l.node.WaitReady(ctx); err != nil {
		return err
	}
	if err := f.progress(ctx, f.others(s)...); err != nil {
		return err
	}
	return f.empty(ctx, s)
}

func (f *full) fillAll(ctx context.Context) error {
	if err := f.fill(ctx, f.slots...); err != nil {
		return err
	}
	for _, s := range f.slots {
		if err := f.refused(ctx, s); err != nil {
			return err
		}
	}
	s := f.anySlot()
	if err := s.node.Kill(); err != nil {
		return err
	}
	if err := s.node.Start(); err != nil {
		return err
	}
	// It need not be ready, as nobody may lead.
	if err := localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		_, err := s.node.Status(ctx)
		return err == nil || !s.node.Running(), err
	}); err != nil || !s.node.Running() {
		return fmt.Errorf("start on a full disk: %w; end of the log of %s:\n%s", errors.Join(err, s.node.Process().Err()), s.node.ID, s.node.LogTail(15))
	}
	return f.empty(ctx, f.slots...)
}

// fillUnderTransaction fills the disk under an application between its begin and its commit: it gets SQLITE_FULL, and
// nothing was proposed.
func (f *full) fillUnderTransaction(ctx context.Context) error {
	s := f.anySlot()
	db := open(f.dsn(s))
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// All of it is written at COMMIT, and it is more than the log may have room for from before.
	for _, q := range []string{`PRAGMA cache_size = -100000`, `BEGIN IMMEDIATE`, `INSERT OR REPLACE INTO blobs VALUES(99, randomblob(30000000))`} {
		if _, err := conn.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	if err := f.fill(ctx, s); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, `COMMIT`)
	var e sqlite3.Error
	if !errors.As(err, &e) || e.Code != sqlite3.ErrFull {
		return fmt.Errorf("commit on a full disk: %w; SQLITE_FULL was expected", err)
	}
	if err := conn.QueryRowContext(ctx, `SELECT 1 FROM blobs WHERE id = 99`).Scan(new(int)); !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("a transaction that met a full disk is there (%v)", err)
	}
	if err := conn.Close(); err != nil {
		return err
	}
	return f.empty(ctx, s)
}

// grow fills all disks with rows, until writes are refused, and then gives back what was set aside.
func (f *full) grow(ctx context.Context) error {
	for _, s := range f.slots {
		aside, err := os.Create(filepath.Join(f.disk(s).Dir, "filler"))
		if err != nil {
			return err
		}
		if err := errors.Join(testcluster.Allocate(aside, 80<<20), aside.Close()); err != nil {
			return err
		}
	}
	db := open(f.dsn(f.anySlot()))
	defer db.Close()
	rows, bytes := 0, 0
	for {
		n := 100_000 + f.rng.IntN(400_000)
		_, err := db.ExecContext(ctx, `INSERT INTO blobs(id, data) VALUES(?, randomblob(?))`, 1000+rows, n)
		if err == nil {
			rows, bytes = rows+1, bytes+n
			if bytes > 400<<20 {
				return errors.New("the disks hold more than they can")
			}
			continue
		}
		if !expected(err) {
			return err
		}
		statuses := f.cluster.Statuses(ctx)
		count := 0
		for _, st := range statuses {
			if st != nil && st.Disk.Full {
				count++
			}
		}
		if count >= 2 {
			f.logf("%d rows of %d MiB filled %d disks: %s", rows, bytes>>20, count, reason(err))
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("fill the disks by growth: %w after %d MiB", err, bytes>>20)
		}
	}
	var got int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM blobs WHERE id >= 1000`).Scan(&got); err != nil {
		return err
	}
	if rows == 0 || got < rows || got > rows+1 {
		return fmt.Errorf("%d rows were acknowledged before the disks were full, %d are there", rows, got)
	}
	return f.empty(ctx, f.slots...)
}
