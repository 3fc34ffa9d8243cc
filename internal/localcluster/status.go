package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Status is what a node says of itself at /v1/status; docs/http.md of the node describes it. Unknown fields are skipped.
type Status struct {
	Node struct {
		ID      string `json:"id"`
		Version string `json:"version"`
		Raft    string `json:"raft"`
		HTTP    string `json:"http"`
		Socket  string `json:"socket"`
	} `json:"node"`
	Cluster struct {
		ID           string   `json:"id"`
		Leader       string   `json:"leader"`
		Term         uint64   `json:"term"`
		CommitIndex  uint64   `json:"commit_index"`
		AppliedIndex uint64   `json:"applied_index"`
		Members      []Member `json:"members"`
	} `json:"cluster"`
	State string `json:"state"` // leader, follower or candidate
	Stale bool   `json:"stale"` // no leader has spoken to this node lately
	Disk  struct {
		Full      bool  `json:"full"`
		FreeBytes int64 `json:"free_bytes"`
	} `json:"disk"`
	Archive struct {
		URL          string `json:"url"`
		Open         bool   `json:"open"`
		Writes       bool   `json:"writes"`
		Error        string `json:"error"`
		Lagging      int    `json:"lagging"`
		LagMS        int64  `json:"lag_ms"`
		BacklogBytes int64  `json:"backlog_bytes"`
		Gaps         uint64 `json:"gaps"`
	} `json:"archive"`
	Totals    Totals     `json:"totals"`
	Databases []Database `json:"databases"` // the first thousand by name
}

// Totals are sums over all databases of the node.
type Totals struct {
	Databases int            `json:"databases"`
	States    map[string]int `json:"states"`
	Lag       uint64         `json:"lag"` // of the database that is furthest behind
}

// Member is one line of a node's view of the cluster.
type Member struct {
	ID        string `json:"id"`
	Raft      string `json:"raft"`
	HTTP      string `json:"http"`
	Voter     bool   `json:"voter"`
	Reachable bool   `json:"reachable"`
}

// Position is a transaction id and the checksum of the whole database after it, both as 16 hexadecimal digits.
type Position struct {
	TXID     string `json:"txid"`
	Checksum string `json:"checksum"`
}

// String prints the position the way every command of HA-Sqlite does.
func (p Position) String() string { return p.TXID + "/" + p.Checksum }

// Database is one database on one node.
type Database struct {
	Name      string   `json:"name"`
	ID        string   `json:"id"`
	Decided   Position `json:"decided"` // what the log says
	File      Position `json:"file"`    // what this node's files show
	Lag       uint64   `json:"lag"`     // transactions from File to Decided
	PageSize  uint32   `json:"page_size"`
	Pages     uint32   `json:"pages"`
	WALBytes  int64    `json:"wal_bytes"`
	Handles   int      `json:"handles"`
	Archived  string   `json:"archived"` // last transaction known to be archived
	State     string   `json:"state"`    // ok, idle (closed for lack of use), fenced, catching_up, late or ahead
	Detail    string   `json:"detail"`
	HolderPID int      `json:"holder_pid"`
}

// Database finds a database by name.
func (s *Status) Database(name string) (Database, bool) {
	for _, d := range s.Databases {
		if d.Name == name {
			return d, true
		}
	}
	return Database{}, false
}

// APIError is an answer of a node's HTTP port other than 2xx.
type APIError struct {
	Node   string
	Path   string
	Code   int
	Text   string // the node's own words
	Header http.Header
}

// Error implements error.
func (e *APIError) Error() string {
	return fmt.Sprintf("node %s answered %s with %d: %s", e.Node, e.Path, e.Code, e.Text)
}

// statusTimeout bounds one status request: a paused node must not hold up a look at the others.
const statusTimeout = 2 * time.Second

var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Call sends one request to the node's HTTP port. body and answer are JSON, either may be nil.
func (n *Node) Call(ctx context.Context, method, path string, body, answer any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode body of %s %s: %w", method, path, err)
		}
		r = strings.NewReader(string(b))
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.HTTP+path, r)
	if err != nil {
		return fmt.Errorf("build request %s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask node %s: %w", n.ID, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("read answer of node %s to %s: %w", n.ID, path, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		var e struct {
			Error string `json:"error"`
		}
		text := strings.TrimSpace(string(b))
		if json.Unmarshal(b, &e) == nil && e.Error != "" {
			text = e.Error
		}
		return &APIError{Node: n.ID, Path: path, Code: resp.StatusCode, Text: text, Header: resp.Header}
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("decode answer of node %s to %s: %w", n.ID, path, err)
	}
	return nil
}

// Status asks the node for its status.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var s Status
	if err := n.Call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Ready reports whether the node says it can serve.
func (n *Node) Ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return n.Call(ctx, http.MethodGet, "/readyz", nil, nil) == nil
}

// ErrUnreachable is returned by Verify where a node did not answer in time, as one whose checkpoint takes long.
var ErrUnreachable = errors.New("a node did not answer")

// Verify asks the node to compare a database on all nodes; deep compares page by page. The answer is the node's own JSON.
// An answer that says the nodes differ is an error.
func (n *Node) Verify(ctx context.Context, name string, deep bool) (json.RawMessage, error) {
	path := "/v1/verify/" + escapePath(name)
	if deep {
		path += "?deep=1"
	}
	var raw json.RawMessage
	if err := n.Call(ctx, http.MethodGet, path, nil, &raw); err != nil {
		return nil, err
	}
	var verdict struct {
		Equal *bool `json:"equal"`
		Nodes []struct {
			State string `json:"state"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal(raw, &verdict); err != nil {
		return raw, fmt.Errorf("decode verify of %s: %w", name, err)
	}
	if verdict.Equal == nil {
		return raw, fmt.Errorf("verify %s: node %s gave no verdict: %s", name, n.ID, raw)
	}
	for _, v := range verdict.Nodes {
		if v.State == "unreachable" {
			return raw, fmt.Errorf("verify %s: %w: %s", name, ErrUnreachable, raw)
		}
	}
	if !*verdict.Equal {
		return raw, fmt.Errorf("verify %s: nodes differ: %s", name, raw)
	}
	return raw, nil
}

func escapePath(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// Poll calls check every interval until it is true. When ctx ends first, the error carries the last thing check said.
func Poll(ctx context.Context, interval time.Duration, check func() (done bool, why error)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		done, why := check()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), why)
		case <-ticker.C:
		}
	}
}
