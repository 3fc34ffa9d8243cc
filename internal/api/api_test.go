package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/histogram"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// fakeBackend answers from its fields and keeps what it was asked.
type fakeBackend struct {
	held int64 // of the last import

	status  Status
	report  VerifyReport
	err     error
	asked   []string
	created CreateDatabaseRequest
	added   AddMemberRequest

	slow       chan struct{} // what takes long waits for it
	exportSize int64
	store      store.Store
}

func (f *fakeBackend) note(format string, a ...any) error {
	f.asked = append(f.asked, fmt.Sprintf(format, a...))
	return f.err
}

func (f *fakeBackend) Status(context.Context, DatabaseQuery) (Status, error) {
	return f.status, f.note("status")
}
func (f *fakeBackend) Databases(_ context.Context, q DatabaseQuery) (DatabasePage, error) {
	var p DatabasePage
	for _, d := range f.status.Databases {
		if !strings.HasPrefix(d.Name, q.Prefix) || d.Name <= q.After {
			continue
		}
		if len(p.Databases) == q.Limit {
			p.Next = p.Databases[q.Limit-1].Name
			break
		}
		p.Databases = append(p.Databases, d)
	}
	return p, f.note("databases")
}
func (f *fakeBackend) Database(_ context.Context, name string) (DatabaseStatus, error) {
	return DatabaseStatus{Name: name}, f.note("database %q", name)
}
func (f *fakeBackend) CreateDatabase(_ context.Context, req CreateDatabaseRequest) (DatabaseStatus, error) {
	f.created = req
	return DatabaseStatus{Name: req.Name, PageSize: req.PageSize}, f.note("create %q", req.Name)
}
func (f *fakeBackend) DeleteDatabase(_ context.Context, name string, force bool) error {
	return f.note("delete %q force=%v", name, force)
}
func (f *fakeBackend) Cluster(context.Context) (ClusterStatus, error) {
	return f.status.Cluster, f.note("cluster")
}
func (f *fakeBackend) AddMember(_ context.Context, req AddMemberRequest) error {
	f.added = req
	return f.note("add %q", req.ID)
}
func (f *fakeBackend) RemoveMember(_ context.Context, id string, force bool) error {
	return f.note("remove %q force=%v", id, force)
}
func (f *fakeBackend) ReplaceMember(_ context.Context, req ReplaceRequest) (Replacement, error) {
	return Replacement{State: ReplaceDone, Old: req.Old}, f.note("replace %q %q", req.Old, req.Raft)
}
func (f *fakeBackend) TransferLeadership(_ context.Context, req TransferRequest) error {
	return f.note("transfer %q", req.ID)
}
func (f *fakeBackend) Verify(_ context.Context, name string, deep bool) (VerifyReport, error) {
	return f.report, f.note("verify %q deep=%v", name, deep)
}

// work is what takes long.
func (f *fakeBackend) work(progress func(Progress)) {
	progress(Progress{Step: "check", Done: 1, Total: 2})
	if f.slow != nil {
		<-f.slow
	}
}
func (f *fakeBackend) Import(_ context.Context, req ImportRequest, file io.Reader, progress func(Progress)) (ImportReport, error) {
	b, err := io.ReadAll(file)
	if err != nil {
		return ImportReport{}, err
	}
	f.held = req.HoldMS
	f.work(progress)
	return ImportReport{Name: req.Name, SizeBytes: int64(len(b))}, f.note("import %q %d %q replace=%v", req.Name, req.Size, b, req.Replace)
}
func (f *fakeBackend) Rollback(_ context.Context, req RollbackRequest, _ func(Progress)) (RollbackReport, error) {
	return RollbackReport{Name: req.Name}, f.note("rollback %q at=%q to=%q dry=%v", req.Name, req.At, req.To, req.DryRun)
}
func (f *fakeBackend) Fork(_ context.Context, req ForkRequest, _ func(Progress)) (ForkReport, error) {
	return ForkReport{Name: req.Name}, f.note("fork %q into %q to=%q dry=%v", req.Source, req.Name, req.To, req.DryRun)
}
func (f *fakeBackend) Export(_ context.Context, name string, m Moment) (ExportHead, io.ReadCloser, error) {
	if err := f.note("export %q at=%q to=%q", name, m.At, m.To); err != nil {
		return ExportHead{}, nil, err
	}
	return ExportHead{Name: name, SizeBytes: f.exportSize}, io.NopCloser(strings.NewReader("content")), nil
}
func (f *fakeBackend) ArchiveStore(context.Context) (store.Store, error) {
	return f.store, f.note("archive")
}
func (f *fakeBackend) Label(_ context.Context, req SnapshotRequest, progress func(Progress)) (SnapshotReport, error) {
	f.work(progress)
	return SnapshotReport{Name: req.Name, Label: req.Label}, f.note("label %q %q dry=%v", req.Name, req.Label, req.DryRun)
}
func (f *fakeBackend) Unlabel(_ context.Context, req SnapshotRequest, progress func(Progress)) (SnapshotReport, error) {
	f.work(progress)
	return SnapshotReport{Name: req.Name, Label: req.Label}, f.note("unlabel %q %q dry=%v", req.Name, req.Label, req.DryRun)
}
func (f *fakeBackend) Prune(_ context.Context, req PruneRequest, progress func(Progress)) (PruneReport, error) {
	f.work(progress)
	return PruneReport{Name: req.Name}, f.note("prune %q dry=%v", req.Name, req.DryRun)
}
func (f *fakeBackend) Health(context.Context) error { return f.note("health") }
func (f *fakeBackend) Ready(context.Context) error  { return f.note("ready") }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newPair(t *testing.T, b *fakeBackend) (*Client, *httptest.Server) {
	t.Helper()
	ts := httptest.NewServer(NewServer(b, nil, quiet()).Handler())
	t.Cleanup(ts.Close)
	c, err := NewClient(ts.URL, ts.Client())
	if err != nil {
		t.Fatal(err)
	}
	return c, ts
}

func exampleStatus() Status {
	return Status{
		Node: NodeStatus{ID: "n1", Version: "v1", Started: time.Unix(1700000000, 0).UTC(), Raft: "127.0.0.1:1", HTTP: "127.0.0.1:2", Socket: "/s"},
		Cluster: ClusterStatus{ID: strings.Repeat("ab", 16), Lineage: 1, Leader: "n1", LeaderHTTP: "127.0.0.1:2", Term: 3,
			CommitIndex: 9, AppliedIndex: 8, Members: []MemberStatus{{ID: "n1", Raft: "127.0.0.1:1", HTTP: "127.0.0.1:2", Voter: true, Reachable: true}}},
		State: StateLeader, Disk: DiskStatus{FreeBytes: 1 << 20, ReservedBytes: 64 << 10},
		Databases: []DatabaseStatus{{Name: "acme/plan-7", ID: strings.Repeat("0", 32), Decided: Position{TXID: 1<<63 + 1, Checksum: 0xf00},
			File: Position{TXID: 1 << 63}, Lag: 1, PageSize: 4096, Pages: 7, WALBytes: 32, Handles: 2, State: DatabaseLate, Detail: "held", HolderPID: 4, HolderAgeMS: 5}},
	}
}

func TestClientReachesEveryMethodOfTheBackend(t *testing.T) {
	ctx := t.Context()
	odd := "acme/plan 7/ünï?#%2F;&=+"
	tests := []struct {
		name string
		call func(c *Client) error
		want string
	}{
		{"status", func(c *Client) error { _, err := c.Status(ctx, DatabaseQuery{}); return err }, "status"},
		{"databases", func(c *Client) error { _, err := c.Databases(ctx, DatabaseQuery{}); return err }, "databases"},
		{"database", func(c *Client) error { _, err := c.Database(ctx, "shop.db"); return err }, `database "shop.db"`},
		{"database with an odd name", func(c *Client) error { _, err := c.Database(ctx, odd); return err }, fmt.Sprintf("database %q", odd)},
		{"create", func(c *Client) error {
			_, err := c.CreateDatabase(ctx, CreateDatabaseRequest{Name: odd, PageSize: 512, AutoVacuum: AutoVacuumFull})
			return err
		}, fmt.Sprintf("create %q", odd)},
		{"delete", func(c *Client) error { return c.DeleteDatabase(ctx, odd, false) }, fmt.Sprintf("delete %q force=false", odd)},
		{"delete by force", func(c *Client) error { return c.DeleteDatabase(ctx, "a/b", true) }, `delete "a/b" force=true`},
		{"cluster", func(c *Client) error { _, err := c.Cluster(ctx); return err }, "cluster"},
		{"add member", func(c *Client) error {
			return c.AddMember(ctx, AddMemberRequest{ID: "n2", Raft: "h:1", Voter: true})
		}, `add "n2"`},
		{"remove member", func(c *Client) error { return c.RemoveMember(ctx, "n/2", true) }, `remove "n/2" force=true`},
		{"replace member", func(c *Client) error {
			_, err := c.ReplaceMember(ctx, ReplaceRequest{Old: "n2", Raft: "h:1"})
			return err
		}, `replace "n2" "h:1"`},
		{"transfer", func(c *Client) error { return c.TransferLeadership(ctx, TransferRequest{}) }, `transfer ""`},
		{"transfer to", func(c *Client) error { return c.TransferLeadership(ctx, TransferRequest{ID: "n3"}) }, `transfer "n3"`},
		{"verify", func(c *Client) error { _, err := c.Verify(ctx, "a", false); return err }, `verify "a" deep=false`},
		{"verify deep", func(c *Client) error { _, err := c.Verify(ctx, odd, true); return err }, fmt.Sprintf("verify %q deep=true", odd)},
		{"import", func(c *Client) error {
			_, err := c.Import(ctx, ImportRequest{Name: odd, Size: 5}, strings.NewReader("bytes and more"), func(Progress) {})
			return err
		}, fmt.Sprintf("import %q 5 \"bytes\" replace=false", odd)},
		{"import over", func(c *Client) error {
			_, err := c.Import(ctx, ImportRequest{Name: "a", Size: 1, Replace: true}, strings.NewReader("x"), func(Progress) {})
			return err
		}, `import "a" 1 "x" replace=true`},
		{"rollback", func(c *Client) error {
			_, err := c.Rollback(ctx, RollbackRequest{Name: odd, Moment: Moment{At: "1 hour ago"}, DryRun: true}, func(Progress) {})
			return err
		}, fmt.Sprintf("rollback %q at=\"1 hour ago\" to=\"\" dry=true", odd)},
		{"label", func(c *Client) error {
			_, err := c.Label(ctx, SnapshotRequest{Name: odd, Label: "before ü", DryRun: true}, func(Progress) {})
			return err
		}, fmt.Sprintf("label %q \"before ü\" dry=true", odd)},
		{"unlabel", func(c *Client) error {
			_, err := c.Unlabel(ctx, SnapshotRequest{Name: "a", Label: "x"}, func(Progress) {})
			return err
		}, `unlabel "a" "x" dry=false`},
		{"prune", func(c *Client) error { _, err := c.Prune(ctx, PruneRequest{Name: odd}, func(Progress) {}); return err }, fmt.Sprintf("prune %q dry=false", odd)},
		{"fork", func(c *Client) error {
			_, err := c.Fork(ctx, ForkRequest{Source: odd, Name: "b", Moment: Moment{To: "b1"}}, func(Progress) {})
			return err
		}, fmt.Sprintf("fork %q into \"b\" to=\"b1\" dry=false", odd)},
		{"health", func(c *Client) error { return c.Health(ctx) }, "health"},
		{"ready", func(c *Client) error { return c.Ready(ctx) }, "ready"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &fakeBackend{}
			c, _ := newPair(t, b)
			if err := tt.call(c); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(b.asked, "; "); got != tt.want {
				t.Fatalf("backend was asked %s, want %s", got, tt.want)
			}
		})
	}
}

func TestAnswersArriveWhole(t *testing.T) {
	want := exampleStatus()
	b := &fakeBackend{status: want, report: VerifyReport{Name: "a", ID: "x", Deep: true, Position: Position{1, 2},
		Nodes: []VerifyNode{{Node: "n1", State: VerifyDiffers, Position: Position{1, 3}, Pages: 4, Differing: []uint32{2}, DifferingPages: 1, Detail: "d"}}}}
	c, _ := newPair(t, b)
	got, err := c.Status(t.Context(), DatabaseQuery{})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
	}
	report, err := c.Verify(t.Context(), "a", true)
	if err != nil || !reflect.DeepEqual(report, b.report) {
		t.Fatalf("got %+v, %v\nwant %+v", report, err, b.report)
	}
	req := CreateDatabaseRequest{Name: "x", PageSize: 8192, AutoVacuum: AutoVacuumIncremental}
	if _, err := c.CreateDatabase(t.Context(), req); err != nil || b.created != req {
		t.Fatalf("backend got %+v, %v; want %+v", b.created, err, req)
	}
	add := AddMemberRequest{ID: "n2", Raft: "h:1", Voter: true}
	if err := c.AddMember(t.Context(), add); err != nil || b.added != add {
		t.Fatalf("backend got %+v, %v; want %+v", b.added, err, add)
	}
}

// The shape of /v1/status is read by other programs: its keys may be added
// to, not renamed.
func TestStatusKeysStay(t *testing.T) {
	b, err := json.Marshal(exampleStatus())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"node":{"id":"n1","version":"v1","started":"2023-11-14T22:13:20Z","raft":"127.0.0.1:1","http":"127.0.0.1:2","socket":"/s"},` +
		`"cluster":{"id":"abababababababababababababababab","lineage":1,"leader":"n1","leader_http":"127.0.0.1:2","term":3,"commit_index":9,"applied_index":8,` +
		`"members":[{"id":"n1","raft":"127.0.0.1:1","http":"127.0.0.1:2","voter":true,"reachable":true}]},"state":"leader","stale":false,"disk":{"full":false,"free_bytes":1048576,"reserved_bytes":65536},` +
		`"databases":[{"name":"acme/plan-7","id":"00000000000000000000000000000000","decided":{"txid":"8000000000000001","checksum":"0000000000000f00"},` +
		`"file":{"txid":"8000000000000000","checksum":"0000000000000000"},"lag":1,"page_size":4096,"pages":7,"wal_bytes":32,"handles":2,"state":"late",` +
		`"detail":"held","holder_pid":4,"holder_age_ms":5}]}`
	var old, now any
	if err := errors.Join(json.Unmarshal([]byte(want), &old), json.Unmarshal(b, &now)); err != nil {
		t.Fatal(err)
	}
	if why := lacks(old, now, "status"); why != "" {
		t.Fatalf("%s\ngot  %s\nwant %s", why, b, want)
	}
}

// lacks says which key or value of old is not in now.
func lacks(old, now any, path string) string {
	switch old := old.(type) {
	case map[string]any:
		m, _ := now.(map[string]any)
		for k, v := range old {
			if why := lacks(v, m[k], path+"."+k); why != "" {
				return why
			}
		}
		return ""
	case []any:
		l, _ := now.([]any)
		if len(l) != len(old) {
			return fmt.Sprintf("%s has %d elements, want %d", path, len(l), len(old))
		}
		for i := range old {
			if why := lacks(old[i], l[i], fmt.Sprintf("%s[%d]", path, i)); why != "" {
				return why
			}
		}
		return ""
	}
	if old != now {
		return fmt.Sprintf("%s is %v, want %v", path, now, old)
	}
	return ""
}

func TestErrorsKeepTheirKindOverHTTP(t *testing.T) {
	for _, k := range kinds {
		if errors.Is(k.err, context.DeadlineExceeded) {
			continue // arrives as ErrTimeout, see below
		}
		b := &fakeBackend{err: fmt.Errorf("delete database %q: %w", "shop", k.err)}
		c, _ := newPair(t, b)
		err := c.DeleteDatabase(t.Context(), "shop", false)
		var re *RemoteError
		if !errors.As(err, &re) || !errors.Is(err, k.err) || re.Status != k.status || re.Message != b.err.Error() {
			t.Errorf("%v: got %#v", k.err, err)
		}
		for _, other := range kinds {
			if other.code != k.code && errors.Is(err, other.err) {
				t.Errorf("%v is also taken for %v", k.err, other.err)
			}
		}
	}
	c, _ := newPair(t, &fakeBackend{err: context.DeadlineExceeded})
	if _, err := c.Status(t.Context(), DatabaseQuery{}); !errors.Is(err, ErrTimeout) {
		t.Errorf("deadline arrives as %v, want ErrTimeout", err)
	}
	c, _ = newPair(t, &fakeBackend{err: errors.New("odd")})
	var re *RemoteError
	if _, err := c.Status(t.Context(), DatabaseQuery{}); !errors.As(err, &re) || re.Status != 500 || re.Code != codeInternal {
		t.Errorf("unknown error arrives as %#v", err)
	}
	for _, probe := range []func(*Client) error{func(c *Client) error { return c.Health(t.Context()) }, func(c *Client) error { return c.Ready(t.Context()) }} {
		c, _ := newPair(t, &fakeBackend{err: fmt.Errorf("wait for leader: %w", ErrNoLeader)})
		if err := probe(c); !errors.As(err, &re) || re.Status != 503 || !errors.Is(err, ErrNoLeader) {
			t.Errorf("probe answers %v", err)
		}
	}
}

func TestBadRequestsAreRefusedWithWords(t *testing.T) {
	tests := []struct {
		name, method, path, body string
		header                   [2]string
		status                   int
		text                     string
	}{
		{name: "limit is no number", method: "GET", path: "/v1/databases?limit=many", status: 400, text: `limit="many"`},
		{name: "limit of nothing", method: "GET", path: "/v1/status?limit=0", status: 400, text: `limit="0"`},
		{name: "limit too high", method: "GET", path: "/v1/databases?limit=10001", status: 400, text: "limit 10001"},
		{name: "no body", method: "POST", path: "/v1/databases", status: 400, text: "body is empty"},
		{name: "not JSON", method: "POST", path: "/v1/databases", body: "name=x", status: 400, text: "invalid character"},
		{name: "two objects", method: "POST", path: "/v1/databases", body: `{"name":"a"}{}`, status: 400, text: "something follows"},
		{name: "misspelt field", method: "POST", path: "/v1/databases", body: `{"name":"a","pagesize":512}`, status: 400, text: `unknown field "pagesize"`},
		{name: "no name", method: "POST", path: "/v1/databases", body: `{}`, status: 400, text: "no name"},
		{name: "odd page size", method: "POST", path: "/v1/databases", body: `{"name":"a","page_size":1000}`, status: 400, text: "page_size 1000"},
		{name: "huge page size", method: "POST", path: "/v1/databases", body: `{"name":"a","page_size":131072}`, status: 400, text: "page_size 131072"},
		{name: "bad auto_vacuum", method: "POST", path: "/v1/databases", body: `{"name":"a","auto_vacuum":"yes"}`, status: 400, text: `auto_vacuum "yes"`},
		{name: "body too long", method: "POST", path: "/v1/databases", body: `{"name":"` + strings.Repeat("a", maxRequestBytes) + `"}`, status: 400, text: "too large"},
		{name: "info without a name", method: "GET", path: "/v1/databases/", status: 400, text: "no database name"},
		{name: "verify without a name", method: "GET", path: "/v1/verify/", status: 400, text: "no database name"},
		{name: "force is not a flag", method: "DELETE", path: "/v1/databases/a?force=maybe", status: 400, text: `force="maybe"`},
		{name: "member without id", method: "POST", path: "/v1/cluster/members", body: `{"raft":"a:1"}`, status: 400, text: "no id"},
		{name: "member without address", method: "POST", path: "/v1/cluster/members", body: `{"id":"a"}`, status: 400, text: "no raft address"},
		{name: "transfer with rubbish", method: "POST", path: "/v1/cluster/transfer", body: `[`, status: 400, text: "read request body"},
		{name: "unknown path", method: "GET", path: "/v2/status", status: 404, text: "/v2/status: Not Found"},
		{name: "wrong method", method: "PUT", path: "/v1/status", status: 405, text: "Method Not Allowed"},
		{name: "a page of another site", method: "POST", path: "/v1/cluster/transfer", header: [2]string{"Origin", "http://evil.example"}, status: 403, text: "forbidden"},
	}
	b := &fakeBackend{}
	_, ts := newPair(t, b)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, ts.URL+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if tt.header[0] != "" {
				req.Header.Set(tt.header[0], tt.header[1])
			}
			resp, err := ts.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			var er ErrorResponse
			if err := json.Unmarshal(body, &er); err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(er.Message, tt.text) {
				t.Fatalf("got %d %q, want %d …%s…", resp.StatusCode, er.Message, tt.status, tt.text)
			}
		})
	}
	if len(b.asked) != 0 {
		t.Fatalf("bad requests reached the backend: %q", b.asked)
	}
}

func TestAForeignHostNameIsRefusedOnLoopback(t *testing.T) {
	b := &fakeBackend{}
	l, err := Listen("127.0.0.1:0", quiet())
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(b, nil, quiet())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	for host, want := range map[string]int{
		"": 200, "localhost:7440": 200, "127.0.0.1": 200, "[::1]:80": 200, "127.0.0.9:1": 200,
		"evil.example": 403, "evil.example:7440": 403, "10.0.0.1": 403,
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("host %q: status %d, want %d", host, resp.StatusCode, want)
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestListenWarnsWhenOthersCanReachThePort(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:0": false, "[::1]:0": false, ":0": true, "0.0.0.0:0": true} {
		var out strings.Builder
		l, err := Listen(addr, slog.New(slog.NewTextHandler(&out, nil)))
		if err != nil {
			if addr == "[::1]:0" {
				continue // a machine without IPv6
			}
			t.Fatal(err)
		}
		l.Close()
		if got := strings.Contains(out.String(), "no password"); got != want {
			t.Errorf("%s: warned %v, want %v: %s", addr, got, want, out.String())
		}
	}
	_, err := Listen("nonsense", quiet())
	if err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("got %v", err)
	}
}

func TestClientErrors(t *testing.T) {
	for base, text := range map[string]string{
		"127.0.0.1:7440": "first path segment", "ftp://x": "want http://", "http://": "want http://", "http://a/?x=1": "query", "": "want http://",
	} {
		if _, err := NewClient(base, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("NewClient(%q): %v", base, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c, err := NewClient("http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context(), DatabaseQuery{}); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), addr) {
		t.Errorf("nobody there: %v", err)
	}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			fmt.Fprint(w, "<html>")
			return
		}
		http.Error(w, "teapot", http.StatusTeapot)
	}))
	defer ts.Close()
	c, err = NewClient(ts.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context(), DatabaseQuery{}); err == nil || !strings.Contains(err.Error(), "is this a hasqlite node?") {
		t.Errorf("another program: %v", err)
	}
	if err := c.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "418") || !strings.Contains(err.Error(), "teapot") {
		t.Errorf("another program's error: %v", err)
	}
}

func TestHex64(t *testing.T) {
	for _, bad := range []string{``, `""`, `"1"`, `"000000000000000g"`, `"00000000000000000"`, `1`} {
		var h Hex64
		if err := json.Unmarshal([]byte(bad), &h); err == nil {
			t.Errorf("%s was taken for %v", bad, h)
		}
	}
	if got := (Position{TXID: 42, Checksum: 1 << 63}).String(); got != "000000000000002a/8000000000000000" {
		t.Errorf("got %s", got)
	}
}

func FuzzHex64(f *testing.F) {
	f.Add("00000000000000ff")
	f.Add("x")
	f.Fuzz(func(t *testing.T, s string) {
		var h Hex64
		if err := h.UnmarshalText([]byte(s)); err != nil {
			return
		}
		if got := h.String(); got != strings.ToLower(s) {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

func FuzzCreateRequest(f *testing.F) {
	f.Add([]byte(`{"name":"a","page_size":4096,"auto_vacuum":"full"}`))
	f.Add([]byte(`{"name":"\ud800"}`))
	s := NewServer(&fakeBackend{}, nil, quiet())
	f.Fuzz(func(t *testing.T, body []byte) {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("POST", "/v1/databases", strings.NewReader(string(body))))
		if w.Code != 201 && w.Code != 400 {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("answer is not JSON: %q", w.Body)
		}
	})
}

type fixedMetrics Metrics

func (m fixedMetrics) Metrics() Metrics { return Metrics(m) }

func TestMetrics(t *testing.T) {
	var d histogram.Durations
	for _, v := range []time.Duration{time.Microsecond, 50 * time.Microsecond, 51 * time.Microsecond, time.Hour} {
		d.Observe(v)
	}
	drill := DrillStatus{IntervalMS: 1000, Skipped: 6, AgeMS: 7500} // none went well yet
	m := fixedMetrics{Archive: ArchiveStatus{URL: "file:///a", Drill: drill}, IsLeader: true, Term: 3, DiskFull: true, DiskFreeBytes: 77, ApplyLagEntries: 7, WALSizeBytes: 4120, Databases: map[string]int{DatabaseOK: 2},
		Commits: map[string]uint64{"accepted": 5}, ReplicatedBytes: 99, Checkpoints: map[CheckpointKey]uint64{{"passive", "ok"}: 4},
		Errors: map[string]uint64{"stat": 1}, CommitSeconds: d.Read()}
	ts := httptest.NewServer(NewServer(&fakeBackend{}, m, quiet()).Handler())
	defer ts.Close()
	resp, err := http.Get(ts.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d %v\n%s", resp.StatusCode, err, b)
	}
	for _, line := range []string{
		"hasqlite_is_leader 1", "hasqlite_is_stale 0", "hasqlite_disk_full 1", "hasqlite_disk_free_bytes 77", "hasqlite_raft_term 3", "hasqlite_apply_lag_entries 7", "hasqlite_wal_size_bytes 4120",
		`hasqlite_databases{state="ok"} 2`, `hasqlite_databases{state="fenced"} 0`, `hasqlite_commits_total{outcome="accepted"} 5`,
		"hasqlite_replicated_bytes_total 99", `hasqlite_checkpoints_total{mode="passive",result="ok"} 4`, `hasqlite_errors_total{place="stat"} 1`,
		`hasqlite_commit_duration_seconds_bucket{le="5e-05"} 2`, `hasqlite_commit_duration_seconds_bucket{le="0.0001"} 3`,
		`hasqlite_commit_duration_seconds_bucket{le="10"} 3`, `hasqlite_commit_duration_seconds_bucket{le="+Inf"} 4`, "hasqlite_drill_age_seconds 7.5", "hasqlite_drill_skipped_total 6", "hasqlite_commit_duration_seconds_count 4",
	} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	if t.Failed() {
		t.Logf("%s", b)
	}
}

func TestDatabasesComeInPages(t *testing.T) {
	b := &fakeBackend{}
	for i := range 2*DefaultLimit + 500 {
		b.status.Databases = append(b.status.Databases, DatabaseStatus{Name: fmt.Sprintf("%c/%04d &?#%%", 'a'+i/2000, i)})
	}
	ts := httptest.NewServer(NewServer(b, nil, slog.New(slog.DiscardHandler)).Handler())
	defer ts.Close()
	c, err := NewClient(ts.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		prefix, after      string
		limit, want, calls int
		first              string
	}{
		"all":                         {want: 2500, calls: 3, first: "a/0000 &?#%"},
		"exactly one page":            {limit: 1000, want: 1000, calls: 1, first: "a/0000 &?#%"},
		"a page and one":              {limit: 1001, want: 1001, calls: 2, first: "a/0000 &?#%"},
		"a prefix":                    {prefix: "b/", want: 500, calls: 1, first: "b/2000 &?#%"},
		"a prefix and a start":        {prefix: "b/", after: "b/2000 &?#%", limit: 3, want: 3, calls: 1, first: "b/2001 &?#%"},
		"a prefix that nobody has":    {prefix: "c", want: 0, calls: 1},
		"more than there are":         {limit: 9000, want: 2500, calls: 3, first: "a/0000 &?#%"},
		"behind the last of a prefix": {prefix: "a/", after: "a/1999 &?#%", want: 0, calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			b.asked = nil
			got, err := c.AllDatabases(t.Context(), row.prefix, row.after, row.limit)
			if err != nil || len(got) != row.want || len(b.asked) != row.calls {
				t.Fatalf("%d databases in %d requests, want %d in %d: %v", len(got), len(b.asked), row.want, row.calls, err)
			}
			if len(got) > 0 && got[0].Name != row.first {
				t.Errorf("the first is %q, want %q", got[0].Name, row.first)
			}
		})
	}
}
