package fault

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var allSyncs = flag.Bool("all-syncs", false, "TestFailedSyncStopsTheNode lets syncs of every kind of file fail")

// exitDevice is the code with which a node ends whose disk failed; docs/operations.md has it.
const exitDevice = 8

// inject makes system calls of a running process fail, on some files if any are named, until the returned function is
// called or the process ends.
func inject(ctx context.Context, n *localcluster.Node, what string, paths ...string) (stop func() error, err error) {
	calls, _, _ := strings.Cut(what, ":")
	args := []string{"-f", "-o", os.DevNull, "-e", "trace=" + calls, "-e", "inject=" + what, "-p", strconv.Itoa(n.Process().PID())}
	for _, p := range paths {
		args = append(args, "-P", p)
	}
	said := make(chan string, 100)
	cmd := exec.Command("strace", args...)
	cmd.Stderr = &localcluster.LineWriter{Line: func(line string) {
		select {
		case said <- line:
		default:
		}
	}}
	p, err := localcluster.StartProcess(cmd)
	if err != nil {
		return nil, err
	}
	for {
		select {
		case line := <-said:
			if !strings.Contains(line, "attached") {
				continue
			}
			return func() error {
				if err := p.Signal(os.Interrupt); err != nil && !errors.Is(err, localcluster.ErrNotRunning) {
					return err
				}
				<-p.Done()
				return nil
			}, nil
		case <-p.Done():
			return nil, fmt.Errorf("attach strace to %s: %w", n.ID, p.Err())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), p.Kill())
		}
	}
}

// A sync that fails ends its node at once, with its own exit code and words: what is on the disk is not known any more,
// and a second sync would call it good. The others go on; the next start finds out what is there.
func TestFailedSyncStopsTheNode(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test ./test/fault -run %s -seed %d", t.Name(), *seed)
	w := newWorld(t, *seed)
	ctx := testcluster.Context(t, 5*time.Minute)
	if err := w.newDatabase(ctx, "sync.db"); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"a database's WAL", func(ctx context.Context) error {
			s, err := w.follower(ctx)
			if err != nil {
				return err
			}
			return w.failSync(ctx, s, testcluster.DatabaseFile(t, s.node, w.database)+"-wal")
		}},
		{"any of the leader", func(ctx context.Context) error {
			s, err := w.leader(ctx)
			if err != nil {
				return err
			}
			return w.failSync(ctx, s)
		}},
		{"any of a follower", func(ctx context.Context) error {
			s, err := w.follower(ctx)
			if err != nil {
				return err
			}
			return w.failSync(ctx, s)
		}},
		{"the raft log", func(ctx context.Context) error {
			s, err := w.follower(ctx)
			if err != nil {
				return err
			}
			segments, err := filepath.Glob(filepath.Join(s.node.Data, "raft", "log", "*.wal"))
			if err != nil {
				return err
			}
			return w.failSync(ctx, s, slices.Max(segments))
		}},
		{"the page checksums", func(ctx context.Context) error {
			s, err := w.follower(ctx)
			if err != nil {
				return err
			}
			segments, err := filepath.Glob(filepath.Join(s.node.Data, "sums", "*"))
			if err != nil {
				return err
			}
			return w.failSync(ctx, s, segments...)
		}},
		{"a raft snapshot", func(ctx context.Context) error {
			s, err := w.follower(ctx)
			if err != nil {
				return err
			}
			return w.failSync(ctx, s, filepath.Join(s.node.Data, "raft", "snapshots"))
		}},
		{"votes and terms", func(ctx context.Context) error {
			l, err := w.leader(ctx)
			if err != nil {
				return err
			}
			s := w.others(l)[0]
			stop, err := inject(ctx, s.node, "fsync,fdatasync:error=EIO", filepath.Join(s.node.Data, "raft", "log", "wal-meta.db"))
			if err != nil {
				return err
			}
			if err := errors.Join(l.node.Kill(), w.stopped(ctx, s), stop()); err != nil {
				return err
			}
			return nil
		}},
	} {
		if i >= 2 && !*allSyncs {
			break
		}
		w.logf("a sync fails: %s", tt.name)
		err := tt.run(ctx)
		if err == nil {
			err = w.heal(ctx)
		}
		if err == nil {
			err = w.pause(ctx)
		}
		if err == nil {
			err = w.check(ctx, true)
		}
		if err == nil {
			err = w.resume()
		}
		if err != nil || t.Failed() {
			w.logStatus(t.Context())
			t.Fatalf("a failed sync of %s: %v", tt.name, err)
		}
	}
	w.logf("a read fails")
	if err := w.failRead(ctx); err != nil {
		w.logStatus(t.Context())
		t.Fatal(err)
	}
}

func (w *world) failSync(ctx context.Context, s *slot, paths ...string) error {
	stop, err := inject(ctx, s.node, "fsync,fdatasync:error=EIO", paths...)
	if err != nil {
		return err
	}
	if err := errors.Join(w.stopped(ctx, s), stop()); err != nil {
		return err
	}
	return w.progress(ctx, w.others(s)...)
}

// stopped waits until the node of a slot has ended, and looks at its last words.
func (w *world) stopped(ctx context.Context, s *slot) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	select {
	case <-s.node.Process().Done():
	case <-ctx.Done():
		return fmt.Errorf("%s goes on after a failed sync: %w", s.node.ID, ctx.Err())
	}
	var code *exec.ExitError
	if err := s.node.Process().Err(); !errors.As(err, &code) || code.ExitCode() != exitDevice {
		return fmt.Errorf("%s ended with %w, not with code %d", s.node.ID, err, exitDevice)
	}
	last := s.node.LogTail(1)
	for _, words := range []string{"node cannot go on", "see to the device", "error"} {
		if !strings.Contains(last, words) {
			return fmt.Errorf("the last line of %s does not say %q: %s", s.node.ID, words, last)
		}
	}
	w.logf("%s: %s", s.node.ID, strings.TrimSpace(last))
	return nil
}

// failRead lets reads of a database's files fail on a follower: its copy is late or fenced and says why, its node and
// the others go on, and so does the copy when it can be read again.
func (w *world) failRead(ctx context.Context) error {
	s, err := w.follower(ctx)
	if err != nil {
		return err
	}
	path := testcluster.DatabaseFile(w.t, s.node, w.database)
	stop, err := inject(ctx, s.node, "pread64:error=EIO", path, path+"-wal")
	if err != nil {
		return err
	}
	err = localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		st, err := s.node.Status(ctx)
		if err != nil {
			return false, err
		}
		d, _ := st.Database(w.database)
		return (d.State == "late" || d.State == "fenced") && strings.Contains(d.Detail, "I/O error"), fmt.Errorf("%+v", d)
	})
	if err == nil {
		err = w.progress(ctx, w.others(s)...)
	}
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	if err := w.heal(ctx); err != nil {
		return err
	}
	if err := w.pause(ctx); err != nil {
		return err
	}
	return w.check(ctx, true)
}
