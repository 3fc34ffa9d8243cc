package api

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Hex64 is a 64-bit number that travels as 16 hexadecimal digits.
type Hex64 uint64

// String returns the 16 digits.
func (h Hex64) String() string { return fmt.Sprintf("%016x", uint64(h)) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hex64) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It takes exactly 16
// hexadecimal digits.
func (h *Hex64) UnmarshalText(b []byte) error {
	if len(b) != 16 {
		return fmt.Errorf("parse hex number %q: want 16 hexadecimal digits, got %d characters", clip(string(b)), len(b))
	}
	var raw [8]byte
	if _, err := hex.Decode(raw[:], b); err != nil {
		return fmt.Errorf("parse hex number %q: %w", b, err)
	}
	var v uint64
	for _, c := range raw {
		v = v<<8 | uint64(c)
	}
	*h = Hex64(v)
	return nil
}

// Position is where a database stands: the number of its last transaction and
// the checksum of all its pages after it.
type Position struct {
	TXID     Hex64 `json:"txid"`
	Checksum Hex64 `json:"checksum"`
}

// String returns the form in which positions are printed everywhere.
func (p Position) String() string { return p.TXID.String() + "/" + p.Checksum.String() }

// Roles of a node, the values of Status.State.
const (
	StateLeader    = "leader"
	StateFollower  = "follower"
	StateCandidate = "candidate"
)

// States of one node's copy of a database, the values of DatabaseStatus.State.
const (
	DatabaseOK         = "ok"          // follows the log
	DatabaseFenced     = "fenced"      // differs from the log; not used until healed
	DatabaseCatchingUp = "catching_up" // behind, and moving
	DatabaseLate       = "late"        // behind, and held by an application (HolderPID)
	DatabaseAhead      = "ahead"       // has what the log has lost in a recovery; nothing can be written
)

// Status is what one node knows of itself, the cluster and its databases.
type Status struct {
	Node    NodeStatus    `json:"node"`
	Cluster ClusterStatus `json:"cluster"`
	// State is the node's role: StateLeader, StateFollower or StateCandidate.
	State string `json:"state"`
	// Stale says that the node hears of no leader: its reads may be old.
	Stale bool      `json:"stale"`
	Log   LogStatus `json:"log"`
	// Disk is the room on the node's disk.
	Disk DiskStatus `json:"disk"`
	// Archive is where commits are kept.
	Archive ArchiveStatus `json:"archive"`
	// Quotas are those of the answering node, in the order in which they are
	// tried, and how many databases each of them counts.
	Quotas []QuotaStatus `json:"quotas,omitempty"`
	// Totals are sums over all databases.
	Totals DatabaseTotals `json:"totals"`
	// Databases are those that were asked for, by name. Next is not empty when more follow: it is the After of the
	// query that goes on.
	Databases []DatabaseStatus `json:"databases"`
	Next      string           `json:"next,omitempty"`
}

// QuotaStatus is a quota and its use. A limit of 0 is none.
type QuotaStatus struct {
	Pattern             string `json:"pattern"`
	Databases           int    `json:"databases"`
	MaxDatabases        int    `json:"max_databases"`
	MaxBytes            int64  `json:"max_bytes"`
	MaxTransactionBytes int64  `json:"max_transaction_bytes"`
}

// DatabaseQuota is what the quota that matches a name allows one database.
type DatabaseQuota struct {
	Pattern             string `json:"pattern"`
	MaxBytes            int64  `json:"max_bytes"`
	MaxTransactionBytes int64  `json:"max_transaction_bytes"`
}

// DatabaseTotals are sums over all databases on the answering node.
type DatabaseTotals struct {
	Databases int `json:"databases"`
	// States counts them by State.
	States   map[string]int `json:"states"`
	Handles  int            `json:"handles"`
	WALBytes int64          `json:"wal_bytes"`
	// Lag is the largest.
	Lag uint64 `json:"lag"`
	// BacklogFrames are those of all logs that are not in the database files;
	// BacklogMS and ReaderAgeMS are the largest of any database.
	BacklogFrames uint64 `json:"backlog_frames"`
	BacklogMS     int64  `json:"backlog_ms"`
	ReaderAgeMS   int64  `json:"reader_age_ms"`
}

// DatabaseQuery chooses databases: at most Limit of those whose names begin
// with Prefix and come after After, in the order of their bytes. Limit 0 means
// DefaultLimit.
type DatabaseQuery struct {
	Prefix, After string
	Limit         int
}

// Limits of a DatabaseQuery.
const (
	DefaultLimit = 1000
	MaxLimit     = 10_000
)

// Validate reports what is wrong with q.
func (q DatabaseQuery) Validate() error {
	if q.Limit < 0 || q.Limit > MaxLimit {
		return fmt.Errorf("limit %d: want 1 to %d: %w", q.Limit, MaxLimit, ErrInvalid)
	}
	return nil
}

// DatabasePage is the answer to a DatabaseQuery.
type DatabasePage struct {
	Databases []DatabaseStatus `json:"databases"`
	// Next is the After of the query that goes on, empty at the end.
	Next string `json:"next,omitempty"`
}

// LogStatus is the raft log of the answering node.
type LogStatus struct {
	Bytes      int64 `json:"bytes"`
	LimitBytes int64 `json:"limit_bytes"`
	// FirstIndex to LastIndex are the entries that it holds; SnapshotIndex is
	// the last that a snapshot here holds.
	FirstIndex    uint64 `json:"first_index"`
	LastIndex     uint64 `json:"last_index"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	// Blocked is why the log cannot be compacted, and BlockedMS for how long
	// that has been so. Empty while it can.
	Blocked   string `json:"blocked"`
	BlockedMS int64  `json:"blocked_ms"`
}

// NodeStatus describes the node that answers.
type NodeStatus struct {
	ID      string    `json:"id"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Raft    string    `json:"raft"`
	HTTP    string    `json:"http"`
	Socket  string    `json:"socket"`
}

// DiskStatus is the room on the disk of a node's data directory.
type DiskStatus struct {
	// Full says that the node takes no writes, and does not lead if another member can, until there is room again.
	Full bool `json:"full"`
	// Since is when it became full, zero while it is not.
	Since time.Time `json:"since,omitzero"`
	// FreeBytes is what can be written, ReservedBytes what is kept in reserve beside that.
	FreeBytes     int64 `json:"free_bytes"`
	ReservedBytes int64 `json:"reserved_bytes"`
}

// ClusterStatus is the cluster as the answering node sees it.
type ClusterStatus struct {
	ID      string `json:"id"`
	Lineage uint64 `json:"lineage"`
	// Leader is the id of the leader, empty while there is none.
	Leader       string         `json:"leader"`
	LeaderHTTP   string         `json:"leader_http"`
	Term         uint64         `json:"term"`
	CommitIndex  uint64         `json:"commit_index"`
	AppliedIndex uint64         `json:"applied_index"`
	Members      []MemberStatus `json:"members"`
	// Warnings are what a person should know of the members, in words.
	Warnings []string `json:"warnings"`
}

// MemberStatus describes one member of the cluster.
type MemberStatus struct {
	ID        string `json:"id"`
	Raft      string `json:"raft"`
	HTTP      string `json:"http"`
	Voter     bool   `json:"voter"`
	Reachable bool   `json:"reachable"`
}

// DatabaseStatus describes the answering node's copy of a database.
type DatabaseStatus struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// Decided is the position that the log has reached, the same on every
	// node that has applied as much of the log.
	Decided Position `json:"decided"`
	// File is the position that this node's files show.
	File Position `json:"file"`
	// Archived is the last transaction that this node knows to be archived, 0
	// for none.
	Archived Hex64 `json:"archived"`
	// Lag is the number of transactions between File and Decided.
	Lag      uint64 `json:"lag"`
	PageSize uint32 `json:"page_size"`
	Pages    uint32 `json:"pages"`
	WALBytes int64  `json:"wal_bytes"`
	// BacklogFrames are in the WAL and not yet in the database file;
	// BacklogMS is for how long there has been a backlog.
	BacklogFrames uint32 `json:"backlog_frames"`
	BacklogMS     int64  `json:"backlog_ms"`
	// ReaderPID is the process with the oldest read transaction that keeps
	// frames in the WAL, 0 if there is none or it is not known, and
	// ReaderAgeMS the age of that transaction as far as it was watched.
	ReaderPID   int   `json:"reader_pid"`
	ReaderAgeMS int64 `json:"reader_age_ms"`
	// Handles is the number of open application handles on this node.
	Handles int `json:"handles"`
	// Quota is absent where none matches the name.
	Quota *DatabaseQuota `json:"quota,omitempty"`
	// State is one of the Database constants; Detail says more in words.
	State  string `json:"state"`
	Detail string `json:"detail"`
	// HolderPID is the process that holds the write lock here, 0 if none.
	HolderPID   int   `json:"holder_pid"`
	HolderAgeMS int64 `json:"holder_age_ms"`
	// CatchupPages of CatchupTotal differing pages have come from another node, while they are fetched; else 0.
	CatchupPages uint32 `json:"catchup_pages,omitempty"`
	CatchupTotal uint32 `json:"catchup_total,omitempty"`
}

// AutoVacuum is SQLite's auto_vacuum setting of a database.
type AutoVacuum uint8

// SQLite's three settings.
const (
	AutoVacuumNone        AutoVacuum = 0
	AutoVacuumFull        AutoVacuum = 1
	AutoVacuumIncremental AutoVacuum = 2
)

var autoVacuumNames = [...]string{"none", "full", "incremental"}

// String returns SQLite's word for a.
func (a AutoVacuum) String() string {
	if int(a) < len(autoVacuumNames) {
		return autoVacuumNames[a]
	}
	return "auto_vacuum(" + strconv.Itoa(int(a)) + ")"
}

// MarshalText implements [encoding.TextMarshaler].
func (a AutoVacuum) MarshalText() ([]byte, error) {
	if int(a) >= len(autoVacuumNames) {
		return nil, fmt.Errorf("encode auto_vacuum %d: want 0, 1 or 2", uint8(a))
	}
	return []byte(autoVacuumNames[a]), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *AutoVacuum) UnmarshalText(b []byte) error {
	for i, name := range autoVacuumNames {
		if strings.EqualFold(string(b), name) {
			*a = AutoVacuum(i)
			return nil
		}
	}
	return fmt.Errorf("parse auto_vacuum %q: want none, full or incremental", clip(string(b)))
}

// CreateDatabaseRequest asks for a new, empty database.
type CreateDatabaseRequest struct {
	Name string `json:"name"`
	// PageSize is in bytes, a power of two from 512 to 65536; 0 means 4096.
	PageSize   uint32     `json:"page_size,omitempty"`
	AutoVacuum AutoVacuum `json:"auto_vacuum,omitempty"`
}

// Validate says what is wrong with the request; the name is judged by the
// node. The error is an ErrInvalid.
func (r CreateDatabaseRequest) Validate() error {
	if r.Name == "" {
		return fmt.Errorf("create database: no name given: %w", ErrInvalid)
	}
	if n := r.PageSize; n != 0 && (n < 512 || n > 65536 || n&(n-1) != 0) {
		return fmt.Errorf("create database %q: page_size %d is not a power of two from 512 to 65536: %w", clip(r.Name), n, ErrInvalid)
	}
	return nil
}

// AddMemberRequest asks for a node to be taken into the cluster.
type AddMemberRequest struct {
	ID string `json:"id"`
	// Raft is the address at which the members reach the node.
	Raft  string `json:"raft"`
	Voter bool   `json:"voter"`
}

// Validate says what is wrong with the request. The error is an ErrInvalid.
func (r AddMemberRequest) Validate() error {
	if r.ID == "" {
		return fmt.Errorf("add member: no id given: %w", ErrInvalid)
	}
	if r.Raft == "" {
		return fmt.Errorf("add member %q: no raft address given: %w", clip(r.ID), ErrInvalid)
	}
	return nil
}

// ReplaceRequest asks for a member to be replaced by the node at an address.
// It is repeated until the answer says that it is done; each does one step,
// and leaving off in between leaves a cluster that works.
type ReplaceRequest struct {
	Old string `json:"old"`
	// Raft is the address of the new node, which was started with --join.
	Raft  string `json:"raft"`
	Force bool   `json:"force,omitempty"`
}

// Validate says what is wrong with the request. The error is an ErrInvalid.
func (r ReplaceRequest) Validate() error {
	if r.Old == "" || r.Raft == "" {
		return fmt.Errorf("replace member %q by the node at %q: both are needed: %w", clip(r.Old), clip(r.Raft), ErrInvalid)
	}
	return nil
}

// States of a Replacement, in order.
const (
	ReplaceWaiting    = "waiting"     // for the new node to join
	ReplaceCatchingUp = "catching_up" // it has not everything yet
	ReplacePromoting  = "promoting"   // it has got its vote
	ReplaceDone       = "done"        // the old member is removed
)

// Replacement is how far a replacement is.
type Replacement struct {
	State string `json:"state"`
	Old   string `json:"old"`
	New   string `json:"new"`
	// Detail says in words what is waited for.
	Detail string `json:"detail"`
}

// TransferRequest asks for another leader. An empty ID leaves the choice to
// the present one.
type TransferRequest struct {
	ID string `json:"id,omitempty"`
}

// States of a node in a VerifyReport.
const (
	VerifyEqual       = "equal"       // same position, same bytes
	VerifyDiffers     = "differs"     // same transaction id, other bytes
	VerifyBehind      = "behind"      // did not reach the compared position in time
	VerifyUnreachable = "unreachable" // did not answer
	VerifyFenced      = "fenced"      // its copy is fenced and not compared
)

// VerifyReport is the comparison of all copies of one database, each read at
// the same position.
type VerifyReport struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// Deep says that every page was read from the files and compared; else
	// the checksums of the nodes' tables were.
	Deep bool `json:"deep"`
	// Equal is true when every member answered and has the same bytes.
	Equal bool `json:"equal"`
	// Position is where the copies were compared.
	Position   Position     `json:"position"`
	Nodes      []VerifyNode `json:"nodes"`
	DurationMS int64        `json:"duration_ms"`
}

// VerifyNode is one node's part of a VerifyReport.
type VerifyNode struct {
	Node     string   `json:"node"`
	State    string   `json:"state"`
	Position Position `json:"position"`
	Pages    uint32   `json:"pages"`
	// Differing lists the first pages that differ from the leader's, at most
	// 100 of the DifferingPages there are.
	Differing      []uint32 `json:"differing,omitempty"`
	DifferingPages int      `json:"differing_pages"`
	Detail         string   `json:"detail,omitempty"`
}

// Backend is what the handlers need of a node. Calls come from many
// goroutines at once and end when their context does. A call that only the
// leader can serve is forwarded by the implementation. Errors wrap one of the
// sentinels of this package where a caller can act on them.
type Backend interface {
	Status(ctx context.Context, q DatabaseQuery) (Status, error)
	// Databases lists databases, sorted by name. It looks at no others.
	Databases(ctx context.Context, q DatabaseQuery) (DatabasePage, error)
	// Database returns ErrNotFound for a name that has no database.
	Database(ctx context.Context, name string) (DatabaseStatus, error)
	// CreateDatabase returns when the database is decided and this node has
	// it; ErrExists when the name is taken, ErrInvalid for a bad name.
	CreateDatabase(ctx context.Context, req CreateDatabaseRequest) (DatabaseStatus, error)
	// DeleteDatabase returns ErrInUse while an application on any member has
	// the database open, or a member cannot be asked, unless force is set.
	DeleteDatabase(ctx context.Context, name string, force bool) error
	Cluster(ctx context.Context) (ClusterStatus, error)
	AddMember(ctx context.Context, req AddMemberRequest) error
	// RemoveMember returns ErrInUse when the voters that are left could decide
	// nothing, unless force is set.
	RemoveMember(ctx context.Context, id string, force bool) error
	// ReplaceMember does the next step of a replacement and says how far it is.
	ReplaceMember(ctx context.Context, req ReplaceRequest) (Replacement, error)
	TransferLeadership(ctx context.Context, req TransferRequest) error
	// Verify compares the copies of a database on all members. Copies that
	// differ are no error: the report says so.
	Verify(ctx context.Context, name string, deep bool) (VerifyReport, error)
	// Health returns nil while the node does its work, whatever the cluster
	// does.
	Health(ctx context.Context) error
	// Ready returns nil when applications may be sent here: there is a leader
	// and this node has caught up with it once.
	Ready(ctx context.Context) error
	Contents
	Archives
}

// clip keeps a value that came from outside short enough for a message.
func clip(s string) string {
	const limit = 300
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}
