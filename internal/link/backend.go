package link

import (
	"context"
	"fmt"
	"time"
)

// Result codes of SQLite that this package sends of its own accord. Handlers
// may use any other code in an Error.
const (
	CodeError    int32 = 1
	CodeBusy     int32 = 5
	CodeReadOnly int32 = 8
	CodeIOErr    int32 = 10
	CodeFull     int32 = 13
	CodeCantOpen int32 = 14
	CodeProtocol int32 = 15
)

// Fingerprint is the part of a wal-index header that names one state of the
// files: change counter, page count, both salts, last frame and its checksum
// pair, each as the native 32-bit word that lies in the header.
type Fingerprint [7]uint32

// Page is one page image of a transaction.
type Page struct {
	Pgno uint32
	Data []byte
}

// Tx is what one COMMIT or PIECE message carries. The pages come strictly
// ascending by number over all messages of a transaction, none beyond PageCount,
// which is the same in all of them.
type Tx struct {
	PageSize  uint32
	PageCount uint32
	Pages     []Page
}

// Outcome is the verdict on a transaction.
type Outcome uint8

const (
	// Accepted: in the log of a quorum, the application may publish it.
	Accepted Outcome = iota
	// Refused: certainly not committed and never will be; safe to retry.
	Refused
	// Unknown: proposed, and the outcome was not heard.
	Unknown
	// Full: refused, and a retry is of no use. The application sees SQLITE_FULL.
	Full
)

// String names the outcome.
func (o Outcome) String() string {
	switch o {
	case Accepted:
		return "accepted"
	case Refused:
		return "refused"
	case Unknown:
		return "unknown"
	case Full:
		return "full"
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// Error is an error with the SQLite result code that the application shall
// see. Any other error from a Backend or Handle reaches it as SQLITE_IOERR.
type Error struct {
	Code int32
	Text string
}

// Error returns the text alone: the code is for the application.
func (e *Error) Error() string { return e.Text }

// Peer is the process at the other end of a connection.
type Peer struct {
	PID    int    // from the kernel where it tells, else what the peer said
	Client string // which build of the shim: "go", "extension", "preload"
	SQLite string // version of the SQLite library in that process
}

// OpenRequest is what an application asks for when it opens a database.
type OpenRequest struct {
	Name          string
	ID            [16]byte
	ReadOnly      bool
	Create        bool
	Linearizable  bool
	LockTimeout   time.Duration
	CommitTimeout time.Duration
}

// Opened answers an OpenRequest.
type Opened struct {
	Exists bool   // the database has its first page
	Epoch  uint32 // the word at wal-index offset 132 that this handle may read under
	Mode   uint32 // file mode of the database's files
	Note   string // a remark for the application's log, or empty
	// MaxTx is the most page bytes in one transaction of this database; 0: what Welcome said.
	MaxTx uint64
}

// PastRequest asks for a database as it was. One of At and To is empty.
type PastRequest struct {
	Name string
	At   string // a time, as a URI has it
	To   string // a bookmark
}

// Past is a file with a database as it was, which nobody changes.
type Past struct {
	Path     string
	Bookmark string // of the commit that was chosen
	Note     string // a remark for the application's log, or empty
	Close    func() // the application is done with it; called once
}

// Created answers a request to create the first page.
type Created struct {
	PageSize uint32
	Epoch    uint32
}

// Grant is the right to write one transaction on top of a position.
type Grant struct {
	TXID     uint64
	Checksum uint64
	Base     Fingerprint
}

// End tells how a write transaction ended. The peer still holds the native
// write lock while it sends it.
type End struct {
	Accepted  bool // a commit of this transaction was accepted
	Published bool // and it is visible in this node's wal-index
	Empty     bool // nothing was written to the WAL
	Seen      Fingerprint
}

// Backend is the node as this package sees it. Its methods are called from
// many goroutines at once.
type Backend interface {
	// Welcome says what every new connection is told.
	Welcome() (nodeID string, cluster [16]byte, maxTxBytes uint64)
	// Resolve maps a database name to its id and the absolute path of its file.
	Resolve(ctx context.Context, name string) (exists bool, id [16]byte, path string, err error)
	// Past makes the file of a database as it was. It calls progress whenever it
	// moves forward.
	Past(ctx context.Context, req PastRequest, progress func()) (Past, error)
	// Open gives the handle that serves one connection from then on.
	Open(ctx context.Context, peer Peer, req OpenRequest) (Handle, Opened, error)
}

// Handle is one application's open database. Its methods are called one at a
// time. A context ends when the peer is gone or the server shuts down.
type Handle interface {
	// Create makes the database's first page, or finds it made.
	Create(ctx context.Context, pageSize uint32, autoVacuum uint8) (Created, error)
	// Begin waits for the right to write.
	Begin(ctx context.Context) (Grant, error)
	// Resume hears that the peer began a transaction on what its last End left, within the time that Keep
	// gave it. Nothing is answered: where it is too late, Commit is refused.
	Resume(ctx context.Context)
	// Keep is for how long after its End the peer may begin again without asking; 0: it has to ask. Called once
	// after Commit has accepted.
	Keep() time.Duration
	// Part takes a piece of a transaction that is too large for one message. Its
	// slices are the callee's until it returns. An error refuses the transaction:
	// nothing of it was or will be proposed, and End comes next.
	Part(ctx context.Context, tx *Tx) error
	// Commit proposes tx, or what Part has taken since the last End and tx, and
	// waits for the verdict. The slices of tx belong to the callee. It calls
	// progress whenever the transaction moves forward; calls in quick succession
	// are merged.
	Commit(ctx context.Context, tx *Tx, progress func()) (Outcome, string)
	// End is the end of a write transaction, whatever became of it.
	End(End)
	// Mismatch says that the peer found other files than its grant described;
	// it gave the grant back.
	Mismatch(seen Fingerprint)
	// Read returns when a linearizable read may go on.
	Read(ctx context.Context) error
	// Pragma answers PRAGMA hasqlite_…
	Pragma(ctx context.Context, name, arg string) (string, error)
	// Close comes exactly once and last: the peer closed, died, broke the
	// protocol, or the server shuts down.
	Close()
}
