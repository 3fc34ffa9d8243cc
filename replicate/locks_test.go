package replicate

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	handles atomic.Uint64
	lockDB  = DatabaseID{1}
	alice   = Owner{Node: "n1", Handle: 1}
	bob     = Owner{Node: "n2", Handle: 1}
	carol   = Owner{Node: "n3", Handle: 7}
)

const testLease = 10 * time.Second

func openTable() *LockTable {
	t := NewLockTable(nil, testLease)
	t.Open(0)
	return t
}

func mustAcquire(t *testing.T, table *LockTable, owner Owner) {
	t.Helper()
	if err := table.Acquire(t.Context(), lockDB, owner); err != nil {
		t.Fatalf("acquire for %v: %v", owner, err)
	}
}

// start acquires in the background; the result arrives in the channel.
func start(ctx context.Context, table *LockTable, owner Owner) <-chan error {
	done := make(chan error, 1)
	go func() { done <- table.Acquire(ctx, lockDB, owner) }()
	synctest.Wait()
	return done
}

func wantHolder(t *testing.T, table *LockTable, want Owner) {
	t.Helper()
	if got, _, ok := table.Holder(lockDB); !ok || got != want {
		t.Fatalf("holder: got %v (%v), want %v", got, ok, want)
	}
}

func wantFree(t *testing.T, table *LockTable) {
	t.Helper()
	if got, _, ok := table.Holder(lockDB); ok {
		t.Fatalf("holder: got %v, want none", got)
	}
}

func wantTableEmpty(t *testing.T, table *LockTable) {
	t.Helper()
	if n := len(table.locks); n != 0 {
		t.Fatalf("%d locks left in the table", n)
	}
}

func TestLockIsGrantedInTheOrderOfAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		b := start(t.Context(), table, bob)
		c := start(t.Context(), table, carol)
		a := start(t.Context(), table, Owner{"n1", 2})
		if got := table.Waiting(lockDB); got != 3 {
			t.Fatalf("waiting: got %d, want 3", got)
		}
		for _, step := range []struct {
			release Owner
			granted <-chan error
			next    Owner
		}{{alice, b, bob}, {bob, c, carol}, {carol, a, Owner{"n1", 2}}} {
			table.Release(lockDB, step.release)
			if err := <-step.granted; err != nil {
				t.Fatal(err)
			}
			wantHolder(t, table, step.next)
		}
		table.Release(lockDB, Owner{"n1", 2})
		wantFree(t, table)
		wantTableEmpty(t, table)
	})
}

func TestLockIsNotGrantedTwiceWhileAnotherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		b := start(t.Context(), table, bob)
		table.Release(lockDB, alice)
		a := start(t.Context(), table, alice)
		if err := <-b; err != nil {
			t.Fatal(err)
		}
		table.Release(lockDB, bob)
		if err := <-a; err != nil {
			t.Fatal(err)
		}
	})
}

func TestLockHeldAlreadyIsGrantedAgainToItsHolder(t *testing.T) {
	table := openTable()
	mustAcquire(t, table, alice)
	mustAcquire(t, table, alice)
	table.Release(lockDB, alice)
	wantFree(t, table)
}

func TestWaitingWriterGetsBusyAtItsDeadlineAndKeepsItsPlaceForASecond(t *testing.T) {
	for _, test := range []struct {
		name      string
		back      time.Duration
		wantFirst Owner
	}{
		{"comes back within the second", 900 * time.Millisecond, bob},
		{"comes back too late", 1100 * time.Millisecond, carol},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := openTable()
				mustAcquire(t, table, alice)
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if err := table.Acquire(ctx, lockDB, bob); !errors.Is(err, ErrLockBusy) {
					t.Fatalf("got %v, want %v", err, ErrLockBusy)
				}
				c := start(t.Context(), table, carol)
				<-time.After(test.back)
				b := start(t.Context(), table, bob)
				table.Release(lockDB, alice)
				synctest.Wait()
				wantHolder(t, table, test.wantFirst)
				table.Release(lockDB, test.wantFirst)
				if err := errors.Join(<-b, <-c); err != nil {
					t.Fatal(err)
				}
				table.Release(lockDB, bob)
				table.Release(lockDB, carol)
				wantTableEmpty(t, table)
			})
		})
	}
}

func TestLockIsNotLeftIdleForAWriterThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_ = table.Acquire(ctx, lockDB, bob)
		c := start(t.Context(), table, carol)
		table.Release(lockDB, alice)
		if err := <-c; err != nil {
			t.Fatal(err)
		}
		table.Release(lockDB, carol)
		mustAcquire(t, table, alice)
		table.Release(lockDB, alice)
		<-time.After(2 * time.Second)
		synctest.Wait()
		wantTableEmpty(t, table)
	})
}

func TestCancelledWriterGivesUpItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		ctx, cancel := context.WithCancel(t.Context())
		b := start(ctx, table, bob)
		cancel()
		if err := <-b; !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want %v", err, context.Canceled)
		}
		table.Release(lockDB, alice)
		wantTableEmpty(t, table)
	})
}

func TestReservationKeepsOthersOutFor50Milliseconds(t *testing.T) {
	for _, test := range []struct {
		name string
		back time.Duration
		want Owner
	}{
		{"handle begins again in time", 40 * time.Millisecond, alice},
		{"handle is too late", 60 * time.Millisecond, bob},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := openTable()
				mustAcquire(t, table, alice)
				b := start(t.Context(), table, bob)
				table.ReleaseReserved(lockDB, alice)
				synctest.Wait()
				wantFree(t, table)
				<-time.After(test.back)
				a := start(t.Context(), table, alice)
				wantHolder(t, table, test.want)
				table.Release(lockDB, test.want)
				if err := errors.Join(<-a, <-b); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestReservationIsNotRenewedByItsOwnUseWhileAnotherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		b := start(t.Context(), table, bob)
		table.ReleaseReserved(lockDB, alice)
		mustAcquire(t, table, alice)
		table.ReleaseReserved(lockDB, alice)
		if err := <-b; err != nil {
			t.Fatal(err)
		}
		wantHolder(t, table, bob)
	})
}

func TestUnusedReservationLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		table.ReleaseReserved(lockDB, alice)
		<-time.After(time.Second)
		synctest.Wait()
		wantTableEmpty(t, table)
	})
}

func TestLeaseEndsOnlyWhileAnotherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		expired := make(chan Owner, 2)
		table.OnExpire = func(_ DatabaseID, o Owner, _ time.Duration) { expired <- o }
		mustAcquire(t, table, alice)
		<-time.After(time.Hour)
		synctest.Wait()
		if !table.Holds(lockDB, alice) {
			t.Fatal("lease ended although nobody waits")
		}
		table.Touch(lockDB, alice)
		began := time.Now()
		mustAcquire(t, table, bob)
		if waited := time.Since(began); waited != testLease {
			t.Fatalf("waited %v, want %v", waited, testLease)
		}
		if table.Holds(lockDB, alice) || table.CommitStarted(lockDB, alice) {
			t.Fatal("holder of an expired lease may commit")
		}
		table.Release(lockDB, alice) // of a lock it no longer holds
		wantHolder(t, table, bob)
		if got := <-expired; got != alice || len(expired) > 0 {
			t.Fatalf("heard of the lease of %v and %d more, want that of %v alone", got, len(expired), alice)
		}
	})
}

func TestLeaseBeginsAnewWithEverySignOfTheHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		b := start(t.Context(), table, bob)
		for range 10 {
			<-time.After(testLease - time.Second)
			table.Touch(lockDB, alice)
		}
		wantHolder(t, table, alice)
		began := time.Now()
		if err := <-b; err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != testLease {
			t.Fatalf("waited %v after the last sign, want %v", waited, testLease)
		}
	})
}

func TestLeaseDoesNotRunDuringACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		b := start(t.Context(), table, bob)
		<-time.After(testLease - time.Second)
		if !table.CommitStarted(lockDB, alice) {
			t.Fatal("holder may not commit")
		}
		<-time.After(10 * testLease)
		synctest.Wait()
		wantHolder(t, table, alice)
		table.CommitDone(lockDB, alice)
		began := time.Now()
		if err := <-b; err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != testLease {
			t.Fatalf("waited %v after the verdict, want %v", waited, testLease)
		}
	})
}

func TestHolderThatLeavesDuringItsCommitHoldsUntilTheVerdict(t *testing.T) {
	for name, leave := range map[string]func(*LockTable){
		"release":  func(l *LockTable) { l.Release(lockDB, alice) },
		"its node": func(l *LockTable) { l.DropNode(alice.Node) },
		"itself":   func(l *LockTable) { l.DropOwner(alice) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := openTable()
				mustAcquire(t, table, alice)
				table.CommitStarted(lockDB, alice)
				b := start(t.Context(), table, bob)
				leave(table)
				synctest.Wait()
				wantHolder(t, table, alice)
				table.CommitDone(lockDB, alice)
				if err := <-b; err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestResetAnswersAllWhoWaitAndGrantsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		b, c := start(t.Context(), table, bob), start(t.Context(), table, carol)
		table.Reset()
		for _, done := range []<-chan error{b, c} {
			if err := <-done; !errors.Is(err, ErrNotLeader) {
				t.Fatalf("got %v, want %v", err, ErrNotLeader)
			}
		}
		if table.Holds(lockDB, alice) {
			t.Fatal("lock outlived the leadership")
		}
		if err := table.Acquire(t.Context(), lockDB, alice); !errors.Is(err, ErrNotLeader) {
			t.Fatalf("got %v, want %v", err, ErrNotLeader)
		}
		if err := table.Reregister(lockDB, alice); !errors.Is(err, ErrNotLeader) {
			t.Fatalf("got %v, want %v", err, ErrNotLeader)
		}
		table.CommitDone(lockDB, alice)
		table.Release(lockDB, alice)
		table.Open(0)
		mustAcquire(t, table, bob)
	})
}

func TestHolderReregistersWithTheNewLeaderBeforeOthersAreGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewLockTable(nil, testLease)
		table.Open(500 * time.Millisecond)
		b := start(t.Context(), table, bob)
		<-time.After(100 * time.Millisecond)
		if err := table.Reregister(lockDB, alice); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		wantHolder(t, table, alice)
		if err := table.Reregister(lockDB, alice); err != nil {
			t.Fatal(err)
		}
		if err := table.Reregister(lockDB, carol); !errors.Is(err, ErrLockHeld) {
			t.Fatalf("got %v, want %v", err, ErrLockHeld)
		}
		table.Release(lockDB, alice)
		if err := <-b; err != nil {
			t.Fatal(err)
		}
	})
}

func TestQuietTimeOfANewLeaderEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewLockTable(nil, testLease)
		table.Open(500 * time.Millisecond)
		began := time.Now()
		mustAcquire(t, table, bob)
		if waited := time.Since(began); waited != 500*time.Millisecond {
			t.Fatalf("waited %v, want 500ms", waited)
		}
	})
}

func TestDropNodeReleasesHoldsWaitsAndReservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		other := DatabaseID{2}
		mustAcquire(t, table, alice)
		if err := table.Acquire(t.Context(), other, alice); err != nil {
			t.Fatal(err)
		}
		table.ReleaseReserved(other, alice)
		again := start(t.Context(), table, Owner{"n1", 9})
		b := start(t.Context(), table, bob)
		table.DropNode("n1")
		if err := <-again; !errors.Is(err, ErrOwnerGone) {
			t.Fatalf("got %v, want %v", err, ErrOwnerGone)
		}
		if err := <-b; err != nil {
			t.Fatal(err)
		}
		if err := table.Acquire(t.Context(), other, bob); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOfOneOwnerOnlyTheLastAcquireWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		mustAcquire(t, table, alice)
		first := start(t.Context(), table, bob)
		c := start(t.Context(), table, carol)
		second := start(t.Context(), table, bob)
		if err := <-first; !errors.Is(err, ErrOwnerGone) {
			t.Fatalf("got %v, want %v", err, ErrOwnerGone)
		}
		table.Release(lockDB, alice)
		if err := <-second; err != nil {
			t.Fatal("the second asking lost the place of the first:", err)
		}
		table.Release(lockDB, bob)
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	})
}

func TestNineWritersInALoopWaitAboutEquallyLong(t *testing.T) {
	for _, test := range []struct {
		name     string
		reserved bool // every second transaction ends in BUSY_SNAPSHOT first
	}{{"plain", false}, {"with reservations", true}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := openTable()
				waits := make(chan time.Duration, 9*200)
				done := make(chan struct{})
				for i := range 9 {
					owner := Owner{Node: []string{"n1", "n2", "n3"}[i%3], Handle: uint64(i)}
					work := time.Duration(200+50*i) * time.Microsecond
					go func() {
						defer func() { done <- struct{}{} }()
						for n := range 200 {
							began := time.Now()
							if err := table.Acquire(t.Context(), lockDB, owner); err != nil {
								t.Error(err)
								return
							}
							if test.reserved && n%2 == 1 {
								table.ReleaseReserved(lockDB, owner)
								<-time.After(2 * time.Millisecond)
								if err := table.Acquire(t.Context(), lockDB, owner); err != nil {
									t.Error(err)
									return
								}
							}
							waits <- time.Since(began)
							<-time.After(work)
							table.Release(lockDB, owner)
						}
					}()
				}
				for range 9 {
					<-done
				}
				close(waits)
				var all []time.Duration
				for w := range waits {
					all = append(all, w)
				}
				slices.Sort(all)
				median, longest := all[len(all)/2], all[len(all)-1]
				t.Logf("%d waits, median %v, longest %v", len(all), median, longest)
				if longest > 3*median {
					t.Fatalf("longest wait %v, median %v: want at most three times as long", longest, median)
				}
				wantTableEmpty(t, table)
			})
		})
	}
}

func BenchmarkLockUncontended(b *testing.B) {
	table := openTable()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if err := table.Acquire(ctx, lockDB, alice); err != nil {
			b.Fatal(err)
		}
		table.Release(lockDB, alice)
	}
}

func BenchmarkLockHandedOver(b *testing.B) {
	table := openTable()
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		owner := Owner{Node: "n", Handle: handles.Add(1)}
		for pb.Next() {
			if err := table.Acquire(ctx, lockDB, owner); err != nil {
				b.Error(err)
			}
			table.Release(lockDB, owner)
		}
	})
}

func TestLockHasOneHolderWhateverHappens(t *testing.T) {
	const seed = 7
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		table := openTable()
		var holders, grants, commits atomic.Int64
		done := make(chan struct{})
		for i := range 12 {
			owner := Owner{Node: []string{"n1", "n2", "n3"}[i%3], Handle: uint64(i)}
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			go func() {
				defer func() { done <- struct{}{} }()
				for range 300 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(20))*time.Millisecond)
					if r.IntN(10) == 0 {
						cancel()
					}
					err := table.Acquire(ctx, lockDB, owner)
					cancel()
					if err != nil {
						continue
					}
					grants.Add(1)
					if table.CommitStarted(lockDB, owner) { // until its end nobody else holds the lock
						commits.Add(1)
						if n := holders.Add(1); n != 1 {
							t.Errorf("%d holders", n)
						}
						<-time.After(time.Duration(r.IntN(3)) * time.Millisecond)
						holders.Add(-1)
						table.CommitDone(lockDB, owner)
					}
					switch r.IntN(12) {
					case 0: // forgets it: the lease must end
					case 1:
						table.DropNode(owner.Node)
					case 2:
						table.DropOwner(owner)
					case 3, 4:
						table.ReleaseReserved(lockDB, owner)
					default:
						table.Release(lockDB, owner)
					}
				}
			}()
		}
		for range 12 {
			<-done
		}
		t.Logf("%d grants, %d commits", grants.Load(), commits.Load())
		if commits.Load() < 100 {
			t.Fatal("hardly anything was granted")
		}
		for i := range 12 {
			table.DropOwner(Owner{Node: []string{"n1", "n2", "n3"}[i%3], Handle: uint64(i)})
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		wantTableEmpty(t, table)
	})
}

func TestALockIsKeptOnlyWhileNobodyWantsIt(t *testing.T) {
	for name, row := range map[string]struct {
		keep bool
		meet func(t *testing.T, table *LockTable)
		want bool
	}{
		"nobody waits":              {keep: true, want: true},
		"the owner does not ask":    {},
		"another waits":             {keep: true, meet: func(t *testing.T, table *LockTable) { start(t.Context(), table, bob) }},
		"another keeps its place":   {keep: true, meet: giveUp},
		"the owner is gone already": {keep: true, meet: func(_ *testing.T, table *LockTable) { table.DropOwner(alice) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := openTable()
				mustAcquire(t, table, alice)
				if !table.CommitStarted(lockDB, alice) {
					t.Fatal("the commit was refused")
				}
				if row.meet != nil {
					row.meet(t, table)
				}
				if got := table.Finish(lockDB, alice, row.keep); got != row.want {
					t.Fatalf("kept: %v, want %v", got, row.want)
				}
				if got := table.Holds(lockDB, alice); got != row.want {
					t.Fatalf("held: %v, want %v", got, row.want)
				}
				if !row.want {
					return
				}
				// Who asks now waits until the owner gives it back, or ends its next transaction.
				b := start(t.Context(), table, bob)
				wantHolder(t, table, alice)
				if !table.CommitStarted(lockDB, alice) || table.Finish(lockDB, alice, true) {
					t.Fatal("kept although another waits")
				}
				if err := <-b; err != nil {
					t.Fatal(err)
				}
				wantHolder(t, table, bob)
				table.Release(lockDB, bob)
				wantTableEmpty(t, table)
			})
		})
	}
}

// giveUp has bob wait for the lock and get BUSY: its place in the queue stays for a second.
func giveUp(t *testing.T, table *LockTable) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := table.Acquire(ctx, lockDB, bob); !errors.Is(err, ErrLockBusy) {
		t.Fatalf("got %v, want %v", err, ErrLockBusy)
	}
}
