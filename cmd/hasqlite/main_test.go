package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/storeurl"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// fakeNode answers as a node with one database would.
type fakeNode struct {
	err    error
	hang   bool
	report api.VerifyReport
	status api.Status
	calls  []string

	replaced int

	imported, exported []byte
	dropped            bool // of what is exported
	held               int64
	bookmark           string

	archive string            // directory of its archive
	reading func(key string)  // called before an object of it is read
	failed  map[string]string // what members did not do

	remarks []string // on the state that was chosen

	now func() time.Time // the clock of the command; nil for the real one
}

func (f *fakeNode) call(ctx context.Context, format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	if f.hang {
		<-ctx.Done()
	}
	return f.err
}

func (f *fakeNode) Status(ctx context.Context, _ api.DatabaseQuery) (api.Status, error) {
	return f.status, f.call(ctx, "status")
}
func (f *fakeNode) Databases(ctx context.Context, q api.DatabaseQuery) (api.DatabasePage, error) {
	return api.DatabasePage{Databases: f.status.Databases}, f.call(ctx, "databases %q after %q limit %d", q.Prefix, q.After, q.Limit)
}
func (f *fakeNode) Database(ctx context.Context, name string) (api.DatabaseStatus, error) {
	for _, d := range f.status.Databases {
		if d.Name == name {
			return d, f.call(ctx, "info %s", name)
		}
	}
	return api.DatabaseStatus{}, fmt.Errorf("no database named %q: %w", name, api.ErrNotFound)
}
func (f *fakeNode) CreateDatabase(ctx context.Context, req api.CreateDatabaseRequest) (api.DatabaseStatus, error) {
	return api.DatabaseStatus{Name: req.Name, ID: "0f"}, f.call(ctx, "create %s %d %s", req.Name, req.PageSize, req.AutoVacuum)
}
func (f *fakeNode) DeleteDatabase(ctx context.Context, name string, force bool) error {
	return f.call(ctx, "delete %s %v", name, force)
}
func (f *fakeNode) Cluster(ctx context.Context) (api.ClusterStatus, error) {
	return f.status.Cluster, f.call(ctx, "cluster")
}
func (f *fakeNode) AddMember(ctx context.Context, req api.AddMemberRequest) error {
	return f.call(ctx, "add %s %s %v", req.ID, req.Raft, req.Voter)
}
func (f *fakeNode) RemoveMember(ctx context.Context, id string, force bool) error {
	return f.call(ctx, "remove %s %v", id, force)
}
func (f *fakeNode) ReplaceMember(ctx context.Context, req api.ReplaceRequest) (api.Replacement, error) {
	f.replaced++
	states := []string{api.ReplaceWaiting, api.ReplaceCatchingUp, api.ReplacePromoting, api.ReplaceDone}
	return api.Replacement{State: states[min(f.replaced, len(states))-1], Old: req.Old, New: "n9"}, f.call(ctx, "replace %s %s %v", req.Old, req.Raft, req.Force)
}
func (f *fakeNode) TransferLeadership(ctx context.Context, req api.TransferRequest) error {
	return f.call(ctx, "transfer %s", req.ID)
}
func (f *fakeNode) Verify(ctx context.Context, name string, deep bool) (api.VerifyReport, error) {
	return f.report, f.call(ctx, "verify %s %v", name, deep)
}
func (f *fakeNode) Import(ctx context.Context, req api.ImportRequest, file io.Reader, _ func(api.Progress)) (api.ImportReport, error) {
	var err error
	f.held = req.HoldMS
	if f.imported, err = io.ReadAll(file); err != nil {
		return api.ImportReport{}, err
	}
	return api.ImportReport{Name: req.Name, SizeBytes: req.Size, Commit: api.Commit{Bookmark: "b1"}}, f.call(ctx, "import %s %v", req.Name, req.Replace)
}
func (f *fakeNode) Rollback(ctx context.Context, req api.RollbackRequest, _ func(api.Progress)) (api.RollbackReport, error) {
	return api.RollbackReport{Name: req.Name, Remarks: f.remarks, DryRun: req.DryRun, Previous: api.Commit{Bookmark: "b1"}, Commit: api.Commit{Bookmark: "b2"}, Target: api.Commit{Bookmark: "b0"}},
		f.call(ctx, "rollback %s %s%s %v", req.Name, req.At, req.To, req.DryRun)
}
func (f *fakeNode) Fork(ctx context.Context, req api.ForkRequest, _ func(api.Progress)) (api.ForkReport, error) {
	return api.ForkReport{Name: req.Name, Remarks: f.remarks, Source: req.Source, DryRun: req.DryRun, Target: api.Commit{Bookmark: "b0"}},
		f.call(ctx, "fork %s %s %s%s %v", req.Source, req.Name, req.At, req.To, req.DryRun)
}
func (f *fakeNode) Export(ctx context.Context, name string, m api.Moment) (api.ExportHead, io.ReadCloser, error) {
	err := f.call(ctx, "export %s %s%s", name, m.At, m.To)
	head := api.ExportHead{Name: name, Remarks: f.remarks, Commit: api.Commit{Bookmark: f.bookmark}, PageSize: 4096, SizeBytes: int64(len(f.exported)), Dropped: f.dropped}
	return head, io.NopCloser(bytes.NewReader(f.exported)), err
}
func (f *fakeNode) ArchiveStore(context.Context) (store.Store, error) {
	if f.archive == "" {
		return nil, api.ErrUnavailable
	}
	return f.interfere(store.OpenDir(f.archive))
}

// interfere has the archive's objects read with interference.
func (f *fakeNode) interfere(s store.Store, err error) (store.Store, error) {
	if err != nil || f.reading == nil {
		return s, err
	}
	return &interfering{s, f.reading}, nil
}

// open opens an archive that a command names.
func (f *fakeNode) open(ctx context.Context, url string) (store.Store, error) {
	return f.interfere(storeurl.Open(ctx, url))
}

// interfering calls a function before it reads an object.
type interfering struct {
	store.Store
	before func(key string)
}

func (s *interfering) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	s.before(key)
	return s.Store.Get(ctx, key, offset, length)
}

func (f *fakeNode) Label(ctx context.Context, req api.SnapshotRequest, _ func(api.Progress)) (api.SnapshotReport, error) {
	return api.SnapshotReport{Name: req.Name, Label: req.Label, DryRun: req.DryRun, Commit: api.Commit{Bookmark: "b1"}, Failed: f.failed}, f.call(ctx, "label %s %s %v", req.Name, req.Label, req.DryRun)
}
func (f *fakeNode) Unlabel(ctx context.Context, req api.SnapshotRequest, _ func(api.Progress)) (api.SnapshotReport, error) {
	return api.SnapshotReport{Name: req.Name, Label: req.Label, DryRun: req.DryRun, Failed: f.failed}, f.call(ctx, "unlabel %s %s%s %v", req.Name, req.Label, req.To, req.DryRun)
}
func (f *fakeNode) Prune(ctx context.Context, req api.PruneRequest, _ func(api.Progress)) (api.PruneReport, error) {
	return api.PruneReport{Name: req.Name, DryRun: req.DryRun, Bytes: 2048, Files: []api.PrunedFile{{Node: "n1", Level: 1, First: 2, Last: 9, Bytes: 2048, Key: "shop.db/_0f-1/ltx/1/x.ltx"}}, Failed: f.failed},
		f.call(ctx, "prune %s %v", req.Name, req.DryRun)
}
func (f *fakeNode) Health(ctx context.Context) error { return f.call(ctx, "health") }
func (f *fakeNode) Ready(ctx context.Context) error  { return f.call(ctx, "ready") }

func exampleNode() *fakeNode {
	member := func(id string, voter, reachable bool) api.MemberStatus {
		return api.MemberStatus{ID: id, Raft: id + ":7441", HTTP: id + ":7440", Voter: voter, Reachable: reachable}
	}
	pos := api.Position{TXID: 42, Checksum: 1 << 63}
	return &fakeNode{
		status: api.Status{
			Node:  api.NodeStatus{ID: "n1", Version: "v0", Socket: "/run/n1.sock"},
			State: api.StateLeader,
			Cluster: api.ClusterStatus{ID: "c1", Lineage: 1, Leader: "n1", Term: 3, CommitIndex: 9, AppliedIndex: 9,
				Members: []api.MemberStatus{member("n1", true, true), member("n2", true, true), member("n3", true, true), member("n4", false, false)}},
			Databases: []api.DatabaseStatus{{Name: "shop.db", ID: "0f", Decided: pos, File: pos, PageSize: 4096, Pages: 3, Handles: 2, State: api.DatabaseOK,
				HolderPID: 77, HolderAgeMS: 1500}},
		},
		report: api.VerifyReport{Name: "shop.db", Equal: true, Deep: true, Position: pos, DurationMS: 12,
			Nodes: []api.VerifyNode{{Node: "n1", State: api.VerifyEqual, Position: pos, Pages: 3}}},
	}
}

// cmdline runs a command line against the node and returns what it printed.
func cmdline(t *testing.T, n *fakeNode, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ts := httptest.NewServer(api.NewServer(n, nil, slog.New(slog.DiscardHandler)).Handler())
	defer ts.Close()
	var out, errs bytes.Buffer
	now := time.Now
	if n.now != nil {
		now = n.now
	}
	code = run(args, streams{in: strings.NewReader(""), out: &out, err: &errs, now: now, open: n.open, env: func(name string) string {
		if v, ok := env[name]; ok {
			return v
		}
		if name == "HASQLITE_NODE" {
			return ts.URL
		}
		return ""
	}})
	return code, out.String(), errs.String()
}

func TestCommandsAskTheNode(t *testing.T) {
	const pos = "000000000000002a/8000000000000000"
	tests := []struct {
		args, call string
		want       []string
	}{
		{"snapshot create shop.db --label v1", "label shop.db v1 false", []string{"state b1 of shop.db is kept as v1"}},
		{"snapshot create shop.db --label v1 --dry-run", "label shop.db v1 true", []string{"would be kept as v1"}},
		{"snapshot delete shop.db --label v1", "unlabel shop.db v1 false", []string{"v1 of shop.db is given back to retention"}},
		{"archive prune shop.db --dry-run", "prune shop.db true", []string{"n1", "ltx/1/x.ltx", "would be removed: 1 files, 2.0 KiB"}},
		{"archive prune shop.db", "prune shop.db false", []string{"removed: 1 files, 2.0 KiB"}},
		{"db create a/b", "create a/b 4096 none", []string{"database a/b made, id 0f"}},
		{"db create x --page-size 512 --auto-vacuum full", "create x 512 full", nil},
		{"db list", `databases "" after "" limit 1000`, []string{"NAME", "shop.db  " + pos + "  0    12.0 KiB  2        ok"}},
		{"db info shop.db", "info shop.db", []string{pos + "@0f", "12.0 KiB (3 pages of 4096 bytes)", "process 77 for 1.5s"}},
		{"db delete shop.db", "delete shop.db false", []string{"database shop.db deleted"}},
		{"db delete shop.db --force", "delete shop.db true", nil},
		{"cluster status", "status", []string{"c1, lineage 1", "n1, leader, version v0", "n1      leader     n1:7441", "n4      non-voter", "no"}},
		{"cluster status --wait", "ready;status", nil},
		{"cluster add n5 db5:7441", "add n5 db5:7441 true;cluster", []string{"member n5 added"}},
		{"cluster add n5 db5:7441 --non-voter", "add n5 db5:7441 false;cluster", nil},
		{"cluster remove n3", "remove n3 false;cluster", []string{"member n3 removed"}},
		{"cluster remove n3 --force", "remove n3 true;cluster", []string{"member n3 removed"}},
		{"cluster replace n3 db9:7441", "replace n3 db9:7441 false;replace n3 db9:7441 false;replace n3 db9:7441 false;replace n3 db9:7441 false;cluster", []string{"catching up", "member n3 replaced by n9"}},
		{"cluster transfer", "transfer ", []string{"leadership handed over\n"}},
		{"cluster transfer n2", "transfer n2", []string{"handed over to n2"}},
		{"verify shop.db", "verify shop.db false", []string{"n1    equal  " + pos + "  3      -", "shop.db equal at " + pos + " on 1 nodes, page by page, in 12ms"}},
		{"verify shop.db --deep", "verify shop.db true", nil},
		{"__complete db info s", `databases "s" after "" limit 1000`, []string{"shop.db\n:4"}},
		{"__complete cluster remove ", "cluster", []string{"n1\nn2\nn3\nn4\n:4"}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			n := exampleNode()
			code, out, errs := cmdline(t, n, nil, strings.Split(tt.args, " ")...)
			if code != 0 || strings.Join(n.calls, ";") != tt.call {
				t.Fatalf("exit code %d %s; asked %q, want %q", code, errs, n.calls, tt.call)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if strings.HasPrefix(tt.args, "__") {
				return
			}
			code, out, errs = cmdline(t, exampleNode(), nil, append(strings.Fields(tt.args), "--json")...)
			if code != 0 || errs != "" || !json.Valid([]byte(out)) {
				t.Errorf("with --json: exit code %d %s\n%s", code, errs, out)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	fails := func(err error) *fakeNode { return &fakeNode{err: fmt.Errorf("delete: %w", err)} }
	report := func(states ...string) *fakeNode {
		n := exampleNode()
		n.report.Equal = false
		for _, s := range states {
			n.report.Nodes = append(n.report.Nodes, api.VerifyNode{Node: "n2", State: s, DifferingPages: 300, Differing: []uint32{1, 7}})
		}
		return n
	}
	tests := []struct {
		name string
		node *fakeNode
		env  map[string]string
		args string
		code int
		text string
	}{
		{"unknown error", fails(errors.New("odd")), nil, "db delete a", 1, "odd"},
		{"no command", exampleNode(), nil, "", 0, ""},
		{"unknown command", exampleNode(), nil, "frobnicate", 2, `unknown command "frobnicate"`},
		{"unknown subcommand", exampleNode(), nil, "db frobnicate", 2, `unknown command "frobnicate"`},
		{"missing argument", exampleNode(), nil, "db info", 2, "accepts 1 arg(s), received 0\nUsage: hasqlite db info NAME"},
		{"unknown flag", exampleNode(), nil, "db list --no", 2, "unknown flag: --no; hasqlite db list --help"},
		{"bad page size", exampleNode(), nil, "db create a --page-size 1000", 2, "page_size 1000"},
		{"bad auto_vacuum", exampleNode(), nil, "db create a --auto-vacuum yes", 2, "--auto-vacuum"},
		{"bad node address", exampleNode(), map[string]string{"HASQLITE_NODE": "ftp://x"}, "db list", 2, `HASQLITE_NODE: parse node address "ftp://x"`},
		{"bad timeout", exampleNode(), nil, "db list --timeout -1s", 2, "--timeout -1s"},
		{"no such database", exampleNode(), nil, "db info nope", 3, `hasqlite: no database named "nope"`},
		{"no node", exampleNode(), map[string]string{"HASQLITE_NODE": "127.0.0.1:1"}, "db list", 4, "http://127.0.0.1:1"},
		{"no leader", fails(api.ErrNoLeader), nil, "db delete a", 4, "no leader"},
		{"exists", fails(api.ErrExists), nil, "db create a", 6, "already exists"},
		{"in use", fails(api.ErrInUse), nil, "db delete a", 6, "in use"},
		{"timed out at the node", fails(api.ErrTimeout), nil, "db delete a", 7, "timed out"},
		{"no answer in time", &fakeNode{hang: true}, nil, "db delete a --timeout 50ms", 7, "not known"},
		{"not ready in time", fails(api.ErrNoLeader), nil, "cluster status --wait --timeout 150ms", 4, "wait for the node"},
		{"equal", exampleNode(), nil, "verify shop.db", 0, ""},
		{"differs", report(api.VerifyUnreachable, api.VerifyDiffers), nil, "verify shop.db", 5, "copy on node n2 differs"},
		{"fenced", report(api.VerifyFenced), nil, "verify shop.db --json", 5, "is fenced"},
		{"behind", report(api.VerifyBehind), nil, "verify shop.db", 4, "not all nodes"},
		{"unequal without a reason", report(), nil, "verify shop.db", 5, "the nodes differ"},
		{"shell of a path", exampleNode(), nil, "shell ./a.db", 2, "plain file"},
		{"shell of a drive", exampleNode(), nil, "shell C:a", 2, "plain file"},
		{"shell with two forms", exampleNode(), nil, "shell a --json --mode csv", 2, "both given"},
		{"shell without socket", exampleNode(), nil, "shell a", 4, "/run/n1.sock"},
		{"shell with a wrong socket", exampleNode(), nil, "shell a --socket /nonexistent/s", 4, "named by --socket"},
		{"shell without node", exampleNode(), map[string]string{"HASQLITE_NODE": "127.0.0.1:1", "HASQLITE_SOCKET": "/nonexistent/s"}, "shell a", 4, "HASQLITE_SOCKET"},
		{"node without data", exampleNode(), nil, "__node", 2, "__node: no data directory"},
		{"demo with arguments", exampleNode(), nil, "demo now", 2, "unknown command"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := cmdline(t, tt.node, tt.env, strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(errs, tt.text) {
				t.Fatalf("exit code %d, want %d; said %q, want %q\n%s", code, tt.code, errs, tt.text, out)
			}
		})
	}
}

func TestClusterStatusWarns(t *testing.T) {
	for name, tt := range map[string]struct {
		reachable []bool // of the voters
		want      string
	}{
		"three of three": {[]bool{true, true, true}, ""},
		"two of three":   {[]bool{true, true, false}, "No further voter may be lost"},
		"one of three":   {[]bool{true, false, false}, "nothing can be written"},
		"four of four":   {[]bool{true, true, true, true}, "4 voters survive the loss of 1, as 3 do"},
		"three of four":  {[]bool{true, true, true, false}, "4 voters survive the loss of 1, as 3 do"},
		"two of two":     {[]bool{true, true}, "2 voters survive the loss of 0, as 1 do"},
		"one of one":     {[]bool{true}, ""},
	} {
		n := exampleNode()
		n.status.Cluster.Members = nil
		for i, r := range tt.reachable {
			n.status.Cluster.Members = append(n.status.Cluster.Members, api.MemberStatus{ID: fmt.Sprint("n", i+1), Voter: true, Reachable: r})
		}
		_, out, _ := cmdline(t, n, nil, "cluster", "status")
		last := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
		if tt.want == "" && !strings.HasPrefix(last, "n") || !strings.Contains(last, tt.want) {
			t.Errorf("%s: last line %q, want %q", name, last, tt.want)
		}
	}
}

func TestClusterStatusSaysThatADiskIsFull(t *testing.T) {
	n := exampleNode()
	n.status.Disk = api.DiskStatus{Full: true, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), FreeBytes: 3 << 20}
	if _, out, _ := cmdline(t, n, nil, "cluster", "status"); !strings.Contains(out, "full since 2026-01-02T03:04:05Z, 3.0 MiB free: this node takes no writes") {
		t.Errorf("status says\n%s", out)
	}
	n.status.Disk = api.DiskStatus{FreeBytes: 3 << 30}
	if _, out, _ := cmdline(t, n, nil, "cluster", "status"); strings.Contains(out, "full") {
		t.Errorf("status says\n%s", out)
	}
}

func TestShellFindsTheSocket(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "node.sock")
	if err := os.WriteFile(sock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &cli{streams: streams{env: func(string) string { return "" }, now: time.Now}, timeout: time.Second}
	got, err := c.socket(nil, sock)
	if err != nil || got != sock {
		t.Errorf("given: %q, %v", got, err)
	}
	c.env = func(name string) string { return map[string]string{"HASQLITE_SOCKET": sock}[name] }
	if got, err := c.socket(nil, ""); err != nil || got != sock {
		t.Errorf("from the environment: %q, %v", got, err)
	}
	if got := c.history(); !strings.HasSuffix(got, ".hasqlite_history") {
		t.Errorf("history in %q", got)
	}
	c.env = func(string) string { return "off" }
	if got := c.history(); got != "" {
		t.Errorf("history off, got %q", got)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	root := newRoot(streams{env: func(string) string { return "" }, now: time.Now})
	for _, group := range root.Commands() {
		cmds := group.Commands()
		if len(cmds) == 0 {
			cmds = append(cmds, group)
		}
		for _, cmd := range cmds {
			if cmd.Hidden || cmd.Name() == "help" || cmd.Parent().Name() == "completion" || cmd.Name() == "completion" {
				continue
			}
			if cmd.Example == "" || cmd.Short == "" {
				t.Errorf("%s has no example or no short text", cmd.CommandPath())
			}
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 40: "1.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
