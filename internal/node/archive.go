package node

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/datadir"
	"github.com/uglyer/ha-sqlite/internal/storeurl"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// archiveDir is the directory of the default archive in the data directory.
const archiveDir = "archive"

// wrapStore stands between the node and its archive. Tests only: they let it fail.
var wrapStore = func(_ Config, s store.Store) store.Store { return s }

// archiveURL is where the archive of the node is.
func (c Config) archiveURL() string {
	if c.Archive != "" {
		return c.Archive
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(filepath.Join(c.Data, archiveDir))}).String()
}

// archiveOptions reads what the configuration says of the archive. What cannot be used is refused here, at the start.
func (n *Node) archiveOptions() (*replicate.ArchiveOptions, error) {
	cfg := n.cfg
	if cfg.Archive == NoArchive {
		return nil, nil
	}
	keys, err := archiveKeys(cfg)
	if err != nil {
		return nil, err
	}
	s, err := storeurl.Open(context.Background(), cfg.archiveURL())
	if err != nil {
		return nil, err
	}
	s = wrapStore(cfg, s)
	temp := filepath.Join(n.dir.Path(), "spool") // cleared at each start
	if err := os.MkdirAll(temp, 0o770); err != nil {
		return nil, fmt.Errorf("make the directory for temporary files: %w", err)
	}
	o := &replicate.ArchiveOptions{
		URL: s.URL(), Local: strings.HasPrefix(cfg.archiveURL(), "file:"), Interval: cfg.ArchiveInterval, BacklogLimit: cfg.ArchiveBacklog,
		Lineage: func() uint64 { return n.dir.Record().Lineage },
		Open: func(ctx context.Context, cluster [16]byte) (*archive.Archive, error) {
			return archive.Claim(ctx, s, datadir.ClusterID(cluster).String(), archive.Options{Keys: keys, TempDir: temp})
		},
	}
	o.Writer.Keep[0], o.Writer.Snapshot, o.Writer.Snapshots = cfg.ArchiveWindow, cfg.ArchiveSnapshot, cfg.ArchiveSnapshots
	for i := range cfg.ArchiveLevels {
		o.Writer.Intervals[i+1], o.Writer.Keep[i+1] = cfg.ArchiveLevels[i], cfg.ArchiveKeep[i]
	}
	return o, nil
}

func archiveKeys(cfg Config) (*archive.Keys, error) {
	if cfg.ArchiveKey == "" {
		if cfg.ArchiveRecipients != "" {
			return nil, fmt.Errorf("archive: recipients without a key: %w", archive.ErrKey)
		}
		return nil, nil
	}
	identities, err := os.ReadFile(cfg.ArchiveKey)
	if err != nil {
		return nil, fmt.Errorf("read the key of the archive: %w", err)
	}
	var recipients []byte
	if cfg.ArchiveRecipients != "" {
		if recipients, err = os.ReadFile(cfg.ArchiveRecipients); err != nil {
			return nil, fmt.Errorf("read the recipients of the archive: %w", err)
		}
		if len(strings.TrimSpace(string(recipients))) == 0 {
			return nil, fmt.Errorf("%s: the file is empty: %w", cfg.ArchiveRecipients, archive.ErrKey)
		}
	}
	keys, err := archive.NewKeys(string(recipients), string(identities))
	if err != nil {
		return nil, fmt.Errorf("key of the archive %s: %w", cfg.ArchiveKey, err)
	}
	if keys == nil {
		return nil, fmt.Errorf("key of the archive %s: the file is empty: %w", cfg.ArchiveKey, archive.ErrKey)
	}
	return keys, nil
}

// Archive returns the archive that the node writes and reads: nil while it is not open, or where there is none.
func (n *Node) Archive() *archive.Archive { return n.svc.Archive() }

// ArchiveURL returns where the archive is, NoArchive where there is none.
func (n *Node) ArchiveURL() string { return n.cfg.archiveURL() }

func (b backend) archive() api.ArchiveStatus {
	st := b.n.svc.ArchiveStatus()
	return api.ArchiveStatus{
		URL: st.URL, Local: st.Local, Open: st.Open, Writes: st.Writes, Conditional: st.Conditional, Encrypted: st.Encrypted, Error: st.Error,
		Lagging: st.Lagging, Unknown: st.Unknown, LagMS: st.Lag.Milliseconds(), LagBytes: st.LagBytes,
		BacklogBytes: st.Backlog.Bytes, BacklogLimitBytes: st.Backlog.Limit, BacklogDropped: st.Backlog.Dropped,
		Failures: st.Failures, Gaps: st.Gaps, Fetched: st.Fetched, Drill: b.n.drills.status(time.Now()),
	}
}
