package archive

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// A plan whose objects are removed by retention is made anew; one whose objects are missing without it is not read twice,
// and says which; a state that went itself is told from both.
func TestAPlanIsMadeAnewWhereRetentionRemovesFiles(t *testing.T) {
	far := time.Now().Add(10000 * time.Hour)
	for what, tt := range map[string]struct {
		txid   uint64
		change func(w *Writer, plan *Plan) error
		calls  int
		err    error
	}{
		"nothing happens": {txid: 12, change: func(*Writer, *Plan) error { return nil }, calls: 1},
		"retention": {txid: 12, calls: 2, change: func(w *Writer, _ *Plan) error {
			err := w.Compact(t.Context(), far)
			n, removed := w.Retain(t.Context(), far)
			if n < 10 {
				t.Errorf("%d files went", n)
			}
			return errors.Join(err, removed)
		}},
		"the state goes, too": {txid: 5, calls: 1, err: ErrNotArchived, change: func(w *Writer, _ *Plan) error {
			err := w.Compact(t.Context(), far)
			_, removed := w.Retain(t.Context(), far)
			return errors.Join(err, removed)
		}},
		"an object is lost": {txid: 12, calls: 1, err: ErrDamaged, change: func(w *Writer, plan *Plan) error {
			return w.View().store.Delete(t.Context(), w.View().Key(plan.Objects[0]))
		}},
		"one is lost while others are added": {txid: 12, calls: 1, err: ErrDamaged, change: func(w *Writer, plan *Plan) error {
			return errors.Join(w.View().store.Delete(t.Context(), w.View().Key(plan.Objects[0])), w.Unlabel(t.Context(), "a"))
		}},
	} {
		t.Run(what, func(t *testing.T) {
			a := claim(t, openDir(t), nil)
			r := newRecorder(t, 8, 1024, 0)
			for len(r.commits) < 12 {
				r.step()
			}
			w := openWriter(t, a, WriterOptions{PackFrom: 1 << 20})
			if err := errors.Join(w.Append(t.Context(), r.commits), w.journal(t.Context(), change{kind: changeLabel, label: Label{Name: "a", TXID: 12}})); err != nil {
				t.Fatal(err)
			}
			v := w.View()
			p, err := v.PointOf(t.Context(), tt.txid)
			if err != nil {
				t.Fatal(err)
			}
			calls := 0
			key := ""
			var got memory
			err = v.Planned(t.Context(), p, func(v *View, plan *Plan) error {
				if calls++; calls == 1 {
					key = v.Key(plan.Objects[0])
					if err := tt.change(w, plan); err != nil {
						t.Fatal(err)
					}
				}
				got = memory{}
				return v.Restore(t.Context(), plan, &got, nil)
			})
			if calls != tt.calls || !errors.Is(err, tt.err) || tt.err == nil && (err != nil || string(got.b) != string(r.images[tt.txid-1])) {
				t.Errorf("%d calls, %v", calls, err)
			}
			if tt.err == ErrDamaged && !strings.Contains(err.Error(), key) {
				t.Errorf("%v does not name %s", err, key)
			}
		})
	}
}

func TestAgainIsBounded(t *testing.T) {
	for what, tt := range map[string]struct {
		key   func(call int) string
		cause error
		calls int
	}{
		"another object each time": {func(call int) string { return strings.Repeat("x", call) }, store.ErrNotFound, readAgain + 1},
		"the same one":             {func(int) string { return "x" }, store.ErrNotFound, 2},
		"one that is damaged":      {func(int) string { return "x" }, storetest.ErrInjected, 1},
	} {
		calls := 0
		err := Again(t.Context(), func() error {
			calls++
			return damaged(tt.key(calls), "%w", tt.cause)
		})
		if calls != tt.calls || !errors.Is(err, tt.cause) {
			t.Errorf("%s: %d calls, %v", what, calls, err)
		}
	}
}
