package shimtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/internal/link"
)

// maxTx is what the fake node announces as its largest transaction.
const maxTx = 8 << 20

// Node is a cluster of one that keeps each database twice: in the files that
// applications use, and as a mirror in memory made of their commits alone.
type Node struct {
	Dir    string // of the databases
	Socket string

	mu     sync.Mutex
	server *link.Server
	dbs    map[string]*Database

	hooksMu sync.Mutex
	hooks   Hooks
}

// Hooks change how a Node behaves.
type Hooks struct {
	// Verdict, when set, decides instead of accepting everything.
	Verdict func(db *Database, tx *link.Tx) (link.Outcome, string)
	// BeforeVerdict, when set, runs first in each commit.
	BeforeVerdict func(ctx context.Context)
	// Part, when set, can refuse a piece of a transaction.
	Part func(tx *link.Tx) error
	// BeginError, when set, can refuse a grant.
	BeginError func(db *Database) error
	// Keep is what every accepted transaction is told about the next one.
	Keep time.Duration
	// Greeting, when set, runs before each connection is greeted.
	Greeting func()
	// Past, when set, answers requests for databases as they were.
	Past func(req link.PastRequest, progress func()) (link.Past, error)
	// Epoch is given to every handle that opens.
	Epoch uint32
	// ReadDelay runs inside each linearizable read.
	ReadDelay func(ctx context.Context) error
}

// Set changes the hooks.
func (n *Node) Set(change func(*Hooks)) {
	n.hooksMu.Lock()
	defer n.hooksMu.Unlock()
	change(&n.hooks)
}

func (n *Node) current() Hooks {
	n.hooksMu.Lock()
	defer n.hooksMu.Unlock()
	return n.hooks
}

// Database is one database of a Node.
type Database struct {
	Name string
	Path string

	node   *Node
	writer chan struct{} // holds a token while nobody writes

	mu         sync.Mutex
	created    bool
	pageSize   uint32
	autoVacuum uint8
	pages      map[uint32][]byte
	pageCount  uint32
	txid       uint64
	base       link.Fingerprint
	keeper     *sql.DB // plain SQLite on the file: checkpoints, keeps -wal alive
	Stats      Stats
}

// Stats counts what a database's handles did.
type Stats struct {
	Opens, Begins, Resumes, Commits, Refused, Pages, Pieces int
	Ends, EmptyEnds, Lost                                   int // Lost: accepted but not published
	Mismatches, Reads, Closes                               int
	LastPeer                                                link.Peer
}

// NewNode makes a node in dir; Start makes it listen.
func NewNode(dir string) *Node {
	return &Node{Dir: dir, Socket: filepath.Join(dir, "node.sock"), dbs: make(map[string]*Database)}
}

// Start listens on the socket.
func (n *Node) Start() error {
	l, err := link.Listen(n.Socket, 0o660, -1)
	if err != nil {
		return err
	}
	n.serve(l)
	return nil
}

func (n *Node) serve(l net.Listener) {
	s := link.NewServer(n, slog.New(slog.NewTextHandler(io.Discard, nil)))
	n.mu.Lock()
	n.server = s
	n.mu.Unlock()
	go func() { _ = s.Serve(l) }()
}

// Stop ends all connections at once, as a node that is killed.
func (n *Node) Stop() {
	n.mu.Lock()
	s := n.server
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.Shutdown(ctx)
}

// Close stops the node and closes its own connections.
func (n *Node) Close() {
	n.Stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range n.dbs {
		if d.keeper != nil {
			_ = d.keeper.Close()
		}
	}
}

// Database returns the database of that name, making it known.
func (n *Node) Database(name string) *Database {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dbs[name]
	if d == nil {
		id := idOf(name)
		d = &Database{
			Name:   name,
			Path:   filepath.Join(n.Dir, "databases", hex.EncodeToString(id[:]), "db"),
			node:   n,
			writer: make(chan struct{}, 1),
			pages:  make(map[uint32][]byte),
		}
		d.writer <- struct{}{}
		n.dbs[name] = d
	}
	return d
}

// Names lists the databases that were created.
func (n *Node) Names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name, d := range n.dbs {
		d.mu.Lock()
		if d.created {
			names = append(names, name)
		}
		d.mu.Unlock()
	}
	return names
}

func idOf(name string) (id [16]byte) {
	sum := sha256.Sum256([]byte(name))
	copy(id[:], sum[:])
	return id
}

// Welcome implements link.Backend.
func (n *Node) Welcome() (string, [16]byte, uint64) {
	if f := n.current().Greeting; f != nil {
		f()
	}
	return "fake", [16]byte{1}, maxTx
}

// Resolve implements link.Backend.
func (n *Node) Resolve(_ context.Context, name string) (bool, [16]byte, string, error) {
	if name == "" || strings.Contains(name, "..") {
		return false, [16]byte{}, "", &link.Error{Code: link.CodeCantOpen, Text: fmt.Sprintf("%q is no database name", name)}
	}
	d := n.Database(name)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.created, idOf(name), d.Path, nil
}

// Past implements link.Backend.
func (n *Node) Past(_ context.Context, req link.PastRequest, progress func()) (link.Past, error) {
	if f := n.current().Past; f != nil {
		return f(req, progress)
	}
	return link.Past{}, &link.Error{Code: link.CodeCantOpen, Text: "there is no archive"}
}

// Open implements link.Backend.
func (n *Node) Open(_ context.Context, peer link.Peer, req link.OpenRequest) (link.Handle, link.Opened, error) {
	d := n.Database(req.Name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if req.ID != idOf(req.Name) {
		return nil, link.Opened{}, &link.Error{Code: link.CodeCantOpen, Text: "another id"}
	}
	if !d.created && !req.Create {
		return nil, link.Opened{}, &link.Error{Code: link.CodeCantOpen, Text: "no such database"}
	}
	d.Stats.Opens++
	d.Stats.LastPeer = peer
	return &handle{db: d, req: req}, link.Opened{Exists: d.created, Epoch: n.current().Epoch, Mode: 0o660}, nil
}

// handle implements link.Handle.
type handle struct {
	db      *Database
	req     link.OpenRequest
	holding bool
	pieces  []link.Page
}

func (h *handle) Create(_ context.Context, pageSize uint32, autoVacuum uint8) (link.Created, error) {
	d := h.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.created {
		if err := d.createLocked(pageSize, autoVacuum); err != nil {
			return link.Created{}, err
		}
	}
	return link.Created{PageSize: d.pageSize, Epoch: d.node.current().Epoch}, nil
}

func (d *Database) createLocked(pageSize uint32, autoVacuum uint8) error {
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o770); err != nil {
		return err
	}
	img := emptyImage(pageSize, autoVacuum)
	if _, err := os.Stat(d.Path); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(d.Path, img, 0o660); err != nil {
			return err
		}
	}
	d.created, d.pageSize, d.autoVacuum = true, pageSize, autoVacuum
	d.pages[1] = img
	d.pageCount, d.txid = 1, 1
	return d.openKeeperLocked()
}

func (d *Database) openKeeperLocked() error {
	db, err := sql.Open("sqlite3", "file:"+d.Path+"?vfs=unix&_busy_timeout=0")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	for _, q := range []string{"PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=OFF", "PRAGMA schema_version"} {
		if _, err := db.Exec(q); err != nil {
			_ = db.Close()
			return fmt.Errorf("open keeper: %s: %w", q, err)
		}
	}
	d.keeper = db
	return nil
}

// emptyImage is the one-page database of SQLITE-FACTS A.4.
func emptyImage(pageSize uint32, autoVacuum uint8) []byte {
	b := make([]byte, pageSize)
	copy(b, "SQLite format 3\x00")
	size := uint16(pageSize) // 65536 is written as 1
	if pageSize == 65536 {
		size = 1
	}
	binary.BigEndian.PutUint16(b[16:], size)
	b[18], b[19], b[21], b[22], b[23] = 2, 2, 64, 32, 32
	binary.BigEndian.PutUint32(b[28:], 1)
	if autoVacuum > 0 {
		binary.BigEndian.PutUint32(b[52:], 1)
	}
	if autoVacuum == 2 {
		binary.BigEndian.PutUint32(b[64:], 1)
	}
	b[100] = 0x0d
	binary.BigEndian.PutUint16(b[105:], uint16(pageSize))
	return b
}

func (h *handle) Begin(ctx context.Context) (link.Grant, error) {
	d := h.db
	if f := d.node.current().BeginError; f != nil {
		if err := f(d); err != nil {
			return link.Grant{}, err
		}
	}
	timer := time.NewTimer(h.req.LockTimeout)
	defer timer.Stop()
	select {
	case <-d.writer:
	case <-timer.C:
		return link.Grant{}, &link.Error{Code: link.CodeBusy, Text: "another writer holds the lock"}
	case <-ctx.Done():
		return link.Grant{}, &link.Error{Code: link.CodeBusy, Text: "the node stops"}
	}
	h.holding = true
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Stats.Begins++
	return link.Grant{TXID: d.txid, Base: d.base}, nil
}

// Resume stands for what a node does: the lock was kept, or is taken again, or the commit is refused.
func (h *handle) Resume(ctx context.Context) {
	d := h.db
	d.mu.Lock()
	d.Stats.Resumes++
	d.mu.Unlock()
	select {
	case <-d.writer:
		h.holding = true
	default:
	}
}

// Keep implements link.Handle.
func (h *handle) Keep() time.Duration { return h.db.node.current().Keep }

// Part keeps a copy: its memory is used again for the next piece.
func (h *handle) Part(_ context.Context, tx *link.Tx) error {
	for _, p := range tx.Pages {
		h.pieces = append(h.pieces, link.Page{Pgno: p.Pgno, Data: bytes.Clone(p.Data)})
	}
	h.db.mu.Lock()
	h.db.Stats.Pieces++
	h.db.mu.Unlock()
	if f := h.db.node.current().Part; f != nil {
		return f(tx)
	}
	return nil
}

func (h *handle) Commit(ctx context.Context, tx *link.Tx, progress func()) (link.Outcome, string) {
	tx.Pages = append(h.pieces, tx.Pages...)
	h.pieces = nil
	progress()
	d := h.db
	hooks := d.node.current()
	if hooks.BeforeVerdict != nil {
		hooks.BeforeVerdict(ctx)
	}
	if ctx.Err() != nil {
		return link.Unknown, "the node stops"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !h.holding {
		return link.Refused, "no grant"
	}
	outcome, text := link.Accepted, ""
	if hooks.Verdict != nil {
		outcome, text = hooks.Verdict(d, tx)
	}
	if outcome != link.Accepted {
		d.Stats.Refused++
		return outcome, text
	}
	d.Stats.Commits++
	d.Stats.Pages += len(tx.Pages)
	for _, p := range tx.Pages {
		d.pages[p.Pgno] = p.Data
	}
	for pgno := range d.pages {
		if pgno > tx.PageCount {
			delete(d.pages, pgno)
		}
	}
	d.pageCount = tx.PageCount
	d.txid++
	return link.Accepted, ""
}

func (h *handle) End(e link.End) {
	d := h.db
	h.pieces = nil
	d.mu.Lock()
	d.Stats.Ends++
	if e.Empty {
		d.Stats.EmptyEnds++
	}
	if e.Accepted && !e.Published {
		d.Stats.Lost++
	}
	d.base = e.Seen
	d.mu.Unlock()
	h.release()
}

func (h *handle) Mismatch(link.Fingerprint) {
	h.db.mu.Lock()
	h.db.Stats.Mismatches++
	h.db.mu.Unlock()
	h.release()
}

func (h *handle) release() {
	if h.holding {
		h.holding = false
		h.db.writer <- struct{}{}
	}
}

func (h *handle) Read(ctx context.Context) error {
	h.db.mu.Lock()
	h.db.Stats.Reads++
	h.db.mu.Unlock()
	if f := h.db.node.current().ReadDelay; f != nil {
		return f(ctx)
	}
	return nil
}

func (h *handle) Pragma(_ context.Context, name, arg string) (string, error) {
	h.db.mu.Lock()
	defer h.db.mu.Unlock()
	switch name {
	case "hasqlite_position":
		return fmt.Sprintf("%016x/%016x", h.db.txid, 0), nil
	case "hasqlite_status", "hasqlite_lag":
		return fmt.Sprintf("%s of %s: ok", name, h.db.Name), nil
	case "hasqlite_wait":
		if arg == "never" {
			return "", &link.Error{Code: link.CodeBusy, Text: "not reached in time: " + arg}
		}
		return arg, nil
	}
	return "", &link.Error{Code: link.CodeError, Text: "no such PRAGMA: " + name}
}

func (h *handle) Close() {
	h.db.mu.Lock()
	h.db.Stats.Closes++
	h.db.mu.Unlock()
	h.release()
}

// Snapshot copies the counters.
func (d *Database) Snapshot() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Stats
}

// Forget makes the node expect another state of the files than they have.
func (d *Database) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base = link.Fingerprint{99, 99, 99, 99, 99, 99, 99}
}

// Created tells with which settings the database was made.
func (d *Database) Created() (pageSize uint32, autoVacuum uint8) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pageSize, d.autoVacuum
}

// Foreign runs a statement as a program does that opens the file with plain
// SQLite.
func (d *Database) Foreign(query string) error {
	_, err := d.plain().Exec(query)
	return err
}

func (d *Database) plain() *sql.DB {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.keeper
}

// Checkpoint runs a checkpoint as the node does.
func (d *Database) Checkpoint(mode string) error {
	var busy, frames, done int
	err := d.plain().QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &frames, &done)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", mode, err)
	}
	return nil
}

// Mirror is the database as the commits made it.
func (d *Database) Mirror() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out bytes.Buffer
	for pgno := uint32(1); pgno <= d.pageCount; pgno++ {
		p := d.pages[pgno]
		if p == nil {
			return nil, fmt.Errorf("page %d of %d was never committed", pgno, d.pageCount)
		}
		out.Write(p)
	}
	return out.Bytes(), nil
}
