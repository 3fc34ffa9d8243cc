package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// Snapshot implements raft.FSM. What the returned snapshot needs is copied or
// never changes again.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped != nil {
		return nil, fmt.Errorf("take manifest: %w: %w", ErrStopped, f.stopped)
	}
	for _, db := range f.s.byID {
		db.accepted.forget(f.s.applied)
	}
	m := f.s.manifest()
	if f.Spools.Listed != nil {
		f.Spools.Listed(m.running)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	return &fsmSnapshot{m: m, hook: f.OnPersist, spools: f.Spools, ctx: ctx, cancel: cancel}, nil
}

type fsmSnapshot struct {
	m      *manifest
	hook   PersistHook
	spools SpoolHooks
	ctx    context.Context
	cancel context.CancelFunc
}

// Persist waits for the files, then writes the manifest.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	err := s.persist(sink)
	if err != nil {
		return errors.Join(fmt.Errorf("persist manifest at index %d: %w", s.m.applied, err), sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	if s.spools.Persisted != nil {
		s.spools.Persisted(s.m.applied)
	}
	return nil
}

func (s *fsmSnapshot) persist(w io.Writer) error {
	if s.hook != nil {
		if err := s.hook(s.ctx, s.m.states()); err != nil {
			return err
		}
	}
	if s.spools.Persist != nil && len(s.m.running) > 0 {
		if err := s.spools.Persist(s.ctx, s.m.running); err != nil {
			return err
		}
	}
	_, err := w.Write(s.m.encode(nil))
	return err
}

// Release cancels a Persist that still runs.
func (s *fsmSnapshot) Release() { s.cancel() }

// Restore implements raft.FSM: it replaces the state by a manifest.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := readManifest(r)
	if err != nil {
		return fmt.Errorf("restore manifest: %w", err)
	}
	next, err := decodeManifest(b)
	if err != nil {
		return fmt.Errorf("restore manifest: %w", err)
	}
	if len(b) > 1<<20 {
		b = nil // let it be collected while the hook fetches pages
	}
	f.mu.Lock()
	if f.stopped != nil {
		defer f.mu.Unlock()
		return fmt.Errorf("restore manifest: %w: %w", ErrStopped, f.stopped)
	}
	former := f.s
	f.s = next
	f.mu.Unlock()
	if err := f.follow(); err != nil {
		f.mu.Lock()
		f.s = former
		f.mu.Unlock()
		return fmt.Errorf("restore manifest at index %d: %w", next.applied, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wait.indexReached(f.s.applied)
	f.wait.reviewAll(f.s)
	return nil
}

// follow brings what is outside the state to it.
func (f *FSM) follow() error {
	if f.Spools.Restore != nil {
		if err := f.Spools.Restore(f.Running()); err != nil {
			return err
		}
	}
	if f.OnRestore != nil {
		return f.OnRestore(f.List())
	}
	return nil
}
