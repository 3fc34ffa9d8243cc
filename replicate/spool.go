package replicate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
)

const (
	spoolSuffix = ".part"
	// maxSpoolQueueBytes bounds the parts that wait in memory to be written; beyond it they are read back
	// from the log.
	maxSpoolQueueBytes = 16 << 20
)

// errSpoolLost says that the parts of a large transaction are not on this node and cannot be had.
var errSpoolLost = errors.New("the parts of the transaction are lost on this node")

const partsLost = "the parts of a large transaction are lost here; if it is accepted its pages come from a peer"

// spools are the files that hold the parts of large transactions, in the directory parts. What is decided
// does not depend on them: a node whose file is late, lost or damaged decides as the others do, and gets the
// pages from a peer.
//
// Invariants:
//  1. A file holds the parts of one transaction in order, without a gap, up to written.
//  2. It stays while the state machine, an applier or a writer needs it, and, if a manifest taken here lists it, until a
//     later manifest is durable: a restart replays the log from that one.
//  3. No call of the state machine waits for a file.
type spools struct {
	dir  string
	log  *slog.Logger
	ctx  context.Context
	run  func(func())                                              // starts a goroutine
	back func(index uint64) ([]byte, error)                        // reads a part back from the log
	ask  func(ctx context.Context, r Running, w io.WriterAt) error // fetches parts from a peer; errSpoolLost: nobody has them

	over func() // a file waits for nothing but a manifest that does not list it

	mu        sync.Mutex
	all       map[EntryID]*spool
	queued    int64  // bytes held by operations
	persisted uint64 // raft index of the last durable manifest
}

// spool is the file of one transaction. Its fields are guarded by the lock of spools.
type spool struct {
	s    *spools
	id   EntryID
	file *os.File // set once; nil: not made yet

	ops     []*spoolOp
	working bool
	written int64
	own     bool  // an application of this node is writing, or wrote, the whole file
	broken  error // why it never will be whole
	refs    int   // appliers and writers
	running bool  // listed by the state
	listed  bool  // listed by a manifest of this node
	ended   uint64
	synced  bool // its name is durable
	changed chan struct{}
}

// spoolOp is what the writer of a spool has to do.
type spoolOp struct {
	index   uint64 // of the part's log entry
	data    []byte // nil: to be read back from the log
	size    int64
	restore *Running // a manifest lists it: find its bytes
}

func newSpools(dir string, log *slog.Logger, ctx context.Context, run func(func())) *spools {
	return &spools{dir: dir, log: log, ctx: ctx, run: run, all: map[EntryID]*spool{}}
}

func (s *spools) path(id EntryID) string { return filepath.Join(s.dir, id.String()+spoolSuffix) }

func (s *spools) getLocked(id EntryID) *spool {
	sp := s.all[id]
	if sp == nil {
		sp = &spool{s: s, id: id, changed: make(chan struct{})}
		s.all[id] = sp
	}
	return sp
}

// create makes the file of a transaction of this node. The caller writes it, and releases it.
func (s *spools) create(id EntryID) (*spool, error) {
	f, err := s.open(id, os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.getLocked(id)
	sp.own, sp.file, sp.refs = true, f, 1
	return sp, nil
}

func (s *spools) open(id EntryID, flags int) (*os.File, error) {
	if err := os.MkdirAll(s.dir, 0o770); err != nil {
		return nil, fmt.Errorf("make the directory of parts: %w", err)
	}
	f, err := os.OpenFile(s.path(id), os.O_RDWR|flags, 0o660)
	if err != nil {
		return nil, fmt.Errorf("open a file of parts: %w", err)
	}
	return f, nil
}

// Write appends to a spool of this node's own.
func (sp *spool) Write(b []byte) (int, error) {
	n, err := sp.file.WriteAt(b, sp.written)
	sp.s.mu.Lock()
	sp.written += int64(n)
	sp.s.mu.Unlock()
	return n, err
}

// part takes a part that was decided.
func (s *spools) part(index uint64, before Running, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.getLocked(before.ID)
	sp.running = true
	sp.expectLocked(int64(before.Bytes))
	if sp.own { // the same bytes: the hash in the final entry says so
		sp.notifyLocked()
		return
	}
	op := &spoolOp{index: index, size: int64(len(data))}
	if s.queued+op.size <= maxSpoolQueueBytes {
		s.queued += op.size
		op.data = data
	}
	sp.addLocked(op)
}

// expectLocked looks whether the parts that were decided so far, size bytes, are in the file or queued. They are not where
// a restore followed a manifest that does not list the transaction, or lists more of it, and failed: it goes on as if that
// had not been.
func (sp *spool) expectLocked(size int64) {
	if sp.own || sp.broken != nil {
		return
	}
	end := sp.written
	for _, op := range sp.ops {
		if op.restore != nil {
			end = int64(op.restore.Bytes)
		}
		end += op.size
	}
	if end == size {
		return
	}
	sp.broken = fmt.Errorf("%d bytes of %d: %w", end, size, errSpoolLost)
	sp.s.log.Warn(partsLost, "entry", sp.id.String(), "err", sp.broken)
	sp.dropOpsLocked()
	sp.notifyLocked()
}

func (sp *spool) addLocked(op *spoolOp) {
	if sp.broken != nil {
		sp.s.unqueueLocked(op)
		return
	}
	sp.ops = append(sp.ops, op)
	if !sp.working {
		sp.working = true
		sp.s.run(sp.work)
	}
}

func (s *spools) unqueueLocked(op *spoolOp) { s.queued -= int64(len(op.data)) }

// accept ends a transaction of size bytes that was accepted and returns its spool, to be released by the caller.
func (s *spools) accept(index uint64, id EntryID, size int64) *spool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.getLocked(id)
	sp.expectLocked(size)
	sp.running, sp.ended = false, index
	sp.refs++
	return sp
}

// drop ends transactions that were not accepted.
func (s *spools) drop(index uint64, ids []EntryID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if sp := s.all[id]; sp != nil {
			sp.running, sp.ended = false, index
			sp.broken = errors.Join(sp.broken, errors.New("the transaction was not accepted"))
			sp.dropOpsLocked()
			sp.notifyLocked()
			sp.tidyLocked()
		}
	}
}

func (sp *spool) dropOpsLocked() {
	for _, op := range sp.ops {
		sp.s.unqueueLocked(op)
	}
	sp.ops = nil
}

// hold begins a use by who archives it.
func (sp *spool) hold() {
	sp.s.mu.Lock()
	defer sp.s.mu.Unlock()
	sp.refs++
}

// release ends the use by an applier or a writer.
func (sp *spool) release() {
	sp.s.mu.Lock()
	defer sp.s.mu.Unlock()
	sp.refs--
	sp.tidyLocked()
}

// tidyLocked removes the file once nobody needs it.
func (sp *spool) tidyLocked() {
	s := sp.s
	if sp.refs > 0 || sp.running || sp.working || s.all[sp.id] != sp {
		return
	}
	if sp.listed && (sp.ended == 0 || s.persisted < sp.ended) {
		if s.over != nil {
			s.over()
		}
		return
	}
	delete(s.all, sp.id)
	sp.dropOpsLocked()
	file, path := sp.file, s.path(sp.id) // the file may be there though this life of it was given none
	s.run(func() {
		s.mu.Lock()
		if s.all[sp.id] == nil { // else it began anew, in the same place
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				s.log.Warn("a file of parts stays behind", "err", err)
			}
		}
		s.mu.Unlock()
		if file != nil {
			file.Close() // which gives its blocks back, and takes long
		}
	})
}

func (sp *spool) notifyLocked() {
	close(sp.changed)
	sp.changed = make(chan struct{})
}

// work does what is queued. One runs at a time.
func (sp *spool) work() {
	s, pause, said := sp.s, minApplyRetry, false
	for {
		s.mu.Lock()
		if s.ctx.Err() != nil || len(sp.ops) == 0 {
			sp.working = false
			sp.tidyLocked()
			s.mu.Unlock()
			return
		}
		op := sp.ops[0]
		s.mu.Unlock()
		at, err := sp.do(op)
		s.mu.Lock()
		if len(sp.ops) == 0 || sp.ops[0] != op { // dropped meanwhile, and a restore may be in its place
			s.mu.Unlock()
			continue
		}
		if err == nil || errors.Is(err, errSpoolLost) {
			s.unqueueLocked(op)
			sp.ops[0] = nil
			sp.ops = sp.ops[1:]
			if err == nil {
				sp.written = at
			} else {
				sp.broken = err
				sp.dropOpsLocked()
			}
			sp.notifyLocked()
		}
		s.mu.Unlock()
		switch {
		case err == nil:
			pause, said = minApplyRetry, false
		case errors.Is(err, errSpoolLost):
			s.log.Warn(partsLost, "entry", sp.id.String(), "err", err)
		default:
			if !said {
				s.log.Error("parts of a large transaction cannot be kept, it is tried again: free the disk or repair the device", "err", err)
				said = true
			}
			select {
			case <-s.ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, maxApplyRetry)
		}
	}
}

// do executes one operation and returns how far the file is whole then.
func (sp *spool) do(op *spoolOp) (int64, error) {
	if sp.file == nil {
		f, err := sp.s.open(sp.id, os.O_CREATE)
		if err != nil {
			return 0, err
		}
		sp.s.mu.Lock()
		sp.file = f
		sp.s.mu.Unlock()
	}
	if op.restore != nil {
		return sp.restore(*op.restore)
	}
	data := op.data
	if data == nil {
		var err error
		if data, err = sp.s.back(op.index); err != nil {
			return 0, fmt.Errorf("%w: %w", errSpoolLost, err)
		}
	}
	sp.s.mu.Lock()
	at := sp.written
	sp.s.mu.Unlock()
	if _, err := sp.file.WriteAt(data, at); err != nil {
		return 0, fmt.Errorf("write parts at offset %d: %w", at, err)
	}
	return at + int64(len(data)), nil
}

// restore makes the file hold the parts that a manifest lists: those that it has, or a peer's.
func (sp *spool) restore(r Running) (int64, error) {
	size := int64(r.Bytes)
	have, err := hashParts(io.NewSectionReader(sp.file, 0, size), size)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	if err == nil && have == r.Hash {
		return size, nil
	}
	if sp.s.ask == nil {
		return 0, errSpoolLost
	}
	if err := sp.file.Truncate(0); err != nil {
		return 0, fmt.Errorf("empty a file of parts: %w", err)
	}
	if err := sp.s.ask(sp.s.ctx, r, sp.file); err != nil {
		return 0, err
	}
	have, err = hashParts(io.NewSectionReader(sp.file, 0, size), size)
	if err == nil && have != r.Hash {
		err = fmt.Errorf("parts fetched from a peer have hash %x, want %x", have, r.Hash)
	}
	return size, err
}

// hashParts reads size bytes and returns their hash as the state machine has it.
func hashParts(r io.Reader, size int64) (hash [32]byte, err error) {
	buf := make([]byte, PartBytes)
	for size > 0 {
		b := buf[:min(size, PartBytes)]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return hash, fmt.Errorf("read parts: %w", err)
		}
		hash = partHash(hash, b)
		size -= int64(len(b))
	}
	return hash, nil
}

// wait returns when the file holds size bytes.
func (sp *spool) wait(ctx context.Context, size int64) error {
	for {
		sp.s.mu.Lock()
		written, broken, changed := sp.written, sp.broken, sp.changed
		sp.s.mu.Unlock()
		switch {
		case written >= size:
			return nil
		case broken != nil:
			return broken
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the parts of a large transaction, %d of %d bytes are there: %w", written, size, ctx.Err())
		}
	}
}

// sync makes the first size bytes durable.
func (sp *spool) sync(ctx context.Context, size int64) error {
	if err := sp.wait(ctx, size); err != nil {
		return err
	}
	if err := syncFile(sp.file); err != nil {
		return fmt.Errorf("sync parts: %w", err)
	}
	sp.s.mu.Lock()
	synced := sp.synced
	sp.s.mu.Unlock()
	if synced {
		return nil
	}
	if err := syncDir(sp.s.dir); err != nil {
		return fmt.Errorf("sync the directory of parts: %w", err)
	}
	sp.s.mu.Lock()
	sp.synced = true
	sp.s.mu.Unlock()
	return nil
}

// ltx reads the LTX file that the parts hold, with the commit time that the final entry gave it.
func (sp *spool) ltx(size int64, pages uint32, commitMillis int64) (io.Reader, error) {
	r, err := snapshot.RestampReader(sp.file, size, int(pages), commitMillis)
	if err != nil {
		return nil, err
	}
	return bufio.NewReaderSize(r, 256<<10), nil
}

// serve writes the first size bytes to w, for a peer.
func (s *spools) serve(ctx context.Context, id EntryID, size int64, w io.Writer) error {
	s.mu.Lock()
	sp := s.all[id]
	if sp == nil || sp.file == nil || sp.written < size {
		s.mu.Unlock()
		return fmt.Errorf("%d bytes of the parts of %s: %w", size, id, ErrNotFound)
	}
	sp.refs++
	file := sp.file
	s.mu.Unlock()
	defer sp.release()
	buf := make([]byte, 256<<10)
	for at := int64(0); at < size && ctx.Err() == nil; {
		b := buf[:min(size-at, int64(len(buf)))]
		if _, err := file.ReadAt(b, at); err != nil {
			return fmt.Errorf("read parts at offset %d: %w", at, err)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return ctx.Err()
}

// The hooks of the state machine.

func (s *spools) noteListed(running []Running) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range running {
		s.getLocked(r.ID).listed = true
	}
}

func (s *spools) persist(ctx context.Context, running []Running) error {
	ctx, cancel := context.WithTimeout(ctx, persistPatience)
	defer cancel()
	for _, r := range running {
		s.mu.Lock()
		sp := s.all[r.ID]
		if sp != nil {
			sp.refs++
		}
		s.mu.Unlock()
		if sp == nil {
			continue
		}
		err := sp.sync(ctx, int64(r.Bytes))
		over := sp.over()
		sp.release()
		if err != nil && !over { // what ended meanwhile is not needed by who restores this: its peers say so
			return fmt.Errorf("keep the log: %w", err)
		}
	}
	return nil
}

// waits says whether a file waits for nothing but a manifest that does not list it.
func (s *spools) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.all {
		if sp.refs == 0 && !sp.running && !sp.working {
			return true
		}
	}
	return false
}

// over says that the transaction was dropped.
func (sp *spool) over() bool {
	sp.s.mu.Lock()
	defer sp.s.mu.Unlock()
	return sp.broken != nil && sp.ended != 0
}

func (s *spools) notePersisted(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.persisted = max(s.persisted, index)
	for _, sp := range s.all {
		sp.tidyLocked()
	}
}

// restore follows the state machine to a manifest. With wait it returns when all parts are here and durable,
// or known to be lost.
func (s *spools) restore(ctx context.Context, running []Running, wait bool) error {
	keep := map[EntryID]bool{}
	s.mu.Lock()
	var list []*spool
	for i := range running {
		r := &running[i]
		keep[r.ID] = true
		sp := s.getLocked(r.ID)
		sp.listed = true
		list = append(list, sp)
		sp.refs++
		if sp.running && sp.written >= int64(r.Bytes) {
			continue
		}
		sp.running = true
		sp.own = false
		sp.dropOpsLocked()
		sp.addLocked(&spoolOp{restore: r})
	}
	for id, sp := range s.all {
		if !keep[id] && sp.running {
			sp.running, sp.ended = false, max(s.persisted, 1)
			sp.dropOpsLocked()
			sp.tidyLocked()
		}
	}
	s.mu.Unlock()
	defer func() {
		for _, sp := range list {
			sp.release()
		}
	}()
	if !wait {
		return nil
	}
	for i, sp := range list {
		if err := sp.sync(ctx, int64(running[i].Bytes)); err != nil && !errors.Is(err, errSpoolLost) {
			return fmt.Errorf("restore the parts of a large transaction: %w", err)
		}
	}
	return nil
}

// clear removes the files that no manifest lists: a former life of the node left them.
func (s *spools) clear() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear the parts: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), spoolSuffix)
		s.mu.Lock()
		for id := range s.all {
			ok = ok && id.String() != name
		}
		s.mu.Unlock()
		if !ok {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("clear the parts: %w", err)
		}
	}
	return nil
}
