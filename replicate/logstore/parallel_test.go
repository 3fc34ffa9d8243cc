package logstore

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// slowDisk is a backend whose writes wait until they are let through, one by one.
type slowDisk struct {
	backend
	begun chan int   // entries of a write that has begun
	end   chan error // what becomes of it
}

func (d *slowDisk) StoreLogs(l []*raft.Log) error {
	d.begun <- len(l)
	if err := <-d.end; err != nil {
		return err
	}
	return d.backend.StoreLogs(l)
}

// slow puts a Parallel that leads over a store with three entries and a slow disk.
func slow(t *testing.T, s *Store) (*Parallel, *slowDisk, chan error) {
	t.Helper()
	must(t, s.StoreLogs(entries(1, 3, 1)))
	d := &slowDisk{s.backend, make(chan int, 100), make(chan error, 100)}
	s.backend = d
	failed := make(chan error, 10)
	p := NewParallel(s, func() bool { return true }, func(err error) { failed <- err })
	t.Cleanup(func() {
		d.end <- nil
		p.Stop()
	})
	return p, d, failed
}

func notYet(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s did not wait for the disk: %v", what, err)
	case <-time.After(20 * time.Millisecond):
	}
}

func inBackground(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func TestALeadersEntriesAreReadableBeforeTheyAreDurable(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		p, d, _ := slow(t, s)
		must(t, p.StoreLogs(entries(4, 5, 1)))
		<-d.begun
		must(t, p.StoreLogs(entries(6, 6, 1)))
		if last, err := p.LastIndex(); err != nil || last != 6 {
			t.Fatalf("last index %d, %v; want 6", last, err)
		}
		for i := uint64(1); i <= 6; i++ {
			var l raft.Log
			if err := p.GetLog(i, &l); err != nil || l.Index != i {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
		wantBounds(t, s, 1, 3, 1)
		must(t, p.Wait(3, nil))
		done := inBackground(func() error { return p.Wait(4, nil) })
		later := inBackground(func() error { return p.Wait(6, nil) })
		notYet(t, "Wait", done)
		d.end <- nil
		must(t, <-done)
		if n := <-d.begun; n != 1 {
			t.Fatalf("the second write has %d entries, want 1", n)
		}
		notYet(t, "Wait", later)
		d.end <- nil
		must(t, <-later)
		wantBounds(t, s, 1, 6, 1)
		cancel := make(chan struct{})
		must(t, p.StoreLogs(entries(7, 7, 1)))
		done = inBackground(func() error { return p.Wait(7, cancel) })
		notYet(t, "Wait", done)
		close(cancel)
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Fatalf("cancelled: %v", err)
		}
	})
}

// What is not a leader's command is durable when StoreLogs returns, and everything before it.
func TestEverythingButALeadersCommandsWaitsForTheDisk(t *testing.T) {
	noop := entry(5, 1, "")
	noop.Type = raft.LogNoop
	for name, test := range map[string]struct {
		leads bool
		do    func(p *Parallel) error
		after uint64
	}{
		"a follower's append":    {false, func(p *Parallel) error { return p.StoreLogs(entries(5, 5, 2)) }, 5},
		"the term's first entry": {true, func(p *Parallel) error { return p.StoreLog(noop) }, 5},
		"a new leader's cut":     {false, func(p *Parallel) error { return p.DeleteRange(4, 4) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, _ string, open func() *Store) {
				s := open()
				p, d, _ := slow(t, s)
				must(t, p.StoreLogs(entries(4, 4, 1)))
				<-d.begun
				p.leads = func() bool { return test.leads }
				done := inBackground(func() error { return test.do(p) })
				notYet(t, name, done)
				d.end <- nil
				if test.after > 3 {
					<-d.begun
					notYet(t, name, done)
					d.end <- nil
				}
				must(t, <-done)
				if _, last := s.Bounds(); last != test.after {
					t.Fatalf("last durable entry %d, want %d", last, test.after)
				}
			})
		})
	}
}

func TestAfterAFailedWriteNothingIsHandedOutEarly(t *testing.T) {
	s, err := Open(t.TempDir(), BoltDB, Options{})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	p, d, failed := slow(t, s)
	must(t, p.StoreLogs(entries(4, 4, 1)))
	disk := errors.New("input/output error")
	d.end <- disk
	if err := <-failed; !errors.Is(err, disk) {
		t.Fatalf("told %v", err)
	}
	if err := p.Wait(4, nil); !errors.Is(err, disk) {
		t.Fatalf("wait: %v", err)
	}
	if err := p.StoreLogs(entries(5, 5, 1)); !errors.Is(err, disk) {
		t.Fatalf("next write: %v", err)
	}
	// A write that raft waits for tries what is pending again; the Store says whether that can be.
	noop := entry(5, 2, "")
	noop.Type = raft.LogNoop
	if err := p.StoreLog(noop); !errors.Is(err, ErrFailed) {
		t.Fatalf("first entry of a term: %v", err)
	}
	s.mu.Lock()
	s.failed = nil
	s.mu.Unlock()
	d.end <- nil
	d.end <- nil
	must(t, p.StoreLog(noop))
	must(t, p.Wait(4, nil))
	wantBounds(t, s, 1, 5, 2)
	d.end <- nil
	must(t, p.StoreLogs(entries(6, 6, 2)))
	must(t, p.Wait(6, nil))
}

func TestALeaderThatCannotWriteStepsDown(t *testing.T) {
	s, err := Open(t.TempDir(), WAL, Options{SegmentBytes: testSegment})
	must(t, err)
	sn := openSnapshots(t, t.TempDir(), 1)
	conf := raft.DefaultConfig()
	conf.LocalID = "lead"
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	conf.LogOutput = discard{}
	_, trans := raft.NewInmemTransport("lead")
	must(t, raft.BootstrapCluster(conf, s, s, sn, trans, raft.Configuration{Servers: []raft.Server{{ID: "lead", Address: "lead"}}}))
	var mu sync.Mutex
	var r *raft.Raft
	node := func() *raft.Raft {
		mu.Lock()
		defer mu.Unlock()
		return r
	}
	p := NewParallel(s, func() bool { r := node(); return r != nil && r.State() == raft.Leader },
		func(error) { node().Barrier(time.Second).Error() })
	started, err := raft.NewRaft(conf, &counter{snaps: sn}, p, s, sn, trans)
	must(t, err)
	mu.Lock()
	r = started
	mu.Unlock()
	t.Cleanup(func() {
		must(t, r.Shutdown().Error())
		p.Stop()
		s.Close()
	})
	until(t, "it leads", func() bool { return r.State() == raft.Leader })
	must(t, r.Barrier(time.Second).Error())
	s.writeMu.Lock()
	s.backend = &failing{s.backend, errors.New("input/output error")}
	s.writeMu.Unlock()
	down := r.LeaderCh()
	for len(down) > 0 {
		<-down
	}
	r.Apply([]byte("x"), time.Second)
	until(t, "it has stepped down", func() bool { return r.State() != raft.Leader || len(down) > 0 })
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
