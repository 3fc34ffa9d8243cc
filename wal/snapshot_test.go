package wal_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

func TestSnapshotStaysWhileTransactionsCome(t *testing.T) {
	txns := sqlTransactions(t, 1024, workload(40)...)
	for _, checkpointed := range []bool{false, true} {
		pins := 0
		m := newMemory(t, 1024, wal.Options{Pin: func() error { pins++; return nil }, Unpin: func() { pins-- }})
		want := &mirror{1024, bytes.Clone(m.DB.Data)}
		for _, tx := range txns[:15] {
			apply(t, m, tx)
			want.apply(tx)
		}
		if checkpointed {
			if err := m.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		snap, err := m.Pin()
		if err != nil {
			t.Fatal(err)
		}
		for _, tx := range txns[15:] {
			apply(t, m, tx)
			same(t, snap, want)
		}
		if err := snap.Close(); err != nil || pins != 0 {
			t.Fatalf("close: %v, %d pins left", err, pins)
		}
		if err := snap.ReadPage(1, make([]byte, 1024)); !errors.Is(err, wal.ErrClosed) {
			t.Fatalf("after close: got %v, want ErrClosed", err)
		}
	}
}

// TestSnapshotTakenWhileTheLogIsRestarted pins when the restart has begun: what
// the log held until then is not to be trusted.
func TestSnapshotTakenWhileTheLogIsRestarted(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(randomblob(3000))", "INSERT INTO t VALUES(2)")
	snaps := make(chan *wal.Snapshot, 1)
	var m *wal.Memory
	m = newMemory(t, 512, wal.Options{Step: func(s wal.Step) {
		if s != wal.StepRestartBackfill {
			return
		}
		go func() {
			snap, err := m.Pin()
			if err != nil {
				t.Error(err)
			}
			snaps <- snap
		}()
		for range 10000 {
			runtime.Gosched() // let it go as far as it can
		}
	}})
	states := map[uint32]*mirror{}
	image := bytes.Clone(m.DB.Data)
	for i, tx := range txns {
		if i == 2 {
			if err := m.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		f := apply(t, m, tx)
		next := &mirror{512, bytes.Clone(image)}
		next.apply(tx)
		image = next.image
		states[f.Change] = next
	}
	snap := <-snaps
	if snap == nil {
		t.Fatal("no snapshot")
	}
	same(t, snap, states[snap.Fingerprint().Change])
}

func TestBeginWaitsForTheWriteLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, 4096, wal.Options{})
		if err := m.Locks.Lock(0, 1, wal.Exclusive); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := m.Begin(ctx); !errors.Is(err, wal.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want ErrBusy and DeadlineExceeded", err)
		}
		if got := time.Since(start); got != 50*time.Millisecond {
			t.Fatalf("gave up after %v", got)
		}
		done := make(chan error)
		go func() {
			txn, err := m.Begin(context.Background())
			if err == nil {
				err = txn.End()
			}
			done <- err
		}()
		time.AfterFunc(time.Second, func() { _ = m.Locks.Unlock(0, 1, wal.Exclusive) })
		start = time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got < time.Second || got > time.Second+2*time.Millisecond {
			t.Fatalf("got the lock after %v, want within 2 ms of its release", got)
		}
	})
}

func TestBeginWaitsForItsOwnHandle(t *testing.T) {
	m := newMemory(t, 4096, wal.Options{})
	txn := begin(t, m)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Begin(ctx); !errors.Is(err, wal.ErrBusy) {
		t.Fatalf("got %v, want ErrBusy", err)
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	if err := begin(t, m).End(); err != nil {
		t.Fatal(err)
	}
}

func TestHeaderThatNeedsRecovery(t *testing.T) {
	m := newMemory(t, 4096, wal.Options{})
	if _, _, _, err := m.Peek(); !errors.Is(err, wal.ErrUnstable) {
		t.Fatalf("peek: got %v, want ErrUnstable", err)
	}
	if _, err := m.Pin(); !errors.Is(err, wal.ErrUnstable) {
		t.Fatalf("pin: got %v, want ErrUnstable", err)
	}
	if err := begin(t, m).End(); err != nil || m.Recoveries != 1 {
		t.Fatalf("got %v after %d recoveries, want 1", err, m.Recoveries)
	}
	never := newMemory(t, 4096, wal.Options{Recover: func() error { return nil }})
	if _, err := never.Begin(context.Background()); !errors.Is(err, wal.ErrUnstable) {
		t.Fatalf("recovery without effect: got %v, want ErrUnstable", err)
	}
	if never.Locks.Held() {
		t.Fatal("a lock is still held")
	}
}

func TestEpochSurvivesTransactionsAndRecovery(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
	m := newMemory(t, 512, wal.Options{})
	if err := m.SetEpoch(7); err != nil {
		t.Fatal(err)
	}
	for _, tx := range txns {
		apply(t, m, tx)
		if err := m.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := m.Epoch(); err != nil || got != 7 {
		t.Fatalf("got %d, %v, want 7", got, err)
	}
}

func TestClosedHandle(t *testing.T) {
	m := newMemory(t, 512, wal.Options{})
	if err := begin(t, m).End(); err != nil {
		t.Fatal(err)
	}
	snap, err := m.Pin()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, beginErr := m.Begin(context.Background())
	_, _, _, peekErr := m.Peek()
	_, pinErr := m.Pin()
	_, epochErr := m.Epoch()
	for name, err := range map[string]error{
		"begin": beginErr, "peek": peekErr, "pin": pinErr, "epoch": epochErr, "set epoch": m.SetEpoch(1),
		"read page": snap.ReadPage(1, make([]byte, 512)),
	} {
		if !errors.Is(err, wal.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", name, err)
		}
	}
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
}

// Many pages at once are the same as one by one, whether the log or the file has them.
func TestReadPagesReadsWhatReadPageReads(t *testing.T) {
	for _, pageSize := range []uint32{512, 4096, 65536} {
		m := newMemory(t, pageSize, wal.Options{})
		for i, tx := range sqlTransactions(t, pageSize, workload(60)...) {
			apply(t, m, tx)
			if i == 20 {
				if err := m.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
		}
		snap, err := m.Pin()
		if err != nil {
			t.Fatal(err)
		}
		count := snap.PageCount()
		one := make([]byte, pageSize)
		for _, n := range []uint32{1, 2, 7, count + 2} {
			for first := uint32(1); first <= count; first += n {
				many := make([]byte, n*pageSize)
				if err := snap.ReadPages(first, many); err != nil {
					t.Fatal(err)
				}
				for i := range n {
					if err := snap.ReadPage(first+i, one); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(one, many[i*pageSize:(i+1)*pageSize]) {
						t.Fatalf("pages of %d bytes: page %d read with %d others is another", pageSize, first+i, n-1)
					}
				}
			}
		}
		if err := snap.ReadPages(1, make([]byte, pageSize+1)); !errors.Is(err, wal.ErrPageSize) {
			t.Errorf("a page and a byte: %v", err)
		}
		if err := snap.ReadPages(0, one); !errors.Is(err, wal.ErrInvalid) {
			t.Errorf("page 0: %v", err)
		}
		if err := snap.Close(); err != nil {
			t.Fatal(err)
		}
		if err := snap.ReadPages(1, one); !errors.Is(err, wal.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// A page that was copied is read from the file, one that was not from the log.
func TestReadStored(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(3000))", "UPDATE t SET a = randomblob(3000)")
	m := newMemory(t, 512, wal.Options{})
	apply(t, m, txns[0])
	apply(t, m, txns[1])
	if err := m.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	last := txns[1].pageCount
	m.DB.Data[(last-1)*512+100] ^= 1
	stored, newest := make([]byte, 512), make([]byte, 512)
	read := func(what string, want bool) {
		t.Helper()
		txn := begin(t, m)
		defer txn.End()
		if err := errors.Join(txn.ReadPage(last, newest), txn.ReadStored(last, stored)); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(stored, newest) != want {
			t.Errorf("%s: same: %v", what, !want)
		}
	}
	read("copied and damaged in the file", false)
	apply(t, m, txns[2])
	read("written once more", true)
}
