package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

// Progress is how far a long request is.
type Progress struct {
	Step  string `json:"step"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// Moment says which state of a database is meant: one of the two, or none for the newest.
type Moment struct {
	// At is a time; To a bookmark or a transaction number of 16 hexadecimal digits.
	At string `json:"at,omitempty"`
	To string `json:"to,omitempty"`
}

// Zero reports that the newest state is meant.
func (m Moment) Zero() bool { return m == Moment{} }

// Commit is a state of a database, exactly.
type Commit struct {
	Bookmark string    `json:"bookmark"`
	TXID     Hex64     `json:"txid"`
	Time     time.Time `json:"time,omitzero"`
	Pages    uint32    `json:"pages"`
}

// ImportRequest asks for a database with the content of a file.
type ImportRequest struct {
	Name string
	// Size is that of the file in bytes.
	Size int64
	// Replace gives a database that exists the content.
	Replace bool
	// HoldMS is for how long its writers may be kept waiting before the transaction is proposed, 0 for two seconds.
	HoldMS int64
}

// Validate says what is wrong with it. The error is an ErrInvalid.
func (r ImportRequest) Validate() error { return validHold(r.HoldMS) }

func validHold(ms int64) error {
	if ms < 0 || ms > time.Hour.Milliseconds() {
		return fmt.Errorf("hold_ms %d: want 0 to an hour: %w", ms, ErrInvalid)
	}
	return nil
}

// ImportReport says what became of an import.
type ImportReport struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	Replaced bool   `json:"replaced"`
	// Commit is the one that shows the content, Previous the state before it, of a database that was replaced.
	Commit     Commit  `json:"commit"`
	Previous   *Commit `json:"previous,omitempty"`
	PageSize   uint32  `json:"page_size"`
	SizeBytes  int64   `json:"size_bytes"`
	Shipped    uint32  `json:"shipped_pages"`
	DurationMS int64   `json:"duration_ms"`
}

// ExportHead says what an export consists of.
type ExportHead struct {
	Name    string   `json:"name"`
	Commit  Commit   `json:"commit"`
	Remarks []string `json:"remarks,omitempty"` // what a person has to know of the choice of the commit
	// Dropped says that commits behind the state cannot be restored one by one, of which some may be before the time that
	// was asked for.
	Dropped   bool   `json:"dropped"`
	PageSize  uint32 `json:"page_size"`
	SizeBytes int64  `json:"size_bytes"`
}

// RollbackRequest asks for a database to become what it was.
type RollbackRequest struct {
	Name string `json:"-"`
	Moment
	// DryRun only says what would be done.
	DryRun bool `json:"dry_run,omitempty"`
	// HoldMS is for how long writers may be kept waiting before the transaction is proposed, 0 for two seconds.
	HoldMS int64 `json:"hold_ms,omitempty"`
}

// Validate says what is wrong with it. The error is an ErrInvalid.
func (r RollbackRequest) Validate() error {
	if r.Zero() {
		return fmt.Errorf("no state to go back to: give at or to: %w", ErrInvalid)
	}
	if err := validHold(r.HoldMS); err != nil {
		return err
	}
	return r.Moment.Validate()
}

// RollbackReport says what became of a rollback: the content of Target is that of Commit, but for the counters in page 1.
type RollbackReport struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Target Commit `json:"target"`
	// Remarks are what a person has to know of the choice of Target.
	Remarks []string `json:"remarks,omitempty"`
	// Previous is the state before: a rollback to its bookmark undoes this one.
	Previous Commit `json:"previous"`
	// Commit is the transaction that shows the content; Previous, if nothing differed.
	Commit Commit `json:"commit"`
	// Shipped is how many pages differed and travelled.
	Shipped    uint32 `json:"shipped_pages"`
	Rounds     int    `json:"rounds"`
	DryRun     bool   `json:"dry_run"`
	DurationMS int64  `json:"duration_ms"`
}

// ForkRequest asks for a database that begins as a state of another one.
type ForkRequest struct {
	Source string `json:"source"`
	Name   string `json:"name"`
	Moment
	// DryRun only says what would be done.
	DryRun bool `json:"dry_run,omitempty"`
}

// Validate says what is wrong with it; the names are judged by the node. The error is an ErrInvalid.
func (r ForkRequest) Validate() error {
	if r.Source == "" || r.Name == "" {
		return fmt.Errorf("fork %q into %q: both names are needed: %w", clip(r.Source), clip(r.Name), ErrInvalid)
	}
	return r.Moment.Validate()
}

// ForkReport says what became of a fork.
type ForkReport struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Source string `json:"source"`
	// Target is the state of the source with which the fork begins.
	Target Commit `json:"target"`
	// Remarks are what a person has to know of the choice of Target.
	Remarks    []string `json:"remarks,omitempty"`
	PageSize   uint32   `json:"page_size"`
	SizeBytes  int64    `json:"size_bytes"`
	DryRun     bool     `json:"dry_run"`
	DurationMS int64    `json:"duration_ms"`
}

// Contents is the part of a Backend that moves whole databases. Progress functions may be called from any goroutine, and
// are cheap.
type Contents interface {
	// Import makes a database of a SQLite file without a log, which it reads whole and has SQLite check first.
	Import(ctx context.Context, req ImportRequest, file io.Reader, progress func(Progress)) (ImportReport, error)
	// Export opens a state of a database as a SQLite file. The caller closes it.
	Export(ctx context.Context, name string, m Moment) (ExportHead, io.ReadCloser, error)
	// Rollback makes a database what it was, by one more transaction, under open readers.
	Rollback(ctx context.Context, req RollbackRequest, progress func(Progress)) (RollbackReport, error)
	// Fork makes a database of a state of another one. It returns when a majority has a durable copy.
	Fork(ctx context.Context, req ForkRequest, progress func(Progress)) (ForkReport, error)
}

const (
	headerExport = "Hasqlite-Export"
	typeLines    = "application/x-ndjson"
	typeSQLite   = "application/vnd.sqlite3"
	// beat is how often a long request that makes no progress says that it is alive.
	beat = time.Second
	// lineBytes bounds a line of an answer.
	lineBytes = 1 << 20
)

func (s *Server) routeContents(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/import/{name...}", s.importDatabase)
	mux.HandleFunc("GET /v1/export/{name...}", s.exportDatabase)
	mux.HandleFunc("POST /v1/rollback/{name...}", s.rollbackDatabase)
	mux.HandleFunc("POST /v1/fork", s.forkDatabase)
}

// line is a line of the answer to a long request: one of the three.
type line struct {
	Progress *Progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *ErrorResponse  `json:"failed,omitempty"`
}

// long answers a request that may take long. Who accepts it is told the progress line by line, and the last line is the
// result or the error; others get that alone. Nothing is written before ended says that the body was read.
func (s *Server) long(w http.ResponseWriter, r *http.Request, ended func() bool, f func(progress func(Progress)) (any, error)) {
	if r.Header.Get("Accept") != typeLines {
		v, err := f(func(Progress) {})
		s.answer(w, r, http.StatusOK, v, err)
		return
	}
	reports := make(chan Progress, 1)
	type outcome struct {
		v   any
		err error
	}
	finished := make(chan outcome, 1)
	go func() {
		v, err := f(func(p Progress) {
			select {
			case <-reports: // the newest counts
			default:
			}
			select {
			case reports <- p:
			default:
			}
		})
		finished <- outcome{v, err}
	}()
	out := http.NewResponseController(w)
	begun := false
	send := func(l line) {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", typeLines)
			w.Header().Set("Cache-Control", "no-store")
		}
		b, err := json.Marshal(l)
		if err != nil {
			b = []byte(`{"failed":{"error":"encode answer","code":"` + codeInternal + `"}}`)
		}
		_, _ = w.Write(append(b, '\n'))
		_ = out.Flush()
	}
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var last Progress
	for {
		select {
		case <-tick.C:
			if !ended() {
				continue
			}
			select {
			case last = <-reports:
			default:
			}
			send(line{Progress: &last})
		case o := <-finished:
			if !begun && o.err != nil { // with the status that it deserves
				s.fail(w, r, o.err)
				return
			}
			if o.err != nil {
				_, code := classify(o.err)
				send(line{Error: &ErrorResponse{Message: o.err.Error(), Code: code}})
				return
			}
			b, err := json.Marshal(o.v)
			if err != nil {
				s.fail(w, r, err)
				return
			}
			send(line{Result: b})
			return
		}
	}
}

func (s *Server) importDatabase(w http.ResponseWriter, r *http.Request) {
	name, err := pathName(r)
	req := ImportRequest{Name: name, Size: r.ContentLength}
	if err == nil {
		req.Replace, err = queryBool(r, "replace")
	}
	if text := r.URL.Query().Get("hold_ms"); err == nil && text != "" {
		if req.HoldMS, err = strconv.ParseInt(text, 10, 64); err != nil {
			err = fmt.Errorf("query parameter hold_ms=%q: want a number of milliseconds: %w", clip(text), ErrInvalid)
		}
	}
	if err == nil {
		err = req.Validate()
	}
	if err == nil && r.ContentLength < 0 {
		err = fmt.Errorf("import %q: the request does not say how long the file is (Content-Length): %w", clip(name), ErrInvalid)
	}
	// A file takes as long as it takes; one that stops coming does not.
	body := &patientReader{r: r.Body, c: http.NewResponseController(w)}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.long(w, r, body.ended, func(progress func(Progress)) (any, error) {
		return s.backend.Import(r.Context(), req, body, progress)
	})
}

// bodyPatience is for how long a body may stop coming.
const bodyPatience = 30 * time.Second

type patientReader struct {
	r    io.Reader
	c    *http.ResponseController
	over atomic.Bool
}

func (p *patientReader) ended() bool { return p.over.Load() }

func (p *patientReader) Read(b []byte) (int, error) {
	if err := p.c.SetReadDeadline(time.Now().Add(bodyPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := p.r.Read(b)
	if errors.Is(err, io.EOF) {
		_ = p.c.SetReadDeadline(time.Time{})
		p.over.Store(true)
	}
	return n, err
}

func (s *Server) rollbackDatabase(w http.ResponseWriter, r *http.Request) {
	var req RollbackRequest
	name, err := pathName(r)
	if err == nil {
		err = readRequest(w, r, &req)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	req.Name = name
	s.long(w, r, bodyRead, func(progress func(Progress)) (any, error) {
		return s.backend.Rollback(r.Context(), req, progress)
	})
}

func (s *Server) forkDatabase(w http.ResponseWriter, r *http.Request) {
	var req ForkRequest
	if err := readRequest(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	s.long(w, r, bodyRead, func(progress func(Progress)) (any, error) {
		return s.backend.Fork(r.Context(), req, progress)
	})
}

// bodyRead is for requests whose body was read before.
func bodyRead() bool { return true }

func momentOf(r *http.Request) (Moment, error) {
	m := Moment{At: r.URL.Query().Get("at"), To: r.URL.Query().Get("to")}
	return m, m.Validate()
}

// Validate says what is wrong with it. The error is an ErrInvalid.
func (m Moment) Validate() error {
	if m.At != "" && m.To != "" {
		return fmt.Errorf("at and to name two states: give one: %w", ErrInvalid)
	}
	return nil
}

func (s *Server) exportDatabase(w http.ResponseWriter, r *http.Request) {
	name, err := pathName(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	m, err := momentOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	head, file, err := s.backend.Export(r.Context(), name, m)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer file.Close()
	b, err := json.Marshal(head)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set(headerExport, string(b))
	w.Header().Set("Content-Type", typeSQLite)
	w.Header().Set("Content-Length", strconv.FormatInt(head.SizeBytes, 10))
	w.Header().Set("Cache-Control", "no-store")
	if _, err := io.Copy(w, file); err != nil {
		s.log.Warn("an export was cut off", "db", name, "err", err)
		panic(http.ErrAbortHandler) // the client sees that it is not whole
	}
}

// Import implements [Contents].
func (c *Client) Import(ctx context.Context, req ImportRequest, file io.Reader, progress func(Progress)) (ImportReport, error) {
	q := url.Values{}
	if req.Replace {
		q.Set("replace", "1")
	}
	if req.HoldMS != 0 {
		q.Set("hold_ms", strconv.FormatInt(req.HoldMS, 10))
	}
	path := "/v1/import/" + escapeName(req.Name) + "?" + q.Encode()
	sent := &meter{r: io.LimitReader(file, req.Size), total: req.Size, progress: progress}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, sent)
	if err != nil {
		return ImportReport{}, fmt.Errorf("make request %s: %w: %w", c.base+path, err, ErrInvalid)
	}
	hr.ContentLength = req.Size
	hr.Header.Set("Content-Type", typeSQLite)
	hr.Header.Set("Expect", "100-continue") // what can be refused without the file is
	return longCall[ImportReport](c, hr, progress)
}

// Rollback implements [Contents].
func (c *Client) Rollback(ctx context.Context, req RollbackRequest, progress func(Progress)) (RollbackReport, error) {
	return longPost[RollbackReport](ctx, c, "/v1/rollback/"+escapeName(req.Name), req, progress)
}

// Fork implements [Contents].
func (c *Client) Fork(ctx context.Context, req ForkRequest, progress func(Progress)) (ForkReport, error) {
	return longPost[ForkReport](ctx, c, "/v1/fork", req, progress)
}

func longPost[T any](ctx context.Context, c *Client, path string, in any, progress func(Progress)) (out T, err error) {
	b, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("encode request %s: %w: %w", path, err, ErrInvalid)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(b))
	if err != nil {
		return out, fmt.Errorf("make request %s: %w: %w", c.base+path, err, ErrInvalid)
	}
	req.Header.Set("Content-Type", "application/json")
	return longCall[T](c, req, progress)
}

type meter struct {
	r        io.Reader
	n, total int64
	progress func(Progress)
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.n += int64(n)
	m.progress(Progress{Step: "send", Done: m.n, Total: m.total})
	return n, err
}

// longCall sends a request and reads its answer line by line.
func longCall[T any](c *Client, req *http.Request, progress func(Progress)) (out T, err error) {
	req.Header.Set("Accept", typeLines)
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
		if err != nil {
			return out, fmt.Errorf("read answer of node at %s: %w: %w", c.base, err, ErrUnreachable)
		}
		return out, remoteError(c.base, resp.StatusCode, b)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, lineBytes)
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return out, fmt.Errorf("read answer of node at %s: %w; is this a hasqlite node?", c.base, err)
		}
		switch {
		case l.Error != nil:
			return out, &RemoteError{Status: resp.StatusCode, Code: l.Error.Code, Message: l.Error.Message}
		case l.Result != nil:
			if err := json.Unmarshal(l.Result, &out); err != nil {
				return out, fmt.Errorf("read answer of node at %s: %w", c.base, err)
			}
			return out, nil
		case l.Progress != nil && l.Progress.Step != "":
			progress(*l.Progress)
		}
	}
	if err := lines.Err(); err != nil && req.Context().Err() != nil {
		return out, fmt.Errorf("read answer of node at %s: %w", c.base, err)
	}
	return out, fmt.Errorf("node at %s ended its answer in the middle; whether the request took effect is not known: %w", c.base, ErrTimeout)
}

// Export implements [Contents]. The reader fails if less comes than the node announced.
func (c *Client) Export(ctx context.Context, name string, m Moment) (ExportHead, io.ReadCloser, error) {
	v := url.Values{}
	for key, text := range map[string]string{"at": m.At, "to": m.To} {
		if text != "" {
			v.Set(key, text)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/export/"+escapeName(name)+"?"+v.Encode(), nil)
	if err != nil {
		return ExportHead{}, nil, fmt.Errorf("make request: %w: %w", err, ErrInvalid)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return ExportHead{}, nil, c.unreachable(err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
		if err != nil {
			return ExportHead{}, nil, fmt.Errorf("read answer of node at %s: %w: %w", c.base, err, ErrUnreachable)
		}
		return ExportHead{}, nil, remoteError(c.base, resp.StatusCode, b)
	}
	var head ExportHead
	if err := json.Unmarshal([]byte(resp.Header.Get(headerExport)), &head); err != nil || head.SizeBytes < 0 || resp.ContentLength != head.SizeBytes {
		resp.Body.Close()
		return ExportHead{}, nil, fmt.Errorf("read answer of node at %s: it has no header %s that fits it; is this a hasqlite node?", c.base, headerExport)
	}
	return head, resp.Body, nil
}

// unreachable names a request that got no answer.
func (c *Client) unreachable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // its text repeats method and address
	}
	return fmt.Errorf("ask node at %s: %w: %w", c.base, err, ErrUnreachable)
}
