package archive

import (
	"database/sql"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/snapshot/s3store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
	"github.com/uglyer/ha-sqlite/vfs/history"
)

var (
	queryMegabytes = flag.Int("query-megabytes", 8, "size of the database in S3 that one row is read from")
	queryCommits   = flag.Int("query-commits", 120, "commits behind its snapshot, of each pace")
)

// counted is an HTTP proxy that counts what the answers have.
type counted struct {
	requests, bytes atomic.Int64
	url             string
}

func countedProxy(t *testing.T, target string) *counted {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host },
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.requests.Add(1)
		proxy.ServeHTTP(&countedWriter{w, c}, r)
	}))
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

type countedWriter struct {
	http.ResponseWriter
	c *counted
}

func (w *countedWriter) Write(p []byte) (int, error) {
	w.c.bytes.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// A query for one row by its primary key reads less than 1 MiB from S3, from
// the manifest to the row, wherever in the history it is asked for. With
// -query-megabytes=1024 -query-commits=5000 it is what docs/history.md gives.
func TestOneRowOfALargeDatabaseCostsLittle(t *testing.T) {
	g := storetest.StartGateway(t)
	o, err := s3store.ParseURL(g.URL("cluster"))
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
	d := testarchive.New(t, s, nil, "acme/shop.db")
	const rowBytes = 400
	rows := *queryMegabytes << 20 / (rowBytes + 50)
	began := time.Now()
	for _, stmt := range []string{
		"CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, data BLOB)",
		fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d) INSERT INTO item SELECT i, 'item ' || i, randomblob(%d) FROM n", rows, rowBytes),
		"CREATE INDEX item_name ON item(name)",
	} {
		if _, err := d.SQL.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	d.Base()
	t.Logf("%d rows, snapshot in S3: %v", rows, time.Since(began))
	proxy := countedProxy(t, g.Endpoint)
	want := map[int]string{} // name of the row that a commit changed
	last := 1
	for _, p := range []struct {
		name   string
		step   time.Duration
		upload int // commits
		packed bool
	}{
		{"every 7 s", 7 * time.Second, 20, false},
		{"3 a second", 333 * time.Millisecond, 3, true},
		{"20 a second", 50 * time.Millisecond, 20, true},
		{"500 a second", 2 * time.Millisecond, 500, true},
	} {
		began, first := time.Now(), last+1
		d.Pace(p.step, p.packed)
		compacted := d.Time(last)
		var batch []string
		for last < first-1+*queryCommits {
			last++
			id := 1 + last*7919%rows
			want[last] = fmt.Sprintf("changed by %d", last)
			batch = append(batch, fmt.Sprintf("UPDATE item SET name = '%s', data = randomblob(%d) WHERE id = %d", want[last], rowBytes, id))
			if len(batch) < p.upload && last < first-1+*queryCommits {
				continue
			}
			d.Exec(batch...) // as a leader does
			batch = nil
			if now := d.Time(last); now.Sub(compacted) >= 30*time.Second || d.Writer.Crowded() {
				compacted = now
				if err := d.Writer.Compact(t.Context(), now); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Writer.Manifest(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d commits, %s: %v", *queryCommits, p.name, time.Since(began))
		t.Run(p.name, func(t *testing.T) {
			for _, txid := range []int{first, (first + last) / 2, last - 30, last} {
				readRow(t, g, proxy, txid, want, rows)
			}
		})
	}
	t.Run("the snapshot", func(t *testing.T) { readRow(t, g, proxy, 1, want, rows) })
}

// readRow reads the row that a commit changed as it was then, by its primary key and by an index.
func readRow(t *testing.T, g *storetest.Gateway, proxy *counted, txid int, want map[int]string, rows int) {
	for _, query := range []string{"SELECT name FROM item WHERE id = ?", "SELECT name FROM item WHERE name = (SELECT name FROM item WHERE id = ?)"} {
		id, name := 1+txid*7919%rows, want[txid]
		if name == "" {
			name = fmt.Sprintf("item %d", id)
		}
		proxy.bytes.Store(0)
		proxy.requests.Store(0)
		began := time.Now()
		db, err := sql.Open("sqlite3", "file:acme/shop.db?vfs=hasqlite-history&to="+fmt.Sprintf("%016x", txid)+
			"&archive="+url.QueryEscape("s3://"+g.Bucket+"/cluster?endpoint="+proxy.url))
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		var got string
		if err := db.QueryRow(query, id).Scan(&got); err != nil || got != name {
			t.Fatalf("commit %d: row %d is %q, want %q: %v, %v", txid, id, got, name, err, history.LastError())
		}
		db.Close()
		t.Logf("commit %d: %d requests, %d KiB, %v", txid, proxy.requests.Load(), proxy.bytes.Load()>>10, time.Since(began))
		if proxy.bytes.Load() >= 1<<20 || proxy.bytes.Load() == 0 {
			t.Errorf("commit %d: one row of %d MiB took %d bytes", txid, *queryMegabytes, proxy.bytes.Load())
		}
	}
}
