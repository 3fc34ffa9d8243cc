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
	queryCommits   = flag.Int("query-commits", 120, "commits behind its snapshot, 7 s apart")
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
	d.Step = 7 * time.Second
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
	began = time.Now()
	want := map[int]string{} // name of the row that a commit changed
	var batch []string
	for txid := 2; txid <= *queryCommits+1; txid++ {
		id := 1 + txid*7919%rows
		want[txid] = fmt.Sprintf("changed by %d", txid)
		batch = append(batch, fmt.Sprintf("UPDATE item SET name = '%s', data = randomblob(%d) WHERE id = %d", want[txid], rowBytes, id))
		if txid%20 == 0 || txid == *queryCommits+1 { // as a leader does
			d.Exec(batch...)
			batch = nil
			if err := d.Writer.Compact(t.Context(), d.Time(txid)); err != nil {
				t.Fatal(err)
			}
			if err := d.Writer.Manifest(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d commits: %v", *queryCommits, time.Since(began))

	proxy := countedProxy(t, g.Endpoint)
	last := *queryCommits + 1
	for _, txid := range []int{1, 2, last / 2, last - 30, last} {
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
}
