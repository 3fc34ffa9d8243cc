package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxAnswerBytes bounds an answer: the status of 100 000 databases fits.
const maxAnswerBytes = 64 << 20

// Client speaks to one node. It is safe for use by many goroutines.
type Client struct {
	base string
	http *http.Client
}

var _ Backend = (*Client)(nil)

// NewClient returns a client of the node at base, such as
// "http://127.0.0.1:7440". A nil hc means a plain http.Client; how long a
// call may take is said by its context.
func NewClient(base string, hc *http.Client) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("parse node address %q: %w: %w", clip(base), err, ErrInvalid)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("parse node address %q: want http://host:port: %w", clip(base), ErrInvalid)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("parse node address %q: a query or fragment has no place in it: %w", clip(base), ErrInvalid)
	}
	if hc == nil {
		hc = &http.Client{}
	}
	return &Client{base: strings.TrimSuffix(base, "/"), http: hc}, nil
}

// Base returns the address the client was made with.
func (c *Client) Base() string { return c.base }

// Status implements [Backend].
func (c *Client) Status(ctx context.Context, q DatabaseQuery) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status"+q.text(), nil)
}

// Databases implements [Backend].
func (c *Client) Databases(ctx context.Context, q DatabaseQuery) (DatabasePage, error) {
	return call[DatabasePage](ctx, c, http.MethodGet, "/v1/databases"+q.text(), nil)
}

// text is the query as it stands behind a path.
func (q DatabaseQuery) text() string {
	v := url.Values{}
	for key, text := range map[string]string{"prefix": q.Prefix, "after": q.After} {
		if text != "" {
			v.Set(key, text)
		}
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

// AllDatabases asks for the databases whose names begin with prefix, page by
// page: at most limit, all if that is 0.
func (c *Client) AllDatabases(ctx context.Context, prefix, after string, limit int) ([]DatabaseStatus, error) {
	all := []DatabaseStatus{}
	for {
		q := DatabaseQuery{Prefix: prefix, After: after, Limit: DefaultLimit}
		if limit > 0 {
			q.Limit = min(q.Limit, limit-len(all))
		}
		page, err := c.Databases(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Databases...)
		if page.Next == "" || page.Next <= after || limit > 0 && len(all) >= limit {
			return all, nil
		}
		after = page.Next
	}
}

// Database implements [Backend].
func (c *Client) Database(ctx context.Context, name string) (DatabaseStatus, error) {
	return call[DatabaseStatus](ctx, c, http.MethodGet, "/v1/databases/"+escapeName(name), nil)
}

// CreateDatabase implements [Backend].
func (c *Client) CreateDatabase(ctx context.Context, req CreateDatabaseRequest) (DatabaseStatus, error) {
	return call[DatabaseStatus](ctx, c, http.MethodPost, "/v1/databases", req)
}

// DeleteDatabase implements [Backend].
func (c *Client) DeleteDatabase(ctx context.Context, name string, force bool) error {
	return c.do(ctx, http.MethodDelete, "/v1/databases/"+escapeName(name)+flag("force", force), nil, nil)
}

// Cluster implements [Backend].
func (c *Client) Cluster(ctx context.Context) (ClusterStatus, error) {
	return call[ClusterStatus](ctx, c, http.MethodGet, "/v1/cluster", nil)
}

// AddMember implements [Backend].
func (c *Client) AddMember(ctx context.Context, req AddMemberRequest) error {
	return c.do(ctx, http.MethodPost, "/v1/cluster/members", req, nil)
}

// RemoveMember implements [Backend].
func (c *Client) RemoveMember(ctx context.Context, id string, force bool) error {
	return c.do(ctx, http.MethodDelete, "/v1/cluster/members/"+url.PathEscape(id)+flag("force", force), nil, nil)
}

// ReplaceMember implements [Backend].
func (c *Client) ReplaceMember(ctx context.Context, req ReplaceRequest) (Replacement, error) {
	return call[Replacement](ctx, c, http.MethodPost, "/v1/cluster/replace", req)
}

// TransferLeadership implements [Backend].
func (c *Client) TransferLeadership(ctx context.Context, req TransferRequest) error {
	return c.do(ctx, http.MethodPost, "/v1/cluster/transfer", req, nil)
}

// Verify implements [Backend].
func (c *Client) Verify(ctx context.Context, name string, deep bool) (VerifyReport, error) {
	return call[VerifyReport](ctx, c, http.MethodGet, "/v1/verify/"+escapeName(name)+flag("deep", deep), nil)
}

// Health implements [Backend].
func (c *Client) Health(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// Ready implements [Backend].
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/readyz", nil, nil)
}

// escapeName puts a database name into a path: slashes stay, the rest is
// escaped.
func escapeName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

func flag(key string, set bool) string {
	if set {
		return "?" + key + "=1"
	}
	return ""
}

func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	err := c.do(ctx, method, path, in, &out)
	return out, err
}

// do sends one request and reads its answer into out, unless out is nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request %s %s: %w: %w", method, path, err, ErrInvalid)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return fmt.Errorf("make request %s %s: %w: %w", method, c.base+path, err, ErrInvalid)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return fmt.Errorf("read answer of node at %s: %w: %w", c.base, err, ErrUnreachable)
	}
	if len(b) > maxAnswerBytes {
		return fmt.Errorf("read answer of node at %s: longer than %d bytes", c.base, maxAnswerBytes)
	}
	if resp.StatusCode/100 != 2 {
		return remoteError(c.base, resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read answer of %s%s: %w; is this a hasqlite node?", c.base, path, err)
	}
	return nil
}

func remoteError(base string, status int, body []byte) error {
	var er ErrorResponse
	if err := json.Unmarshal(body, &er); err != nil || er.Message == "" {
		return &RemoteError{Status: status, Message: fmt.Sprintf("node at %s answered %d %s: %s",
			base, status, http.StatusText(status), clip(strings.TrimSpace(string(body))))}
	}
	return &RemoteError{Status: status, Code: er.Code, Message: er.Message}
}
