package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// crowdWorkers is how many transactions of one crowd run side by side.
const crowdWorkers = 4

// databaseMark stands for the name of the database in the data source name that a crowd is given.
const databaseMark = "DATABASE"

// soakDatabase names the databases of the soak.
func soakDatabase(i int) string { return fmt.Sprintf("soak/%03d.db", i) }

// crowdJournal is where a crowd records what it does to one database.
func crowdJournal(dir, crowd string, database int) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%03d.journal", crowd, database))
}

// crowd is one application that writes to and reads from many databases through one node.
//
// It obeys pause, go and quit as a writer does, and writes "progress" after the next acknowledged transaction that was
// begun after "await".
type crowd struct {
	name, dsn, dir string
	members        []*member
	await          atomic.Bool
	stop           sync.RWMutex // a transaction holds it for reading
}

// member is what a crowd does to one database. One worker at a time has it.
type member struct {
	mu       sync.Mutex
	database int
	writer   *writer // nil until its first turn
	reader   *reader
}

// runCrowd is the application "crowd": data source name with databaseMark in it, name, directory of the journals, number of
// databases, seed.
func runCrowd(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("crowd wants 5 arguments, got %d", len(args))
	}
	count, err := strconv.Atoi(args[3])
	if err != nil {
		return fmt.Errorf("parse number of databases: %w", err)
	}
	seed, err := strconv.ParseUint(args[4], 10, 64)
	if err != nil {
		return fmt.Errorf("parse seed: %w", err)
	}
	c := &crowd{dsn: args[0], name: args[1], dir: args[2]}
	for i := range count {
		c.members = append(c.members, &member{database: i})
	}
	end := make(chan struct{})
	errs := make(chan error, crowdWorkers)
	var workers sync.WaitGroup
	for i := range crowdWorkers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		workers.Go(func() {
			if err := c.run(rng, end); err != nil {
				errs <- err
			}
		})
	}
	err = c.obey(readCommands(), errs)
	close(end)
	workers.Wait()
	counts := make(map[Fate]int)
	for _, m := range c.members {
		m.close(counts)
	}
	fmt.Printf("done %v\n", counts)
	return err
}

// obey reads commands until the end, or until a worker cannot go on.
func (c *crowd) obey(commands chan string, errs chan error) error {
	paused := false
	defer func() {
		if paused {
			c.stop.Unlock()
		}
	}()
	for {
		select {
		case err := <-errs:
			return err
		case line, ok := <-commands:
			switch {
			case !ok || line == "quit":
				return nil
			case line == "pause" && !paused:
				paused = true
				c.stop.Lock()
				fmt.Println("paused")
			case line == "go" && paused:
				paused = false
				c.stop.Unlock()
			case line == "await":
				c.await.Store(true)
			}
		}
	}
}

// crowdPace is the longest rest of a worker between two turns. Without any a fast machine writes some twenty gigabytes of
// history on each node in an hour.
const crowdPace = 40 * time.Millisecond

// run does one transaction after another until end is closed.
func (c *crowd) run(rng *rand.Rand, end chan struct{}) error {
	for {
		select {
		case <-end:
			return nil
		case <-time.After(time.Duration(rng.Int64N(int64(crowdPace)))):
		}
		m := c.members[rng.IntN(len(c.members))]
		if !m.mu.TryLock() {
			continue
		}
		c.stop.RLock()
		err := c.turn(m, rng)
		c.stop.RUnlock()
		m.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// turn reads from a database, writes to it, or lets go of it.
func (c *crowd) turn(m *member, rng *rand.Rand) error {
	dsn := strings.ReplaceAll(c.dsn, databaseMark, soakDatabase(m.database))
	if m.writer == nil {
		journal, err := CreateJournal(crowdJournal(c.dir, c.name, m.database))
		if err != nil {
			return err
		}
		m.writer = &writer{
			dsn: dsn, name: fmt.Sprintf("%s-%03d", c.name, m.database), journal: journal, db: open(dsn),
			rng: rng, counts: make(map[Fate]int),
		}
		m.reader = &reader{db: m.writer.db}
	}
	m.writer.rng = rng
	switch p := rng.IntN(100); {
	case p < 10:
		m.reader.db = m.writer.db
		if err := m.reader.transaction(); err != nil && !expected(err) {
			fmt.Printf("violation: reader: %s\n", reason(err))
		}
		return nil
	case p < 12:
		err := m.writer.db.Close()
		m.writer.db = open(dsn)
		return err
	}
	awaited := c.await.Load()
	before := m.writer.counts[Acknowledged]
	err := m.writer.work()
	if awaited && m.writer.counts[Acknowledged] > before && c.await.CompareAndSwap(true, false) {
		fmt.Println("progress")
	}
	return err
}

// close ends the member and adds up what it was told.
func (m *member) close(counts map[Fate]int) {
	if m.writer == nil {
		return
	}
	for fate, n := range m.writer.counts {
		counts[fate] += n
	}
	if err := errors.Join(m.writer.db.Close(), m.writer.journal.file.Close()); err != nil {
		fmt.Printf("violation: close: %v\n", err)
	}
}
