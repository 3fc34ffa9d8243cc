package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strconv"
	"time"
)

// maxRequestBytes bounds the body of a request; the largest legal one holds a
// name of 255 bytes.
const maxRequestBytes = 64 << 10

// Server serves a Backend over HTTP.
type Server struct {
	backend Backend
	log     *slog.Logger
	handler http.Handler
	http    *http.Server
}

// NewServer returns a server for backend. metrics may be nil: /metrics then
// shows the process only.
func NewServer(backend Backend, metrics MetricsSource, log *slog.Logger) *Server {
	s := &Server{backend: backend, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", MetricsHandler(metrics))
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/databases", s.databases)
	mux.HandleFunc("POST /v1/databases", s.createDatabase)
	mux.HandleFunc("GET /v1/databases/{name...}", s.database)
	mux.HandleFunc("DELETE /v1/databases/{name...}", s.deleteDatabase)
	mux.HandleFunc("GET /v1/cluster", s.cluster)
	mux.HandleFunc("POST /v1/cluster/members", s.addMember)
	mux.HandleFunc("DELETE /v1/cluster/members/{id}", s.removeMember)
	mux.HandleFunc("POST /v1/cluster/replace", s.replaceMember)
	mux.HandleFunc("POST /v1/cluster/transfer", s.transfer)
	mux.HandleFunc("GET /v1/verify/{name...}", s.verify)
	s.routeContents(mux)
	s.routeArchives(mux)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s.handler = jsonErrors(mux, http.NewCrossOriginProtection())
	s.http = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return s
}

// Handler returns the handler of all paths, for a listener of another kind.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on l until Shutdown or Close; it then returns nil.
func (s *Server) Serve(l net.Listener) error {
	if loopback(l.Addr()) {
		s.http.Handler = localHostOnly(s.handler)
	}
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops accepting requests and waits for those that run, until ctx
// ends; then it cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("shut down http: %w", err), s.http.Close())
	}
	return nil
}

// Listen opens the port of the HTTP interface. An address that other machines
// can reach is logged, since nobody is asked for a password there.
func Listen(addr string, log *slog.Logger) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for http on %q: %w", addr, err)
	}
	if !loopback(l.Addr()) {
		log.Warn("http interface is open to other machines and asks for no password; anyone who reaches it can delete databases",
			"http", l.Addr().String())
	}
	return l, nil
}

func loopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// localHostOnly refuses requests whose Host is not this machine's own name
// for itself: a web page could otherwise point a name of its own at the
// loopback address and speak to the node from the browser (DNS rebinding).
func localHostOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
			host = host[1 : len(host)-1]
		}
		ip, err := netip.ParseAddr(host)
		if host != "" && host != "localhost" && (err != nil || !ip.IsLoopback()) {
			writeError(w, fmt.Errorf("request for host %q at a loopback address: %w", clip(r.Host), ErrForbidden))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// jsonErrors gives the router's own refusals (no such path, wrong method) and
// those of the cross-origin check the shape of all other errors.
func jsonErrors(mux *http.ServeMux, origin *http.CrossOriginProtection) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := origin.Check(r); err != nil {
			writeError(w, fmt.Errorf("%w: %w", err, ErrForbidden))
			return
		}
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		rec := &statusOnly{header: http.Header{}}
		mux.ServeHTTP(rec, r)
		for _, key := range []string{"Allow", "Location"} {
			if v := rec.header.Get(key); v != "" {
				w.Header().Set(key, v)
			}
		}
		code := "not_found"
		if rec.status == http.StatusMethodNotAllowed {
			code = "method_not_allowed"
		}
		writeJSON(w, rec.status, ErrorResponse{
			Message: fmt.Sprintf("%s %s: %s", r.Method, clip(r.URL.Path), http.StatusText(rec.status)),
			Code:    code,
		})
	})
}

// statusOnly keeps the status and header of an answer and drops its body.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header { return s.header }
func (s *statusOnly) Write(b []byte) (int, error) {
	if s.status == 0 {
		s.status = http.StatusOK
	}
	return len(b), nil
}
func (s *statusOnly) WriteHeader(status int) { s.status = status }

func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	s.check(w, s.backend.Health(r.Context()))
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	s.check(w, s.backend.Ready(r.Context()))
}

// check answers a probe: any error means not now.
func (s *Server) check(w http.ResponseWriter, err error) {
	if err != nil {
		_, code := classify(err)
		writeJSON(w, http.StatusServiceUnavailable, ErrorResponse{Message: err.Error(), Code: code})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	q, err := databaseQuery(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	st, err := s.backend.Status(r.Context(), q)
	if st.Databases == nil {
		st.Databases = []DatabaseStatus{}
	}
	if st.Cluster.Members == nil {
		st.Cluster.Members = []MemberStatus{}
	}
	s.answer(w, r, http.StatusOK, st, err)
}

func (s *Server) databases(w http.ResponseWriter, r *http.Request) {
	q, err := databaseQuery(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	page, err := s.backend.Databases(r.Context(), q)
	if page.Databases == nil {
		page.Databases = []DatabaseStatus{}
	}
	s.answer(w, r, http.StatusOK, page, err)
}

// databaseQuery reads prefix, after and limit.
func databaseQuery(r *http.Request) (DatabaseQuery, error) {
	v := r.URL.Query()
	q := DatabaseQuery{Prefix: v.Get("prefix"), After: v.Get("after"), Limit: DefaultLimit}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n == 0 {
			return q, fmt.Errorf("query parameter limit=%q: want a number from 1 to %d: %w", clip(text), MaxLimit, ErrInvalid)
		}
		q.Limit = n
	}
	return q, q.Validate()
}

func (s *Server) createDatabase(w http.ResponseWriter, r *http.Request) {
	var req CreateDatabaseRequest
	if err := readRequest(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	db, err := s.backend.CreateDatabase(r.Context(), req)
	s.answer(w, r, http.StatusCreated, db, err)
}

func (s *Server) database(w http.ResponseWriter, r *http.Request) {
	name, err := pathName(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	db, err := s.backend.Database(r.Context(), name)
	s.answer(w, r, http.StatusOK, db, err)
}

func (s *Server) deleteDatabase(w http.ResponseWriter, r *http.Request) {
	name, err := pathName(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	force, err := queryBool(r, "force")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusNoContent, nil, s.backend.DeleteDatabase(r.Context(), name, force))
}

func (s *Server) cluster(w http.ResponseWriter, r *http.Request) {
	c, err := s.backend.Cluster(r.Context())
	if c.Members == nil {
		c.Members = []MemberStatus{}
	}
	s.answer(w, r, http.StatusOK, c, err)
}

func (s *Server) addMember(w http.ResponseWriter, r *http.Request) {
	var req AddMemberRequest
	if err := readRequest(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusNoContent, nil, s.backend.AddMember(r.Context(), req))
}

func (s *Server) removeMember(w http.ResponseWriter, r *http.Request) {
	force, err := queryBool(r, "force")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusNoContent, nil, s.backend.RemoveMember(r.Context(), r.PathValue("id"), force))
}

func (s *Server) replaceMember(w http.ResponseWriter, r *http.Request) {
	var req ReplaceRequest
	if err := readRequest(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	done, err := s.backend.ReplaceMember(r.Context(), req)
	s.answer(w, r, http.StatusOK, done, err)
}

func (s *Server) transfer(w http.ResponseWriter, r *http.Request) {
	var req TransferRequest
	if r.ContentLength != 0 {
		if err := readJSON(w, r, &req); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	s.answer(w, r, http.StatusNoContent, nil, s.backend.TransferLeadership(r.Context(), req))
}

func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	name, err := pathName(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	deep, err := queryBool(r, "deep")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	report, err := s.backend.Verify(r.Context(), name, deep)
	if report.Nodes == nil {
		report.Nodes = []VerifyNode{}
	}
	s.answer(w, r, http.StatusOK, report, err)
}

// answer writes v with status, or err.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, status int, v any, err error) {
	switch {
	case err != nil:
		s.fail(w, r, err)
	case v == nil:
		w.WriteHeader(status)
	default:
		writeJSON(w, status, v)
	}
}

// fail writes err. An error of no known kind is also logged: nobody expected
// it, and the client may be gone.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if status, _ := classify(err); status == http.StatusInternalServerError {
		s.log.Error("http request broke on an unexpected error; the text says where", "method", r.Method, "path", clip(r.URL.Path), "err", err)
	}
	writeError(w, err)
}

func writeError(w http.ResponseWriter, err error) {
	status, code := classify(err)
	writeJSON(w, status, ErrorResponse{Message: err.Error(), Code: code})
}

// writeJSON writes v in one piece, so that an encoding error can still become
// a status. What the connection does with it is the client's affair.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
		b = []byte(`{"error":"encode answer: ` + strconv.Itoa(status) + `","code":"` + codeInternal + `"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// readJSON reads the request's body into v. Unknown fields are refused: a
// misspelt one would otherwise be a setting that silently does nothing.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the body is empty")
		}
		return fmt.Errorf("read request body: %w: %w", err, ErrInvalid)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("read request body: something follows the JSON object: %w", ErrInvalid)
	}
	return nil
}

// readRequest reads the request's body into v, which says whether it makes sense.
func readRequest(w http.ResponseWriter, r *http.Request, v interface{ Validate() error }) error {
	if err := readJSON(w, r, v); err != nil {
		return err
	}
	return v.Validate()
}

func pathName(r *http.Request) (string, error) {
	name := r.PathValue("name")
	if name == "" {
		return "", fmt.Errorf("%s %s: no database name in the path: %w", r.Method, clip(r.URL.Path), ErrInvalid)
	}
	return name, nil
}

// queryBool reads a flag of the query: absent or 0 is false, present without
// a value or 1 is true.
func queryBool(r *http.Request, key string) (bool, error) {
	q := r.URL.Query()
	if !q.Has(key) {
		return false, nil
	}
	v := q.Get(key)
	if v == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("query parameter %s=%q: want 0 or 1: %w", key, clip(v), ErrInvalid)
	}
	return b, nil
}
