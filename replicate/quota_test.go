package replicate

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

func TestQuotaPatterns(t *testing.T) {
	for _, row := range []struct {
		pattern, name string
		want          bool
	}{
		{"acme/*", "acme/plan-7", true},
		{"acme/*", "acme/a/b", true}, // no slash gets around it
		{"acme/*", "acme", false},
		{"acme/*", "acme/", true},
		{"*", "anything/at.all", true},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"shop.db", "shop.db", true},
		{"shop.db", "shop.db2", false},
		{"*.db", "a/b.db", true},
		{"*.db", "a.db/b", false},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "a-c-b", false},
		{"a**b", "ab", true},
		{"?/x", "é/x", true},
		{"?/x", "ab/x", false},
		{"??", "日本", true},
		{"a?", "a", false},
		{"*?", "", false},
		{"t-*-?", "t-a-b-c", true},
	} {
		q := Quota{Pattern: row.pattern}
		if got := q.matches(row.name); got != row.want {
			t.Errorf("%q matches %q: got %v, want %v", row.pattern, row.name, got, row.want)
		}
	}
}

func TestFirstQuotaThatMatchesCounts(t *testing.T) {
	q := newQuotas([]Quota{{Pattern: "acme/big/*", Databases: 1}, {Pattern: "acme/*", Databases: 2}})
	q.recount([]DatabaseState{{Name: "acme/big/1"}, {Name: "acme/1"}, {Name: "other"}})
	admitted := func(name string) bool {
		done, err := q.admit(name)
		if err != nil {
			if !errors.Is(err, ErrQuota) {
				t.Errorf("%s: %v is no ErrQuota", name, err)
			}
			return false
		}
		done()
		return true
	}
	for name, want := range map[string]bool{"acme/big/2": false, "acme/2": true, "other/2": true} {
		if got := admitted(name); got != want {
			t.Errorf("%s admitted: got %v, want %v", name, got, want)
		}
	}
	q.count("acme/2", 1)
	if admitted("acme/3") {
		t.Error("a third of two was admitted")
	}
	q.count("acme/1", -1)
	q.count("other", -1)
	if !admitted("acme/3") {
		t.Error("the place of a deleted database was not given to another")
	}
	if use := q.use(); use[0].Used != 1 || use[1].Used != 1 {
		t.Errorf("use %+v", use)
	}
}

// Requests that are on their way hold their places: no more are admitted than there is room for, and one that was
// decided is not counted twice.
func TestQuotaPlacesAreHeld(t *testing.T) {
	const room, requests = 10, 200
	q := newQuotas([]Quota{{Pattern: "*", Databases: room}})
	var mu sync.Mutex
	decided := 0
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			name := fmt.Sprint("db", i/2) // two ask for each
			done, err := q.admit(name)
			if err != nil {
				return
			}
			defer done()
			mu.Lock()
			defer mu.Unlock()
			if i%2 == 0 {
				q.count(name, 1)
				decided++
			}
		})
	}
	wg.Wait()
	if decided > room {
		t.Errorf("%d of %d were admitted", decided, room)
	}
	if n := q.use()[0].Used; n != decided || len(q.creating) != 0 {
		t.Errorf("%d counted, %d decided, %d places still held", n, decided, len(q.creating))
	}
	for i := range room - decided { // all that is left is free
		done, err := q.admit(fmt.Sprint("late", i))
		if err != nil {
			t.Fatalf("place %d of %d: %v", i, room-decided, err)
		}
		defer done()
	}
	if _, err := q.admit("one more"); !errors.Is(err, ErrQuota) {
		t.Errorf("one more: %v", err)
	}
}

func TestQuotaSizes(t *testing.T) {
	q := &Quota{Pattern: "*", Size: 100 * 4096, Transaction: 10 * 4096}
	for _, row := range []struct {
		name string
		err  error
		full bool
	}{
		{"grows up to it", q.admitSize(4096, 90, 100), false},
		{"grows past it", q.admitSize(4096, 90, 101), true},
		{"is past it and shrinks", q.admitSize(4096, 200, 150), false},
		{"is past it and stays", q.admitSize(4096, 200, 200), false},
		{"is past it and grows", q.admitSize(4096, 200, 201), true},
		{"other page size", q.admitSize(8192, 50, 51), true},
		{"more than 4 GiB", (&Quota{Size: 1 << 40}).admitSize(65536, 1, 1<<25), true},
		{"transaction of that size", q.admitTransaction(10 * 4096), false},
		{"a larger one", q.admitTransaction(10*4096 + 1), true},
		{"no limits", (&Quota{Databases: 1}).admitSize(65536, 1, 1<<31), false},
		{"no quota", (*Quota)(nil).admitSize(65536, 1, 1<<31), false},
		{"no quota for transactions", (*Quota)(nil).admitTransaction(1 << 60), false},
	} {
		if got := errors.Is(row.err, ErrQuota); got != row.full {
			t.Errorf("%s: %v", row.name, row.err)
		}
	}
}
