package archive

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	commitsFlag = flag.Int("commits", 24, "random commits of each database that is restored at every transaction")
	everyFlag   = flag.Bool("every", false, "restore every transaction in every way after every step, not in one way drawn at random")
)

// Every transaction, restored from every level after every compaction, is the
// recorded image, and so is every time.
func TestEveryTransactionIsRestoredFromEveryLevel(t *testing.T) {
	for i, pageSize := range []uint32{512, 4096, 65536} {
		for autoVacuum := range 3 {
			t.Run(fmt.Sprintf("pages of %d, auto_vacuum %d", pageSize, autoVacuum), func(t *testing.T) {
				testLevels(t, uint64(10*i+autoVacuum), pageSize, autoVacuum)
			})
		}
	}
}

func testLevels(t *testing.T, seed uint64, pageSize uint32, autoVacuum int) {
	ctx := t.Context()
	r := newRecorder(t, seed, pageSize, autoVacuum)
	a := claim(t, openDir(t), nil)
	w := openWriter(t, a, quick())
	sent, restores, levels := 0, 0, map[int]bool{}
	check := func(when string) {
		t.Helper()
		v, err := a.Load(ctx, testID)
		if err != nil {
			t.Fatal(err)
		}
		if lost, bad := v.state.unreachable(); bad {
			t.Fatalf("%s: nothing leads to %s of level %d", when, lost.name(), lost.Level)
		}
		if err := v.Commits(ctx, 0, func(p Point) error {
			drawn := r.rand.IntN(2 * (TopLevel + 1))
			for level := range TopLevel + 1 {
				for i, snapshots := range []bool{true, false} {
					if !*everyFlag && 2*level+i != drawn {
						continue
					}
					plan, err := v.plan(ctx, p, level, snapshots)
					if errors.Is(err, ErrDamaged) && (level < TopLevel || !snapshots) {
						continue // without the others nothing leads there any more
					}
					if err != nil {
						return err
					}
					for _, o := range plan.Objects {
						levels[o.Level] = true
					}
					got, err := restorePlan(ctx, v, plan)
					if err != nil {
						return err
					}
					restores++
					if !bytes.Equal(got, r.images[p.TXID-1]) {
						return fmt.Errorf("transaction %d restored from %d files of level %d is not the recorded one", p.TXID, len(plan.Objects), level)
					}
				}
			}
			return nil
		}); err != nil {
			t.Fatalf("seed %d, %s: %v", seed, when, err)
		}
		// Single commits are kept as long as promised.
		for _, c := range r.commits[:sent] {
			if c.Time < r.now.Add(-30*time.Second).UnixMicro() {
				continue
			}
			for _, d := range []int64{-1, 0, 1} {
				want := c.TXID
				if d < 0 {
					want--
				}
				p, dropped, err := v.At(ctx, time.UnixMicro(c.Time+d))
				if want == 0 {
					var out *RangeError
					if !errors.As(err, &out) {
						t.Fatalf("before the first commit: %v", err)
					}
					continue
				}
				if err != nil || p.TXID != want && c.Time-1 > r.commits[want-1].Time && !dropped {
					t.Fatalf("seed %d, %s: at %d µs of commit %d: got %d, %v", seed, when, d, c.TXID, p.TXID, err)
				}
			}
		}
	}
	for len(r.commits) < *commitsFlag {
		for range 1 + r.rand.IntN(8) {
			r.step()
		}
		if err := w.Append(ctx, r.commits[sent:]); err != nil {
			t.Fatal(err)
		}
		sent = len(r.commits)
		check("after an upload")
		if err := w.Compact(ctx, r.now); err != nil {
			t.Fatal(err)
		}
		check("after compaction")
		if _, err := w.Retain(ctx, r.now); err != nil {
			t.Fatal(err)
		}
		check("after retention")
		if err := w.Manifest(ctx, r.rand.IntN(3) == 0); err != nil {
			t.Fatal(err)
		}
		check("after a manifest")
		if r.rand.IntN(4) == 0 {
			w = openWriter(t, a, quick())
		}
	}
	if *commitsFlag >= 300 {
		for _, level := range []int{0, 1, 2, 3, SnapshotLevel} {
			if !levels[level] {
				t.Errorf("no restore has used level %d", level)
			}
		}
	}
	t.Logf("%d commits, %d restores", len(r.commits), restores)
}
