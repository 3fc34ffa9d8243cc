package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// SnapshotRequest asks for a labelled restore point, or for the end of one.
type SnapshotRequest struct {
	Name  string `json:"-"`
	Label string `json:"label,omitempty"`
	// To names one that is to end by its state instead: a bookmark, or a transaction number of 16 hexadecimal digits.
	To     string `json:"to,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
}

const maxLabel = 200

// Validate says what is wrong with it. The error is an ErrInvalid.
func (r SnapshotRequest) Validate() error {
	if r.Label != "" && r.To != "" {
		return fmt.Errorf("label and to name two restore points: give one: %w", ErrInvalid)
	}
	if r.To != "" {
		return nil
	}
	if r.Label == "" || len(r.Label) > maxLabel {
		return fmt.Errorf("a label has 1 to %d bytes, not %d: %w", maxLabel, len(r.Label), ErrInvalid)
	}
	for _, c := range r.Label {
		if c < ' ' || c == 0x7f || c == 0xfffd {
			return fmt.Errorf("label %q has characters that cannot be shown: %w", r.Label, ErrInvalid)
		}
	}
	return nil
}

// SnapshotReport says what became of a SnapshotRequest.
type SnapshotReport struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Label  string `json:"label"`
	Commit Commit `json:"commit,omitzero"` // of a new one
	DryRun bool   `json:"dry_run"`
	// Failed are members that keep an archive of their own and did not do it, with the reason.
	Failed map[string]string `json:"failed"`
}

// PruneRequest asks for the files to be removed that retention would remove.
type PruneRequest struct {
	Name   string `json:"-"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// PruneReport says what went, of each member that keeps an archive of its own, or of the one archive.
type PruneReport struct {
	Name   string            `json:"name"`
	ID     string            `json:"id"`
	DryRun bool              `json:"dry_run"`
	Files  []PrunedFile      `json:"files"`
	Bytes  int64             `json:"bytes"`
	Failed map[string]string `json:"failed"`
}

// PrunedFile is a file of an archive.
type PrunedFile struct {
	Node  string    `json:"node"`
	Level int       `json:"level"`
	First Hex64     `json:"first"`
	Last  Hex64     `json:"last"`
	Time  time.Time `json:"time"` // of its last commit
	Bytes int64     `json:"bytes"`
	Key   string    `json:"key"`
}

// Archives is the part of a Backend that is about what is archived.
type Archives interface {
	// ArchiveStore returns what the answering node reads its archive from.
	ArchiveStore(ctx context.Context) (store.Store, error)
	// Label keeps a database as it is now, beyond what retention keeps.
	Label(ctx context.Context, req SnapshotRequest, progress func(Progress)) (SnapshotReport, error)
	// Unlabel gives it back to retention.
	Unlabel(ctx context.Context, req SnapshotRequest, progress func(Progress)) (SnapshotReport, error)
	// Prune removes now what retention removes.
	Prune(ctx context.Context, req PruneRequest, progress func(Progress)) (PruneReport, error)
}

func (s *Server) routeArchives(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/archive", s.archive)
	mux.HandleFunc("GET /v1/archive/list", s.archiveList)
	mux.HandleFunc("GET /v1/archive/objects/{name...}", s.archiveObject)
	mux.HandleFunc("POST /v1/snapshots/{name...}", func(w http.ResponseWriter, r *http.Request) { s.snapshot(w, r, s.backend.Label) })
	mux.HandleFunc("POST /v1/unlabel/{name...}", func(w http.ResponseWriter, r *http.Request) { s.snapshot(w, r, s.backend.Unlabel) })
	mux.HandleFunc("POST /v1/prune/{name...}", s.prune)
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request, f func(context.Context, SnapshotRequest, func(Progress)) (SnapshotReport, error)) {
	var req SnapshotRequest
	name, err := pathName(r)
	if err == nil {
		err = readRequest(w, r, &req)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	req.Name = name
	s.long(w, r, bodyRead, func(progress func(Progress)) (any, error) { return f(r.Context(), req, progress) })
}

func (s *Server) prune(w http.ResponseWriter, r *http.Request) {
	var req PruneRequest
	name, err := pathName(r)
	if err == nil {
		err = readJSON(w, r, &req)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	req.Name = name
	s.long(w, r, bodyRead, func(progress func(Progress)) (any, error) {
		report, err := s.backend.Prune(r.Context(), req, progress)
		if report.Files == nil {
			report.Files = []PrunedFile{}
		}
		return report, err
	})
}

// archiveInfo describes the store of an archive.
type archiveInfo struct {
	URL    string   `json:"url"`
	Levels []string `json:"levels"` // directories of the levels 0 to 9
}

// archiveObjects is a part of a listing.
type archiveObjects struct {
	Objects []archiveObjectInfo `json:"objects"`
	Dirs    []string            `json:"dirs"`
	More    bool                `json:"more"` // ask again, with after
}

type archiveObjectInfo struct {
	Key  string    `json:"key"`
	Size int64     `json:"size"`
	Time time.Time `json:"time,omitzero"`
}

// archiveListed is how many objects one answer lists. Tests make it small.
var archiveListed = 1000

var errEnough = errors.New("enough")

func (s *Server) archive(w http.ResponseWriter, r *http.Request) {
	st, err := s.backend.ArchiveStore(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	info := archiveInfo{URL: st.URL()}
	for level := range 10 {
		info.Levels = append(info.Levels, st.LevelDir(level))
	}
	writeJSON(w, http.StatusOK, info)
}

func (s *Server) archiveList(w http.ResponseWriter, r *http.Request) {
	st, err := s.backend.ArchiveStore(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	q := r.URL.Query()
	list := archiveObjects{Objects: []archiveObjectInfo{}, Dirs: []string{}}
	if q.Has("dirs") {
		list.Dirs, err = st.Dirs(r.Context(), q.Get("dir"))
	} else {
		err = st.List(r.Context(), q.Get("dir"), q.Get("after"), func(i store.Info) error {
			if len(list.Objects) == archiveListed {
				list.More = true
				return errEnough
			}
			list.Objects = append(list.Objects, archiveObjectInfo{i.Key, i.Size, i.Time})
			return nil
		})
		if errors.Is(err, errEnough) {
			err = nil
		}
	}
	s.answer(w, r, http.StatusOK, list, storeError(err))
}

// storeError gives an error of a store the sentinel of the HTTP interface.
func storeError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("%w: %w", err, ErrNotFound)
	case errors.Is(err, store.ErrInvalidKey):
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	case err != nil:
		return fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	return nil
}

func (s *Server) archiveObject(w http.ResponseWriter, r *http.Request) {
	if err := s.sendObject(w, r); err != nil {
		s.fail(w, r, err)
	}
}

// sendObject answers with a part of an object; an error says that nothing was
// answered.
func (s *Server) sendObject(w http.ResponseWriter, r *http.Request) error {
	key, err := pathName(r)
	if err != nil {
		return err
	}
	st, err := s.backend.ArchiveStore(r.Context())
	if err != nil {
		return err
	}
	q := r.URL.Query()
	offset, length := int64(0), int64(-1)
	for name, to := range map[string]*int64{"offset": &offset, "length": &length} {
		if text := q.Get(name); text != "" {
			if *to, err = strconv.ParseInt(text, 10, 64); err != nil || *to < 0 {
				return fmt.Errorf("query parameter %s=%q: want a number of bytes: %w", name, clip(text), ErrInvalid)
			}
		}
	}
	if q.Has("stat") || length < 0 {
		i, err := st.Stat(r.Context(), key)
		if err != nil {
			return storeError(err)
		}
		if q.Has("stat") {
			writeJSON(w, http.StatusOK, archiveObjectInfo{i.Key, i.Size, i.Time})
			return nil
		}
		if length = i.Size - offset; length < 0 {
			return fmt.Errorf("object %s has %d bytes, none from %d on: %w", key, i.Size, offset, ErrInvalid)
		}
	}
	body, err := st.Get(r.Context(), key, offset, length)
	if err != nil {
		return storeError(err)
	}
	defer body.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	w.Header().Set("Cache-Control", "no-store")
	if n, err := io.Copy(w, body); err != nil || n != length {
		s.log.Warn("an object of the archive was cut off", "path", clip(key), "bytes", n, "err", err)
		panic(http.ErrAbortHandler) // the client sees that it is not whole
	}
	return nil
}

// Label implements [Archives].
func (c *Client) Label(ctx context.Context, req SnapshotRequest, progress func(Progress)) (SnapshotReport, error) {
	return longPost[SnapshotReport](ctx, c, "/v1/snapshots/"+escapeName(req.Name), req, progress)
}

// Unlabel implements [Archives].
func (c *Client) Unlabel(ctx context.Context, req SnapshotRequest, progress func(Progress)) (SnapshotReport, error) {
	return longPost[SnapshotReport](ctx, c, "/v1/unlabel/"+escapeName(req.Name), req, progress)
}

// Prune implements [Archives].
func (c *Client) Prune(ctx context.Context, req PruneRequest, progress func(Progress)) (PruneReport, error) {
	return longPost[PruneReport](ctx, c, "/v1/prune/"+escapeName(req.Name), req, progress)
}

// ArchiveStore implements [Archives]: it reads the archive of the node through
// the node, which need not be reachable otherwise.
func (c *Client) ArchiveStore(ctx context.Context) (store.Store, error) {
	info, err := call[archiveInfo](ctx, c, http.MethodGet, "/v1/archive", nil)
	if err != nil {
		return nil, err
	}
	if len(info.Levels) != 10 {
		return nil, fmt.Errorf("the node at %s lists %d levels of its archive, want 10", c.base, len(info.Levels))
	}
	for level, dir := range info.Levels {
		if err := store.CheckKey(dir); err != nil {
			return nil, fmt.Errorf("the node at %s names a directory of level %d: %w", c.base, level, err)
		}
	}
	return &nodeStore{c, info}, nil
}

// nodeStore is a store.Store that only reads.
type nodeStore struct {
	c    *Client
	info archiveInfo
}

var errReadOnly = errors.New("an archive cannot be written through a node")

func (s *nodeStore) URL() string { return s.info.URL + " of the node at " + s.c.base }
func (s *nodeStore) LevelDir(level int) string {
	return s.info.Levels[level]
}
func (s *nodeStore) Detect(context.Context) error { return errReadOnly }
func (s *nodeStore) Conditional() bool            { return false }
func (s *nodeStore) Put(context.Context, string, io.ReaderAt, int64, time.Time) error {
	return errReadOnly
}
func (s *nodeStore) Delete(context.Context, ...string) error { return errReadOnly }

// failed gives an error of the node the sentinel of the store.
func (s *nodeStore) failed(err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %w", err, store.ErrNotFound)
	}
	return err
}

func (s *nodeStore) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, err
	}
	v := url.Values{"offset": {strconv.FormatInt(offset, 10)}}
	if length >= 0 {
		v.Set("length", strconv.FormatInt(length, 10))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.c.base+"/v1/archive/objects/"+escapeName(key)+"?"+v.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request for %s: %w", key, err)
	}
	resp, err := s.c.http.Do(req)
	if err != nil {
		return nil, s.c.unreachable(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
		if err != nil {
			return nil, fmt.Errorf("read answer of node at %s: %w: %w", s.c.base, err, ErrUnreachable)
		}
		return nil, s.failed(remoteError(s.c.base, resp.StatusCode, b))
	}
	if resp.ContentLength < 0 || length >= 0 && resp.ContentLength != length {
		resp.Body.Close()
		return nil, fmt.Errorf("the node at %s announces %d bytes of %s, want %d", s.c.base, resp.ContentLength, key, length)
	}
	return resp.Body, nil
}

func (s *nodeStore) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Info{}, err
	}
	i, err := call[archiveObjectInfo](ctx, s.c, http.MethodGet, "/v1/archive/objects/"+escapeName(key)+"?stat=1", nil)
	if err != nil {
		return store.Info{}, s.failed(err)
	}
	if i.Key != key || i.Size < 0 {
		return store.Info{}, fmt.Errorf("the node at %s, asked for %s, describes %q of %d bytes", s.c.base, key, clip(i.Key), i.Size)
	}
	return store.Info(i), nil
}

// within refuses a name that does not belong into a listing of a directory behind another name: keys are made of it.
func (s *nodeStore) within(dir, after, name string) error {
	if err := store.CheckKey(store.Join(dir, name)); err != nil || strings.Contains(name, "/") || name <= after {
		return fmt.Errorf("the node at %s, asked for what is in %q behind %q, lists %q", s.c.base, clip(dir), clip(after), clip(name))
	}
	return nil
}

func (s *nodeStore) List(ctx context.Context, dir, after string, f func(store.Info) error) error {
	for {
		list, err := call[archiveObjects](ctx, s.c, http.MethodGet, "/v1/archive/list?"+url.Values{"dir": {dir}, "after": {after}}.Encode(), nil)
		if err != nil {
			return s.failed(err)
		}
		for _, i := range list.Objects {
			name := i.Key
			if dir != "" {
				name, _ = strings.CutPrefix(i.Key, dir+"/")
			}
			if err := s.within(dir, after, name); err != nil {
				return err
			}
			if store.Join(dir, name) != i.Key || i.Size < 0 {
				return fmt.Errorf("the node at %s lists %q of %d bytes in %q", s.c.base, clip(i.Key), i.Size, clip(dir))
			}
			if err := f(store.Info(i)); err != nil {
				return err
			}
			after = name
		}
		if !list.More || len(list.Objects) == 0 {
			return nil
		}
	}
}

func (s *nodeStore) Dirs(ctx context.Context, dir string) ([]string, error) {
	list, err := call[archiveObjects](ctx, s.c, http.MethodGet, "/v1/archive/list?"+url.Values{"dir": {dir}, "dirs": {"1"}}.Encode(), nil)
	if err != nil {
		return nil, s.failed(err)
	}
	last := ""
	for _, name := range list.Dirs {
		if err := s.within(dir, last, name); err != nil {
			return nil, err
		}
		last = name
	}
	return list.Dirs, nil
}
