package archive

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A damaged database that had the name before is not in the way of one that is asked for by its id.
func TestADamagedNamesakeIsNotInTheWay(t *testing.T) {
	ctx := t.Context()
	m := newMemoryStore()
	a := claim(t, m, nil)
	ids := []Identity{testID, testID}
	ids[1].Database = strings.Repeat("e", 32)
	for _, id := range ids {
		w, err := a.Writer(ctx, id, WriterOptions{})
		if err == nil {
			c := &counter{t: t}
			err = w.Append(ctx, c.commits(3, epoch, time.Second))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	bad := a.seqKey(ids[0].dir(), manifestDir, 0)
	m.objs[bad].b[20] ^= 1
	of := func(database string) func(Identity) bool {
		return func(id Identity) bool { return id.Database == database }
	}
	good, err := a.Views(ctx, testID.Name, of(ids[1].Database))
	if err != nil || good.Damaged() != nil || len(good.List) != 1 || good.List[0].state.Database != ids[1].Database || good.List[0].Last().TXID != 3 {
		t.Fatalf("%+v, %v", good, err)
	}
	sum := good.List[0].Last().Checksum
	var at *ObjectError
	if _, err := a.Views(ctx, testID.Name, of(ids[0].Database)); !errors.As(err, &at) || at.Key != bad {
		t.Errorf("the damaged one: %v", err)
	}
	if _, err := a.Views(ctx, testID.Name, of(strings.Repeat("f", 32))); !errors.Is(err, ErrNoDatabase) {
		t.Errorf("none: %v", err)
	}
	all, err := a.Views(ctx, testID.Name, nil)
	if err != nil || len(all.List) != 1 {
		t.Fatalf("all: %+v, %v", all, err)
	}
	for _, views := range []Views{all, all.Of(ids[1].Database)} {
		if v, p, err := FindState(ctx, views, 3, sum); err != nil || v.state.Database != ids[1].Database || p.TXID != 3 {
			t.Errorf("by its checksum: %+v, %v", p, err)
		}
	}
	for what, err := range map[string]error{
		"by name":             func() error { _, err := all.All(); return err }(),
		"by a number":         func() error { _, _, err := FindState(ctx, all, 3, 0); return err }(),
		"no other one has it": func() error { _, _, err := FindState(ctx, all, 3, sum+1); return err }(),
		"it is named":         func() error { _, _, err := FindState(ctx, all.Of(ids[0].Database), 3, sum); return err }(),
	} {
		if !errors.As(err, &at) || at.Key != bad || errors.Is(err, ErrNotArchived) || strings.HasPrefix(what, "by") && !strings.Contains(err.Error(), "bookmark") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := FindState(ctx, all.Of(ids[1].Database), 3, sum+1); !errors.Is(err, ErrNotArchived) || errors.Is(err, ErrDamaged) {
		t.Errorf("of another history: %v", err)
	}
	// Nor is one of which the list of commits is damaged.
	segmented := good.List[0].state.clone()
	segmented.Database, segmented.Recent, segmented.Segments = ids[0].Database, nil, []Segment{{MinTXID: 1, MaxTXID: 3, Count: 3}}
	lost := &View{Archive: a, state: segmented, dir: ids[0].dir(), segments: map[uint64][]Object{}}
	if v, _, err := FindState(ctx, Views{List: []*View{lost, good.List[0]}}, 3, sum); err != nil || v.state.Database != ids[1].Database {
		t.Errorf("behind one of which the list of commits is damaged: %v", err)
	}
	if _, _, err := FindState(ctx, Views{List: []*View{lost, good.List[0]}}, 3, 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("by a number, behind one of which the list of commits is damaged: %v", err)
	}
}
