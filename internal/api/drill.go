package api

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DrillStatus says how restoring from the archive went, which the node tries by schedule.
type DrillStatus struct {
	IntervalMS int64  `json:"interval_ms"` // 0: it never does
	Runs       uint64 `json:"runs"`        // since the start
	Failures   uint64 `json:"failures"`    // of them
	// Skipped counts times that there was nothing to restore, nothing new, or no room; Reason is why the last time.
	Skipped uint64 `json:"skipped"`
	Reason  string `json:"reason,omitempty"`
	// LastOK is when one went well, on any node that shares the archive, AgeMS how long that is ago; zero before the first.
	LastOK time.Time `json:"last_ok,omitzero"`
	AgeMS  int64     `json:"age_ms"`
	// DueMS is for how long one has been due and has not gone well; 0 while nothing is archived that is newer than LastOK.
	DueMS int64        `json:"due_ms"`
	Last  *DrillReport `json:"last,omitempty"`
}

// DrillReport is what one drill found: the state was restored, had the checksum of its commit, and passed integrity_check.
type DrillReport struct {
	Time       time.Time `json:"time"`
	Name       string    `json:"name"`
	Bookmark   string    `json:"bookmark"`
	SizeBytes  int64     `json:"size_bytes"`
	DurationMS int64     `json:"duration_ms"`
	Error      string    `json:"error,omitempty"`
}

var (
	descDrillAge      = describe("drill_age_seconds", "Time since a state was last restored from the archive and found whole. Not there before the first time.")
	descDrillDue      = describe("drill_due_seconds", "Time that something has been archived of which no state was restored and found whole since. 0 while there is nothing such, and on nodes that do not write the archive.")
	descDrillOK       = describe("drill_ok", "1 if the last restore drill went well, 0 if not. Not there before the first one.")
	descDrills        = describe("drills_total", "Restore drills.")
	descDrillSkipped  = describe("drill_skipped_total", "Times that a restore drill was due and there was nothing to restore, or no room; status says why the last time.")
	descDrillFailures = describe("drill_failures_total", "Restore drills that failed; status says why the last one did.")
)

func collectDrill(d DrillStatus, gauge func(*prometheus.Desc, float64, ...string), counter func(*prometheus.Desc, uint64, ...string)) {
	if d.IntervalMS > 0 {
		gauge(descDrillAge, float64(d.AgeMS)/1000)
	}
	if d.Last != nil {
		gauge(descDrillOK, number(d.Last.Error == ""))
	}
	gauge(descDrillDue, float64(d.DueMS)/1000)
	counter(descDrills, d.Runs)
	counter(descDrillFailures, d.Failures)
	counter(descDrillSkipped, d.Skipped)
}
