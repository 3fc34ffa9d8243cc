package node

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// TestANodeFindsOutWhatItsStoreDoesWithConditions: its archive is complete whatever that is, and status says it.
func TestANodeFindsOutWhatItsStoreDoesWithConditions(t *testing.T) {
	g := storetest.StartGateway(t)
	for what, answer := range map[string]int{"obeys": storetest.Obey, "ignores": storetest.Ignore, "refuses": http.StatusNotImplemented} {
		t.Run(what, func(t *testing.T) {
			endpoint := g.Unconditional(func(*http.Request) int { return answer })
			c := newCluster(t, 1, archiving(g.URLAt(endpoint, what)))
			c.insert(0, "db", 10)
			c.archived(0, "db", 0)
			if st := (backend{c.nodes[0]}).archive(); st.Conditional != (answer == storetest.Obey) || st.Error != "" {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestANodeWhoseStoreIsDownFindsItOutLater: it starts, takes commits, and writes nothing before it knows.
func TestANodeWhoseStoreIsDownFindsItOutLater(t *testing.T) {
	g := storetest.StartGateway(t)
	endpoint := g.Unconditional(func(*http.Request) int { return storetest.Ignore })
	g.Stop()
	c := newCluster(t, 1, archiving(g.URLAt(endpoint, "p")))
	c.insert(0, "db", 10)
	if st := (backend{c.nodes[0]}).archive(); st.Open || st.Conditional {
		t.Fatalf("%+v", st)
	}
	g.Start()
	c.archived(0, "db", 0)
	if st := (backend{c.nodes[0]}).archive(); !st.Open || st.Conditional {
		t.Errorf("%+v", st)
	}
}

// objects are the names of all that a store has.
func objects(t *testing.T, g *storetest.Gateway) string {
	t.Helper()
	var all []string
	if err := filepath.WalkDir(g.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(all)
}

func writeIdentity(t *testing.T, path string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err == nil {
		err = os.WriteFile(path, []byte(id.String()+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestANodeWithAnotherKeyWritesNothing: it ends at its start, or when the store answers.
func TestANodeWithAnotherKeyWritesNothing(t *testing.T) {
	g := storetest.StartGateway(t)
	right, wrong := filepath.Join(t.TempDir(), "right"), filepath.Join(t.TempDir(), "wrong")
	writeIdentity(t, right)
	writeIdentity(t, wrong)
	c := newCluster(t, 1, func(i int, cfg *Config) {
		archiving(g.URL("p"))(i, cfg)
		cfg.ArchiveKey = right
	})
	c.insert(0, "db", 3)
	c.archived(0, "db", 0)
	for _, down := range []bool{false, true} {
		c.stop(0)
		before := objects(t, g)
		c.cfgs[0].ArchiveKey = wrong
		if down {
			g.Stop()
		}
		c.start(0)
		if down {
			c.ready(0)
			c.insert(0, "new", 3)
			g.Start()
		}
		if err := c.nodes[0].Wait(); !errors.Is(err, archive.ErrKey) {
			t.Errorf("down %v: the node ended with %v", down, err)
		}
		c.stop(0)
		if after := objects(t, g); after != before {
			t.Errorf("down %v: it wrote\n%s\nbefore it was\n%s", down, after, before)
		}
		c.cfgs[0].ArchiveKey = right
		c.start(0)
		c.ready(0)
		c.archived(0, "db", 0)
	}
	c.archived(0, "new", 0)
}
