package replicate

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"sync"
	"time"
)

// DrillNote says that a state was restored from the archive that all nodes share, and found whole.
type DrillNote struct {
	OK   time.Time `json:"ok"`
	Mark uint64    `json:"mark"` // ArchiveMark before it
}

// tellWait bounds how long a node is told of a drill. One that does not hear of it makes one itself when it leads.
const tellWait = 5 * time.Second

// ArchiveMark returns a mark of what is archived, which is another one whenever that is more, 0 for nothing; and whether
// this node writes the archive. Of an archive that all nodes share they all have the same mark.
func (s *Service) ArchiveMark() (mark uint64, writes bool) {
	a := s.archiver
	if a == nil {
		return 0, false
	}
	a.mu.Lock()
	known := s.fsm.Archive() == a.tag
	a.mu.Unlock()
	for _, st := range s.fsm.List() {
		var txid TXID
		switch {
		case a.opts.Local:
			txid = s.ArchivedPosition(st.ID)
		case known:
			txid = st.Archived
		}
		if txid == 0 {
			continue
		}
		h := fnv.New64a()
		h.Write(st.ID[:])
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(txid)))
		mark ^= h.Sum64()
	}
	return mark, a.writes()
}

// TellDrill tells the other members of a drill, if they share the archive: whoever leads next need not make it again.
func (s *Service) TellDrill(ctx context.Context, n DrillNote) {
	if s.archiver == nil || s.archiver.opts.Local {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellWait)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, srv := range s.servers() {
		id := string(srv.ID)
		if id == s.opts.NodeID {
			continue
		}
		wg.Go(func() {
			if _, err := callJSON[DrillNote, struct{}](ctx, s, id, methodDrilled, n); err != nil {
				s.log.Debug("a node was not told of a restore drill", "node", id, "err", err)
			}
		})
	}
}

func (s *Service) drilled(_ context.Context, n DrillNote) (struct{}, error) {
	if s.opts.Drilled != nil {
		s.opts.Drilled(n)
	}
	return struct{}{}, nil
}
