package archive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/s3store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// The server is killed, refuses, and answers slowly, while commits come in and
// leaders change: afterwards the archive is complete, contiguous, and equals
// the database after every commit.
func TestArchiveInS3SurvivesItsServer(t *testing.T) {
	g := storetest.StartGateway(t)
	target, err := url.Parse(g.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var refuse, slow atomic.Bool
	requests := atomic.Int64{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := requests.Add(1)
		switch {
		case refuse.Load() && n%3 != 0:
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		case slow.Load():
			select {
			case <-time.After(30 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	defer ts.Close()
	o, err := s3store.ParseURL("s3://archive/cluster?endpoint=" + ts.URL)
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Detect(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := claim(t, s, nil)
	n := newNode(t, 1<<30)
	for _, fault := range []string{"none", "killed", "503", "slow"} {
		u := n.uploader(a)
		u.opts.Interval = 20 * time.Millisecond
		stop := lead(u)
		n.commit(3)
		u.Notify()
		switch fault {
		case "killed":
			g.Stop()
			n.commit(4)
			u.Notify()
			g.Start()
		case "503":
			refuse.Store(true)
			n.commit(4)
			u.Notify()
			if err := arrives(t.Context(), func() bool { return requests.Load()%7 == 0 }); err != nil {
				t.Fatal(err)
			}
			refuse.Store(false)
		case "slow":
			slow.Store(true)
			n.commit(4)
			u.Notify()
		}
		if fault == "503" {
			stop() // this leader goes with its work half done
			continue
		}
		last, _ := n.Position()
		if err := arrives(t.Context(), func() bool { return u.Status().Archived == last }); err != nil {
			t.Fatalf("%s: %v, %+v", fault, err, u.Status())
		}
		stop()
	}
	n.complete(a, 0)
}

// arrives waits for a condition.
func arrives(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(90 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			return errors.New("it did not happen in time")
		case <-ctx.Done():
			return fmt.Errorf("wait: %w", ctx.Err())
		}
	}
	return nil
}
