package archive

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// hooked is a store that tells of what is put and deleted before it happens.
type hooked struct {
	store.Store
	hook func(op, key string)
}

func (h *hooked) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	h.hook("put", key)
	return h.Store.Put(ctx, key, body, size, t)
}

func (h *hooked) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		h.hook("delete", key)
	}
	return h.Store.Delete(ctx, keys...)
}

// A writer stops before it enters something, for short or for long. Meanwhile another one writes manifests that have an
// entry of that number. What the first one goes on with is in no manifest: it must not say that it has done it, nor
// remove anything.
func TestAWriterThatWasPausedFindsThatAnotherOneWasHere(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(context.Context, *Writer) error
	}{
		{"label", func(ctx context.Context, w *Writer) error { _, err := w.Label(ctx, "kept"); return err }},
		{"unlabel", func(ctx context.Context, w *Writer) error { return w.Unlabel(ctx, "old") }},
		{"retention", func(ctx context.Context, w *Writer) error {
			_, err := w.Retain(ctx, time.Now().Add(40*24*time.Hour))
			return err
		}},
		{"commits", func(ctx context.Context, w *Writer) error {
			c := &counter{t: t, txid: w.Position()}
			return w.Append(ctx, c.commits(1, time.Now(), 0))
		}},
	} {
		for _, pause := range []time.Duration{time.Minute, 3 * time.Hour} {
			t.Run(tt.name+" after "+pause.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx := t.Context()
					m := newMemoryStore()
					s := &hooked{Store: m, hook: func(string, string) {}}
					c := &counter{t: t}
					one := openWriter(t, claim(t, s, nil), WriterOptions{})
					if err := one.Append(ctx, c.commits(20, time.Now(), time.Second)); err != nil {
						t.Fatal(err)
					}
					<-time.After(20 * time.Second)
					if err := one.Compact(ctx, time.Now().Add(2*time.Hour)); err != nil {
						t.Fatal(err)
					}
					if _, err := one.Label(ctx, "old"); err != nil {
						t.Fatal(err)
					}
					two := openWriter(t, claim(t, m, nil), WriterOptions{})
					stopped, goOn := make(chan struct{}), make(chan struct{})
					s.hook = func(op, key string) {
						if op == "put" && strings.Contains(key, journalDir) {
							s.hook = func(op, key string) {
								if op == "delete" {
									t.Errorf("%s is deleted", key)
								}
							}
							close(stopped)
							<-goOn
						}
					}
					done := make(chan error)
					go func() { done <- tt.do(ctx, one) }()
					<-stopped
					write := func() {
						if err := errors.Join(two.Append(ctx, c.commits(5, time.Now(), time.Second)), two.Manifest(ctx, true)); err != nil {
							t.Fatal(err)
						}
					}
					for range 3 {
						<-time.After(10 * time.Second)
						write()
					}
					<-time.After(pause)
					write()
					<-time.After(10 * time.Second)
					write()
					close(goOn)
					if err := <-done; !errors.Is(err, ErrForeign) {
						t.Errorf("got %v, want ErrForeign", err)
					}
					v, err := claim(t, m, nil).Load(ctx, testID)
					if err != nil || v.Last().TXID != 45 || len(v.state.Labels) != 1 {
						t.Fatalf("%+v, %v", v, err)
					}
					report, err := v.Verify(ctx, nil)
					if err != nil || len(report.Problems) > 0 {
						t.Errorf("%+v, %v", report, err)
					}
				})
			})
		}
	}
}

// Entries are not kept for ever, and it costs no request to make sure of them as long as commits come.
func TestNumbersOfEntriesAreKeptForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		m := newMemoryStore()
		s := storetest.NewFaulty(m, 1)
		c := &counter{t: t}
		w := openWriter(t, claim(t, s, nil), WriterOptions{})
		lists := s.Calls("list")
		for range 200 {
			<-time.After(time.Minute)
			if err := w.Append(ctx, c.commits(1, time.Now(), 0)); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Calls("list") - lists; n != 0 {
			t.Errorf("%d listings", n)
		}
		for range 200 {
			<-time.After(time.Minute)
			if err := errors.Join(w.Append(ctx, c.commits(1, time.Now(), 0)), w.Manifest(ctx, true)); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for key := range m.objs {
			if strings.Contains(key, journalDir) {
				n++
			}
		}
		if n < 60 || n > 64 {
			t.Errorf("%d entries are there, want those of an hour", n)
		}
	})
}
