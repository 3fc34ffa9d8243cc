package demo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	_ "github.com/uglyer/ha-sqlite/vfs" // registers the VFS "hasqlite"
)

const (
	database   = "demo.db"
	timeLimit  = time.Minute
	rowsByNode = 3
)

// schema has two functions that give another answer at every call. A cluster that ships statements gets other rows on
// every node; one that ships pages cannot.
const schema = `
CREATE TABLE IF NOT EXISTS orders(id INTEGER PRIMARY KEY, node TEXT NOT NULL, item TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS audit(order_id INTEGER PRIMARY KEY, luck INTEGER NOT NULL, at TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS draw AFTER INSERT ON orders BEGIN
  INSERT INTO audit VALUES(new.id, random(), CURRENT_TIMESTAMP);
END;`

// Options of Run; the zero value is what the command uses.
type Options struct {
	Command []string // how to start a node; empty: this program with the argument "__node"
	Dir     string   // where the nodes live; empty: a temporary directory, removed at the end
	KeepDir bool     // leave the temporary directory
}

// Run shows the demonstration and tells it to out. It leaves no process and, unless told so, no file behind.
func Run(ctx context.Context, out io.Writer, opts Options) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	if len(opts.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		opts.Command = []string{self, "__node"}
	}
	d := &show{out: out, begun: time.Now(), handles: make(map[string]*sql.DB)}
	d.say("Starting three nodes as separate processes …")
	d.cluster, err = localcluster.Start(ctx, localcluster.Options{
		Command: opts.Command, Dir: opts.Dir, KeepDir: opts.KeepDir,
	})
	if err != nil {
		return fmt.Errorf("start three nodes: %w", err)
	}
	defer func() {
		err = errors.Join(err, d.closeHandles(), d.cluster.Close())
		if err == nil && opts.KeepDir {
			d.say("The nodes' files are in %s", d.cluster.Dir)
		}
	}()
	return d.run(ctx)
}

// show is one run.
type show struct {
	out     io.Writer
	begun   time.Time
	cluster *localcluster.Cluster
	handles map[string]*sql.DB // by node id
	written int                // orders that were acknowledged
}

func (d *show) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.2fs  %s\n", time.Since(d.begun).Seconds(), fmt.Sprintf(format, args...))
}

func (d *show) run(ctx context.Context) error {
	leader, err := d.cluster.WaitLeader(ctx)
	if err != nil {
		return err
	}
	for _, n := range d.cluster.Nodes() {
		role := "follower"
		if n == leader {
			role = "leader"
		}
		d.say("  %s  pid %d  %-8s  socket %s", n.ID, n.Process().PID(), role, n.Socket)
		if err := d.open(n); err != nil {
			return err
		}
	}

	d.say("Creating %s through the VFS, with a trigger that uses random() and CURRENT_TIMESTAMP …", database)
	if err := d.exec(ctx, leader, schema); err != nil {
		return fmt.Errorf("create the tables: %w", err)
	}
	// A statement is compiled with what the node's files show, before it asks for the write lock.
	if _, err := d.cluster.WaitConverged(ctx, database); err != nil {
		return err
	}
	for _, n := range d.cluster.Nodes() {
		if err := d.write(ctx, n); err != nil {
			return err
		}
	}

	d.say("Killing the leader %s (kill -9 %d) …", leader.ID, leader.Process().PID())
	if err := leader.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	for _, n := range d.cluster.Nodes() {
		if n == leader {
			continue
		}
		first := d.written
		if err := d.write(ctx, n); err != nil {
			return err
		}
		if first == len(d.cluster.Nodes())*rowsByNode {
			d.say("  all of %s acknowledged %.1f s after the kill", n.ID, time.Since(killed).Seconds())
		}
	}
	next, err := d.cluster.WaitLeader(ctx)
	if err != nil {
		return err
	}
	d.say("  the leader is now %s", next.ID)

	d.say("Starting %s again …", leader.ID)
	if err := leader.Start(); err != nil {
		return err
	}
	if err := leader.WaitReady(ctx); err != nil {
		return err
	}
	if err := d.write(ctx, leader); err != nil {
		return err
	}
	return d.compare(ctx)
}

// open makes the handle through which the application of one node works.
func (d *show) open(n *localcluster.Node) error {
	db, err := sql.Open("sqlite3", n.DSN(database, "_busy_timeout=10000", "_synchronous=FULL"))
	if err != nil {
		return fmt.Errorf("open %s on node %s: %w", database, n.ID, err)
	}
	db.SetMaxOpenConns(1)
	d.handles[n.ID] = db
	return nil
}

func (d *show) closeHandles() error {
	var errs []error
	for id, db := range d.handles {
		if err := db.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s on node %s: %w", database, id, err))
		}
	}
	return errors.Join(errs...)
}

// write adds rowsByNode orders through one node, one transaction each.
func (d *show) write(ctx context.Context, n *localcluster.Node) error {
	for i := range rowsByNode {
		item := fmt.Sprintf("item %d of %s", i+1, n.ID)
		if err := d.exec(ctx, n, `INSERT INTO orders(node, item) VALUES(?, ?)`, n.ID, item); err != nil {
			return fmt.Errorf("write through node %s: %w", n.ID, err)
		}
		d.written++
	}
	d.say("  %d rows written through %s", rowsByNode, n.ID)
	return nil
}

// exec runs a statement. A statement that was surely not carried out (SQLITE_BUSY, also while there is no leader) is run
// again until ctx ends; one whose fate is unknown is not, because it may have been.
func (d *show) exec(ctx context.Context, n *localcluster.Node, query string, args ...any) error {
	var err error
	pollErr := localcluster.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		_, err = d.handles[n.ID].ExecContext(ctx, query, args...)
		var code sqlite3.Error
		again := errors.As(err, &code) && (code.Code == sqlite3.ErrBusy || code.Code == sqlite3.ErrCantOpen)
		return !again, err
	})
	if pollErr != nil {
		return pollErr
	}
	return err
}

// compare waits until the nodes are equal and prints the table.
func (d *show) compare(ctx context.Context) error {
	pos, err := d.cluster.WaitConverged(ctx, database)
	if err != nil {
		return err
	}
	leader, err := d.cluster.WaitLeader(ctx)
	if err != nil {
		return err
	}
	d.say("The three nodes:")
	table := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "\n\tnode\trole\torders\tsum of random()\ttransaction\tchecksum\t")
	var sums []string
	for _, n := range d.cluster.Nodes() {
		status, err := n.Status(ctx)
		if err != nil {
			return err
		}
		db, _ := status.Database(database)
		var orders int
		var sum string
		// Halves, because the sum of 64-bit numbers overflows.
		err = d.handles[n.ID].QueryRowContext(ctx,
			`SELECT count(*), CAST(sum(luck/1024) AS TEXT) FROM orders JOIN audit ON order_id = id`).Scan(&orders, &sum)
		if err != nil {
			return fmt.Errorf("read on node %s: %w", n.ID, err)
		}
		role := "follower"
		if n == leader {
			role = "leader"
		}
		fmt.Fprintf(table, "\t%s\t%s\t%d\t%s\t%s\t%s\t\n", n.ID, role, orders, sum, db.File.TXID, db.File.Checksum)
		sums = append(sums, sum)
		if db.File != pos {
			return fmt.Errorf("node %s is at %v, the others at %v", n.ID, db.File, pos)
		}
		if orders != d.written {
			return fmt.Errorf("node %s has %d orders, %d were acknowledged", n.ID, orders, d.written)
		}
		if sum != sums[0] {
			return fmt.Errorf("node %s has other random numbers than %s", n.ID, d.cluster.Nodes()[0].ID)
		}
	}
	fmt.Fprintln(table)
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	d.say("Equal: every acknowledged row on every node, byte for byte.")
	return nil
}
