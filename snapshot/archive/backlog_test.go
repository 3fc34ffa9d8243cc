package archive

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
)

// After a sync that failed the backlog never says again that what it was given is durable.
func TestBacklogIsNotSyncedAgain(t *testing.T) {
	former := fsync
	defer func() { fsync = former }()
	r := newRecorder(t, 5, 4096, 0)
	for len(r.commits) < 1 {
		r.step()
	}
	b, err := OpenBacklog(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add("a", r.commits[0]); err != nil {
		t.Fatal(err)
	}
	fsync = func(*os.File) error { return syscall.EIO }
	if err := b.Sync(); !errors.Is(err, ErrSync) || !errors.Is(err, syscall.EIO) {
		t.Errorf("a sync that fails: %v", err)
	}
	fsync = former
	if err := b.Sync(); !errors.Is(err, ErrSync) {
		t.Errorf("the next one: %v", err)
	}
}

func TestBacklogKeepsItsLimitAndSurvivesACrash(t *testing.T) {
	dir := t.TempDir()
	r := newRecorder(t, 5, 4096, 0)
	for len(r.commits) < 40 {
		r.step()
	}
	b, err := OpenBacklog(dir, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	add := func(b *Backlog, db string, list []Commit) {
		t.Helper()
		for _, c := range list {
			if err := b.Add(db, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(b, "a", r.commits[:30])
	add(b, "a", r.commits[3:7]) // known already
	add(b, "b", r.commits[:3])
	if err := errors.Join(b.Sync(), b.Trim("b", 2)); err != nil {
		t.Fatal(err)
	}
	again, err := OpenBacklog(dir, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := again.Status(), b.Status(); got != want {
		t.Errorf("after a restart %+v, want %+v", got, want)
	}
	for from := uint64(1); from <= 31; from++ {
		batch, err := again.Range("a", from, 1000, 1<<30)
		if err != nil || len(batch.Commits) != int(31-from) {
			t.Fatalf("from %d: %d commits, %v", from, len(batch.Commits), err)
		}
		for i, c := range batch.Commits {
			want := r.commits[from-1+uint64(i)]
			x, y := make([]byte, want.LTX.Size()), make([]byte, want.LTX.Size())
			if _, err := c.LTX.ReadAt(x, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := want.LTX.ReadAt(y, 0); err != nil {
				t.Fatal(err)
			}
			if c.TXID != want.TXID || c.Time != want.Time || c.Post != want.Post || !bytes.Equal(x, y) {
				t.Fatalf("commit %d is another", want.TXID)
			}
		}
		batch.Close()
	}
	if _, err := again.Range("a", 40, 1, 1); !errors.Is(err, ErrNotInBacklog) {
		t.Errorf("behind a hole: %v", err)
	}
	add(again, "a", r.commits[35:36]) // 31 to 35 are missing: only 36 is of use
	if _, err := again.Range("a", 30, 1, 1); !errors.Is(err, ErrNotInBacklog) {
		t.Errorf("before a hole: %v", err)
	}
	small, err := OpenBacklog(t.TempDir(), 200<<10)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.commits {
		add(small, "a", []Commit{c})
		if st := small.Status(); st.Bytes > st.Limit {
			t.Fatalf("%+v", st)
		}
	}
	if small.Status().Dropped == 0 {
		t.Error("nothing was dropped")
	}
}

// Whoever asks what a backlog has does not wait for a disk that does not answer.
func TestBacklogAnswersWhileItIsSynced(t *testing.T) {
	c := &counter{t: t}
	b, err := OpenBacklog(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add("a", c.commits(1, epoch, 0)[0]); err != nil {
		t.Fatal(err)
	}
	// The file cannot be opened before somebody writes to it.
	if err := errors.Join(os.Remove(b.path("a", 1)), syscall.Mkfifo(b.path("a", 1), 0o600)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Sync() // a pipe cannot be synced
	}()
	for b.work.TryLock() {
		b.work.Unlock()
		runtime.Gosched()
	}
	if first, last, ok := b.Bounds("a"); !ok || first.TXID != 1 || last.TXID != 1 || b.Bytes("a") == 0 || b.Status().Databases != 1 || len(b.Databases()) != 1 {
		t.Errorf("%+v to %+v, %v, %+v", first, last, ok, b.Status())
	}
	if batch, err := b.Range("a", 2, 1, 1); err != nil || len(batch.Commits) != 0 {
		t.Errorf("%v, %v", batch, err)
	}
	f, err := os.OpenFile(b.path("a", 1), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	f.Close()
}

func TestBacklogCutsOffWhatACrashHasTorn(t *testing.T) {
	r := newRecorder(t, 6, 512, 0)
	for len(r.commits) < 6 {
		r.step()
	}
	size := int64(0)
	var ends []int64
	for _, c := range r.commits {
		size += backlogHeader + c.LTX.Size()
		ends = append(ends, size)
	}
	for _, cut := range []int64{0, 1, 39, 41, ends[0] - 1, ends[0], ends[3] + 20, size - 1} {
		dir := t.TempDir()
		b, err := OpenBacklog(dir, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.commits {
			if err := b.Add("a", c); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Truncate(b.path("a", 1), cut); err != nil {
			t.Fatal(err)
		}
		if b, err = OpenBacklog(dir, 1<<30); err != nil {
			t.Fatal(err)
		}
		want := 0
		for want < len(ends) && ends[want] <= cut {
			want++
		}
		batch, err := b.Range("a", 1, 100, 1<<30)
		if err != nil || len(batch.Commits) != want {
			t.Fatalf("cut at %d: %d commits, want %d, %v", cut, len(batch.Commits), want, err)
		}
		batch.Close()
		for _, c := range r.commits[want:] {
			if err := b.Add("a", c); err != nil {
				t.Fatal(err)
			}
		}
		if h := b.Status(); h.Bytes != size {
			t.Errorf("cut at %d and filled up: %+v, want %d bytes", cut, h, size)
		}
	}
}
