package shimtest

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/link"
)

// pastOf makes a node answer requests for the past with files that it copies,
// and counts those that are open.
type pastOf struct {
	mu      sync.Mutex
	asked   []link.PastRequest
	open    int
	changed chan struct{} // of open
}

func (p *pastOf) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open += n
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// none waits until no file is open.
func (p *pastOf) none() {
	for {
		p.mu.Lock()
		n := p.open
		p.mu.Unlock()
		if n == 0 {
			return
		}
		<-p.changed
	}
}

// first returns the first request.
func (p *pastOf) first() link.PastRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[0]
}

func answerPast(t *testing.T, n *Node) *pastOf {
	t.Helper()
	p := &pastOf{changed: make(chan struct{}, 1)}
	dir := t.TempDir()
	n.Set(func(h *Hooks) {
		h.Past = func(req link.PastRequest, progress func()) (link.Past, error) {
			p.mu.Lock()
			p.asked = append(p.asked, req)
			p.mu.Unlock()
			progress()
			d := n.Database(req.Name)
			d.mu.Lock()
			defer d.mu.Unlock()
			if req.At == "never" || !d.created {
				return link.Past{}, &link.Error{Code: link.CodeCantOpen, Text: "object acme/x.ltx: the archive is damaged"}
			}
			out := make([]byte, 0, int(d.pageCount)*int(d.pageSize))
			for pgno := uint32(1); pgno <= d.pageCount; pgno++ {
				out = append(out, d.pages[pgno]...)
			}
			f, err := os.CreateTemp(dir, "past")
			if err != nil {
				return link.Past{}, err
			}
			defer f.Close()
			if _, err := f.Write(out); err != nil {
				return link.Past{}, err
			}
			p.count(1)
			return link.Past{Path: f.Name(), Bookmark: "000000000000002a/8000000000000001", Note: "noted", Close: func() { p.count(-1); _ = os.Remove(f.Name()) }}, nil
		}
	})
	return p
}

// A database as it was is opened read-only through the same VFS, and given
// back with the handle.
func TestPast(t *testing.T) {
	n := startNode(t)
	p := answerPast(t, n)
	now := open(t, dsn(n, "shop.db"))
	mustExec(t, now, "CREATE TABLE t(a, b)", "CREATE INDEX t_a ON t(a)", "INSERT INTO t VALUES(1, zeroblob(9000)), (2, 'x')")
	for _, param := range []string{"at=10+minutes+ago", "to=000000000000002a", "at=now&mode=rw", "at=now&mode=ro&immutable=1", "at=now&cache=shared"} {
		past, err := sql.Open("sqlite3", dsn(n, "shop.db", param))
		if err != nil {
			t.Fatal(err)
		}
		past.SetMaxOpenConns(1)
		mustExec(t, now, "INSERT INTO t VALUES(3, 'later')")
		if got := queryText(t, past, "SELECT count(*) || ' ' || max(a) FROM t"); strings.HasSuffix(got, "later") {
			t.Errorf("%s: got %s", param, got)
		}
		for query, want := range map[string]string{
			"PRAGMA integrity_check": "ok", "PRAGMA journal_mode": "off", "PRAGMA journal_mode=wal": "off", "PRAGMA journal_mode=memory": "off",
			"PRAGMA hasqlite_position": "000000000000002a/8000000000000001", "PRAGMA hasqlite_error": "", "PRAGMA page_size": "4096",
			"SELECT b FROM t WHERE a = 2": "x",
		} {
			if got := queryText(t, past, query); got != want {
				t.Errorf("%s: %s gives %q, want %q", param, query, got, want)
			}
		}
		before := queryText(t, past, "SELECT count(*) FROM t")
		for _, stmt := range []string{"INSERT INTO t VALUES(9, 9)", "DROP TABLE t", "PRAGMA user_version=3", "VACUUM"} {
			_, err := past.Exec(stmt)
			var se sqlite3.Error
			if !errors.As(err, &se) || se.Code != sqlite3.ErrReadonly {
				t.Errorf("%s: %s: got %v, want SQLITE_READONLY", param, stmt, err)
			}
		}
		mustExec(t, now, "DELETE FROM t WHERE a = 3")
		if got := queryText(t, past, "SELECT count(*) FROM t"); got != before {
			t.Errorf("%s: %s rows, then %s", param, before, got)
		}
		if err := past.Close(); err != nil {
			t.Fatal(err)
		}
		p.none()
	}
	if files, err := filepath.Glob(filepath.Join(n.Dir, "*-journal")); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
	if want := (link.PastRequest{Name: "shop.db", At: "10+minutes+ago"}); p.first() != want {
		t.Errorf("asked %+v", p.first())
	}
	if got := queryText(t, now, "PRAGMA journal_mode"); got != "wal" {
		t.Errorf("the database itself is in mode %s", got)
	}
	// With the present attached: both times in one statement.
	past := open(t, dsn(n, "shop.db", "at=now"))
	mustExec(t, past, "ATTACH '"+dsn(n, "shop.db")+"' AS present", "INSERT INTO present.t VALUES(4, 'new')")
	if got := queryText(t, past, "SELECT group_concat(a) FROM (SELECT a FROM present.t EXCEPT SELECT a FROM main.t)"); got != "4" {
		t.Errorf("got %s", got)
	}
	// The past outlives its node.
	n.Stop()
	if got := queryText(t, past, "SELECT count(*) FROM main.t"); got != "2" {
		t.Errorf("got %s rows", got)
	}
}

func TestPastRefusals(t *testing.T) {
	runtime.LockOSThread() // which keeps the last error
	defer runtime.UnlockOSThread()
	n := startNode(t)
	plain := func() { n.Set(func(h *Hooks) { h.Past = nil }) }
	answerPast(t, n)
	mustExec(t, open(t, dsn(n, "shop.db")), "CREATE TABLE t(a)")
	for _, tt := range []struct {
		name, param, says string
		before            func()
	}{
		{"shop.db", "at=never", "object acme/x.ltx", nil},
		{"shop.db", "at=now&to=1", "one of at= and to=", nil},
		{"shop.db", "at=", "one of at= and to=", nil},
		{"shop.db", "to=" + strings.Repeat("f", 300), "too long", nil},
		{"other.db", "at=now", "damaged", nil},
		{"shop.db", "at=now", "there is no archive", plain},
	} {
		if tt.before != nil {
			tt.before()
		}
		db := open(t, dsn(n, tt.name, tt.param))
		err := db.Ping()
		var se sqlite3.Error
		if !errors.As(err, &se) || se.Code != sqlite3.ErrCantOpen {
			t.Errorf("%s %.20s: got %v, want SQLITE_CANTOPEN", tt.name, tt.param, err)
			continue
		}
		if text := LastError(); !strings.Contains(text, tt.says) {
			t.Errorf("%s %.20s: %q does not say %q", tt.name, tt.param, text, tt.says)
		}
	}
}
