package replicate

import (
	"cmp"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// ArchiveStatus is what a node knows of its archive.
type ArchiveStatus struct {
	URL         string // empty: nothing is archived
	Local       bool
	Open        bool
	Writes      bool   // this node writes it
	Conditional bool   // the store refuses to replace an object
	Encrypted   bool   //
	Error       string // why it is not open, why an upload failed, or what retention could not remove
	Lagging     int    // databases of which commits are not archived
	Unknown     int    // databases of which that is not known: all of what they have is from before the start
	Lag         time.Duration
	Looking     int // databases for which it is being found out how far the archive is
	LagBytes    int64
	Backlog     archive.BacklogStatus
	Failures    uint64 // uploads, since the start
	Gaps        uint64 // ranges of commits that were missing, so that a snapshot stands in
	Fetched     uint64 // commits that came from a peer
}

// ArchiveStatus reports how far the archive is.
func (s *Service) ArchiveStatus() ArchiveStatus {
	a := s.archiver
	if a == nil {
		return ArchiveStatus{}
	}
	r := ArchiveStatus{URL: a.opts.URL, Local: a.opts.Local, Writes: a.writes(), Backlog: a.backlog.Status()}
	now := s.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Open, r.Gaps, r.Fetched, r.Failures = a.archive != nil, a.gaps, a.fetched, a.failures
	if a.archive != nil {
		r.Conditional, r.Encrypted = a.archive.Store().Conditional(), a.archive.Encrypted()
	}
	if a.failed != nil {
		r.Error = a.failed.Error()
	}
	for _, k := range a.kept {
		if a.unknownLocked(k) {
			r.Unknown++
		}
		lag, size, ok := a.lagLocked(k, now)
		if ok {
			r.Lagging++
			r.Lag = max(r.Lag, lag)
			r.LagBytes += size
		}
		if k.uploader != nil {
			if !k.opened {
				r.Looking++
			}
			st := k.uploader.u.Status()
			r.Gaps += st.Gaps
			r.Failures += st.Failures
			if why := cmp.Or(st.Error, st.Blocked); why != "" {
				r.Error = why
			}
		}
	}
	return r
}

// waits says that commits are not known to be archived.
func (k *kept) waits() bool { return k.last > k.archived && k.last != 1 && !k.lost }

// unknownLocked says that a database has had no commit since the start and was not looked up yet, in an archive in files:
// it may well be archived, which is found out in its turn.
func (a *archiver) unknownLocked(k *kept) bool {
	return a.opts.Local && k.waits() && !k.opened && k.lastTime < a.begun && a.backlog.Bytes(k.id.String()) == 0
}

// lagLocked says for how long the oldest commit that is not archived has been waiting, and how many bytes wait.
func (a *archiver) lagLocked(k *kept, now time.Time) (lag time.Duration, size int64, ok bool) {
	if !k.waits() || a.unknownLocked(k) {
		return 0, 0, false
	}
	oldest := k.lastTime
	if len(k.entries) > 0 {
		i := 0
		if k.archived >= k.first {
			i = min(int(k.archived-k.first)+1, len(k.entries)-1)
		}
		oldest = k.entries[i].time
	}
	if first, _, has := a.backlog.Bounds(k.id.String()); has && TXID(first.TXID) > k.archived {
		oldest = min(oldest, first.Time)
	}
	return max(0, now.Sub(time.UnixMicro(oldest))), k.bytes + a.backlog.Bytes(k.id.String()), true
}
