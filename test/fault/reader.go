package fault

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// runReader is the application "reader": data source name. It reads in one handle until it is told to quit, and writes
// "violation …" for what a reader may never see. Commands: pause, go, quit, as a writer's.
func runReader(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("reader wants 1 argument, got %d", len(args))
	}
	r := &reader{db: open(args[0]), commands: readCommands()}
	err := r.loop()
	if !errors.Is(err, errEnd) {
		return err
	}
	fmt.Printf("done %d transactions, %d busy\n", r.done, r.busy)
	return r.db.Close()
}

type reader struct {
	db       *sql.DB
	commands chan string
	seen     view
	opened   bool
	done     int
	busy     int
}

// view is what one read transaction sees at its start.
type view struct{ rows, same, counter int }

func (r *reader) loop() error {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case c, ok := <-r.commands:
			switch {
			case !ok || c == "quit":
				return errEnd
			case c == "pause":
				fmt.Println("paused")
			}
			continue
		case <-pace.C:
		}
		err := r.transaction()
		switch {
		case err == nil:
			r.done++
			if !r.opened {
				r.opened = true
				fmt.Println("reading")
			}
		case expected(err) && (!r.opened || classify(err, true) == Refused):
			// An open waits for the node; a read may find the index locked by a recovery. Nothing else may hurt a reader.
			r.busy++
		default:
			fmt.Printf("violation: reader: %s\n", reason(err))
		}
	}
}

// transaction reads twice in one read transaction.
func (r *reader) transaction() error {
	ctx := context.Background()
	conn, err := r.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil {
		return err
	}
	// A read transaction has nothing to lose.
	defer func() { _, _ = conn.ExecContext(ctx, "ROLLBACK") }()
	first, err := look(ctx, conn)
	if err != nil {
		return err
	}
	if first.rows < r.seen.rows || first.same < r.seen.same || first.counter < r.seen.counter {
		fmt.Printf("violation: reader went back from %+v to %+v\n", r.seen, first)
	}
	r.seen = first
	var audited, halves int
	var balance int64
	err = conn.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM audit), (SELECT sum(balance) FROM account), (
		SELECT count(*) FROM (SELECT 1 FROM rows WHERE id > (SELECT max(id) FROM rows) - 200
			GROUP BY writer, seq HAVING count(*) <> max(parts) AND min(part) = 0))`).Scan(&audited, &balance, &halves)
	if err != nil {
		return err
	}
	if audited != first.rows || balance != 0 || halves != 0 {
		fmt.Printf("violation: reader sees %d audited of %d rows, balance %d, %d half transactions\n", audited, first.rows, balance, halves)
	}
	second, err := look(ctx, conn)
	if err != nil {
		return err
	}
	if first != second {
		fmt.Printf("violation: one read transaction saw %+v, then %+v\n", first, second)
	}
	return nil
}

func look(ctx context.Context, conn *sql.Conn) (view, error) {
	var v view
	err := conn.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM rows), (SELECT count(*) FROM same), (SELECT n FROM counter)`).
		Scan(&v.rows, &v.same, &v.counter)
	return v, err
}
