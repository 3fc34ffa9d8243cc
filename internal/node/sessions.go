package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/internal/link"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/wal"
)

// sessions serves the shims of the applications on this machine.
type sessions struct {
	svc     *replicate.Service
	nodeID  string
	cluster func() [16]byte
	files   files
	*pasts

	mu      sync.Mutex
	pending map[string]int // handles on names that do not exist yet, by path
}

const (
	defaultLockTimeout   = 5 * time.Second
	defaultCommitTimeout = 10 * time.Second
)

// Welcome implements link.Backend.
func (s *sessions) Welcome() (string, [16]byte, uint64) {
	return s.nodeID, s.cluster(), uint64(s.svc.MaxTransaction())
}

// Resolve implements link.Backend.
func (s *sessions) Resolve(ctx context.Context, name string) (bool, [16]byte, string, error) {
	id, path, exists, err := s.svc.Resolve(name)
	if err != nil {
		return false, id, "", &link.Error{Code: link.CodeCantOpen, Text: err.Error()}
	}
	if !exists {
		// Another node may have created it a moment ago: this one decides before it says "new".
		wctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := s.svc.CatchUp(wctx); err == nil {
			if id, path, exists, err = s.svc.Resolve(name); err != nil {
				return false, id, "", err
			}
		}
	}
	return exists, id, path, nil
}

// Open implements link.Backend.
func (s *sessions) Open(ctx context.Context, peer link.Peer, req link.OpenRequest) (link.Handle, link.Opened, error) {
	if req.LockTimeout <= 0 {
		req.LockTimeout = defaultLockTimeout
	}
	if req.CommitTimeout <= 0 {
		req.CommitTimeout = defaultCommitTimeout
	}
	h := &handle{s: s, req: req, opts: replicate.HandleOptions{
		PID: peer.PID, LockTimeout: req.LockTimeout, CommitTimeout: req.CommitTimeout, ReadOnly: req.ReadOnly,
	}}
	id, path, exists, err := s.svc.Resolve(req.Name)
	opened := link.Opened{Exists: exists, Mode: uint32(s.files.fileMode.Perm()), MaxTx: uint64(s.svc.MaxTransactionOf(req.Name))}
	switch {
	case err != nil:
		return nil, opened, &link.Error{Code: link.CodeCantOpen, Text: err.Error()}
	case id != replicate.DatabaseID(req.ID):
		return nil, opened, &link.Error{Code: link.CodeCantOpen, Text: fmt.Sprintf("database %q was deleted or created again while it was opened: open it again", req.Name)}
	case exists:
		opened.Epoch, err = h.attach(ctx, id)
		return h, opened, err
	case !req.Create:
		return nil, opened, &link.Error{Code: link.CodeCantOpen, Text: fmt.Sprintf("there is no database %q in the cluster", req.Name)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.pending = path
	s.pending[path]++
	if err := s.files.prepare(path); err != nil {
		s.abandonLocked(path)
		return nil, opened, fmt.Errorf("prepare the directory of database %q: %w", req.Name, err)
	}
	return h, opened, nil
}

// handle is one application's open database. A new name has no database until its first use.
type handle struct {
	s       *sessions
	req     link.OpenRequest
	opts    replicate.HandleOptions
	h       *replicate.Handle
	pending string // path of the file of a database that does not exist yet
}

func (h *handle) attach(ctx context.Context, id replicate.DatabaseID) (uint32, error) {
	rh, epoch, err := h.s.svc.OpenHandle(ctx, id, h.opts)
	if err != nil {
		return 0, sqliteError(err, link.CodeCantOpen)
	}
	if h.h = rh; h.pending != "" {
		h.s.mu.Lock()
		if h.s.pending[h.pending]--; h.s.pending[h.pending] == 0 {
			delete(h.s.pending, h.pending)
		}
		h.s.mu.Unlock()
		h.pending = ""
	}
	return epoch, nil
}

// Create implements link.Handle.
func (h *handle) Create(ctx context.Context, pageSize uint32, autoVacuum uint8) (link.Created, error) {
	cctx, cancel := context.WithTimeout(ctx, h.opts.LockTimeout)
	defer cancel()
	st, _, err := h.s.svc.Create(cctx, h.req.Name, replicate.DatabaseID(h.req.ID), pageSize, autoVacuum)
	if err != nil {
		if cctx.Err() != nil || errors.Is(err, replicate.ErrNoLeader) {
			return link.Created{}, &link.Error{Code: link.CodeBusy, Text: err.Error()}
		}
		return link.Created{}, sqliteError(err, link.CodeCantOpen)
	}
	created := link.Created{PageSize: st.PageSize}
	if h.h == nil {
		created.Epoch, err = h.attach(ctx, st.ID)
	}
	return created, err
}

var errNotCreated = &link.Error{Code: link.CodeError, Text: "the database does not exist yet"}

// arrive attaches a handle whose database was not known when it was opened: a node that has just started
// learns of its databases from the log, and its applications are faster.
func (h *handle) arrive(ctx context.Context) error {
	id, _, exists, err := h.s.svc.Resolve(h.req.Name)
	switch {
	case err != nil:
		return &link.Error{Code: link.CodeCantOpen, Text: err.Error()}
	case id != replicate.DatabaseID(h.req.ID):
		return &link.Error{Code: link.CodeReadOnly, Text: fmt.Sprintf("database %q was deleted or created again since it was opened: open it again", h.req.Name)}
	case !exists:
		return &link.Error{Code: link.CodeBusy, Text: errNotCreated.Text}
	}
	_, err = h.attach(ctx, id)
	return err
}

// Begin implements link.Handle.
func (h *handle) Begin(ctx context.Context) (link.Grant, error) {
	if h.h == nil {
		if err := h.arrive(ctx); err != nil {
			return link.Grant{}, err
		}
	}
	pos, fp, err := h.h.Begin(ctx)
	if err != nil {
		return link.Grant{}, sqliteError(err, link.CodeBusy)
	}
	return link.Grant{TXID: uint64(pos.TXID), Checksum: uint64(pos.Checksum), Base: toLink(fp)}, nil
}

// Resume implements link.Handle.
func (h *handle) Resume(ctx context.Context) {
	if h.h != nil {
		h.h.Resume(ctx)
	}
}

// Keep implements link.Handle.
func (h *handle) Keep() time.Duration {
	if h.h == nil {
		return 0
	}
	return h.h.Keep()
}

// Part implements link.Handle.
func (h *handle) Part(ctx context.Context, tx *link.Tx) error {
	if h.h == nil {
		return errNotCreated
	}
	err := h.h.Part(ctx, tx.PageSize, tx.PageCount, walPages(tx))
	if full := (*replicate.FullError)(nil); errors.As(err, &full) || errors.Is(err, replicate.ErrQuota) {
		return &link.Error{Code: link.CodeFull, Text: err.Error()}
	}
	return err
}

// Commit implements link.Handle.
func (h *handle) Commit(ctx context.Context, tx *link.Tx, progress func()) (link.Outcome, string) {
	if h.h == nil {
		return link.Refused, errNotCreated.Text
	}
	var outcome replicate.Outcome
	var text string
	if h.h.HasParts() {
		outcome, text = h.h.CommitParts(ctx, tx.PageSize, tx.PageCount, walPages(tx), progress)
	} else {
		outcome, text = h.h.Commit(ctx, tx.PageSize, tx.PageCount, walPages(tx))
	}
	switch outcome {
	case replicate.OutcomeAccepted:
		return link.Accepted, text
	case replicate.OutcomeRefused:
		return link.Refused, text
	case replicate.OutcomeFull:
		return link.Full, text
	default:
		return link.Unknown, text
	}
}

func walPages(tx *link.Tx) []wal.Page {
	pages := make([]wal.Page, len(tx.Pages))
	for i, p := range tx.Pages {
		pages[i] = wal.Page(p)
	}
	return pages
}

// End implements link.Handle.
func (h *handle) End(e link.End) {
	if h.h != nil {
		h.h.End(e.Accepted && e.Published, fromLink(e.Seen), e.Empty)
	}
}

// Mismatch implements link.Handle.
func (h *handle) Mismatch(seen link.Fingerprint) {
	if h.h != nil {
		h.h.Mismatch(fromLink(seen))
	}
}

// Read implements link.Handle.
func (h *handle) Read(ctx context.Context) error {
	if h.h == nil {
		return nil
	}
	if err := h.h.ReadBarrier(ctx); err != nil {
		return sqliteError(err, link.CodeBusy)
	}
	return nil
}

// Pragma implements link.Handle.
func (h *handle) Pragma(ctx context.Context, name, arg string) (string, error) {
	if h.h == nil {
		return "", errNotCreated
	}
	switch name {
	case "hasqlite_position":
		pos, ok := h.h.Position()
		if !ok {
			return "", &link.Error{Code: link.CodeBusy, Text: "the position of this node's copy is not known yet"}
		}
		return replicate.Bookmark{Position: pos, DB: h.h.Database(), Lineage: h.h.Lineage()}.String(), nil
	case "hasqlite_lag":
		lctx, cancel := context.WithTimeout(ctx, h.opts.LockTimeout)
		defer cancel()
		n, err := h.h.Lag(lctx)
		if err != nil {
			return "", sqliteError(err, link.CodeBusy)
		}
		return strconv.FormatUint(n, 10), nil
	case "hasqlite_status":
		st, ok := h.h.Status()
		if !ok {
			return "", sqliteError(replicate.ErrDeleted, link.CodeReadOnly)
		}
		b, err := json.Marshal(st)
		return string(b), err
	case "hasqlite_wait":
		return h.wait(ctx, arg)
	}
	return "", &link.Error{Code: link.CodeError, Text: fmt.Sprintf("there is no PRAGMA %s", name)}
}

func (h *handle) wait(ctx context.Context, arg string) (string, error) {
	arg = strings.Trim(strings.TrimSpace(arg), "'\"")
	if !strings.Contains(arg, "@") { // a position alone is of this database
		arg += "@" + h.h.Database().String()
	}
	b, err := replicate.ParseBookmark(arg)
	if err != nil {
		return "", &link.Error{Code: link.CodeError, Text: "PRAGMA hasqlite_wait: " + err.Error()}
	}
	wctx, cancel := context.WithTimeout(ctx, h.opts.LockTimeout)
	defer cancel()
	if err := h.h.WaitPosition(wctx, b); err != nil {
		code := link.CodeError
		var busy *replicate.BusyError
		if wctx.Err() != nil || errors.As(err, &busy) {
			code = link.CodeBusy
		}
		return "", &link.Error{Code: code, Text: "PRAGMA hasqlite_wait: " + err.Error()}
	}
	pos, _ := h.h.Position()
	return replicate.Bookmark{Position: pos, DB: h.h.Database(), Lineage: h.h.Lineage()}.String(), nil
}

// Close implements link.Handle.
func (h *handle) Close() {
	if h.h != nil {
		h.h.Close()
		return
	}
	if h.pending == "" {
		return
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.s.abandonLocked(h.pending)
}

// abandonLocked forgets a handle on a name that has no database. The last one removes the empty file that
// SQLite made: a name that was opened and never used leaves nothing behind.
func (s *sessions) abandonLocked(path string) {
	if s.pending[path]--; s.pending[path] > 0 {
		return
	}
	delete(s.pending, path)
	s.files.removeUnused(path, s.svc.HasFiles)
}

// sqliteError gives an error the result code that the application sees.
func sqliteError(err error, fallback int32) error {
	var e *link.Error
	var busy *replicate.BusyError
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, replicate.ErrQuota):
		return &link.Error{Code: link.CodeFull, Text: err.Error()}
	case errors.Is(err, replicate.ErrDeleted), errors.Is(err, replicate.ErrAhead):
		return &link.Error{Code: link.CodeReadOnly, Text: err.Error()}
	case errors.As(err, &busy), errors.Is(err, replicate.ErrDiskFull): // it passes
		return &link.Error{Code: link.CodeBusy, Text: err.Error()}
	}
	return &link.Error{Code: fallback, Text: err.Error()}
}

func toLink(f wal.Fingerprint) link.Fingerprint {
	return link.Fingerprint{f.Change, f.PageCount, f.Salt1, f.Salt2, f.MaxFrame, f.FrameChecksum1, f.FrameChecksum2}
}

func fromLink(f link.Fingerprint) wal.Fingerprint {
	return wal.Fingerprint{Change: f[0], PageCount: f[1], Salt1: f[2], Salt2: f[3], MaxFrame: f[4], FrameChecksum1: f[5], FrameChecksum2: f[6]}
}
