package api

import "github.com/prometheus/client_golang/prometheus"

// ArchiveStatus is the archive as the answering node sees it. Where there is
// one for the cluster, the leader writes it; where each node has its own, all
// do.
type ArchiveStatus struct {
	// URL is empty where nothing is archived.
	URL   string `json:"url"`
	Local bool   `json:"local"` // each node has its own
	Open  bool   `json:"open"`
	// Writes says that the answering node writes it.
	Writes bool `json:"writes"`
	// Conditional says that the store itself refuses to replace an object.
	Conditional bool `json:"conditional"`
	Encrypted   bool `json:"encrypted"`
	// Error is why it is not open, or what failed last; empty where nothing fails.
	Error string `json:"error,omitempty"`
	// Lagging databases have commits that are not known to be archived. The
	// oldest of them waits for LagMS, all have LagBytes.
	// Databases that had no commit since the node started and were not looked
	// up since then are Unknown instead, where each node has its own.
	Lagging  int   `json:"lagging"`
	Unknown  int   `json:"unknown"`
	LagMS    int64 `json:"lag_ms"`
	LagBytes int64 `json:"lag_bytes"`
	// BacklogBytes of at most BacklogLimitBytes wait in files of their own;
	// BacklogDropped commits found no room there since the start.
	BacklogBytes      int64  `json:"backlog_bytes"`
	BacklogLimitBytes int64  `json:"backlog_limit_bytes"`
	BacklogDropped    uint64 `json:"backlog_dropped"`
	// Failures counts rounds of uploads that failed, Gaps times that commits
	// behind the first ones were missing and a snapshot stands in for them,
	// Fetched commits that came from another node, all since the start.
	Failures uint64 `json:"failures"`
	Gaps     uint64 `json:"gaps"`
	Fetched  uint64 `json:"fetched"`
	// Drill says whether what is archived can be restored.
	Drill DrillStatus `json:"drill"`
}

var (
	descArchiveLag     = describe("archive_lag_seconds", "Age of the oldest commit that is not known to be archived. 0 where all are.")
	descArchiveBytes   = describe("archive_lag_bytes", "Bytes of commits that are not known to be archived.")
	descArchiveLagging = describe("archive_lagging_databases", "Databases with commits that are not known to be archived.")
	descArchiveBacklog = describe("archive_backlog_bytes", "Bytes of such commits in files of their own, of at most --archive-backlog.")
	descArchiveDropped = describe("archive_dropped_commits_total", "Commits that found no room in those files: they are fetched from another node, or a snapshot stands in.")
	descArchiveWrites  = describe("archive_writes", "1 on a node that writes the archive, else 0.")
	descArchiveFailing = describe("archive_failing", "1 while the archive cannot be opened or written, else 0; status says why.")
	descArchiveErrors  = describe("archive_failures_total", "Rounds of uploads that failed.")
	descArchiveGaps    = describe("archive_gaps_total", "Times that commits in the middle of a history were missing and a snapshot was archived instead.")
	descArchiveFetched = describe("archive_fetched_commits_total", "Commits that came from another node to be archived.")
)

func collectArchive(a ArchiveStatus, gauge func(*prometheus.Desc, float64, ...string), counter func(*prometheus.Desc, uint64, ...string)) {
	gauge(descArchiveLag, float64(a.LagMS)/1000)
	gauge(descArchiveBytes, float64(a.LagBytes))
	gauge(descArchiveLagging, float64(a.Lagging))
	gauge(descArchiveBacklog, float64(a.BacklogBytes))
	gauge(descArchiveWrites, number(a.Writes))
	gauge(descArchiveFailing, number(a.Error != ""))
	counter(descArchiveDropped, a.BacklogDropped)
	counter(descArchiveErrors, a.Failures)
	counter(descArchiveGaps, a.Gaps)
	counter(descArchiveFetched, a.Fetched)
	collectDrill(a.Drill, gauge, counter)
}
