package node

import (
	"os"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
)

// What a field of [Config] gets when nobody says otherwise. Package config
// shows them in the help text.
const (
	DefaultHTTP            = "127.0.0.1:7440"
	DefaultRaft            = "127.0.0.1:7441"
	DefaultSocket          = "/run/hasqlite/node.sock"
	DefaultRaftLog         = "wal"
	DefaultFileMode        = os.FileMode(0o660)
	DefaultSnapshotEntries = 65536
	DefaultTrailingEntries = 10240
	DefaultLogLimit        = int64(1 << 30)
	DefaultCatchupRate     = int64(1 << 30)
	DefaultWriteLease      = 10 * time.Second
	DefaultIdleClose       = 60 * time.Second

	DefaultArchiveInterval  = time.Second
	DefaultArchiveWindow    = 24 * time.Hour
	DefaultArchiveSnapshot  = 24 * time.Hour
	DefaultArchiveSnapshots = 30 * 24 * time.Hour
	DefaultArchiveBacklog   = int64(4 << 30)
	DefaultPastLimit        = int64(16 << 30)
	DefaultDrillInterval    = time.Hour
)

// NoArchive is the value of Config.Archive that keeps none.
const NoArchive = "none"

// What compaction makes of the commits by default: how much time a file of
// levels 1 to 3 covers, and for how long it is kept.
var (
	DefaultArchiveLevels = [3]time.Duration{30 * time.Second, 5 * time.Minute, time.Hour}
	DefaultArchiveKeep   = [3]time.Duration{24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour}
)

// Config is everything a node is told at start. Each field is one option of
// hasqlite-node of the same name. The zero value of a field means its default,
// except where the field says otherwise.
type Config struct {
	// Data is the data directory; it is created when it does not exist.
	// Required.
	Data string
	// ID names the node in the cluster. Empty: the name kept in the data
	// directory, or a random one for a new directory.
	ID string
	// HTTP is the host:port of the HTTP interface. Port 0 takes a free port.
	HTTP string
	// Raft is the host:port at which the other nodes reach this one. Port 0
	// takes a free port.
	Raft string
	// Socket is the path of the Unix socket for applications. Empty:
	// DefaultSocket, or node.sock in the data directory where that one cannot
	// be made.
	Socket string
	// Join lists raft addresses of nodes of the cluster; the node's own may
	// be among them.
	Join []string
	// BootstrapExpect is the number of nodes that start a new cluster
	// together. 0 with an empty Join: an empty data directory becomes a
	// cluster of one.
	BootstrapExpect int
	// NonVoter makes the node join without a vote.
	NonVoter bool
	// RaftLog is the log store: "wal" or "boltdb".
	RaftLog string
	// Group owns the socket and the database files. Empty: the group of the
	// process.
	Group string
	// FileMode holds the permission bits of the socket and of the database
	// files.
	FileMode os.FileMode
	// SnapshotEntries is the number of log entries after which the log is
	// compacted.
	SnapshotEntries uint64
	// TrailingEntries is the number of log entries kept after a compaction,
	// for followers that are a little behind.
	TrailingEntries uint64
	// LogLimit bounds the raft log of this node, in bytes. Segments of the log
	// and the reserve for a full disk are cut to it, and a transaction that it
	// could not hold is refused.
	LogLimit int64
	// MaxTransaction bounds the pages of one transaction, in bytes. 0, and
	// most: 40 % of LogLimit.
	MaxTransaction int64
	// Quotas limit databases by their names; the first that matches a name
	// counts. They should be the same on all nodes: the leader enforces its own.
	Quotas []Quota
	// CatchupRate bounds, in bytes per second, all that this node fetches from its
	// peers when its log does not reach back far enough.
	CatchupRate int64
	// WriteLease is how long a silent holder of a database's write lock keeps
	// it while another writer waits.
	WriteLease time.Duration
	// IdleClose is how long a database stays open in the node after its last
	// application has closed it.
	IdleClose time.Duration
	// VerifyFull compares the whole database file with the table of page
	// checksums after every commit. It is slow and meant for tests.
	VerifyFull bool
	// Archive is the URL of the store that every commit is kept in. Empty: the
	// directory archive in the data directory. NoArchive: none is kept.
	Archive string
	// ArchiveInterval is the time from a commit to its upload.
	ArchiveInterval time.Duration
	// ArchiveKey names a file with age identities, with which the archive is
	// encrypted and read; ArchiveRecipients one with age recipients, where these
	// are not those of the identities. Empty: the archive is not encrypted.
	ArchiveKey, ArchiveRecipients string
	// ArchiveWindow is for how long every single commit can be restored.
	ArchiveWindow time.Duration
	// ArchiveLevels is how much time a file of levels 1 to 3 covers, ArchiveKeep
	// for how long it is kept.
	ArchiveLevels, ArchiveKeep [3]time.Duration
	// ArchiveSnapshot is the time between snapshots, ArchiveSnapshots for how
	// long they are kept.
	ArchiveSnapshot, ArchiveSnapshots time.Duration
	// ArchiveBacklog bounds the bytes of commits on disk that wait for the
	// archive.
	ArchiveBacklog int64
	// PastLimit bounds the bytes on disk of databases as they were, which
	// applications have open.
	PastLimit int64
	// DrillInterval is the time between two states that are restored from the
	// archive to see that it works. NoDrills: never.
	DrillInterval time.Duration
	// Version is what the node reports as its version.
	Version string
}

// maxTransaction is the limit in force: what the log can hold beside the
// transactions of others.
func (c Config) maxTransaction() int64 {
	most := c.LogLimit / 5 * 2
	if c.MaxTransaction > 0 && c.MaxTransaction < most {
		return c.MaxTransaction
	}
	return most
}

// Quota limits the databases whose names match a pattern.
type Quota = replicate.Quota

// WithDefaults returns c with every zero field that has a default set to it.
// Socket stays empty: the node itself decides between its two defaults.
func (c Config) WithDefaults() Config {
	if c.HTTP == "" {
		c.HTTP = DefaultHTTP
	}
	if c.Raft == "" {
		c.Raft = DefaultRaft
	}
	if c.RaftLog == "" {
		c.RaftLog = DefaultRaftLog
	}
	if c.FileMode == 0 {
		c.FileMode = DefaultFileMode
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = DefaultSnapshotEntries
	}
	if c.TrailingEntries == 0 {
		c.TrailingEntries = DefaultTrailingEntries
	}
	if c.LogLimit == 0 {
		c.LogLimit = DefaultLogLimit
	}
	if c.CatchupRate == 0 {
		c.CatchupRate = DefaultCatchupRate
	}
	if c.WriteLease == 0 {
		c.WriteLease = DefaultWriteLease
	}
	if c.IdleClose == 0 {
		c.IdleClose = DefaultIdleClose
	}
	c.archiveDefaults()
	return c
}

func (c *Config) archiveDefaults() {
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.ArchiveInterval, DefaultArchiveInterval)
	set(&c.ArchiveWindow, DefaultArchiveWindow)
	set(&c.DrillInterval, DefaultDrillInterval)
	set(&c.ArchiveSnapshot, DefaultArchiveSnapshot)
	set(&c.ArchiveSnapshots, DefaultArchiveSnapshots)
	for i := range c.ArchiveLevels {
		set(&c.ArchiveLevels[i], DefaultArchiveLevels[i])
		set(&c.ArchiveKeep[i], DefaultArchiveKeep[i])
	}
	if c.ArchiveBacklog == 0 {
		c.ArchiveBacklog = DefaultArchiveBacklog
	}
	if c.PastLimit == 0 {
		c.PastLimit = DefaultPastLimit
	}
}
