package replicate

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// waitAnswer is what Wait returned.
type waitAnswer struct {
	verdict  Verdict
	position Position
	index    uint64
	err      error
}

func (s *script) ask(ctx context.Context, tx *Transaction) waitAnswer {
	v, p, i, err := s.f.Wait(ctx, tx.DB, tx.Pre.TXID, tx.ID, tx.Term)
	return waitAnswer{v, p, i, err}
}

// asking asks in the background.
func (s *script) asking(ctx context.Context, tx *Transaction) <-chan waitAnswer {
	done := make(chan waitAnswer, 1)
	go func() { done <- s.ask(ctx, tx) }()
	synctest.Wait()
	return done
}

func TestVerdictOfAnEntry(t *testing.T) {
	for _, test := range []struct {
		name string
		// play decides something about tx and returns the verdict to come.
		play func(s *script, tx *Transaction) Verdict
	}{
		{"accepted", func(s *script, tx *Transaction) Verdict {
			s.apply(tx)
			return VerdictAccepted
		}},
		{"refused when another entry took its place", func(s *script, tx *Transaction) Verdict {
			s.commit(tx.DB)
			return VerdictRefused
		}},
		{"refused when an entry equal in all but the id took its place", func(s *script, tx *Transaction) Verdict {
			other := *tx
			other.ID = NewEntryID()
			s.apply(&other)
			return VerdictRefused
		}},
		{"accepted when an equal entry came second", func(s *script, tx *Transaction) Verdict {
			other := *tx
			other.ID = NewEntryID()
			s.apply(tx)
			s.apply(&other)
			return VerdictAccepted
		}},
		{"refused when evaluated and rejected", func(s *script, tx *Transaction) Verdict {
			bad := *tx
			bad.CommitTime = 0
			s.apply(&bad)
			return VerdictRefused
		}},
		{"refused when a later term started", func(s *script, tx *Transaction) Verdict {
			s.startTerm()
			return VerdictRefused
		}},
		{"accepted before a later term started", func(s *script, tx *Transaction) Verdict {
			s.apply(tx)
			s.startTerm()
			return VerdictAccepted
		}},
		{"accepted even where sent a second time", func(s *script, tx *Transaction) Verdict {
			s.apply(tx)
			s.apply(tx)
			return VerdictAccepted
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScript(t, nil)
				id := s.create("shop.db")
				s.commit(id)
				tx := s.next(id)
				waiting := s.asking(t.Context(), tx)
				other := s.create("other.db")
				s.commit(other)
				select {
				case a := <-waiting:
					t.Fatalf("answered %+v before anything was decided", a)
				default:
				}
				want := test.play(s, tx)
				early, late := <-waiting, s.ask(t.Context(), tx)
				for when, a := range map[string]waitAnswer{"early": early, "late": late} {
					if a.verdict != want || a.err != nil || a.index == 0 {
						t.Errorf("asked %s: got %+v, want %v", when, a, want)
					}
					if want == VerdictAccepted && a.position != tx.Post {
						t.Errorf("asked %s: at %v, want %v", when, a.position, tx.Post)
					}
				}
				if n := len(s.f.wait.verdicts); n != 0 {
					t.Errorf("%d databases still waited for", n)
				}
			})
		})
	}
}

func TestVerdictIsUnknownWhenTheWaitEndsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, nil)
		tx := s.next(s.create("shop.db"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if a := s.ask(ctx, tx); a.verdict != VerdictUnknown || !errors.Is(a.err, context.DeadlineExceeded) {
			t.Fatalf("got %+v", a)
		}
		if len(s.f.wait.verdicts) != 0 {
			t.Fatal("who gave up is still waited for")
		}
	})
}

func TestVerdictWaitsForADatabaseThatThisNodeDoesNotKnowYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead, behind := newScript(t, nil), newScript(t, nil)
		tx := ahead.next(ahead.create("shop.db"))
		waiting := behind.asking(t.Context(), tx)
		behind.create("shop.db")
		behind.apply(tx)
		if a := <-waiting; a.verdict != VerdictAccepted {
			t.Fatalf("got %+v", a)
		}
	})
}

func TestVerdictOfAnEntryWhoseDatabaseIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, nil)
		id := s.create("shop.db")
		done, open := s.commit(id), s.next(id)
		waiting := s.asking(t.Context(), open)
		s.apply(&Delete{DB: id})
		if a := <-waiting; a.verdict != VerdictRefused || a.err != nil {
			t.Fatalf("open when it was deleted: got %+v, want refused", a)
		}
		for _, tx := range []*Transaction{done, open} {
			if a := s.ask(t.Context(), tx); a.verdict != VerdictUnknown || !errors.Is(a.err, ErrVerdictForgotten) {
				t.Fatalf("asked later: got %+v, want unknown", a)
			}
		}
	})
}

func TestVerdictsOfTheLast1024TransactionsAreKept(t *testing.T) {
	s := newScript(t, nil)
	id := s.create("shop.db")
	var all []*Transaction
	s.commit(id)
	doubled := s.commit(id)
	s.apply(doubled) // a second copy of an accepted entry does not make it a rejected one
	for range 2 * acceptedWindow {
		s.commit(id)
	}
	if a := s.ask(t.Context(), doubled); a.verdict != VerdictUnknown {
		t.Fatalf("entry sent twice: got %+v, want unknown", a)
	}
	all = all[:0]
	for range 2000 {
		all = append(all, s.commit(id))
	}
	for i, tx := range all {
		a := s.ask(t.Context(), tx)
		if i >= len(all)-acceptedWindow {
			if a.verdict != VerdictAccepted || a.position != tx.Post || a.err != nil {
				t.Fatalf("transaction %v: got %+v", tx.Post.TXID, a)
			}
		} else if a.verdict != VerdictUnknown || !errors.Is(a.err, ErrVerdictForgotten) {
			t.Fatalf("transaction %v: got %+v, want unknown", tx.Post.TXID, a)
		}
	}
}

func TestRejectedEntriesAreKeptUpToABound(t *testing.T) {
	var r rejectedRing
	ids := make([]EntryID, 3*rejectedWindow/2)
	for i := range ids {
		ids[i] = NewEntryID()
		r.add(ids[i], uint64(i))
		r.add(ids[i], 999999) // the first index stays
	}
	for i, id := range ids {
		index, ok := r.find(id)
		if want := i >= len(ids)-rejectedWindow; ok != want || ok && index != uint64(i) {
			t.Fatalf("entry %d: %d %v, want %v", i, index, ok, want)
		}
	}
	ordered := r.ordered()
	if len(ordered) != rejectedWindow || ordered[0].id != ids[len(ids)-rejectedWindow] || len(r.byID) != rejectedWindow {
		t.Fatalf("%d entries in order", len(ordered))
	}
}

// What is further back than the horizon counts nowhere, whether a node took a snapshot, and gave the memory back, or did
// not: two nodes decide alike, and their manifests are the same.
func TestEntriesBeyondTheHorizonAreForgottenAlike(t *testing.T) {
	s, other := newScript(t, nil), newScript(t, nil)
	id := s.create("shop.db")
	other.create("shop.db")
	var all []*Transaction
	for range 40 {
		all = append(all, s.commit(id))
		other.apply(all[len(all)-1])
	}
	snapshot := func(f *FSM) []byte { return manifestOf(t, f) }
	jump := func(to uint64) {
		for _, k := range []*script{s, other} {
			k.index = to - 1
			k.create("at " + strconv.FormatUint(to, 10))
		}
	}
	first := s.f.s.byID[id].accepted.entries[0].index
	for step, gone := range []int{0, 1, 25, 30, 40} {
		jump(first + acceptedHorizon - 1 + uint64(gone))
		for i, tx := range all {
			a := s.ask(t.Context(), tx)
			if want := i >= gone; want != (a.verdict == VerdictAccepted) || !want && !errors.Is(a.err, ErrVerdictForgotten) {
				t.Fatalf("step %d, transaction %d: %+v, kept: %v", step, i, a, want)
			}
			if _, ok := s.f.ChecksumAt(id, tx.Post.TXID); ok != (i >= gone || i == len(all)-1) {
				t.Fatalf("step %d, transaction %d: checksum known: %v", step, i, ok)
			}
		}
		if step%2 == 1 { // one of them gives memory back earlier
			snapshot(s.f)
		}
		// A second copy is judged alike.
		s.apply(all[29])
		other.apply(all[29])
		if !bytes.Equal(snapshot(restored(t, snapshot(s.f))), snapshot(other.f)) {
			t.Fatalf("step %d: the manifests differ", step)
		}
	}
	if e := s.f.s.byID[id].accepted.entries; e != nil {
		t.Errorf("%d entries are in memory", len(e))
	}
	if a := s.ask(t.Context(), s.commit(id)); a.verdict != VerdictAccepted {
		t.Errorf("the next transaction: %+v", a)
	}
}
