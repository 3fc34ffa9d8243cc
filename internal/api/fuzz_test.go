package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// answers is a node that gives one answer to everything.
type answers struct {
	status int
	header http.Header
	body   []byte
	length int64
}

// RoundTrip implements http.RoundTripper.
func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status, Header: a.header, ContentLength: a.length, Request: r,
		Body: io.NopCloser(bytes.NewReader(a.body)),
	}, nil
}

func (a *answers) client(t *testing.T) *Client {
	c, err := NewClient("http://node.example", &http.Client{Transport: a})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// FuzzNodeStore: whatever a node answers, the store that is read through it keeps the contract of store.Store as to keys
// and sizes, or gives an error.
func FuzzNodeStore(f *testing.F) {
	f.Add(200, int64(10), []byte(`{"url":"file:///a","levels":["ltx/0","ltx/1","ltx/2","ltx/3","ltx/4","ltx/5","ltx/6","ltx/7","ltx/8","ltx/9"]}`))
	f.Add(200, int64(-1), []byte(`{"objects":[{"key":"a/b","size":3},{"key":"a/c","size":0,"time":"2026-11-22T10:00:00Z"}],"dirs":["x","y"],"more":true}`))
	f.Add(200, int64(0), []byte(`{"objects":[{"key":"../b","size":-3}],"dirs":["..","y/z"]}`))
	f.Add(200, int64(5), []byte(`{"key":"a/b","size":5}`))
	f.Add(404, int64(0), []byte(`{"error":"no such object","code":"not_found"}`))
	f.Add(500, int64(0), []byte("<html>"))
	f.Fuzz(func(t *testing.T, status int, length int64, body []byte) {
		ctx := t.Context()
		c := (&answers{status: status, body: body, length: length}).client(t)
		if s, err := c.ArchiveStore(ctx); err == nil {
			for level := range 10 {
				if err := store.CheckKey(s.LevelDir(level)); err != nil {
					t.Error(err)
				}
			}
		}
		s := &nodeStore{c: c}
		for _, dir := range []string{"", "a"} {
			last := ""
			_ = s.List(ctx, dir, "", func(i store.Info) error {
				name, inside := i.Key, true
				if dir != "" {
					name, inside = strings.CutPrefix(i.Key, dir+"/")
				}
				if err := store.CheckKey(i.Key); err != nil || !inside || strings.Contains(name, "/") || name <= last || i.Size < 0 {
					t.Errorf("%+v is listed in %q behind %q", i, dir, last)
				}
				last = name
				return nil
			})
			dirs, _ := s.Dirs(ctx, dir)
			for i, name := range dirs {
				if err := store.CheckKey(name); err != nil || strings.Contains(name, "/") || i > 0 && name <= dirs[i-1] {
					t.Errorf("directories %q", dirs)
				}
			}
		}
		if i, err := s.Stat(ctx, "a/b"); err == nil && (i.Key != "a/b" || i.Size < 0) {
			t.Errorf("asked for a/b it describes %+v", i)
		}
		if r, err := s.Get(ctx, "a/b", 0, 10); err == nil {
			r.Close()
			if length != 10 || status != http.StatusOK {
				t.Errorf("asked for 10 bytes it gives %d with status %d", length, status)
			}
		}
	})
}

// FuzzLongAnswer: no answer to a long request panics, and one without a result is an error.
func FuzzLongAnswer(f *testing.F) {
	f.Add(200, []byte(`{"progress":{"step":"send","done":1,"total":2}}`+"\n"+`{"result":{"name":"a","commit":{"txid":"000000000000002a"}}}`+"\n"))
	f.Add(200, []byte(`{"failed":{"error":"it is damaged","code":"invalid"}}`))
	f.Add(200, []byte(`{"progress":{"step":"send"}}`))
	f.Add(409, []byte(`{"error":"it exists","code":"exists"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c := (&answers{status: status, body: body}).client(t)
		_, err := c.Rollback(t.Context(), RollbackRequest{Name: "a"}, func(Progress) {})
		if err == nil && (status/100 != 2 || len(body) == 0) {
			t.Errorf("status %d, %q is a result", status, body)
		}
		var remote *RemoteError
		if errors.As(err, &remote) && remote.Message == "" && status/100 != 2 {
			t.Errorf("status %d, %q: an error without a message", status, body)
		}
	})
}

// FuzzExportAnswer: the head of an export fits the length of the answer, or there is none.
func FuzzExportAnswer(f *testing.F) {
	f.Add(`{"name":"a","commit":{"bookmark":"b","txid":"000000000000002a","pages":2},"page_size":4096,"size_bytes":8192}`, int64(8192))
	f.Add(`{"size_bytes":-1}`, int64(-1))
	f.Add("", int64(0))
	f.Fuzz(func(t *testing.T, head string, length int64) {
		c := (&answers{status: http.StatusOK, header: http.Header{headerExport: {head}}, length: length}).client(t)
		h, r, err := c.Export(t.Context(), "a", Moment{})
		if err != nil {
			return
		}
		r.Close()
		if h.SizeBytes != length || length < 0 {
			t.Errorf("%q of %d bytes is %+v", head, length, h)
		}
	})
}
