package node

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// labels lists those of a database in the archive that node i reads, through its HTTP interface.
func (c *cluster) labels(i int, name string) []archive.Label {
	c.t.Helper()
	client, err := api.NewClient("http://"+c.nodes[i].httpAddr, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	s, err := client.ArchiveStore(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	a, err := archive.Open(c.t.Context(), s, archive.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	f, err := moment.Moment{}.Find(c.t.Context(), a, name)
	if err != nil {
		c.t.Fatal(err)
	}
	return f.View.State().Labels
}

// A label names the state that was there when it was asked for, in the one archive or in that of every node; what
// retention removes is the same before and when it is done.
func TestLabelsAndPruneThroughAnyNode(t *testing.T) {
	for _, kind := range []string{"one archive", "one on each node"} {
		t.Run(kind, func(t *testing.T) {
			url := ""
			if kind == "one archive" {
				url = storetest.StartGateway(t).URL("p")
			}
			c := newCluster(t, 3, func(_ int, cfg *Config) {
				cfg.Archive, cfg.ArchiveInterval = url, archiveInterval
				cfg.ArchiveLevels = [3]time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}
				cfg.ArchiveWindow, cfg.ArchiveKeep = time.Millisecond, [3]time.Duration{time.Millisecond, time.Millisecond, time.Hour}
			})
			db := c.open(0, "shop")
			exec(t, db, `CREATE TABLE t(v)`)
			b := backend{c.nodes[c.follower()]}
			for i := range 3 {
				exec(t, db, `INSERT INTO t VALUES(randomblob(500))`)
				st, _ := c.nodes[c.leader()].svc.Lookup("shop")
				req := api.SnapshotRequest{Name: "shop", Label: fmt.Sprintf("label %d", i)}
				r, err := b.Label(t.Context(), req, func(api.Progress) {})
				if err != nil || len(r.Failed) > 0 || uint64(r.Commit.TXID) != uint64(st.Position.TXID) {
					t.Fatalf("%+v, %v, decided is %s", r, err, st.Position)
				}
				if _, err := b.Label(t.Context(), req, func(api.Progress) {}); err == nil {
					t.Error("a label was given twice")
				}
			}
			for i := range c.nodes {
				if got := c.labels(i, "shop"); len(got) != 3 || got[1].Name != "label 1" || got[1].TXID != 4 {
					t.Errorf("node %d has %v", i, got)
				}
			}
			if r, err := b.Unlabel(t.Context(), api.SnapshotRequest{Name: "shop", Label: "label 1"}, func(api.Progress) {}); err != nil || len(r.Failed) > 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			if _, err := b.Unlabel(t.Context(), api.SnapshotRequest{Name: "shop", Label: "label 1"}, func(api.Progress) {}); !errors.Is(err, api.ErrNotFound) {
				t.Errorf("a label that is not there: %v", err)
			}
			// One may be named by its state, too; what was never labelled is not found.
			first := c.labels(0, "shop")[0]
			dry := func(to string) (api.SnapshotReport, error) {
				return b.Unlabel(t.Context(), api.SnapshotRequest{Name: "shop", To: to, DryRun: true}, func(api.Progress) {})
			}
			f, err := moment.Moment{TXID: first.TXID}.Find(t.Context(), b.n.Archive(), "shop")
			if err != nil {
				t.Fatal(err)
			}
			for _, to := range []string{f.Bookmark(), fmt.Sprintf("%016x", first.TXID)} {
				if r, err := dry(to); err != nil || len(r.Failed) > 0 || r.Label != first.Name {
					t.Errorf("%s: %+v, %v", to, r, err)
				}
			}
			if _, err := dry(fmt.Sprintf("%016x", first.TXID-1)); !errors.Is(err, api.ErrNotFound) {
				t.Errorf("a state without a label: %v", err)
			}
			if _, err := dry("soon"); !errors.Is(err, api.ErrInvalid) {
				t.Errorf("no state: %v", err)
			}
			if _, err := b.Label(t.Context(), api.SnapshotRequest{Name: "shop", To: f.Bookmark()}, func(api.Progress) {}); !errors.Is(err, api.ErrInvalid) {
				t.Errorf("a label for a past state: %v", err)
			}
			if _, err := b.Prune(t.Context(), api.PruneRequest{Name: "none"}, func(api.Progress) {}); !errors.Is(err, api.ErrNotFound) {
				t.Errorf("a database that is not there: %v", err)
			}
			for range 30 {
				exec(t, db, `INSERT INTO t VALUES(randomblob(500))`)
			}
			eventually(t, "there is something to remove, and it goes", func() error {
				dry, err := b.Prune(t.Context(), api.PruneRequest{Name: "shop", DryRun: true}, func(api.Progress) {})
				if err != nil {
					return err
				}
				done, err := b.Prune(t.Context(), api.PruneRequest{Name: "shop"}, func(api.Progress) {})
				if err != nil || len(done.Failed) > 0 {
					return fmt.Errorf("%+v, %w", done, err)
				}
				for _, f := range dry.Files {
					if !slices.Contains(done.Files, f) {
						return fmt.Errorf("%+v was to go", f)
					}
				}
				if len(done.Files) == 0 {
					exec(t, db, `INSERT INTO t VALUES(1)`)
					return errors.New("nothing is old")
				}
				return nil
			})
			for i := range c.nodes {
				if got := c.labels(i, "shop"); len(got) != 2 {
					t.Errorf("node %d has %v", i, got)
				}
			}
			for _, txid := range []uint64{3, 5} {
				c.restorable(b, "shop", txid)
			}
		})
	}
}

// restorable checks that a state can be restored from the archive of a node.
func (c *cluster) restorable(b backend, name string, txid uint64) {
	c.t.Helper()
	f, err := moment.Moment{TXID: txid}.Find(c.t.Context(), b.n.Archive(), name)
	if err == nil {
		var plan *archive.Plan
		if plan, err = f.View.Plan(c.t.Context(), f.Point); err == nil {
			err = f.View.Restore(c.t.Context(), plan, nowhere{}, nil)
		}
	}
	if err != nil {
		c.t.Errorf("transaction %d: %v", txid, err)
	}
}
