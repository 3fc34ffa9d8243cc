package replicate

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// CopyTarget is an empty file that a database is copied into.
type CopyTarget interface {
	io.WriterAt
	Truncate(size int64) error
}

// Copied is the state that a copy is of.
type Copied struct {
	Name       string
	Bookmark   Bookmark
	CommitTime int64 // microseconds; 0: not known any more
	PageSize   uint32
	PageCount  uint32
}

// Copy writes a database into a file: a state that has everything that was acknowledged before the call. Nothing is held
// still for longer than a round of a catch-up: pages that changed meanwhile are copied once more. Every page is
// compared with its checksum.
func (s *Service) Copy(ctx context.Context, name string, w CopyTarget, progress func(done, total int64)) (*Copied, error) {
	if _, ok := s.fsm.Lookup(name); !ok {
		if err := s.CatchUp(ctx); err != nil {
			return nil, fmt.Errorf("copy database %q: %w", name, err)
		}
	}
	st, ok := s.fsm.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("copy database %q: %w", name, ErrNotFound)
	}
	d, ok := s.replica(st.ID)
	if !ok {
		return nil, fmt.Errorf("copy database %q: %w", name, ErrNotFound)
	}
	if err := s.waitFork(ctx, d); err != nil {
		return nil, fmt.Errorf("copy database %q: %w", name, err)
	}
	rctx, cancel := context.WithTimeout(ctx, copyPatience)
	at, _, err := s.readIndex(rctx, st.ID)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("copy database %q: %w", name, err)
	}
	c, err := d.copyTo(ctx, at.TXID, w, progress)
	if err != nil {
		return nil, fmt.Errorf("copy database %q: %w", name, err)
	}
	return c, nil
}

// copyPatience is for how long a copy waits for the leader to say what is decided.
const copyPatience = 10 * time.Second

func (d *replica) copyTo(ctx context.Context, at TXID, w CopyTarget, progress func(done, total int64)) (*Copied, error) {
	var have sumTable
	for {
		pctx, cancel := context.WithTimeout(ctx, overwritePatience)
		snap, pos, sums, err := d.pinSums(pctx, at)
		cancel()
		if err != nil {
			return nil, err
		}
		var whole bool
		have, whole, err = d.copyRound(ctx, snap, sums, have, w, progress)
		snap.Close()
		if err != nil {
			return nil, err
		}
		if !whole {
			continue
		}
		if err := w.Truncate(int64(len(sums)) * int64(d.pageSize)); err != nil {
			return nil, fmt.Errorf("cut the copy to its size: %w", err)
		}
		return &Copied{
			Name: d.name, Bookmark: Bookmark{Position: pos, DB: d.id}, CommitTime: d.svc.commitTime(d.id, pos), PageSize: d.pageSize, PageCount: uint32(len(sums)),
		}, nil
	}
}

// copyRound copies the pages that differ from what was copied before, for as long as a round may last.
func (d *replica) copyRound(ctx context.Context, snap *wal.Snapshot, sums, have sumTable, w io.WriterAt, progress func(done, total int64)) (_ sumTable, whole bool, err error) {
	end := time.Now().Add(roundTime)
	if len(have) < len(sums) {
		have = append(have, make(sumTable, len(sums)-len(have))...)
	}
	have = have[:len(sums)]
	buf := make([]byte, d.pageSize)
	for i, sum := range sums {
		pgno := uint32(i) + 1
		if pgno%1024 == 0 {
			progress(int64(pgno)*int64(d.pageSize), int64(len(sums))*int64(d.pageSize))
			if ctx.Err() != nil {
				return nil, false, ctx.Err()
			}
			if time.Now().After(end) {
				return have, false, nil
			}
		}
		if sum == 0 || have[i] == sum {
			continue
		}
		if err := snap.ReadPage(pgno, buf); err != nil {
			return nil, false, fmt.Errorf("read page %d: %w", pgno, err)
		}
		if pageSum(d.pageSize, pgno, buf) != sum {
			return nil, false, d.fence(fmt.Errorf("copy: page %d is not what its checksum says: %w", pgno, errForeign))
		}
		if _, err := w.WriteAt(buf, int64(i)*int64(d.pageSize)); err != nil {
			return nil, false, fmt.Errorf("write page %d: %w", pgno, err)
		}
		have[i] = sum
	}
	return have, true, nil
}

// commitTime returns when a position was committed, as far as this node can still tell; else 0.
func (s *Service) commitTime(id DatabaseID, p Position) int64 {
	st, ok := s.fsm.Get(id)
	if !ok {
		return 0
	}
	if st.Position == p {
		return st.CommitTime
	}
	index, ok := s.fsm.acceptedIndex(id, p)
	if !ok {
		return 0
	}
	l, err := s.store.Entry(index)
	if err != nil {
		return 0
	}
	e, err := Decode(l.Data)
	if err != nil {
		return 0
	}
	switch e := e.(type) {
	case *Transaction:
		return e.CommitTime
	case *Final:
		return e.CommitTime
	}
	return 0
}

// acceptedIndex returns the log index of the entry that led to a position, as far back as entry ids are kept.
func (f *FSM) acceptedIndex(id DatabaseID, p Position) (uint64, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	db := f.s.byID[id]
	if db == nil {
		return 0, false
	}
	e, ok := db.accepted.at(p.TXID, db.Position.TXID, f.s.applied)
	return e.index, ok && e.checksum == p.Checksum
}
