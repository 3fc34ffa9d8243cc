package link

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// acceptPause is how long a node without free descriptors waits for some.
const acceptPause = 50 * time.Millisecond

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("link server closed")

// Keys of log attributes.
const (
	keyErr = "err"
	keyPID = "pid"
)

// Server serves connections of applications for one Backend.
type Server struct {
	backend Backend
	log     *slog.Logger
	ctx     context.Context // ends when connections must give up
	cancel  context.CancelFunc
	conns   sync.WaitGroup
	start   time.Time // of the clock that connections note their requests by

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	active    map[*conn]struct{}
	watching  bool
}

// NewServer returns a server that asks b and logs to log.
func NewServer(b Backend, log *slog.Logger) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		backend:   b,
		log:       log,
		ctx:       ctx,
		cancel:    cancel,
		listeners: make(map[net.Listener]struct{}),
		active:    make(map[*conn]struct{}),
		start:     time.Now(),
	}
}

// watchInterval is how often the server looks for requests that wait for long.
const watchInterval = 50 * time.Millisecond

// now is never 0.
func (s *Server) now() int64 { return int64(time.Since(s.start)) + 1 }

// watch looks after requests that wait while there are connections.
func (s *Server) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		before := s.now() - int64(watchInterval)
		s.mu.Lock()
		if len(s.active) == 0 {
			s.watching = false
			s.mu.Unlock()
			return
		}
		for c := range s.active {
			c.watch(before)
		}
		s.mu.Unlock()
	}
}

// Serve accepts connections until Shutdown, then returns ErrServerClosed, or
// until l fails.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		_ = l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for {
		nc, err := l.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
			s.log.Error("no descriptor for an application's connection: raise the limit of open files", keyErr, err)
			s.pause(acceptPause)
			continue
		}
		if err != nil {
			s.mu.Lock()
			delete(s.listeners, l)
			closing := s.closing
			s.mu.Unlock()
			if closing {
				return ErrServerClosed
			}
			return err
		}
		s.begin(nc)
	}
}

// pause waits, but not beyond Shutdown.
func (s *Server) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// ServeConn serves one connection that was accepted elsewhere and returns when
// it has ended.
func (s *Server) ServeConn(nc net.Conn) {
	if c := s.begin(nc); c != nil {
		<-c.done
	}
}

// begin serves nc in the background, nil when the server is closing.
func (s *Server) begin(nc net.Conn) *conn {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		_ = nc.Close()
		return nil
	}
	s.active[c] = struct{}{}
	s.conns.Add(1)
	if !s.watching {
		s.watching = true
		go s.watch()
	}
	s.mu.Unlock()
	go func() {
		defer s.conns.Done()
		c.serve()
		s.mu.Lock()
		delete(s.active, c)
		s.mu.Unlock()
	}()
	return c
}

// Shutdown stops accepting, closes idle connections, lets commits in flight
// have their verdict until ctx ends, and returns when every handle is closed.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.active {
		c.shutdown()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		s.cancel()
		s.mu.Lock()
		for c := range s.active {
			_ = c.nc.Close()
		}
		s.mu.Unlock()
		<-done
	}
	s.cancel()
	return err
}
