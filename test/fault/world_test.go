package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// lease is short so that a round in which one runs out takes seconds.
const lease = 2 * time.Second

// livenessLimit bounds how long after the end of all faults every writer has to get a transaction through. It covers an
// election, a lease, and the longest wait of a begin.
const livenessLimit = 45 * time.Second

// world is one cluster with its writers and readers.
type world struct {
	t        *testing.T
	rng      *rand.Rand
	seed     uint64
	cluster  *localcluster.Cluster
	dir      string // journals
	database string
	slots    []*slot // one for each node
	started  int     // writers so far, for their names
}

// slot is the place of one writer and one reader at one node.
type slot struct {
	node    *localcluster.Node
	writer  *testcluster.App
	reader  *testcluster.App
	started []string // names of all writers of this slot in this database
	apps    []*testcluster.App
}

func newWorld(t *testing.T, seed uint64) *world {
	return newWorldWith(t, seed, localcluster.Options{
		Args: []string{"--snapshot-entries", "50", "--trailing-entries", "20", "--write-lease", lease.String()},
	})
}

func newWorldWith(t *testing.T, seed uint64, opts localcluster.Options) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
	w.cluster = testcluster.Start(t, opts)
	for _, n := range w.cluster.Nodes() {
		w.slots = append(w.slots, &slot{node: n})
	}
	t.Cleanup(func() {
		for _, s := range w.slots {
			for _, a := range []*testcluster.App{s.writer, s.reader} {
				if a != nil {
					_ = a.Kill()
				}
			}
		}
	})
	return w
}

func (w *world) logf(format string, args ...any) {
	w.t.Helper()
	w.t.Logf("%s %s", time.Now().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

// dsn is how the applications of a slot open the database.
func (w *world) dsn(s *slot) string {
	return s.node.DSN(w.database, "_busy_timeout=5000", "_synchronous=FULL", "lock_timeout=3000", "commit_timeout=5000")
}

// newDatabase makes an empty database and starts new writers and readers on it.
func (w *world) newDatabase(ctx context.Context, name string) error {
	w.database = name
	s := w.slots[w.rng.IntN(len(w.slots))]
	db := open(w.dsn(s))
	if _, err := db.ExecContext(ctx, "BEGIN IMMEDIATE;"+schema+"COMMIT;"); err != nil {
		return errors.Join(fmt.Errorf("create %s through %s: %w", name, s.node.ID, err), db.Close())
	}
	if err := db.Close(); err != nil {
		return err
	}
	if _, err := w.cluster.WaitConverged(ctx, name); err != nil {
		return err
	}
	for _, s := range w.slots {
		s.started = nil
	}
	return w.revive(ctx)
}

// revive starts the writers and readers that do not run, and waits until the readers read.
func (w *world) revive(ctx context.Context) error {
	for _, s := range w.slots {
		if s.writer == nil || !s.writer.Running() {
			w.started++
			name := fmt.Sprintf("w%d-%s", w.started, s.node.ID)
			app, err := testcluster.StartApp("writer", []string{w.dsn(s), name, w.journal(name), strconv.FormatUint(w.rng.Uint64(), 10)})
			if err != nil {
				return err
			}
			s.writer = app
			s.started, s.apps = append(s.started, name), append(s.apps, app)
		}
		if s.reader == nil || !s.reader.Running() {
			app, err := testcluster.StartApp("reader", []string{w.dsn(s)})
			if err != nil {
				return err
			}
			s.reader = app
			s.apps = append(s.apps, app)
			if _, err := app.Expect(ctx, "reading"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) journal(writer string) string { return filepath.Join(w.dir, writer+".journal") }

// heal ends all faults: stopped processes go on, dead ones are started.
func (w *world) heal(ctx context.Context) error {
	for _, s := range w.slots {
		for _, p := range []*localcluster.Process{s.node.Process(), s.writer.Process} {
			if p.Running() && p.Paused() {
				if err := p.Resume(); err != nil {
					return err
				}
			}
		}
		if s.writer.Running() {
			if err := s.writer.Send("go"); err != nil && s.writer.Running() {
				return err
			}
		}
		if !s.node.Running() {
			if err := s.node.Start(); err != nil {
				return err
			}
		}
	}
	for _, s := range w.slots {
		if err := s.node.WaitReady(ctx); err != nil {
			return err
		}
	}
	if err := w.revive(ctx); err != nil {
		return err
	}
	return w.progress(ctx, w.slots...)
}

// progress waits until the writer of each slot has got one more transaction through.
func (w *world) progress(ctx context.Context, slots ...*slot) error {
	for _, s := range slots {
		s.writer.Skip()
		if err := s.writer.Send("await"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, livenessLimit)
	defer cancel()
	for _, s := range slots {
		if _, err := s.writer.Expect(ctx, "progress"); err != nil {
			return fmt.Errorf("no progress at %s: %w; end of the journal:\n%s", s.node.ID, err, w.journalTail(s))
		}
	}
	return nil
}

// pause stops all writers between two transactions.
func (w *world) pause(ctx context.Context) error {
	for _, s := range w.slots {
		if err := s.writer.Send("pause"); err != nil {
			return err
		}
	}
	for _, s := range w.slots {
		if _, err := s.writer.Expect(ctx, "paused"); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) resume() error {
	for _, s := range w.slots {
		if err := s.writer.Send("go"); err != nil {
			return err
		}
	}
	return nil
}

// retire ends the writers and readers of this database.
func (w *world) retire(ctx context.Context) error {
	for _, s := range w.slots {
		for _, a := range []*testcluster.App{s.writer, s.reader} {
			if err := a.Send("quit"); err != nil {
				return err
			}
			line, err := a.Expect(ctx, "done")
			if err != nil {
				return err
			}
			w.logf("%s: %s", s.node.ID, line)
			<-a.Done()
		}
		s.writer, s.reader = nil, nil
	}
	return nil
}

// histories reads the journals of all writers of this database.
func (w *world) histories() ([]Txn, error) {
	var all []Txn
	for _, s := range w.slots {
		for _, name := range s.started {
			txns, err := readJournalFile(name, w.journal(name))
			if err != nil {
				return nil, err
			}
			all = append(all, txns...)
		}
	}
	return all, nil
}

// complaints gives what the applications themselves called a violation since the last call.
func (w *world) complaints() []string {
	var out []string
	for _, s := range w.slots {
		var live []*testcluster.App
		for _, a := range s.apps {
			for _, line := range a.Matching("violation") {
				out = append(out, s.node.ID+": "+line)
			}
			if !a.Running() && a.Err() != nil && !strings.Contains(a.Err().Error(), "killed") {
				out = append(out, fmt.Sprintf("%s: an application ended: %v: %s", s.node.ID, a.Err(), a.Output()))
			}
			if a.Running() {
				live = append(live, a)
			}
			a.Forget("violation")
		}
		s.apps = live
	}
	return out
}

// journalTail gives the last lines that the writer of a slot has recorded.
func (w *world) journalTail(s *slot) string {
	if len(s.started) == 0 {
		return ""
	}
	b, err := os.ReadFile(w.journal(s.started[len(s.started)-1]))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n") + fmt.Sprintf("\nnow %d", now())
}

// logStatus writes down what every node says of the database, for whoever has to find out why a round failed.
func (w *world) logStatus(ctx context.Context) {
	for i, s := range w.cluster.Statuses(ctx) {
		if s == nil {
			w.logf("%s does not answer", w.slots[i].node.ID)
			continue
		}
		d, _ := s.Database(w.database)
		w.logf("%s: %s, leader %s, term %d, commit index %d, applied %d: %+v",
			s.Node.ID, s.State, s.Cluster.Leader, s.Cluster.Term, s.Cluster.CommitIndex, s.Cluster.AppliedIndex, d)
	}
	for _, s := range w.slots {
		// The Go runtime writes all stacks to the log and ends.
		if err := s.node.Process().Signal(syscall.SIGQUIT); err != nil {
			w.logf("stacks of %s: %v", s.node.ID, err)
			continue
		}
		<-s.node.Process().Done()
	}
}

// others are all slots but some.
func (w *world) others(not ...*slot) []*slot {
	var out []*slot
	for _, s := range w.slots {
		keep := true
		for _, x := range not {
			keep = keep && s != x
		}
		if keep {
			out = append(out, s)
		}
	}
	return out
}

func (w *world) anySlot() *slot { return w.slots[w.rng.IntN(len(w.slots))] }

// leader returns the slot of the leader.
func (w *world) leader(ctx context.Context) (*slot, error) {
	n, err := w.cluster.WaitLeader(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range w.slots {
		if s.node == n {
			return s, nil
		}
	}
	return nil, fmt.Errorf("leader %s has no slot", n.ID)
}

func (w *world) follower(ctx context.Context) (*slot, error) {
	l, err := w.leader(ctx)
	if err != nil {
		return nil, err
	}
	o := w.others(l)
	return o[w.rng.IntN(len(o))], nil
}

// wait lets the load run on for a while.
func (w *world) wait(ctx context.Context, shortest, longest time.Duration) {
	d := shortest + time.Duration(w.rng.Int64N(int64(longest-shortest)+1))
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
