package node

import (
	"net/http"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// What the command line does with databases, by the HTTP port of every node, with no application near.
func TestDatabasesAreCreatedListedAndDeletedThroughAnyNode(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 2*time.Minute)
	for i, n := range c.Nodes() {
		name := []string{"plain.db", "acme/plan-7", "ünïcode name"}[i]
		if err := n.Call(ctx, http.MethodPost, "/v1/databases", map[string]any{"name": name, "page_size": 8192}, nil); err != nil {
			t.Fatal(err)
		}
		testcluster.Converged(t, c, name)
		s, err := n.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := s.Database(name); !ok || d.PageSize != 8192 || d.Decided.TXID != "0000000000000001" {
			t.Errorf("%s: got %+v, %v", name, d, ok)
		}
		if err := n.Call(ctx, http.MethodPost, "/v1/databases", map[string]any{"name": name}, nil); err == nil {
			t.Errorf("%s could be created twice", name)
		}
	}
	for _, bad := range []string{"", "../up", "/abs", "a//b", "a\x00b"} {
		if err := c.Nodes()[0].Call(ctx, http.MethodPost, "/v1/databases", map[string]any{"name": bad}, nil); err == nil {
			t.Errorf("database %q was created", bad)
		}
	}
	leader := testcluster.LeaderFirst(t, c)[0]
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		if n != leader {
			if err := n.Call(ctx, http.MethodPost, "/v1/databases", map[string]any{"name": "by " + n.ID}, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if err := leader.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		if n != leader {
			testcluster.Converged(t, c, "by "+n.ID)
		}
	}
	if err := leader.Call(ctx, http.MethodDelete, "/v1/databases/acme/plan-7", nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := c.WaitConverged(testcluster.Context(t, 2*time.Second), "acme/plan-7"); err == nil {
		t.Error("the deleted database is still there")
	}
}
