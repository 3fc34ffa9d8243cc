package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

const archiveInterval = 50 * time.Millisecond

// archiving gives all nodes one archive in S3, and a short interval.
func archiving(url string) func(int, *Config) {
	return func(_ int, cfg *Config) {
		cfg.Archive, cfg.ArchiveInterval = url, archiveInterval
	}
}

// archived waits until the archive that node i sees has everything that is decided of a database, and checks that every
// commit from the first one on can be restored, but for gaps.
func (c *cluster) archived(i int, name string, gaps int) *archive.View {
	c.t.Helper()
	ctx := context.Background()
	var v *archive.View
	eventually(c.t, "node "+fmt.Sprint(i)+" has all of "+name+" in the archive", func() error {
		a := c.nodes[i].Archive()
		st, ok := c.nodes[c.leader()].svc.Lookup(name)
		if a == nil || !ok {
			return errors.New("not open")
		}
		var err error
		v, err = a.Load(ctx, archive.Identity{Cluster: a.Cluster(), Lineage: c.nodes[i].dir.Record().Lineage, Database: st.ID.String(), Name: name})
		if err != nil {
			return err
		}
		if v.Empty() || v.Last().TXID != uint64(st.Position.TXID) {
			return fmt.Errorf("decided is %s, archived %v", st.Position, v.State().Last)
		}
		if v.Last().Checksum != uint64(st.Position.Checksum) {
			c.t.Fatalf("decided is %s, archived %+v", st.Position, v.Last())
		}
		return nil
	})
	if got := len(v.State().Gaps); got != gaps {
		c.t.Errorf("gaps %v, want %d", v.State().Gaps, gaps)
	}
	next := uint64(1)
	if err := v.Commits(ctx, 0, func(p archive.Point) error {
		if gaps == 0 && p.TXID != next {
			return fmt.Errorf("commit %d is followed by %d", next-1, p.TXID)
		}
		next = p.TXID + 1
		plan, err := v.Plan(ctx, p)
		if err != nil {
			return err
		}
		return v.Restore(ctx, plan, nowhere{}, nil)
	}); err != nil {
		c.t.Fatal(err)
	}
	report, err := v.Verify(ctx, nil)
	if err != nil || len(report.Problems) > 0 {
		c.t.Fatalf("verify: %v, %v", report, err)
	}
	return v
}

// nowhere takes a restored database and keeps nothing.
type nowhere struct{}

func (nowhere) Truncate(int64) error                   { return nil }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestEveryCommitIsInTheArchiveAcrossLeaders(t *testing.T) {
	g := storetest.StartGateway(t)
	c := newCluster(t, 3, archiving(g.URL("p")))
	exec(t, c.open(0, "shop"), `CREATE TABLE t(v)`)
	for round := range 3 {
		for i := range c.nodes {
			db := c.open(i, "shop")
			for range 5 {
				exec(t, db, `INSERT INTO t VALUES(randomblob(500))`)
			}
		}
		if round < 2 {
			leader := c.leader()
			c.stop(leader)
			c.start(leader)
			c.ready(leader)
		}
	}
	exec(t, c.open(0, "shop"), `INSERT INTO t VALUES(randomblob(3000000))`) // in parts
	c.archived(0, "shop", 0)
	eventually(t, "all nodes know", func() error {
		for i, n := range c.nodes {
			st, _ := n.svc.Lookup("shop")
			if st.Archived != st.Position.TXID {
				return fmt.Errorf("node %d at %s knows of %s", i, st.Position, st.Archived)
			}
			if b := n.svc.ArchiveStatus().Backlog.Bytes; b != 0 {
				return fmt.Errorf("node %d keeps %d bytes", i, b)
			}
		}
		return nil
	})
}

func TestEveryNodeHasAnArchiveOfItsOwn(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.Archive, cfg.ArchiveInterval = "", archiveInterval })
	db := c.open(1, "shop")
	exec(t, db, `CREATE TABLE t(v)`)
	for range 10 {
		exec(t, db, `INSERT INTO t VALUES(randomblob(500))`)
	}
	for i, n := range c.nodes {
		c.archived(i, "shop", 0)
		if got := n.Archive().Store().URL(); got != "file://"+filepath.Join(c.cfgs[i].Data, "archive") {
			t.Errorf("node %d keeps its archive in %s", i, got)
		}
	}
}
