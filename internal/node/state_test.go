package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
)

// A time before the first commit, behind the last one, and in the future: all say which commits there are. A clock that is a
// little ahead of that of the node is not the future, and a time is not read in the node's zone when it says one.
func TestTimesSayWhichStatesThereAre(t *testing.T) {
	c := newCluster(t, 1, ownArchives)
	b := backend{c.nodes[0]}
	if _, err := b.CreateDatabase(t.Context(), api.CreateDatabaseRequest{Name: "shop.db", PageSize: 4096}); err != nil {
		t.Fatal(err)
	}
	first, _ := c.export(0, "shop.db", api.Moment{})
	exec(t, c.open(0, "shop.db"), `CREATE TABLE t(a)`)
	last, _ := c.export(0, "shop.db", api.Moment{})
	c.archived(0, "shop.db", 0)
	calls := map[string]func(api.Moment) ([]string, api.Commit, error){
		"rollback": func(m api.Moment) ([]string, api.Commit, error) {
			r, err := b.Rollback(t.Context(), api.RollbackRequest{Name: "shop.db", Moment: m, DryRun: true}, func(api.Progress) {})
			return r.Remarks, r.Target, err
		},
		"fork": func(m api.Moment) ([]string, api.Commit, error) {
			r, err := b.Fork(t.Context(), api.ForkRequest{Source: "shop.db", Name: "copy.db", Moment: m, DryRun: true}, func(api.Progress) {})
			return r.Remarks, r.Target, err
		},
		"export": func(m api.Moment) ([]string, api.Commit, error) {
			r, body, err := b.Export(t.Context(), "shop.db", m)
			if err == nil {
				err = body.Close()
			}
			return r.Remarks, r.Commit, err
		},
	}
	at := func(t time.Time) api.Moment { return api.Moment{At: t.Format(time.RFC3339Nano)} }
	for name, call := range calls {
		for _, tt := range []struct {
			what string
			m    api.Moment
			err  error // that is refused
		}{
			{"before the first", at(first.Commit.Time.Add(-time.Hour)), api.ErrNotFound},
			{"in the future", at(time.Now().Add(time.Hour)), api.ErrInvalid},
			{"of a clock that is ahead", at(time.Now().Add(10 * time.Second)), nil},
			{"behind the last", api.Moment{At: "now"}, nil},
		} {
			remarks, chosen, err := call(tt.m)
			text := strings.Join(remarks, "\n")
			if err != nil {
				text = err.Error()
			}
			if !errors.Is(err, tt.err) || err == nil && chosen.Bookmark != last.Commit.Bookmark {
				t.Errorf("%s of a time %s: %+v, %v", name, tt.what, chosen, err)
			}
			for _, bookmark := range []string{first.Commit.Bookmark, last.Commit.Bookmark} {
				if !strings.Contains(text, bookmark) {
					t.Errorf("%s of a time %s: no %s in %q", name, tt.what, bookmark, text)
				}
			}
		}
		if remarks, chosen, err := call(at(first.Commit.Time.In(time.FixedZone("CET", 3600)))); err != nil || chosen.Bookmark != first.Commit.Bookmark || len(remarks) > 0 {
			t.Errorf("%s of the first: %+v, %v, %q", name, chosen, err, remarks)
		}
	}
}
