package storeurl

import (
	"errors"
	"path/filepath"
	"testing"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for url, want := range map[string]string{
		"file://" + dir:                   "file://" + dir,
		dir:                               "file://" + dir,
		"file://" + dir + "/a%20b":        "file://" + dir + "/a%20b",
		"s3://b/p?endpoint=http://h:1":    "s3://b/p?endpoint=http%3A%2F%2Fh%3A1",
		filepath.Join(dir, "not there"):   "file://" + dir + "/not%20there",
		"s3://b/p/q?region=x&sse=aws:kms": "s3://b/p/q?region=x&sse=aws%3Akms",
	} {
		s, err := Open(t.Context(), url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
		} else if s.URL() != want {
			t.Errorf("%s: got %s, want %s", url, s.URL(), want)
		}
	}
	for _, bad := range []string{"", "s3://b", "file://host/x", "file:x", "file:///x?a=b", "gs://b/p", "s3://b/p?key=secret"} {
		if s, err := Open(t.Context(), bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v", bad, s, err)
		}
	}
}
