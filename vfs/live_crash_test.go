package vfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

var (
	crashes   = flag.Int("crashes", 100, "how often the applier is killed")
	crashSeed = flag.Uint64("crash-seed", uint64(time.Now().UnixNano()), "seed of the applier crash test")
)

// childEnv carries a childConfig to a process that is this test binary again.
const childEnv = "HASQLITE_LIVE_CHILD"

// childConfig says what such a process does.
type childConfig struct {
	Role string // apply, read
	DB   string
	Seed uint64
	// Of apply:
	Transactions string // file of transactions
	Progress     string // file with the offset of the first one not applied
	Crash        wal.Step
	Countdown    int    // the process dies at this occurrence of Crash
	CrashedAt    string // file that tells that it did
	// Of read:
	Checkpoints bool
}

// child starts this binary as another process.
func child(t testing.TB, cfg childConfig) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLiveChild$", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), childEnv+"="+string(b), "GOMAXPROCS=2")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// TestLiveChild is the main function of child processes; on its own it does
// nothing.
func TestLiveChild(t *testing.T) {
	text := os.Getenv(childEnv)
	if text == "" {
		return
	}
	var cfg childConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	switch cfg.Role {
	case "apply":
		applyChild(t, cfg)
	case "read":
		readChild(t, cfg)
	}
}

// die ends the process as kill -9 does.
func die() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Kill()
	}
	select {}
}

// applyChild applies the transactions after Progress, with checkpoints in
// between, and dies at the step asked for or when all are applied. With no step
// asked for it ends cleanly.
func applyChild(t *testing.T, cfg childConfig) {
	rnd := rand.New(rand.NewPCG(cfg.Seed, 1))
	liveStep = func(s wal.Step) {
		if s != cfg.Crash {
			return
		}
		if cfg.Countdown--; cfg.Countdown == 0 {
			_ = os.WriteFile(cfg.CrashedAt, []byte{byte(s)}, 0o600)
			die()
		}
	}
	l, err := OpenLive(cfg.DB)
	if err != nil {
		t.Fatal(err)
	}
	txns, err := os.Open(cfg.Transactions)
	if err != nil {
		t.Fatal(err)
	}
	defer txns.Close()
	progress, err := os.OpenFile(cfg.Progress, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer progress.Close()
	var b [8]byte
	if _, err := progress.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	off := int64(binary.LittleEndian.Uint64(b[:]))
	for {
		tx, next, err := readTransaction(txns, off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		apply(t, l, tx)
		off = next
		binary.LittleEndian.PutUint64(b[:], uint64(off))
		if _, err := progress.WriteAt(b[:], 0); err != nil {
			t.Fatal(err)
		}
		if cfg.Crash <= wal.StepHeader || rnd.IntN(4) == 0 {
			if _, _, err := l.Checkpoint(rnd.IntN(3) == 0); err != nil && !errors.Is(err, wal.ErrBusy) {
				t.Fatal(err)
			}
		}
	}
	if cfg.Crash != 0 {
		die()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// apply appends a transaction.
func apply(t testing.TB, l *Live, tx transaction) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	txn, err := l.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := txn.Append(tx.pages, tx.pageCount); err != nil {
		t.Fatal(err)
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
}

// readChild checks snapshots until its standard input ends.
func readChild(t *testing.T, cfg childConfig) {
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	rnd := rand.New(rand.NewPCG(cfg.Seed, 2))
	db := openSQL(t, cfg.DB+"?_busy_timeout=20000")
	last, snapshots := int64(-1), 0
	for ; ; snapshots++ {
		select {
		case <-stop:
			fmt.Printf("snapshots=%d last=%d\n", snapshots, last)
			return
		default:
		}
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		for i := range 1 + rnd.IntN(20) { // the same each time, however many commits come
			var got, logged, newest, sum int64
			var table, index string
			if err := tx.QueryRow(checkInvariants).Scan(&got, &logged, &newest, &sum, &table, &index); err != nil {
				t.Fatalf("snapshot %d after %d: %v", snapshots, last, err)
			}
			if i > 0 && got != n || got < last || logged != got || newest != got || sum != totalBalance || table != index {
				t.Fatalf("snapshot %d after %d: n %d then %d, log %d to %d, balance %d, table %s, index %s", snapshots, last, n, got, logged, newest, sum, table, index)
			}
			n = got
		}
		last = n
		if snapshots == 0 {
			fmt.Println("ready")
		}
		if rnd.IntN(20) == 0 {
			var ok string
			if err := tx.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
				t.Fatalf("snapshot %d: integrity check: %s, %v", snapshots, ok, err)
			}
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if cfg.Checkpoints && rnd.IntN(10) == 0 {
			mode := []string{"PASSIVE", "PASSIVE", "RESTART", "TRUNCATE"}[rnd.IntN(4)]
			var busy, frames, done int
			_, _ = db.Exec("PRAGMA busy_timeout=0")
			err := db.QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &frames, &done)
			if err != nil && !strings.Contains(err.Error(), "locked") {
				t.Fatalf("checkpoint: %v", err)
			}
			_, _ = db.Exec("PRAGMA busy_timeout=20000")
		}
	}
}

// startReaders starts reader processes and returns a function that ends them and
// fails the test if one of them saw what it must not see.
func startReaders(t *testing.T, path string, seed uint64, n int) (stop func()) {
	t.Helper()
	type reader struct {
		cmd   *exec.Cmd
		text  *bytes.Buffer // standard output after "ready"
		errs  *bytes.Buffer
		stdin io.WriteCloser
		done  chan struct{} // text has ended
	}
	var readers []reader
	for i := range n {
		cmd, errs := child(t, childConfig{Role: "read", DB: path, Seed: seed + uint64(i), Checkpoints: i == 1})
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = nil
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It has checked its first snapshot when it says ready.
		first := make([]byte, len("ready"))
		_, err = io.ReadFull(stdout, first)
		r := reader{cmd, new(bytes.Buffer), errs, stdin, make(chan struct{})}
		go func() {
			defer close(r.done)
			_, _ = r.text.ReadFrom(stdout)
		}()
		readers = append(readers, r)
		if err != nil {
			t.Errorf("reader %d: %q, %v", i, first, err)
		}
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		for _, r := range readers {
			r.stdin.Close()
		}
		for i, r := range readers {
			<-r.done
			if err := r.cmd.Wait(); err != nil {
				t.Errorf("reader %d: %v\n%s%s", i, err, r.text, r.errs)
				continue
			}
			t.Logf("reader %d: %s", i, bytes.ReplaceAll(bytes.TrimSpace(r.text.Bytes()), []byte("\n"), []byte(" ")))
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestApplierCrashes kills the applier at every step of an append, with readers
// attached and without, with the wal-index left as it was and deleted, and lets
// the next one redo. In the end the file must be the source's, byte for byte.
func TestApplierCrashes(t *testing.T) {
	t.Logf("-crash-seed=%d", *crashSeed)
	hit := map[wal.Step]int{}
	for i, pageSize := range []uint32{512, 4096, 65536} {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			crashRounds(t, pageSize, uint8(i%3), (*crashes+2)/3, *crashSeed+uint64(i), hit)
		})
	}
	t.Logf("crashes by step: %v", hit)
	for s := wal.StepRestartBackfill; s <= wal.StepPublished && *crashes >= 100; s++ {
		if hit[s] == 0 {
			t.Errorf("no crash at step %d", s)
		}
	}
}

func crashRounds(t *testing.T, pageSize uint32, autoVacuum uint8, want int, seed uint64, hit map[wal.Step]int) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := newWorkload(t, rnd, pageSize, autoVacuum)
	big := map[uint32]int{512: 5000, 4096: 1000, 65536: 40}[pageSize]
	cfg := childConfig{
		Role: "apply", DB: filepath.Join(dir, "db"),
		Transactions: filepath.Join(dir, "transactions"), Progress: filepath.Join(dir, "progress"), CrashedAt: filepath.Join(dir, "crashed"),
	}
	if err := CreateImage(cfg.DB, pageSize, autoVacuum, 0o600); err != nil {
		t.Fatal(err)
	}
	txns, err := os.Create(cfg.Transactions)
	if err != nil {
		t.Fatal(err)
	}
	defer txns.Close()
	add := func(tx transaction) {
		if err := writeTransaction(txns, tx); err != nil {
			t.Fatal(err)
		}
	}
	add(w.setup(t))
	runChild(t, cfg) // readers need the tables
	stop := func() {}
	got := 0
	for round := 0; got < want; round++ {
		switch round % 24 {
		case 0:
			stop = startReaders(t, cfg.DB, seed+uint64(round), 2)
		case 16:
			stop()
			deleteShm(t, cfg.DB)
		case 20:
			deleteShm(t, cfg.DB)
		}
		for range 3 + rnd.IntN(4) {
			add(w.step(t, big))
		}
		cfg.Seed = rnd.Uint64()
		cfg.Crash = wal.StepRestartBackfill + wal.Step(rnd.IntN(int(wal.StepPublished)))
		cfg.Countdown = 1 + rnd.IntN(2)
		if cfg.Crash == wal.StepIndexed {
			cfg.Countdown = 1 + rnd.IntN(60)
		}
		runChild(t, cfg)
		if b, err := os.ReadFile(cfg.CrashedAt); err == nil {
			hit[wal.Step(b[0])]++
			got++
			if err := os.Remove(cfg.CrashedAt); err != nil {
				t.Fatal(err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	stop()
	deleteShm(t, cfg.DB)
	cfg.Crash = 0
	runChild(t, cfg) // redoes the rest, and closes: SQLite copies all to the file
	w.restart(t)
	compareFiles(t, cfg.DB, w.path)
}

// deleteShm removes the wal-index, as if the machine had been restarted.
func deleteShm(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path + "-shm"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// runChild runs an applier, which is killed if cfg.Crash is set.
func runChild(t *testing.T, cfg childConfig) {
	t.Helper()
	cmd, out := child(t, cfg)
	err := cmd.Run()
	var exit *exec.ExitError
	if killed := errors.As(err, &exit) && !exit.Exited(); killed != (cfg.Crash != 0) || !killed && err != nil {
		t.Fatalf("applier: %v\n%s", err, out)
	}
}

// compareFiles compares two databases that nobody has open.
func compareFiles(t *testing.T, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != len(b) {
		t.Fatalf("got %d bytes, want %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("files differ at byte %d of %d", i, len(a))
		}
	}
}
