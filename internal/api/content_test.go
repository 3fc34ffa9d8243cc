package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestExportArrivesWholeOrFails(t *testing.T) {
	b := &fakeBackend{exportSize: int64(len("content"))}
	c, _ := newPair(t, b)
	head, r, err := c.Export(t.Context(), "a b", Moment{To: "b1"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	r.Close()
	if err != nil || string(got) != "content" || head.Name != "a b" {
		t.Errorf("%q, %+v, %v", got, head, err)
	}
	if want := `export "a b" at="" to="b1"`; b.asked[0] != want {
		t.Errorf("asked %q, want %q", b.asked, want)
	}
	b.exportSize = 100 // more than the backend has
	_, r, err = c.Export(t.Context(), "a", Moment{})
	if err == nil {
		_, err = io.ReadAll(r)
		r.Close()
	}
	if err == nil {
		t.Error("an export that was cut off looks whole")
	}
	b.err = ErrNotFound
	if _, _, err := c.Export(t.Context(), "a", Moment{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if _, _, err := c.Export(t.Context(), "a", Moment{At: "x", To: "y"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}

// A request that takes long says how far it is; an error at its end is the error that it is.
func TestLongRequestsTellTheirProgress(t *testing.T) {
	ctx := t.Context()
	for name, call := range map[string]func(*Client, func(Progress)) error{
		"import": func(c *Client, told func(Progress)) error {
			_, err := c.Import(ctx, ImportRequest{Name: "a", Size: 1}, strings.NewReader("x"), told)
			return err
		},
		"label": func(c *Client, told func(Progress)) error {
			_, err := c.Label(ctx, SnapshotRequest{Name: "a", Label: "x"}, told)
			return err
		},
		"unlabel": func(c *Client, told func(Progress)) error {
			_, err := c.Unlabel(ctx, SnapshotRequest{Name: "a", Label: "x"}, told)
			return err
		},
		"prune": func(c *Client, told func(Progress)) error {
			_, err := c.Prune(ctx, PruneRequest{Name: "a"}, told)
			return err
		},
	} {
		for _, want := range []error{nil, ErrQuota} {
			b := &fakeBackend{slow: make(chan struct{}), err: want}
			c, _ := newPair(t, b)
			var told atomic.Int32
			err := call(c, func(p Progress) {
				if p.Step == "check" && p.Total == 2 && told.Add(1) == 1 {
					close(b.slow)
				}
			})
			if !errors.Is(err, want) || told.Load() == 0 {
				t.Errorf("%s: %v, want %v; told %d times", name, err, want, told.Load())
			}
		}
	}
}

// An answer that ends in the middle is neither done nor refused.
func TestLongAnswerCutOffIsUnknown(t *testing.T) {
	b := &fakeBackend{slow: make(chan struct{})}
	c, ts := newPair(t, b)
	var once atomic.Bool
	_, err := c.Import(t.Context(), ImportRequest{Name: "a", Size: 1}, strings.NewReader("x"), func(p Progress) {
		if p.Step == "check" && !once.Swap(true) {
			ts.CloseClientConnections()
		}
	})
	close(b.slow)
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("%v, want ErrTimeout", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, ts.URL+"/v1/import/x", struct{ io.Reader }{strings.NewReader("no length")})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := ts.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a body of no stated length: %d", resp.StatusCode)
	}
}

// What a request says of the time that writers may wait arrives; what is no such time is refused.
func TestImportSaysForHowLongWritersWait(t *testing.T) {
	b := &fakeBackend{}
	c, _ := newPair(t, b)
	if _, err := c.Import(t.Context(), ImportRequest{Name: "a", Size: 1, Replace: true, HoldMS: 1500}, strings.NewReader("x"), func(Progress) {}); err != nil || b.held != 1500 {
		t.Errorf("%v, %d", err, b.held)
	}
	for _, hold := range []int64{-1, time.Hour.Milliseconds() + 1} {
		if _, err := c.Import(t.Context(), ImportRequest{Name: "a", Size: 1, HoldMS: hold}, strings.NewReader("x"), func(Progress) {}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d: %v", hold, err)
		}
	}
}
