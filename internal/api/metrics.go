package api

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/uglyer/ha-sqlite/internal/histogram"
)

// MetricsSource is asked for the numbers of a node at each scrape. Metrics
// must not wait: it is called while somebody counts the seconds.
type MetricsSource interface {
	Metrics() Metrics
}

// CheckpointKey names one kind of checkpoint: the mode as SQLite calls it, in
// lower case ("passive", "truncate"), and how it ended ("ok", "busy",
// "error").
type CheckpointKey struct{ Mode, Result string }

// Metrics is one reading of a node's numbers. Counters start at 0 with the
// process. The keys of the maps become label values: they must come from
// small fixed sets.
type Metrics struct {
	IsLeader bool
	// Stale: no leader is heard of.
	Stale        bool
	Term         uint64
	CommitIndex  uint64
	AppliedIndex uint64
	// ApplyLagEntries is the largest number of decided transactions that a
	// database's files are behind.
	ApplyLagEntries uint64
	// WALSizeBytes is the sum over all open databases.
	WALSizeBytes int64
	// LogSizeBytes is the raft log of this node, LogLimitBytes its limit;
	// LogBlockedSeconds is for how long it could not be compacted, 0 while it
	// can.
	LogSizeBytes, LogLimitBytes int64
	LogBlockedSeconds           float64
	// DiskFull: the node takes no writes for want of room. DiskFreeBytes is that room.
	DiskFull      bool
	DiskFreeBytes int64
	// Archive says how far the archive is.
	Archive ArchiveStatus
	// BacklogFrames are the frames of all WALs that are not in the database
	// files, BacklogSeconds the longest time for which one had a backlog,
	// OldestReaderSeconds the age of the oldest reader that keeps frames.
	BacklogFrames       uint64
	BacklogSeconds      float64
	OldestReaderSeconds float64
	// Databases counts databases by the Database constants.
	Databases map[string]int
	// Handles counts open application handles.
	Handles int
	// Begins and Commits count by outcome: "granted", "busy", "error"; and
	// "accepted", "refused", "unknown".
	Begins  map[string]uint64
	Commits map[string]uint64
	// Applied counts transactions that the applier wrote to files.
	Applied         uint64
	ReplicatedBytes uint64
	Checkpoints     map[CheckpointKey]uint64
	// LeaderChanges counts how often another leader was seen.
	LeaderChanges uint64
	// Fences counts databases found to differ from the log, Heals those that
	// were made equal again.
	Fences uint64
	Heals  uint64
	// FetchedPages came from other nodes to catch up, ShippedPages went to them.
	FetchedPages, ShippedPages uint64
	// Errors counts errors after which the node went on, by place.
	Errors map[string]uint64

	// BeginSeconds, CommitSeconds and ApplySeconds are durations as seen by
	// the node. Commit runs from the arrival of the pages to the verdict.
	BeginSeconds  Histogram
	CommitSeconds Histogram
	ApplySeconds  Histogram
}

// Histogram is a reading of durations. Buckets maps an upper bound in seconds to the number of observations
// at most that long.
type Histogram = histogram.Reading

// MetricsHandler serves the metrics of source, of the Go runtime and of the
// process in Prometheus' text format. A nil source leaves out the first.
func MetricsHandler(source MetricsSource) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if source != nil {
		reg.MustRegister(collector{source})
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hasqlite_"+name, help, labels, nil)
}

var (
	descLeader     = describe("is_leader", "1 on the leader of the cluster, else 0.")
	descStale      = describe("is_stale", "1 while the node hears of no leader, else 0.")
	descDiskFull   = describe("disk_full", "1 while the node takes no writes because its disk is full, else 0.")
	descDiskFree   = describe("disk_free_bytes", "Bytes that can still be written to the disk of the data directory.")
	descTerm       = describe("raft_term", "Term of the raft log.")
	descCommit     = describe("raft_commit_index", "Index of the last log entry known to be committed.")
	descApplied    = describe("raft_applied_index", "Index of the last log entry that was decided here.")
	descLag        = describe("apply_lag_entries", "Largest number of decided transactions that a database's files are behind.")
	descWAL        = describe("wal_size_bytes", "Size of the WAL files of all open databases.")
	descLog        = describe("log_size_bytes", "Size of the entries in the raft log of this node.")
	descLogLimit   = describe("log_limit_bytes", "Limit of log_size_bytes (--log-limit).")
	descLogBlocked = describe("log_blocked_seconds", "For how long the raft log could not be compacted; status says why. 0 while it can.")
	descBacklog    = describe("checkpoint_backlog_frames", "Frames of all WALs that are not in the database files.")
	descBacklogAge = describe("checkpoint_backlog_seconds", "Longest time for which the WAL of a database has had such frames.")
	descReader     = describe("oldest_reader_seconds", "Age of the oldest read transaction that keeps frames in a WAL.")
	descDatabases  = describe("databases", "Databases by the state of this node's copy.", "state")
	descHandles    = describe("open_handles", "Database handles that applications have open on this node.")
	descBegins     = describe("begins_total", "Write transactions that asked to begin, by outcome.", "outcome")
	descCommits    = describe("commits_total", "Write transactions of applications on this node, by outcome.", "outcome")
	descApplies    = describe("applied_transactions_total", "Transactions of other nodes written to the files here.")
	descReplicated = describe("replicated_bytes_total", "Bytes of accepted transactions, as encoded in the log.")
	descCheckpoint = describe("checkpoints_total", "Checkpoints by mode and result.", "mode", "result")
	descLeaders    = describe("leader_changes_total", "Times another leader was seen.")
	descFences     = describe("fences_total", "Databases found to differ from the log.")
	descHeals      = describe("heals_total", "Databases made equal to the log again.")
	descFetched    = describe("catchup_fetched_pages_total", "Pages that came from other nodes to catch up.")
	descShipped    = describe("catchup_shipped_pages_total", "Pages sent to other nodes that catch up.")
	descErrors     = describe("errors_total", "Errors after which the node went on, by place.", "place")
	descBeginTime  = describe("begin_duration_seconds", "Time to grant the write lock.")
	descCommitTime = describe("commit_duration_seconds", "Time from the arrival of a transaction's pages to its verdict.")
	descApplyTime  = describe("apply_duration_seconds", "Time to write one transaction to the files.")
)

// collector turns a reading into Prometheus' metrics.
type collector struct{ source MetricsSource }

// Describe sends nothing: the collector is unchecked, because which labels
// there are depends on what has happened.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) {
	m := c.source.Metrics()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	histogram := func(d *prometheus.Desc, h Histogram) {
		out <- prometheus.MustNewConstHistogram(d, h.Count, h.Sum, h.Buckets)
	}
	gauge(descLeader, number(m.IsLeader))
	gauge(descStale, number(m.Stale))
	gauge(descDiskFull, number(m.DiskFull))
	gauge(descDiskFree, float64(m.DiskFreeBytes))
	gauge(descTerm, float64(m.Term))
	gauge(descCommit, float64(m.CommitIndex))
	gauge(descApplied, float64(m.AppliedIndex))
	gauge(descLag, float64(m.ApplyLagEntries))
	gauge(descBacklog, float64(m.BacklogFrames))
	gauge(descBacklogAge, m.BacklogSeconds)
	gauge(descReader, m.OldestReaderSeconds)
	gauge(descLog, float64(m.LogSizeBytes))
	gauge(descLogLimit, float64(m.LogLimitBytes))
	gauge(descLogBlocked, m.LogBlockedSeconds)
	gauge(descWAL, float64(m.WALSizeBytes))
	if m.Archive.URL != "" {
		collectArchive(m.Archive, gauge, counter)
	}
	for _, state := range []string{DatabaseOK, DatabaseFenced, DatabaseCatchingUp, DatabaseLate, DatabaseAhead} {
		gauge(descDatabases, float64(m.Databases[state]), state)
	}
	gauge(descHandles, float64(m.Handles))
	for outcome, n := range m.Begins {
		counter(descBegins, n, outcome)
	}
	for outcome, n := range m.Commits {
		counter(descCommits, n, outcome)
	}
	counter(descApplies, m.Applied)
	counter(descReplicated, m.ReplicatedBytes)
	for key, n := range m.Checkpoints {
		counter(descCheckpoint, n, key.Mode, key.Result)
	}
	counter(descLeaders, m.LeaderChanges)
	counter(descFences, m.Fences)
	counter(descHeals, m.Heals)
	counter(descFetched, m.FetchedPages)
	counter(descShipped, m.ShippedPages)
	for place, n := range m.Errors {
		counter(descErrors, n, place)
	}
	histogram(descBeginTime, m.BeginSeconds)
	histogram(descCommitTime, m.CommitSeconds)
	histogram(descApplyTime, m.ApplySeconds)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
