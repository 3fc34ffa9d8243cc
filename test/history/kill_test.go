package history

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	killRounds = flag.Int("kill-rounds", 0, "rounds of the tests that kill; 0: a short one")
	killSeed   = flag.Uint64("seed", 1, "seed of the moments at which they kill")
)

// Who is killed: a node that is asked and follows, one that leads while another is asked, one that is asked and leads, and
// the command that asks.
var victims = []string{"asked", "leader", "asked leader", "command"}

// killing is a cluster, one process of which is killed in each round while one of its nodes does what it was asked for.
type killing struct {
	t   *testing.T
	ctx context.Context
	c   *localcluster.Cluster
	rnd *rand.Rand
}

// rounds calls round for each victim, in a short test for some. It is given the node to ask, and the one that is killed,
// nil for the command.
func (k *killing) rounds(short []string, round func(victim string, n int, asked, dies *localcluster.Node, others []*localcluster.Node)) {
	all := short
	for range *killRounds {
		all = append(all, victims...)
	}
	for n, who := range all {
		nodes := testcluster.LeaderFirst(k.t, k.c)
		asked, victim := nodes[1], nodes[1]
		switch who {
		case "leader":
			victim = nodes[0]
		case "asked leader":
			asked, victim = nodes[0], nodes[0]
		case "command":
			victim = nil
		}
		var others []*localcluster.Node
		for _, node := range nodes {
			if node != victim {
				others = append(others, node)
			}
		}
		round(who, n, asked, victim, others)
		if k.t.Failed() {
			k.t.Fatalf("round %d, %s, -seed %d", n, who, *killSeed)
		}
	}
}

// command starts hasqlite; over is closed at its end.
func (k *killing) command(asked *localcluster.Node, args ...string) *testcluster.App {
	k.t.Helper()
	app, err := testcluster.StartCommand(exec.Command(testcluster.Binary(k.t, "hasqlite"), append(args, "--node", "http://"+asked.HTTP)...))
	if err != nil {
		k.t.Fatal(err)
	}
	return app
}

// kill ends the node, or the command, and starts nothing.
func (k *killing) kill(victim *localcluster.Node, app *testcluster.App) {
	k.t.Helper()
	err := error(nil)
	if victim != nil {
		err = victim.Kill()
	} else {
		err = app.Kill()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	select {
	case <-app.Done():
	case <-k.ctx.Done():
		k.t.Fatalf("the command does not end; it says:\n%s", app.Output())
	}
}

func (k *killing) back(victim *localcluster.Node) {
	k.t.Helper()
	if victim == nil {
		return
	}
	if err := victim.Start(); err != nil {
		k.t.Fatal(err)
	}
	if err := victim.WaitReady(k.ctx); err != nil {
		k.t.Fatal(err)
	}
}

// content is what a node exports; ErrNotFound: there is no such database.
func (k *killing) content(n *localcluster.Node, name string, m api.Moment) (api.ExportHead, []byte, error) {
	k.t.Helper()
	head, r, err := clientOf(k.t, n).Export(k.ctx, name, m)
	if err != nil {
		return head, nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return head, b, err
}

// eventually calls f until there is no error.
func (k *killing) eventually(what string, f func() error) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.ctx, 60*time.Second)
	defer cancel()
	if err := localcluster.Poll(ctx, 20*time.Millisecond, func() (bool, error) { err := f(); return err == nil, err }); err != nil {
		k.t.Fatalf("%s: %v", what, err)
	}
}

// tables has readers on the nodes that are left see so many tables, soon: other nodes than the one that was asked may be
// late, and show the number before until then, and never another.
func (k *killing) tables(nodes []*localcluster.Node, name string, before, want string) {
	k.t.Helper()
	for _, n := range nodes {
		db := testcluster.Open(k.t, n, name)
		k.eventually("node "+n.ID+" shows it", func() error {
			got := testcluster.Query(k.t, db, `SELECT count(*) FROM sqlite_schema`)
			if got == want {
				return nil
			}
			if got != before {
				k.t.Errorf("node %s shows %s tables, want %s or %s", n.ID, got, before, want)
			}
			return fmt.Errorf("%s tables", got)
		})
		db.Close()
	}
}

// An import is killed in its middle: it is there whole or not at all, whole if that was said, and the same command again,
// to a node that is left, while the killed one is away, makes it whole.
func TestKilledInAnImport(t *testing.T) {
	k := &killing{t: t, ctx: testcluster.Context(t, time.Duration(4**killRounds+4)*time.Minute), rnd: rand.New(rand.NewPCG(*killSeed, 1))}
	k.c = testcluster.Start(t, localcluster.Options{Args: []string{"--max-transaction", "1MiB"}})
	testcluster.Binary(t, "hasqlite")
	file := filepath.Join(t.TempDir(), "file.db")
	makeDatabase(t, file, 12)
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want[18], want[19] = 2, 2 // as a replicated database says it
	k.rounds([]string{"asked", "command"}, func(who string, round int, asked, victim *localcluster.Node, others []*localcluster.Node) {
		name := fmt.Sprintf("import%d.db", round)
		app := k.command(asked, "import", name, file)
		at := k.rnd.IntN(14) // transactions; with none the file is being received and looked through
		k.whenImported(asked, name, at, app.Done())
		k.kill(victim, app)
		acked := app.Err() == nil && victim != nil
		node := others[0]
		if victim == nil { // the node takes it away again
			k.eventually("the import goes on or is gone", func() error {
				_, b, err := k.content(node, name, api.Moment{})
				if errors.Is(err, api.ErrNotFound) || bytes.Equal(b, want) {
					return nil
				}
				return fmt.Errorf("%d bytes, %w", len(b), err)
			})
		}
		tries, whole := 0, false
		k.eventually("the import again", func() error {
			tries++
			again := k.command(node, "import", name, file)
			select {
			case <-again.Done():
			case <-k.ctx.Done():
			}
			if err = again.Err(); err != nil { // because it is there? Or something was decided meanwhile
				_, b, xerr := k.content(node, name, api.Moment{})
				if whole = bytes.Equal(b, want); whole {
					return nil
				}
				if acked {
					t.Errorf("it was acknowledged: %v", xerr)
				}
				return fmt.Errorf("%s: %w", again.Output(), errors.Join(err, xerr))
			}
			return nil
		})
		t.Logf("round %d: %s killed at %d transactions, acknowledged %v, whole %v, %d more tries", round, who, at, acked, whole, tries)
		if acked && !whole {
			t.Error("an acknowledged import was made again")
		}
		k.tables(others, name, "0", "1")
		k.back(victim)
		testcluster.Converged(t, k.c, name)
		for _, n := range k.c.Nodes() {
			if _, got, err := k.content(n, name, api.Moment{}); err != nil || !bytes.Equal(got, want) {
				t.Errorf("node %s has %d bytes that are not the file: %v", n.ID, len(got), err)
			}
		}
		if err := clientOf(t, node).DeleteDatabase(k.ctx, name, true); err != nil {
			t.Error(err)
		}
	})
}

// whenImported waits until the node shows so many transactions of an import, or for its file, or for the end.
func (k *killing) whenImported(n *localcluster.Node, name string, transactions int, over <-chan struct{}) {
	_ = localcluster.Poll(k.ctx, time.Millisecond, func() (bool, error) {
		select {
		case <-over:
			return true, nil
		default:
		}
		if transactions == 0 {
			left, err := filepath.Glob(filepath.Join(n.Data, "spool", "content-*"))
			return len(left) > 0, err
		}
		s, err := n.Status(k.ctx)
		if err != nil {
			return false, err
		}
		d, ok := s.Database(name)
		return ok && d.Decided.TXID >= fmt.Sprintf("%016x", transactions), nil
	})
}

// A rollback is killed in its middle: the database is what it was before or what it was to become, the latter if that was
// said, on all nodes; the same command again does it, and one to the bookmark of the state before undoes it.
func TestKilledInARollback(t *testing.T) {
	k := &killing{t: t, ctx: testcluster.Context(t, time.Duration(4**killRounds+4)*time.Minute), rnd: rand.New(rand.NewPCG(*killSeed, 2))}
	k.c = testcluster.Start(t, localcluster.Options{})
	testcluster.Binary(t, "hasqlite")
	nodes := testcluster.LeaderFirst(t, k.c)
	db := testcluster.Open(t, nodes[0], "shop.db")
	testcluster.Exec(t, db, `CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)`)
	testcluster.Exec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000) INSERT INTO t SELECT i, randomblob(3800) FROM n`)
	state := func() (string, []byte) {
		head, b, err := k.content(nodes[0], "shop.db", api.Moment{})
		if err != nil {
			t.Fatal(err)
		}
		return head.Commit.Bookmark, masked(b)
	}
	var marks [2]string
	var states [2][]byte
	marks[0], states[0] = state()
	for range 20 {
		testcluster.Exec(t, db, `UPDATE t SET b = randomblob(3800) WHERE id % 20 = abs(random()) % 20`)
	}
	testcluster.Exec(t, db, `CREATE TABLE second(a)`)
	marks[1], states[1] = state()
	db.Close()

	// One that is not killed, for what it takes.
	took := time.Now()
	if _, err := clientOf(t, nodes[1]).Rollback(k.ctx, api.RollbackRequest{Name: "shop.db", Moment: api.Moment{To: marks[0]}}, func(api.Progress) {}); err != nil {
		t.Fatal(err)
	}
	span, now := time.Since(took), 0
	k.rounds([]string{"leader", "asked"}, func(who string, round int, asked, victim *localcluster.Node, others []*localcluster.Node) {
		testcluster.Converged(t, k.c, "shop.db")
		target := 1 - now
		app := k.command(asked, "rollback", "shop.db", "--to", marks[target])
		moment := time.Duration(k.rnd.Int64N(int64(span * 3 / 2)))
		select {
		case <-app.Done():
		case <-time.After(moment):
		}
		k.kill(victim, app)
		acked := app.Err() == nil && victim != nil
		node, done := others[0], false
		k.eventually("the database is read", func() error {
			_, b, err := k.content(node, "shop.db", api.Moment{})
			if err != nil {
				return err
			}
			done = bytes.Equal(masked(b), states[target])
			if !done && (acked || !bytes.Equal(masked(b), states[now])) {
				t.Errorf("it is neither what it was nor what it was to become, or that was said: %v", acked)
			}
			return nil
		})
		tries := 0
		k.eventually("the rollback again", func() error {
			tries++
			again := k.command(node, "rollback", "shop.db", "--to", marks[target])
			select {
			case <-again.Done():
			case <-k.ctx.Done():
			}
			if err := again.Err(); err != nil {
				return fmt.Errorf("%s: %w", again.Output(), err)
			}
			return nil
		})
		t.Logf("round %d: %s killed after %v of about %v, acknowledged %v, done %v, %d more tries", round, who,
			moment.Round(time.Millisecond), span.Round(time.Millisecond), acked, done, tries)
		k.tables(others, "shop.db", fmt.Sprint(1+now), fmt.Sprint(1+target))
		k.back(victim)
		testcluster.Converged(t, k.c, "shop.db")
		for _, n := range k.c.Nodes() {
			if _, got, err := k.content(n, "shop.db", api.Moment{}); err != nil || !bytes.Equal(masked(got), states[target]) {
				t.Errorf("node %s is not what it was to become: %v", n.ID, err)
			}
		}
		now = target
	})
}

// masked takes the counters out of page 1 that a rollback does not take back.
func masked(b []byte) []byte {
	for _, at := range []int{24, 40, 92} {
		clear(b[at : at+4])
	}
	return b
}
