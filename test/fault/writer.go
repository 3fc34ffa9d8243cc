package fault

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"
)

// Commands that a writer reads, one a line, and what it answers:
//
//	pause     finishes its transaction, writes "paused", goes on at "go"
//	hold      stops in its next transaction between the inserts and COMMIT, writes "holding", goes on at "go"
//	tell      writes "committing" just before its next COMMIT
//	await     writes "progress" after its next acknowledged transaction
//	quit      writes "done" with its counts and ends
//
// What no correct cluster does, it writes as "violation …".

// writer is one application that writes through one node.
type writer struct {
	name     string
	dsn      string
	db       *sql.DB
	journal  *Journal
	rng      *rand.Rand
	commands chan string
	counts   map[Fate]int
	hold     bool
	tell     bool
	await    bool
}

// errEnd ends a writer or a reader: it was told to quit, or whoever started it is gone.
var errEnd = errors.New("told to end")

// runWriter is the application "writer": data source name, name, journal, seed.
func runWriter(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("writer wants 4 arguments, got %d", len(args))
	}
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return fmt.Errorf("parse seed: %w", err)
	}
	journal, err := CreateJournal(args[2])
	if err != nil {
		return err
	}
	w := &writer{
		dsn: args[0], name: args[1], journal: journal, db: open(args[0]),
		rng: rand.New(rand.NewPCG(seed, 1)), commands: readCommands(), counts: make(map[Fate]int),
	}
	for err == nil {
		err = w.step()
	}
	if !errors.Is(err, errEnd) {
		return err
	}
	fmt.Printf("done %v\n", w.counts)
	return w.db.Close()
}

// readCommands gives the lines of standard input; the channel is closed at its end.
func readCommands() chan string {
	c := make(chan string)
	go func() {
		defer close(c)
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			c <- in.Text()
		}
	}()
	return c
}

// step obeys what it was told, or does one transaction.
func (w *writer) step() error {
	pace := time.NewTimer(time.Duration(w.rng.IntN(4)) * time.Millisecond)
	defer pace.Stop()
	select {
	case c, ok := <-w.commands:
		switch {
		case !ok || c == "quit":
			return errEnd
		case c == "pause":
			fmt.Println("paused")
			return w.waitGo()
		case c == "hold":
			w.hold = true
		case c == "tell":
			w.tell = true
		case c == "await":
			w.await = true
		case c == "go":
		default:
			return fmt.Errorf("unknown command %q", c)
		}
		return nil
	case <-pace.C:
	}
	return w.work()
}

// work does one transaction, of a kind that chance picks.
func (w *writer) work() error {
	switch p := w.rng.IntN(100); {
	case w.hold || w.tell || p < 30:
		return w.rows(1+w.rng.IntN(5), "BEGIN IMMEDIATE")
	case p < 40:
		return w.rows(1+w.rng.IntN(3), "BEGIN")
	case p < 65:
		return w.auto(KindRows, `INSERT INTO rows(writer, seq, part, parts) VALUES(?, ?, 0, 1)`)
	case p < 80:
		return w.auto(KindSame, `INSERT INTO same(v) VALUES(1)`)
	case p < 90:
		return w.auto(KindCount, `UPDATE counter SET n = n + 1`)
	case p < 98:
		return w.transfer()
	default:
		return w.auto(KindBlob, fmt.Sprintf(`INSERT OR REPLACE INTO blobs VALUES(%d, randomblob(%d))`,
			w.rng.IntN(4), 1000+w.rng.IntN(600_000)))
	}
}

func (w *writer) waitGo() error {
	for c := range w.commands {
		switch c {
		case "go":
			return nil
		case "quit":
			return errEnd
		}
	}
	return errEnd
}

// auto does one statement that is a transaction by itself. Its beginning and its commit cannot be told apart.
func (w *writer) auto(kind Kind, query string) error {
	seq, err := w.journal.Intent(kind, 1)
	if err != nil {
		return err
	}
	var args []any
	if kind == KindRows {
		args = []any{w.name, seq}
	}
	if err := w.journal.Sent(); err != nil {
		return err
	}
	_, err = w.db.Exec(query, args...)
	return w.outcome(kind, seq, 1, err, true)
}

// rows inserts some rows in one transaction. With a plain BEGIN it reads first, so that it must be refused when another
// writer was faster.
func (w *writer) rows(parts int, begin string) error {
	return w.transaction(KindRows, parts, begin, func(c *sql.Conn, seq int) error {
		ctx := context.Background()
		if begin == "BEGIN" {
			var n int
			if err := c.QueryRowContext(ctx, `SELECT count(*) FROM same`).Scan(&n); err != nil {
				return err
			}
		}
		for part := range parts {
			if _, err := c.ExecContext(ctx, `INSERT INTO rows(writer, seq, part, parts) VALUES(?, ?, ?, ?)`,
				w.name, seq, part, parts); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *writer) transfer() error {
	amount, from := 1+w.rng.IntN(100), 1+w.rng.IntN(10)
	to := 1 + (from+w.rng.IntN(9))%10
	return w.transaction(KindTransfer, 0, "BEGIN IMMEDIATE", func(c *sql.Conn, _ int) error {
		for id, change := range map[int]int{from: -amount, to: amount} {
			if _, err := c.ExecContext(context.Background(), `UPDATE account SET balance = balance + ? WHERE id = ?`, change, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// transaction does a transaction of several statements.
func (w *writer) transaction(kind Kind, parts int, begin string, body func(*sql.Conn, int) error) error {
	ctx := context.Background()
	seq, err := w.journal.Intent(kind, parts)
	if err != nil {
		return err
	}
	conn, err := w.db.Conn(ctx)
	if err != nil {
		return w.outcome(kind, seq, parts, err, false)
	}
	defer func() {
		if conn != nil {
			_ = conn.Close() // gives it back; a second Close says only that there was a first
		}
	}()
	if _, err = conn.ExecContext(ctx, begin); err == nil {
		err = body(conn, seq)
	}
	if err == nil && w.hold {
		w.hold = false
		fmt.Println("holding")
		if err := w.waitGo(); err != nil {
			return err
		}
	}
	committing := err == nil
	if committing {
		if err := w.journal.Sent(); err != nil {
			return err
		}
		if w.tell {
			w.tell = false
			fmt.Println("committing")
		}
		_, err = conn.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		// It fails where SQLite has rolled back by itself.
		_, _ = conn.ExecContext(ctx, "ROLLBACK")
	}
	_ = conn.Close()
	conn = nil
	return w.outcome(kind, seq, parts, err, committing)
}

// outcome records what the cluster said, and checks what it promises at once.
func (w *writer) outcome(kind Kind, seq, parts int, err error, committing bool) error {
	fate := classify(err, committing)
	w.counts[fate]++
	if jerr := w.journal.Outcome(fate, reason(err)); jerr != nil {
		return jerr
	}
	if err != nil && !expected(err) {
		fmt.Printf("violation: %s %s/%d: %s\n", kind, w.name, seq, reason(err))
	}
	if fate == Unknown {
		// The handle may be broken for ever; a new one is what an application takes too.
		_ = w.db.Close()
		w.db = open(w.dsn)
	}
	if fate != Acknowledged {
		return nil
	}
	if w.await {
		w.await = false
		fmt.Println("progress")
	}
	if kind != KindRows {
		return nil
	}
	var n int
	err = w.db.QueryRow(`SELECT count(*) FROM rows WHERE writer = ? AND seq = ?`, w.name, seq).Scan(&n)
	if err != nil && !expected(err) {
		fmt.Printf("violation: read of own %s/%d: %s\n", w.name, seq, reason(err))
	}
	if err == nil && n != parts {
		fmt.Printf("violation: %s/%d was acknowledged, and its writer sees %d of %d rows\n", w.name, seq, n, parts)
	}
	return nil
}
