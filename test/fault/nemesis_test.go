package fault

import (
	"context"
	"time"
)

// nemesis is one way to hurt the cluster while its writers work. It leaves the damage: world.heal repairs it.
type nemesis struct {
	name string
	run  func(ctx context.Context, w *world) error
}

var nemeses = []nemesis{
	{"kill the leader", func(ctx context.Context, w *world) error {
		s, err := w.leader(ctx)
		if err != nil {
			return err
		}
		if err := s.node.Kill(); err != nil {
			return err
		}
		return w.progress(ctx, w.others(s)...)
	}},
	{"kill a follower", func(ctx context.Context, w *world) error {
		s, err := w.follower(ctx)
		if err != nil {
			return err
		}
		if err := s.node.Kill(); err != nil {
			return err
		}
		return w.progress(ctx, w.others(s)...)
	}},
	{"kill a follower while its application commits", func(ctx context.Context, w *world) error {
		s, err := w.follower(ctx)
		if err != nil {
			return err
		}
		return w.killWhileCommitting(ctx, s)
	}},
	{"kill the leader while its application commits", func(ctx context.Context, w *world) error {
		s, err := w.leader(ctx)
		if err != nil {
			return err
		}
		return w.killWhileCommitting(ctx, s)
	}},
	{"kill a writer", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		w.wait(ctx, 0, 20*time.Millisecond)
		if err := s.writer.Kill(); err != nil {
			return err
		}
		return w.progress(ctx, w.others(s)...)
	}},
	{"kill a writer that commits", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		if err := s.writer.Send("tell"); err != nil {
			return err
		}
		if _, err := s.writer.Expect(ctx, "committing"); err != nil {
			return err
		}
		if err := s.writer.Kill(); err != nil {
			return err
		}
		return w.progress(ctx, w.others(s)...)
	}},
	{"kill a writer between begin and commit", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		if err := w.hold(ctx, s); err != nil {
			return err
		}
		if err := s.writer.Kill(); err != nil {
			return err
		}
		return w.progress(ctx, w.others(s)...)
	}},
	{"stop a writer that holds the lock", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		if err := w.hold(ctx, s); err != nil {
			return err
		}
		if err := s.writer.Pause(); err != nil {
			return err
		}
		// The others get the lock when the lease has run out, and the sleeper's commit must not count.
		if err := w.progress(ctx, w.others(s)...); err != nil {
			return err
		}
		if w.rng.IntN(2) == 0 {
			return s.writer.Kill()
		}
		if err := s.writer.Resume(); err != nil {
			return err
		}
		return s.writer.Send("go")
	}},
	{"stop a writer at any time", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		w.wait(ctx, 0, 20*time.Millisecond)
		if err := s.writer.Pause(); err != nil {
			return err
		}
		return w.progress(ctx, w.others(s)...)
	}},
	{"stop the leader", func(ctx context.Context, w *world) error {
		s, err := w.leader(ctx)
		if err != nil {
			return err
		}
		return w.stopNode(ctx, s)
	}},
	{"stop a follower", func(ctx context.Context, w *world) error {
		s, err := w.follower(ctx)
		if err != nil {
			return err
		}
		return w.stopNode(ctx, s)
	}},
	{"restart a node with a reader and an open transaction", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		if err := w.hold(ctx, s); err != nil {
			return err
		}
		if err := s.node.Restart(ctx); err != nil {
			return err
		}
		if err := s.writer.Send("go"); err != nil {
			return err
		}
		return w.progress(ctx, w.slots...)
	}},
	{"kill and restart a node with a reader and an open transaction", func(ctx context.Context, w *world) error {
		s := w.anySlot()
		if err := w.hold(ctx, s); err != nil {
			return err
		}
		if err := s.node.Kill(); err != nil {
			return err
		}
		if err := s.node.Restart(ctx); err != nil {
			return err
		}
		if err := s.writer.Send("go"); err != nil {
			return err
		}
		return w.progress(ctx, w.slots...)
	}},
	{"kill all nodes at once", func(_ context.Context, w *world) error {
		for _, s := range w.slots {
			if err := s.node.Kill(); err != nil {
				return err
			}
		}
		return nil
	}},
	{"kill all nodes and all writers at once", func(_ context.Context, w *world) error {
		for _, s := range w.slots {
			if err := s.node.Kill(); err != nil {
				return err
			}
			if err := s.writer.Kill(); err != nil {
				return err
			}
		}
		return nil
	}},
	{"stop a follower, then kill the leader", func(ctx context.Context, w *world) error {
		l, err := w.leader(ctx)
		if err != nil {
			return err
		}
		f := w.others(l)[0]
		if err := f.node.Pause(); err != nil {
			return err
		}
		w.wait(ctx, 200*time.Millisecond, time.Second)
		return l.node.Kill()
	}},
	{"hand the leadership over", func(ctx context.Context, w *world) error {
		s, err := w.leader(ctx)
		if err != nil {
			return err
		}
		if err := s.node.Call(ctx, "POST", "/v1/cluster/transfer", map[string]string{}, nil); err != nil {
			return err
		}
		return w.progress(ctx, w.slots...)
	}},
}

// hold waits until the writer of a slot has inserted and not committed.
func (w *world) hold(ctx context.Context, s *slot) error {
	if err := s.writer.Send("hold"); err != nil {
		return err
	}
	_, err := s.writer.Expect(ctx, "holding")
	return err
}

func (w *world) killWhileCommitting(ctx context.Context, s *slot) error {
	if err := s.writer.Send("tell"); err != nil {
		return err
	}
	if _, err := s.writer.Expect(ctx, "committing"); err != nil {
		return err
	}
	if err := s.node.Kill(); err != nil {
		return err
	}
	return w.progress(ctx, w.others(s)...)
}

func (w *world) stopNode(ctx context.Context, s *slot) error {
	if err := s.node.Pause(); err != nil {
		return err
	}
	if err := w.progress(ctx, w.others(s)...); err != nil {
		return err
	}
	w.wait(ctx, 0, 3*time.Second)
	return nil
}
