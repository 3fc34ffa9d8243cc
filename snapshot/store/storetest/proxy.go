package storetest

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Proxy stands in front of an S3 server: it counts requests, and answers some
// of them as a server in trouble does.
type Proxy struct {
	Endpoint string

	server *http.Server
	done   chan struct{}

	mu       sync.Mutex
	requests int
	stored   int
	failed   int
	refuse   func(n int, r *http.Request) int
	lose     func(n int, r *http.Request) bool
	delay    time.Duration
}

// NewProxy starts a proxy of an endpoint.
func NewProxy(endpoint string) (*Proxy, error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{Endpoint: "http://" + l.Addr().String(), done: make(chan struct{})}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			switch {
			case r.Request.Method != http.MethodPut || r.StatusCode == http.StatusPreconditionFailed:
			case r.StatusCode == http.StatusOK:
				p.stored++
			default:
				p.failed++
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	p.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.requests++
		code, delay, lost := 0, p.delay, false
		if p.lose != nil {
			lost = p.lose(p.requests, r)
		}
		if p.refuse != nil {
			code = p.refuse(p.requests, r)
		}
		p.mu.Unlock()
		if delay > 0 {
			select {
			case <-time.After(delay):
			case <-r.Context().Done():
				return
			}
		}
		if code != 0 {
			w.WriteHeader(code)
			return
		}
		if lost {
			forward.ServeHTTP(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler) // ends the connection
		}
		forward.ServeHTTP(w, r)
	})}
	go func() {
		defer close(p.done)
		_ = p.server.Serve(l) // ends with Close
	}()
	return p, nil
}

// Requests returns how many there were.
func (p *Proxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// Writes returns how many objects the server itself has stored, and how many it would have, but failed to.
func (p *Proxy) Writes() (stored, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stored, p.failed
}

// Refuse has the n-th request answered with the status that f returns, 0 for
// the server's own answer; nil refuses none.
func (p *Proxy) Refuse(f func(n int, r *http.Request) int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = f
}

// Lose has the answer of the n-th request lost, which the server has carried
// out, where f says so.
func (p *Proxy) Lose(f func(n int, r *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = f
}

// discard is an answer that nobody reads.
type discard struct{ h http.Header }

// Header implements http.ResponseWriter.
func (d discard) Header() http.Header { return d.h }

// Write implements http.ResponseWriter.
func (d discard) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (d discard) WriteHeader(int) {}

// Slow delays every answer.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Close ends it.
func (p *Proxy) Close() error {
	err := p.server.Close()
	<-p.done
	return err
}
