package fault

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	soakFor       = flag.Duration("soak", 15*time.Second, "how long TestSoak runs")
	soakDatabases = flag.Int("soak-databases", 8, "databases of TestSoak")
	soakFaults    = flag.Duration("soak-fault-every", 5*time.Second, "time from one fault of TestSoak to the next")
	soakPlot      = flag.String("soak-plot", "", "write the memory and file handles of TestSoak to this SVG file")
)

// soak is a long run. Its first node is never killed, so that its memory and file handles tell of leaks.
type soak struct {
	*world
	crowds  []*testcluster.App // one for each slot
	names   [][]string         // of all crowds of a slot so far
	samples samples
}

// soakFault is one fault of the soak. It is over when run returns: what is dead then is started again.
type soakFault struct {
	name string
	run  func(ctx context.Context, s *soak) error
}

var soakFaultList = []soakFault{
	{"kill the leader", func(ctx context.Context, s *soak) error {
		l, err := s.mortalLeader(ctx)
		if err != nil {
			return err
		}
		return l.node.Kill()
	}},
	{"kill a follower", func(ctx context.Context, s *soak) error {
		l, err := s.leader(ctx)
		if err != nil {
			return err
		}
		for _, x := range s.others(l, s.slots[0]) {
			return x.node.Kill()
		}
		return nil
	}},
	{"stop any node for some seconds", func(ctx context.Context, s *soak) error {
		x := s.anySlot()
		if err := x.node.Pause(); err != nil {
			return err
		}
		s.wait(ctx, time.Second, 4*time.Second)
		return nil
	}},
	{"kill a crowd", func(_ context.Context, s *soak) error {
		return s.crowds[s.rng.IntN(len(s.crowds))].Kill()
	}},
	{"stop a crowd for some seconds", func(ctx context.Context, s *soak) error {
		app := s.crowds[s.rng.IntN(len(s.crowds))]
		if err := app.Pause(); err != nil {
			return err
		}
		s.wait(ctx, time.Second, 4*time.Second)
		return app.Resume()
	}},
	{"restart a node cleanly", func(ctx context.Context, s *soak) error {
		return s.slots[1+s.rng.IntN(len(s.slots)-1)].node.Restart(ctx)
	}},
	{"hand the leadership over", func(ctx context.Context, s *soak) error {
		l, err := s.leader(ctx)
		if err != nil {
			return err
		}
		return l.node.Call(ctx, "POST", "/v1/cluster/transfer", map[string]string{}, nil)
	}},
	{"kill two nodes at once", func(_ context.Context, s *soak) error {
		return errors.Join(s.slots[1].node.Kill(), s.slots[2].node.Kill())
	}},
}

func TestSoak(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test ./test/fault -run %s -soak %v -soak-databases %d -soak-fault-every %v -seed %d", t.Name(), *soakFor, *soakDatabases, *soakFaults, seed)
	s := newSoak(t, seed)
	ctx := testcluster.Context(t, *soakFor+10*time.Minute)
	if err := s.createAll(ctx); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	stopSampling := s.samples.start(s.slots[0].node)
	defer stopSampling()
	var order []int
	for n := 1; time.Since(start) < *soakFor; n++ {
		next := time.Now().Add(*soakFaults)
		if len(order) == 0 {
			order = s.rng.Perm(len(soakFaultList))
		}
		f := soakFaultList[order[0]]
		order = order[1:]
		if err := s.hurt(ctx, f); err != nil {
			s.logStatus(t.Context())
			t.Fatalf("fault %d, %s: %v", n, f.name, err)
		}
		s.report(n, f, time.Since(start))
		if t.Failed() {
			t.Fatalf("seed %d, fault %d: %s", seed, n, f.name)
		}
		rest := max(0, time.Until(next))
		s.wait(ctx, rest, rest)
	}
	stopSampling()
	if err := s.judgeAll(ctx); err != nil {
		s.logStatus(t.Context())
		t.Fatal(err)
	}
	s.samples.flat(t)
	if *soakPlot != "" {
		if err := s.samples.plot(*soakPlot); err != nil {
			t.Fatal(err)
		}
	}
}

func newSoak(t *testing.T, seed uint64) *soak {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), dir: t.TempDir()}
	// By default single commits stay for a day: an hour's archives are 75 GB. So they go meanwhile, under faults.
	w.cluster = testcluster.Start(t, localcluster.Options{Args: []string{"--write-lease", lease.String(), "--idle-close", "20s", "--archive-window", "5m", "--archive-keep", "5m,10m,720h"}})
	for _, n := range w.cluster.Nodes() {
		w.slots = append(w.slots, &slot{node: n})
	}
	s := &soak{world: w, crowds: make([]*testcluster.App, len(w.slots)), names: make([][]string, len(w.slots))}
	t.Cleanup(func() {
		for _, a := range s.crowds {
			if a != nil {
				_ = a.Kill()
			}
		}
	})
	return s
}

// createAll makes the databases and starts the crowds.
func (s *soak) createAll(ctx context.Context) error {
	for i := range *soakDatabases {
		x := s.slots[i%len(s.slots)]
		db := open(x.node.DSN(soakDatabase(i), "_busy_timeout=5000"))
		_, err := db.ExecContext(ctx, "BEGIN IMMEDIATE;"+schema+"COMMIT;")
		if err = errors.Join(err, db.Close()); err != nil {
			return fmt.Errorf("create %s through %s: %w", soakDatabase(i), x.node.ID, err)
		}
	}
	for i := range *soakDatabases {
		if _, err := s.cluster.WaitConverged(ctx, soakDatabase(i)); err != nil {
			return err
		}
	}
	return s.reviveCrowds()
}

// reviveCrowds starts the crowds that do not run.
func (s *soak) reviveCrowds() error {
	for i, x := range s.slots {
		if a := s.crowds[i]; a != nil && a.Running() {
			continue
		}
		s.started++
		name := fmt.Sprintf("c%d-%s", s.started, x.node.ID)
		dsn := x.node.DSN(databaseMark, "_busy_timeout=5000", "lock_timeout=3000", "commit_timeout=5000")
		app, err := testcluster.StartApp("crowd", []string{dsn, name, s.dir, strconv.Itoa(*soakDatabases), strconv.FormatUint(s.rng.Uint64(), 10)})
		if err != nil {
			return err
		}
		s.crowds[i], s.names[i] = app, append(s.names[i], name)
		x.apps = append(x.apps, app)
	}
	return nil
}

// hurt does one fault, ends it, and waits until every crowd gets a transaction through.
func (s *soak) hurt(ctx context.Context, f soakFault) error {
	ctx, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	if err := f.run(ctx, s); err != nil {
		return err
	}
	for _, x := range s.slots {
		if p := x.node.Process(); p.Running() && p.Paused() {
			if err := p.Resume(); err != nil {
				return err
			}
		}
		if !x.node.Running() {
			if err := x.node.Start(); err != nil {
				return err
			}
		}
	}
	for _, x := range s.slots {
		if err := x.node.WaitReady(ctx); err != nil {
			return err
		}
	}
	if err := s.reviveCrowds(); err != nil {
		return err
	}
	for _, a := range s.crowds {
		a.Skip()
		if err := a.Send("await"); err != nil {
			return err
		}
	}
	ctx, cancel = context.WithTimeout(ctx, livenessLimit)
	defer cancel()
	for i, a := range s.crowds {
		if _, err := a.Expect(ctx, "progress"); err != nil {
			return fmt.Errorf("no progress at %s: %w", s.slots[i].node.ID, err)
		}
	}
	return nil
}

func (s *soak) report(n int, f soakFault, at time.Duration) {
	for _, c := range s.complaints() {
		s.t.Error(c)
	}
	last := s.samples.last()
	s.logf("fault %d at %v: %s; %s: %d KiB, %d file handles", n, at.Round(time.Second), f.name, s.slots[0].node.ID, last.anonKiB, last.handles)
}

// mortalLeader makes another node lead than the first, which lives through the whole soak.
func (s *soak) mortalLeader(ctx context.Context) (*slot, error) {
	for {
		l, err := s.leader(ctx)
		if err != nil || l != s.slots[0] {
			return l, err
		}
		if err := l.node.Call(ctx, "POST", "/v1/cluster/transfer", map[string]string{}, nil); err != nil {
			return nil, err
		}
		s.wait(ctx, 50*time.Millisecond, 100*time.Millisecond)
	}
}

// judgeAll ends the crowds and judges every database.
func (s *soak) judgeAll(ctx context.Context) error {
	for i, a := range s.crowds {
		if err := a.Send("quit"); err != nil {
			return err
		}
		line, err := a.Expect(ctx, "done")
		if err != nil {
			return err
		}
		s.logf("%s: %s", s.slots[i].node.ID, line)
		<-a.Done()
	}
	for _, c := range s.complaints() {
		s.t.Error(c)
	}
	total := 0
	for i := range *soakDatabases {
		rows, err := s.judgeDatabase(ctx, i)
		if err != nil {
			return fmt.Errorf("%s: %w", soakDatabase(i), err)
		}
		total += rows
	}
	s.logf("%d databases with %d rows judged", *soakDatabases, total)
	return nil
}

func (s *soak) judgeDatabase(ctx context.Context, i int) (int, error) {
	s.database = soakDatabase(i)
	pos, err := s.cluster.WaitConverged(ctx, s.database)
	if err != nil {
		return 0, err
	}
	var txns []Txn
	for slot := range s.slots {
		for _, name := range s.names[slot] {
			path := crowdJournal(s.dir, name, i)
			if found, err := filepath.Glob(path); err != nil || len(found) == 0 {
				continue // this crowd never came to it
			}
			more, err := readJournalFile(fmt.Sprintf("%s-%03d", name, i), path)
			if err != nil {
				return 0, err
			}
			txns = append(txns, more...)
		}
	}
	var first Final
	for n, x := range s.slots {
		final, err := s.readNode(ctx, x, true)
		if err != nil {
			return 0, fmt.Errorf("read on %s: %w", x.node.ID, err)
		}
		if n == 0 {
			first = final
			for _, v := range judge(txns, final) {
				s.t.Errorf("%s: %s", s.database, v)
			}
		} else if !reflect.DeepEqual(first, final) {
			s.t.Errorf("%s: %s shows other rows than %s at the same position %v", s.database, x.node.ID, s.slots[0].node.ID, pos)
		}
	}
	if _, err := s.slots[0].node.Verify(ctx, s.database, true); err != nil {
		s.t.Error(err)
	}
	return len(first.Rows), nil
}
