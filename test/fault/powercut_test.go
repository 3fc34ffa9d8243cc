package fault

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	cuts     = flag.Int("cuts", 1, "power cuts of each role in TestPowerCut")
	diskKind = flag.String("disk", "ext4", "file system of TestPowerCut and TestDiskFull: ext4 or xfs")
	cutRole  = flag.String("cut", "", "cut only this role in TestPowerCut")
)

// disks gives each node of a cluster to come a disk of its own below dir.
func disks(t *testing.T, dir string, bytes int64) ([]*testcluster.Disk, error) {
	mounts := t.TempDir()
	var all []*testcluster.Disk
	for i := range localcluster.DefaultNodes {
		id := "n" + strconv.Itoa(i+1)
		d, err := testcluster.NewDisk(t, filepath.Join(mounts, id), *diskKind, bytes)
		if err != nil {
			return nil, err
		}
		// The cluster's directory is removed before the disks are unmounted.
		if err := os.Symlink(d.Dir, filepath.Join(dir, id)); err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// power is a world whose nodes can lose their power.
type power struct {
	*world
	disks []*testcluster.Disk // nil: this machine mounts no disks
	cuts  int
}

// cutRoles are whose power fails. Each gives the slots that lose it.
var cutRoles = []struct {
	name string
	pick func(ctx context.Context, p *power) ([]*slot, error)
}{
	{"leader", func(ctx context.Context, p *power) ([]*slot, error) {
		s, err := p.leader(ctx)
		return []*slot{s}, err
	}},
	{"follower", func(ctx context.Context, p *power) ([]*slot, error) {
		s, err := p.follower(ctx)
		if err != nil {
			return nil, err
		}
		return []*slot{s}, p.pauseWriters(ctx, s)
	}},
	{"writing follower", func(ctx context.Context, p *power) ([]*slot, error) {
		s, err := p.follower(ctx)
		if err != nil {
			return nil, err
		}
		return []*slot{s}, p.pauseWriters(ctx, p.others(s)...)
	}},
	{"all", func(_ context.Context, p *power) ([]*slot, error) { return p.slots, nil }},
}

// TestPowerCut takes the power from one node's disk, or from all, at random points under load. What was acknowledged
// has to be there afterwards, the same on all nodes, without anybody's help.
func TestPowerCut(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test ./test/fault -run %s -cuts %d -cut %q -disk %s -seed %d", t.Name(), *cuts, *cutRole, *diskKind, *seed)
	dir, err := os.MkdirTemp("", "hasqlite-")
	if err != nil {
		t.Fatal(err)
	}
	p := &power{}
	// What is written and archived stays to the end.
	if p.disks, err = disks(t, dir, 400<<20+int64(*cuts)*8<<20); err != nil {
		// The same rounds with kill -9 alone: they find what is not in the page cache of the kernel, not what is
		// not on the disk.
		t.Logf("NO POWER IS CUT: this machine mounts no disks for tests (%v). The rounds kill the nodes instead", err)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	p.world = newWorldWith(t, *seed, localcluster.Options{
		Dir:  dir,
		Args: []string{"--snapshot-entries", "50", "--trailing-entries", "20", "--write-lease", lease.String(), "--log-limit", "64MiB", "--idle-close", "2s"},
	})
	done := 0
	for range *cuts {
		for _, role := range cutRoles {
			if *cutRole != "" && *cutRole != role.name {
				continue
			}
			ctx := testcluster.Context(t, roundLimit)
			if done%*roundsDB == 0 {
				if err := p.newDatabase(ctx, fmt.Sprintf("cut/%d.db", done / *roundsDB)); err != nil {
					t.Fatal(err)
				}
			}
			done++
			if err := p.cutRound(ctx, role.name, role.pick, done%*roundsDB == 0); err != nil {
				p.logStatus(t.Context())
				t.Fatalf("seed %d, cut %d, %s: %v", *seed, done, role.name, err)
			}
			if t.Failed() {
				t.Fatalf("seed %d, cut %d, %s", *seed, done, role.name)
			}
		}
	}
	if done == 0 {
		t.Fatalf("no role %q", *cutRole)
	}
	p.logf("%d cuts", done)
}

func (p *power) cutRound(ctx context.Context, role string, pick func(context.Context, *power) ([]*slot, error), last bool) error {
	p.wait(ctx, 100*time.Millisecond, 900*time.Millisecond)
	hit, err := pick(ctx, p)
	if err != nil {
		return err
	}
	p.wait(ctx, 0, 300*time.Millisecond)
	for _, c := range p.complaints() {
		p.t.Error(c)
	}
	if err := p.cut(hit...); err != nil {
		return err
	}
	p.logf("%s lost power", role)
	if others := p.others(hit...); len(others) > len(p.slots)/2 {
		for _, s := range others {
			if err := s.writer.Send("go"); err != nil {
				return err
			}
		}
		if err := p.progress(ctx, others...); err != nil {
			return err
		}
		p.wait(ctx, 0, 300*time.Millisecond)
	}
	if err := p.restore(hit...); err != nil {
		return err
	}
	if err := p.heal(ctx); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	if err := p.pause(ctx); err != nil {
		return err
	}
	if err := p.check(ctx, true); err != nil {
		return err
	}
	if last {
		return p.retire(ctx)
	}
	return p.resume()
}

// pauseWriters stops the writers of some slots between two transactions.
func (w *world) pauseWriters(ctx context.Context, slots ...*slot) error {
	for _, s := range slots {
		if err := s.writer.Send("pause"); err != nil {
			return err
		}
	}
	for _, s := range slots {
		if _, err := s.writer.Expect(ctx, "paused"); err != nil {
			return err
		}
	}
	return nil
}

// cut takes the power from the machines of some slots: of the disk first, so that what runs on it sees that too.
func (p *power) cut(slots ...*slot) error {
	p.cuts++
	errs := make(chan error, len(slots))
	for _, s := range slots {
		go func() { errs <- p.disk(s).Cut() }()
	}
	var all []error
	for range slots {
		all = append(all, <-errs)
	}
	p.wait(p.t.Context(), 0, 50*time.Millisecond)
	for _, s := range slots {
		all = append(all, s.writer.Kill(), s.reader.Kill(), s.node.Kill())
		// What they said without a disk does not count, nor what the node logged as it died.
		for _, a := range s.apps {
			a.Forget("violation")
		}
		all = append(all, os.Rename(s.node.LogPath, fmt.Sprintf("%s.cut%d", s.node.LogPath, p.cuts)))
	}
	return errors.Join(all...)
}

// noDisk stands for a disk where none can be mounted.
type noDisk struct{}

func (noDisk) Cut() error     { return nil }
func (noDisk) Unmount() error { return nil }
func (noDisk) Mount() error   { return nil }

type disk interface {
	Cut() error
	Unmount() error
	Mount() error
}

func (p *power) disk(s *slot) disk {
	for i := range p.slots {
		if p.slots[i] == s && p.disks != nil {
			return p.disks[i]
		}
	}
	return noDisk{}
}

// restore gives the power back. The nodes are started by heal.
func (p *power) restore(slots ...*slot) error {
	for _, s := range slots {
		if err := errors.Join(p.disk(s).Unmount(), p.disk(s).Mount()); err != nil {
			return err
		}
	}
	return nil
}
