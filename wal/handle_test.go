package wal_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/wal"
)

type transaction struct {
	pages     []wal.Page
	pageCount uint32
}

// sqlTransactions runs statements, each its own transaction, on plain SQLite,
// starting with an empty database, and returns what they wrote to the log.
func sqlTransactions(t testing.TB, pageSize uint32, stmts ...string) []transaction {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	image, err := wal.EmptyDatabase(pageSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	db := openSQL(t, path)
	for _, stmt := range append([]string{"PRAGMA wal_autocheckpoint=0"}, stmts...) {
		if _, err := db.Exec(stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	r, err := wal.NewReader(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	var out []transaction
	for {
		c, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		pages, err := r.ReadPages(c)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, transaction{pages, c.PageCount})
	}
}

func openSQL(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

// workload are statements that write small and large transactions.
func workload(n int) []string {
	rnd := rand.New(rand.NewPCG(5, 6))
	stmts := []string{"CREATE TABLE t(k INTEGER PRIMARY KEY, v, data BLOB)", "CREATE INDEX t_v ON t(v)"}
	for i := range n {
		switch rnd.IntN(6) {
		case 0:
			stmts = append(stmts, "DELETE FROM t WHERE k % 3 = 0")
		case 1:
			stmts = append(stmts, "UPDATE t SET v = v + 1")
		default:
			stmts = append(stmts, fmt.Sprintf("INSERT INTO t(v, data) VALUES(%d, randomblob(%d))", i, rnd.IntN(20000)))
		}
	}
	return append(stmts, "VACUUM", "INSERT INTO t(v) VALUES(-1)")
}

func newMemory(t testing.TB, pageSize uint32, opts wal.Options) *wal.Memory {
	t.Helper()
	image, err := wal.EmptyDatabase(pageSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	return wal.NewMemory(image, opts)
}

func begin(t testing.TB, m *wal.Memory) *wal.Txn {
	t.Helper()
	txn, err := m.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return txn
}

func apply(t testing.TB, m *wal.Memory, tx transaction) wal.Fingerprint {
	t.Helper()
	txn := begin(t, m)
	f, err := txn.Append(tx.pages, tx.pageCount)
	if err != nil {
		t.Fatal(err)
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	return f
}

// mirror is a database as its transactions made it.
type mirror struct {
	pageSize uint32
	image    []byte
}

func (m *mirror) apply(tx transaction) {
	size := int(tx.pageCount * m.pageSize)
	if size > len(m.image) {
		m.image = append(m.image, make([]byte, size-len(m.image))...)
	}
	for _, p := range tx.pages {
		copy(m.image[(p.Pgno-1)*m.pageSize:], p.Data)
	}
	m.image = m.image[:size]
}

// export writes db and log of m to files, without a wal-index, lets SQLite
// recover them and returns the database file after a checkpoint.
func export(t testing.TB, m *wal.Memory) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(path, m.DB.Data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"-wal", m.WAL.Data, 0o600); err != nil {
		t.Fatal(err)
	}
	db := openSQL(t, path)
	var ok string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Fatalf("integrity check: %s, %v", ok, err)
	}
	if _, err := db.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type pageReader interface {
	ReadPage(pgno uint32, buf []byte) error
	PageCount() uint32
	PageSize() uint32
}

// same compares every page that r reads with the mirror.
func same(t testing.TB, r pageReader, want *mirror) {
	t.Helper()
	if r.PageSize() != want.pageSize || int(r.PageCount()*r.PageSize()) != len(want.image) {
		t.Fatalf("got %d pages of %d, want %d bytes", r.PageCount(), r.PageSize(), len(want.image))
	}
	buf := make([]byte, want.pageSize)
	for pgno := uint32(1); pgno <= r.PageCount(); pgno++ {
		if err := r.ReadPage(pgno, buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, want.image[(pgno-1)*want.pageSize:][:want.pageSize]) {
			t.Fatalf("page %d differs", pgno)
		}
	}
}

func TestAppendedLogIsWhatSQLiteReads(t *testing.T) {
	for _, pageSize := range []uint32{512, 1024, 4096, 65536} {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			m := newMemory(t, pageSize, wal.Options{})
			want := &mirror{pageSize, bytes.Clone(m.DB.Data)}
			change := uint32(0)
			for i, tx := range sqlTransactions(t, pageSize, workload(60)...) {
				f := apply(t, m, tx)
				want.apply(tx)
				if change++; f.Change != change || f.PageCount != tx.pageCount {
					t.Fatalf("transaction %d: got %v", i, f)
				}
				switch i % 11 {
				case 3:
					if err := m.Checkpoint(); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(m.DB.Data, want.image) {
						t.Fatalf("transaction %d: file differs after a checkpoint", i)
					}
				case 4:
					if f.MaxFrame != uint32(len(tx.pages)) {
						t.Fatalf("transaction %d: the log was not restarted: %v", i, f)
					}
				case 6:
					m.Shm.Regions = nil // as after a restart of the machine
					change = 0
				case 9:
					if got := export(t, m); !bytes.Equal(got, want.image) {
						t.Fatalf("transaction %d: SQLite recovers another database", i)
					}
				}
				txn := begin(t, m)
				same(t, txn, want)
				if !txn.Fingerprint().Matches(f) {
					t.Fatalf("transaction %d: got %v, want %v", i, txn.Fingerprint(), f)
				}
				if err := txn.End(); err != nil {
					t.Fatal(err)
				}
				snap, err := m.Pin()
				if err != nil {
					t.Fatal(err)
				}
				same(t, snap, want)
				if err := snap.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if got := export(t, m); !bytes.Equal(got, want.image) {
				t.Fatal("SQLite recovers another database")
			}
			if m.WAL.Largest > wal.MaxWrite {
				t.Fatalf("a write of %d bytes, at most %d are allowed", m.WAL.Largest, wal.MaxWrite)
			}
			if m.Locks.Held() {
				t.Fatal("a lock is still held")
			}
		})
	}
}

func TestAppendOverSeveralHashRegions(t *testing.T) {
	m := newMemory(t, 512, wal.Options{})
	want := &mirror{512, bytes.Clone(m.DB.Data)}
	for _, tx := range sqlTransactions(t, 512,
		"CREATE TABLE t(a, data)",
		"INSERT INTO t VALUES(1, randomblob(3000000))", // 5 900 frames
		"UPDATE t SET data = randomblob(3100000)",
		"INSERT INTO t VALUES(2, NULL)",
	) {
		apply(t, m, tx)
		want.apply(tx)
		txn := begin(t, m)
		same(t, txn, want)
		if err := txn.End(); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.Shm.Regions) < 3 {
		t.Fatalf("the log has %d regions, want 3 at least", len(m.Shm.Regions))
	}
	if got := export(t, m); !bytes.Equal(got, want.image) {
		t.Fatal("SQLite recovers another database")
	}
}

// TestFailedAppendLeavesNothing tears the writes of a transaction at every place
// and checks that nobody sees it, now or after a recovery, and that the next
// attempt succeeds.
func TestFailedAppendLeavesNothing(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(randomblob(3000))", "INSERT INTO t VALUES(2)")
	for _, restarted := range []bool{false, true} {
		setup := func() (*wal.Memory, *mirror) {
			m := newMemory(t, 512, wal.Options{})
			want := &mirror{512, bytes.Clone(m.DB.Data)}
			for _, tx := range txns[:2] {
				apply(t, m, tx)
				want.apply(tx)
			}
			if restarted {
				if err := m.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
			return m, want
		}
		for limit := 1; ; limit += 97 {
			m, want := setup()
			before, _, _, err := m.Peek()
			if err != nil {
				t.Fatal(err)
			}
			m.WAL.FailAfter = limit
			txn := begin(t, m)
			_, err = txn.Append(txns[2].pages, txns[2].pageCount)
			if err == nil {
				if limit < 1000 {
					t.Fatalf("a log torn after %d bytes: no error", limit)
				}
				break
			}
			if !errors.Is(err, wal.ErrMemory) {
				t.Fatal(err)
			}
			same(t, txn, want)
			if got := txn.Fingerprint(); got.Change != before.Change || got.PageCount != before.PageCount {
				t.Fatalf("got %v, want %v", got, before)
			}
			if err := txn.End(); err != nil {
				t.Fatal(err)
			}
			m.WAL.Heal()
			if got := export(t, m); !bytes.Equal(got, want.image) {
				t.Fatalf("torn after %d bytes: SQLite recovers another database", limit)
			}
			for _, tx := range txns[2:] {
				apply(t, m, tx)
				want.apply(tx)
			}
			if got := export(t, m); !bytes.Equal(got, want.image) {
				t.Fatalf("torn after %d bytes, then redone: SQLite recovers another database", limit)
			}
		}
	}
}

// TestKilledAppend ends an append at every step, as a kill does, and goes on with
// another handle on the same files.
func TestKilledAppend(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(randomblob(30000))", "INSERT INTO t VALUES(2)")
	type killed struct{}
	for step := wal.StepRestartBackfill; step <= wal.StepPublished; step++ {
		for _, other := range []bool{false, true} { // what comes next: the same transaction or another
			countdown := -1
			m := newMemory(t, 512, wal.Options{Step: func(s wal.Step) {
				if s == step {
					if countdown--; countdown == 0 {
						panic(killed{})
					}
				}
			}})
			want := &mirror{512, bytes.Clone(m.DB.Data)}
			for _, tx := range txns[:2] {
				apply(t, m, tx)
				want.apply(tx)
			}
			if step <= wal.StepHeader {
				if err := m.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
			countdown = 1
			if step == wal.StepIndexed {
				countdown = 20
			}
			func() {
				defer func() {
					if _, ok := recover().(killed); !ok {
						t.Fatalf("step %d was not reached", step)
					}
				}()
				txn := begin(t, m)
				_, _ = txn.Append(txns[2].pages, txns[2].pageCount)
			}()
			// The locks go with the process.
			next := &wal.Memory{}
			next.DB.Data, next.WAL.Data, next.Shm.Regions = m.DB.Data, m.WAL.Data, m.Shm.Regions
			next.Handle = wal.NewHandle(&next.DB, &next.WAL, &next.Shm, &next.Locks, wal.Options{Recover: next.Recover})
			if step == wal.StepPublished {
				want.apply(txns[2])
			}
			txn := begin(t, next)
			// Dead between the copies of the header, it is found by recovery, and
			// then the transaction is there: that is as good as published.
			if step == wal.StepBetween {
				want.apply(txns[2])
			}
			same(t, txn, want)
			if err := txn.End(); err != nil {
				t.Fatal(err)
			}
			if !other {
				apply(t, next, txns[2])
				want.apply(txns[2])
				apply(t, next, txns[3])
				want.apply(txns[3])
			} else {
				apply(t, next, txns[1])
				want.apply(txns[1])
			}
			txn = begin(t, next)
			same(t, txn, want)
			if got, want := next.Entries(), txn.Fingerprint().MaxFrame; got != want {
				t.Fatalf("step %d: %d entries in the hash table for %d frames", step, got, want)
			}
			if err := txn.End(); err != nil {
				t.Fatal(err)
			}
			if !other {
				if got := export(t, next); !bytes.Equal(got, want.image) {
					t.Fatalf("step %d: SQLite recovers another database", step)
				}
			}
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	m := newMemory(t, 1024, wal.Options{})
	page := make([]byte, 1024)
	txn := begin(t, m)
	for _, tc := range []struct {
		name  string
		pages []wal.Page
		count uint32
		want  error
	}{
		{"no pages", nil, 1, wal.ErrInvalid},
		{"an empty database", []wal.Page{{Pgno: 1, Data: page}}, 0, wal.ErrInvalid},
		{"page 0", []wal.Page{{Pgno: 0, Data: page}}, 1, wal.ErrInvalid},
		{"a page beyond the end", []wal.Page{{Pgno: 3, Data: page}}, 2, wal.ErrInvalid},
		{"another page size", []wal.Page{{Pgno: 1, Data: make([]byte, 4096)}}, 1, wal.ErrPageSize},
		{"pages of two sizes", []wal.Page{{Pgno: 1, Data: page}, {Pgno: 2, Data: page[:512]}}, 2, wal.ErrPageSize},
	} {
		if _, err := txn.Append(tc.pages, tc.count); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if len(m.WAL.Data) != 0 {
		t.Errorf("%d bytes were written", len(m.WAL.Data))
	}
	m.Shm.Limit = 1
	pages := make([]wal.Page, 5000)
	for i := range pages {
		pages[i] = wal.Page{Pgno: 1, Data: page}
	}
	if _, err := txn.Append(pages, 1); !errors.Is(err, io.ErrShortWrite) || len(m.WAL.Data) != 0 {
		t.Errorf("a wal-index that cannot grow: got %v and a log of %d bytes", err, len(m.WAL.Data))
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	if _, err := txn.Append([]wal.Page{{Pgno: 1, Data: page}}, 1); !errors.Is(err, wal.ErrClosed) {
		t.Errorf("after the end: got %v, want ErrClosed", err)
	}
}

// recorder writes down the calls of a File.
type recorder struct {
	*wal.MemoryFile
	calls []string
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.calls = append(r.calls, fmt.Sprintf("write %d+%d", off, len(p)))
	return r.MemoryFile.WriteAt(p, off)
}

func (r *recorder) Sync() error {
	r.calls = append(r.calls, "sync")
	return r.MemoryFile.Sync()
}

func TestHeaderIsSyncedBeforeTheFramesAndNothingElse(t *testing.T) {
	m := newMemory(t, 512, wal.Options{})
	rec := &recorder{MemoryFile: &m.WAL}
	m.Handle = wal.NewHandle(&m.DB, rec, &m.Shm, &m.Locks, wal.Options{Recover: m.Recover})
	page := func(pgno uint32) wal.Page { return wal.Page{Pgno: pgno, Data: make([]byte, 512)} }
	for i, want := range [][]string{
		{"write 0+32", "sync", "write 32+1072"},
		{"write 1104+536"},
		{"write 0+32", "sync", "write 32+536"}, // after a checkpoint
	} {
		if i == 2 {
			if err := m.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		rec.calls = nil
		apply(t, m, transaction{[]wal.Page{page(1), page(2)}[min(i, 1):], 2})
		if fmt.Sprint(rec.calls) != fmt.Sprint(want) {
			t.Errorf("transaction %d: got %v, want %v", i, rec.calls, want)
		}
	}
}

func TestLogIsNotRestartedUnderItsReaders(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)")
	for slot := 3; slot <= 7; slot++ {
		m := newMemory(t, 512, wal.Options{})
		apply(t, m, txns[0])
		if err := m.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		if err := m.Locks.Lock(slot, 1, wal.Shared); err != nil {
			t.Fatal(err)
		}
		before, _, _, _ := m.Peek()
		f := apply(t, m, txns[1])
		// Readers of slot 3 read the file only.
		if restarted := f.Salt1 != before.Salt1; restarted != (slot == 3) {
			t.Errorf("reader in slot %d: restarted %v", slot, restarted)
		}
		if err := m.Locks.Unlock(slot, 1, wal.Shared); err != nil {
			t.Fatal(err)
		}
		if m.Locks.Held() {
			t.Error("a lock is still held")
		}
	}
	m := newMemory(t, 512, wal.Options{})
	apply(t, m, txns[0])
	if err := m.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := m.Locks.Lock(3, 1, wal.Exclusive); err != nil { // as a checkpoint that copies
		t.Fatal(err)
	}
	if f := apply(t, m, txns[1]); f.MaxFrame != uint32(len(txns[0].pages)+len(txns[1].pages)) {
		t.Errorf("restarted during a checkpoint: %v", f)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, pages := range []int{2, 78} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			m := newMemory(b, 4096, wal.Options{})
			m.WAL.Data = make([]byte, 0, 64<<20)
			tx := transaction{pageCount: 1000}
			for i := range pages {
				tx.pages = append(tx.pages, wal.Page{Pgno: uint32(i + 1), Data: make([]byte, 4096)})
			}
			b.SetBytes(int64(pages * 4096))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if f := apply(b, m, tx); f.MaxFrame > 10000 {
					m.WAL.Data = m.WAL.Data[:0]
					m.Shm.Regions = nil
				}
			}
		})
	}
}
