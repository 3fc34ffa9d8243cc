package wal_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/uglyer/ha-sqlite/wal"
)

// pagesOf yields pages through one buffer, which is overwritten for each, and
// ends with end.
func pagesOf(pages []wal.Page, end error) func() (wal.Page, error) {
	var buf []byte
	return func() (wal.Page, error) {
		if len(pages) == 0 {
			clear(buf)
			return wal.Page{}, end
		}
		p := pages[0]
		pages = pages[1:]
		buf = append(buf[:0], p.Data...)
		return wal.Page{Pgno: p.Pgno, Data: buf}, nil
	}
}

func TestAppendFromWritesWhatAppendWrites(t *testing.T) {
	for _, pageSize := range []uint32{512, 4096, 65536} {
		m := newMemory(t, pageSize, wal.Options{})
		want := &mirror{pageSize, bytes.Clone(m.DB.Data)}
		for i, tx := range sqlTransactions(t, pageSize, workload(40)...) {
			txn := begin(t, m)
			old := make([]byte, pageSize)
			next := pagesOf(tx.pages, io.EOF)
			_, err := txn.AppendFrom(func() (wal.Page, error) {
				p, err := next()
				if err == nil && int(p.Pgno*pageSize) <= len(want.image) {
					if err := txn.ReadPage(p.Pgno, old); err != nil {
						return p, err
					}
					if !bytes.Equal(old, want.image[(p.Pgno-1)*pageSize:][:pageSize]) {
						t.Fatalf("page %d is not what it was before the transaction", p.Pgno)
					}
				}
				return p, err
			}, tx.pageCount)
			if err != nil {
				t.Fatal(err)
			}
			want.apply(tx)
			same(t, txn, want)
			if err := txn.End(); err != nil {
				t.Fatal(err)
			}
			if i%7 == 6 {
				if err := m.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := export(t, m); !bytes.Equal(got, want.image) {
			t.Fatalf("page size %d: SQLite recovers another database", pageSize)
		}
	}
}

// A transaction whose last word is an error leaves nothing, whatever was written of it.
func TestAppendFromThatEndsWithAnErrorLeavesNothing(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(3000000))", "INSERT INTO t VALUES(2)")
	m := newMemory(t, 512, wal.Options{})
	want := &mirror{512, bytes.Clone(m.DB.Data)}
	apply(t, m, txns[0])
	want.apply(txns[0])
	broken := errors.New("broken")
	for _, n := range []int{0, 1, 100, len(txns[1].pages)} {
		txn := begin(t, m)
		before := txn.Fingerprint()
		if _, err := txn.AppendFrom(pagesOf(txns[1].pages[:n], broken), txns[1].pageCount); !errors.Is(err, broken) {
			t.Fatalf("%d pages: got %v", n, err)
		}
		if txn.Fingerprint() != before {
			t.Fatalf("%d pages: the fingerprint moved", n)
		}
		same(t, txn, want)
		if err := txn.End(); err != nil {
			t.Fatal(err)
		}
		if got := export(t, m); !bytes.Equal(got, want.image) {
			t.Fatalf("%d pages: SQLite recovers another database", n)
		}
	}
	for _, tx := range txns[1:] {
		apply(t, m, tx)
		want.apply(tx)
	}
	if got := export(t, m); !bytes.Equal(got, want.image) {
		t.Fatal("redone: SQLite recovers another database")
	}
}

func TestAppendFromRefuses(t *testing.T) {
	page := func(pgno uint32, n int) wal.Page { return wal.Page{Pgno: pgno, Data: make([]byte, n)} }
	for _, tc := range []struct {
		name  string
		pages []wal.Page
		count uint32
		want  error
	}{
		{"no pages", nil, 1, wal.ErrInvalid},
		{"a database of 0 pages", []wal.Page{page(1, 512)}, 0, wal.ErrInvalid},
		{"a page beyond the end", []wal.Page{page(1, 512), page(3, 512)}, 2, wal.ErrInvalid},
		{"page 0", []wal.Page{page(1, 512), page(0, 512)}, 2, wal.ErrInvalid},
		{"a page of another size", []wal.Page{page(1, 512), page(2, 1024)}, 2, wal.ErrPageSize},
		{"pages of another size", []wal.Page{page(1, 1024)}, 2, wal.ErrPageSize},
	} {
		m := newMemory(t, 512, wal.Options{})
		txn := begin(t, m)
		if _, err := txn.AppendFrom(pagesOf(tc.pages, io.EOF), tc.count); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
		if err := txn.End(); err != nil {
			t.Fatal(err)
		}
		if txn = begin(t, m); txn.PageCount() != 1 {
			t.Errorf("%s: something was left behind", tc.name)
		}
		if _, err := txn.AppendFrom(pagesOf(nil, io.EOF), 1); !errors.Is(err, wal.ErrInvalid) {
			t.Error(err)
		}
		txn.End()
		if _, err := txn.AppendFrom(pagesOf(tc.pages, io.EOF), tc.count); !errors.Is(err, wal.ErrClosed) {
			t.Errorf("%s: after the end: %v", tc.name, err)
		}
	}
}

// check sees every page as it is in the log; when it refuses one, whichever, nothing of the transaction is left, also
// not for a recovery.
func TestAppendCheckedReadsBackWhatItWrote(t *testing.T) {
	txns := sqlTransactions(t, 512, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(400000))", "INSERT INTO t VALUES(2)")
	m := newMemory(t, 512, wal.Options{})
	want := &mirror{512, bytes.Clone(m.DB.Data)}
	apply(t, m, txns[0])
	want.apply(txns[0])
	big := txns[1].pages
	refused := errors.New("refused")
	for _, bad := range []int{0, 1, 300, len(big) - 2, len(big) - 1} {
		txn := begin(t, m)
		before := txn.Fingerprint()
		seen := 0
		_, err := txn.AppendChecked(pagesOf(big, io.EOF), func(pgno uint32, data []byte) error {
			if seen++; seen > bad {
				return refused
			}
			return nil
		}, txns[1].pageCount)
		if !errors.Is(err, refused) || seen != bad+1 {
			t.Fatalf("page %d of %d refused: got %v after %d pages", bad, len(big), err, seen)
		}
		if txn.Fingerprint() != before {
			t.Fatalf("page %d refused: the fingerprint moved", bad)
		}
		same(t, txn, want)
		if err := txn.End(); err != nil {
			t.Fatal(err)
		}
		if got := export(t, m); !bytes.Equal(got, want.image) {
			t.Fatalf("page %d refused: SQLite recovers another database", bad)
		}
	}
	txn := begin(t, m)
	seen := 0
	if _, err := txn.AppendChecked(pagesOf(big, io.EOF), func(pgno uint32, data []byte) error {
		if p := big[seen]; p.Pgno != pgno || !bytes.Equal(p.Data, data) {
			t.Errorf("page %d reads back otherwise", pgno)
		}
		seen++
		return nil
	}, txns[1].pageCount); err != nil || seen != len(big) {
		t.Fatalf("%v after %d of %d pages", err, seen, len(big))
	}
	want.apply(txns[1])
	same(t, txn, want)
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	if got := export(t, m); !bytes.Equal(got, want.image) {
		t.Fatal("SQLite recovers another database")
	}
}
