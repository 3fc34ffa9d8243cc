package s3store

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

func open(t *testing.T, raw string) *Store {
	t.Helper()
	o, err := ParseURL(raw)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.part, s.single = 5<<20, 6<<20
	return s
}

// openBehindProxy opens a store whose requests go through a proxy.
func openBehindProxy(t *testing.T) (*Store, *storetest.Proxy) {
	t.Helper()
	g := storetest.StartGateway(t)
	p, err := storetest.NewProxy(g.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return open(t, g.URLAt(p.Endpoint, "p")), p
}

func TestS3KeepsTheContract(t *testing.T) {
	g := storetest.StartGateway(t)
	s := open(t, g.URL("some/prefix"))
	if err := s.Detect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.Conditional() {
		t.Error("If-None-Match was not found to work")
	}
	storetest.Contract(t, s, 12<<20)

	t.Run("the probe leaves nothing", func(t *testing.T) {
		if err := s.List(t.Context(), "_probe", "", func(i store.Info) error { return errors.New(i.Key) }); err != nil {
			t.Error(err)
		}
	})
	t.Run("two prefixes do not see each other", func(t *testing.T) {
		other := open(t, g.URL("some/prefix2"))
		if dirs, err := other.Dirs(t.Context(), ""); err != nil || len(dirs) != 0 {
			t.Errorf("got %v, %v", dirs, err)
		}
	})
	t.Run("a bucket that is not there is no missing object", func(t *testing.T) {
		none := open(t, strings.Replace(g.URL("x"), g.Bucket, "nothere", 1))
		if _, err := none.Get(t.Context(), "a", 0, -1); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a wrong secret is refused", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
		if _, err := open(t, g.URL("some/prefix")).Stat(t.Context(), "a/one"); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}

// A store that ignores the condition, refuses it, or obeys it for one kind of upload only, is found out, and no Put to it
// replaces an object.
func TestNoObjectIsReplacedWhateverTheStoreDoesWithTheCondition(t *testing.T) {
	g := storetest.StartGateway(t)
	of := func(method string, answer int) func(*http.Request) int {
		return func(r *http.Request) int {
			if method == "" || r.Method == method {
				return answer
			}
			return storetest.Obey
		}
	}
	for what, tt := range map[string]struct {
		answer      func(*http.Request) int
		conditional bool
	}{
		"obeys":                            {of("", storetest.Obey), true},
		"ignores":                          {of("", storetest.Ignore), false},
		"ignores for whole objects":        {of(http.MethodPut, storetest.Ignore), false},
		"ignores for objects of parts":     {of(http.MethodPost, storetest.Ignore), false},
		"answers 501":                      {of("", http.StatusNotImplemented), false},
		"answers 400":                      {of("", http.StatusBadRequest), false},
		"answers 501 for objects of parts": {of(http.MethodPost, http.StatusNotImplemented), false},
	} {
		t.Run(what, func(t *testing.T) {
			s := open(t, "s3://archive/"+strings.ReplaceAll(what, " ", "-")+"?endpoint="+g.Unconditional(tt.answer))
			if s.Conditional() {
				t.Error("taken for conditional before it was asked")
			}
			if err := s.Detect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.Conditional() != tt.conditional {
				t.Errorf("conditional: %v", s.Conditional())
			}
			for _, size := range []int{3, 12 << 20} {
				key := fmt.Sprintf("a/%d", size)
				for i, want := range []error{nil, store.ErrExists, store.ErrExists} {
					body := strings.NewReader(strings.Repeat(string(rune('a'+i)), size))
					if err := s.Put(t.Context(), key, body, body.Size(), time.Now()); !errors.Is(err, want) {
						t.Fatalf("put %d of %s: got %v, want %v", i, key, err, want)
					}
				}
				r, err := s.Get(t.Context(), key, 0, 1)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(r)
				if err := errors.Join(err, r.Close()); err != nil || string(b) != "a" {
					t.Errorf("%s begins with %q, %v", key, b, err)
				}
			}
		})
	}
}

func TestDetectWaitsForAStoreThatIsDown(t *testing.T) {
	s, p := openBehindProxy(t)
	p.Refuse(func(int, *http.Request) int { return http.StatusForbidden })
	if err := s.Detect(t.Context()); err == nil || s.Conditional() {
		t.Errorf("found out without an answer: %v, %v", s.Conditional(), err)
	}
	p.Refuse(nil)
	if err := s.Detect(t.Context()); err != nil || !s.Conditional() {
		t.Errorf("got %v, %v", s.Conditional(), err)
	}
	before := p.Requests()
	if err := s.Detect(t.Context()); err != nil || p.Requests() != before {
		t.Errorf("it was asked again: %v", err)
	}
}

// A store that keeps objects in directories answers so where the last object beside a new one is removed at the moment.
func TestAConflictIsTriedAgain(t *testing.T) {
	s, p := openBehindProxy(t)
	once := func() {
		next := p.Requests() + 1
		p.Refuse(func(n int, _ *http.Request) int {
			if n == next {
				return http.StatusConflict
			}
			return 0
		})
	}
	once()
	if err := s.Detect(t.Context()); err != nil || !s.Conditional() {
		t.Errorf("got %v, %v", s.Conditional(), err)
	}
	once()
	if err := s.Put(t.Context(), "a", strings.NewReader("a"), 1, time.Time{}); err != nil {
		t.Error(err)
	}
	if err := s.Put(t.Context(), "a", strings.NewReader("b"), 1, time.Time{}); !errors.Is(err, store.ErrExists) {
		t.Errorf("put over an object: %v", err)
	}
}

func TestParseURL(t *testing.T) {
	for _, tt := range []struct {
		url  string
		want Options
	}{
		{"s3://b/p", Options{Bucket: "b", Prefix: "p"}},
		{"s3://b/p/q/?region=eu-central-1&sse=AES256", Options{Bucket: "b", Prefix: "p/q", Region: "eu-central-1", SSE: "AES256"}},
		{"s3://b/p?endpoint=http://h:1", Options{Bucket: "b", Prefix: "p", Endpoint: "http://h:1", PathStyle: true}},
		{"s3://b/p?endpoint=https://h&path-style=false&ca=/c.pem&profile=x", Options{Bucket: "b", Prefix: "p", Endpoint: "https://h", CAFile: "/c.pem", Profile: "x"}},
		{"s3://b/p?sse=aws:kms&kms-key-id=k", Options{Bucket: "b", Prefix: "p", SSE: "aws:kms", KMSKeyID: "k"}},
	} {
		got, err := ParseURL(tt.url)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %+v, %v", tt.url, got, err)
		}
		if again, err := ParseURL(got.URL()); err != nil || again != got {
			t.Errorf("%s: %s gives %+v, %v", tt.url, got.URL(), again, err)
		}
	}
	for _, bad := range []string{
		"", "file:///x", "s3://", "s3:///p", "s3://b", "s3://b/", "s3://k:s@b/p", "s3://b/p#x", "s3://b/p?x=1", "s3://b/p?sse=none",
		"s3://b/p?kms-key-id=k", "s3://b/p?endpoint=h:1", "s3://b/p?endpoint=ftp://h", "s3://b/p?path-style=maybe", "s3://b/p?region=a&region=b",
		"s3://b/p?region=", "s3://b/a//b", "s3://b/p?age-key=x",
	} {
		if o, err := ParseURL(bad); !errors.Is(err, ErrInvalidURL) {
			t.Errorf("%q: got %+v, %v", bad, o, err)
		}
	}
}

func TestOpenRefusesCertificatesThatAreNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	for _, make := range []bool{false, true} {
		if make {
			if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), Options{Bucket: "b", Prefix: "p", CAFile: path}); err == nil || !strings.Contains(err.Error(), "ca.pem") {
			t.Errorf("got %v", err)
		}
	}
}
