package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// rqlite is a cluster of three rqlite nodes with their default settings, and one client with one kept connection to the leader.
type rqlite struct {
	nodes  []*localcluster.Process
	logs   []*os.File
	client *http.Client
	url    string // of the leader
	one    []byte // body of a request of one row
	many   []byte // of batchRows
}

func startRqlite(ctx context.Context, binary, dir string) (q *rqlite, err error) {
	q = &rqlite{client: &http.Client{Timeout: 30 * time.Second}}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.close())
		}
	}()
	if q.one, err = json.Marshal([]string{insertRow}); err != nil {
		return q, err
	}
	rows := make([]string, batchRows)
	for i := range rows {
		rows[i] = insertRow
	}
	if q.many, err = json.Marshal(rows); err != nil {
		return q, err
	}
	const count = 3
	var httpAddr, raftAddr [count]string
	for i := range count {
		if httpAddr[i], err = unusedAddr(); err != nil {
			return q, err
		}
		if raftAddr[i], err = unusedAddr(); err != nil {
			return q, err
		}
	}
	for i := range count {
		data := filepath.Join(dir, fmt.Sprint(i+1))
		if err := os.MkdirAll(data, 0o755); err != nil {
			return q, fmt.Errorf("make directory: %w", err)
		}
		log, err := os.Create(data + ".log")
		if err != nil {
			return q, fmt.Errorf("create log: %w", err)
		}
		q.logs = append(q.logs, log)
		cmd := exec.Command(binary, "-node-id", fmt.Sprint(i+1), "-http-addr", httpAddr[i], "-raft-addr", raftAddr[i],
			"-bootstrap-expect", fmt.Sprint(count), "-join", strings.Join(raftAddr[:], ","), data)
		cmd.Stdout, cmd.Stderr = log, log
		p, err := localcluster.StartProcess(cmd)
		if err != nil {
			return q, fmt.Errorf("start rqlite: %w", err)
		}
		q.nodes = append(q.nodes, p)
	}
	wait, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := localcluster.Poll(wait, 50*time.Millisecond, func() (bool, error) {
		for _, addr := range httpAddr {
			if q.leads(wait, addr) {
				q.url = "http://" + addr + "/db/execute"
				return true, nil
			}
		}
		return false, errors.New("no leader yet")
	}); err != nil {
		return q, fmt.Errorf("wait for rqlite: %w", err)
	}
	create, err := json.Marshal([]string{`CREATE TABLE work(id INTEGER PRIMARY KEY, payload TEXT)`})
	if err != nil {
		return q, err
	}
	return q, q.post(ctx, q.url, create)
}

func unusedAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// leads reports whether the node is ready and the leader.
func (q *rqlite) leads(ctx context.Context, addr string) bool {
	var nodes map[string]struct {
		Leader    bool   `json:"leader"`
		Reachable bool   `json:"reachable"`
		API       string `json:"api_addr"`
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/nodes?nonvoters", nil)
	if err != nil {
		return false
	}
	resp, err := q.client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&nodes) != nil || len(nodes) < 3 {
		return false
	}
	for _, n := range nodes {
		if !n.Reachable {
			return false
		}
	}
	for _, n := range nodes {
		if n.Leader && strings.TrimPrefix(n.API, "http://") == addr {
			return true
		}
	}
	return false
}

// execute writes rows in one request.
func (q *rqlite) execute(ctx context.Context, rows int) error {
	if rows == 1 {
		return q.post(ctx, q.url, q.one)
	}
	return q.post(ctx, q.url+"?transaction", q.many)
}

func (q *rqlite) post(ctx context.Context, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("write to rqlite: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := q.client.Do(req)
	if err != nil {
		return fmt.Errorf("write to rqlite: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("write to rqlite: %w", err)
	}
	if resp.StatusCode != http.StatusOK || bytes.Contains(b, []byte(`"error"`)) {
		return fmt.Errorf("write to rqlite: %s: %s", resp.Status, b[:min(len(b), 200)])
	}
	return nil
}

func (q *rqlite) batches(ctx context.Context, r *Report, count int) error {
	begun := time.Now()
	for range count {
		if err := q.execute(ctx, batchRows); err != nil {
			return err
		}
	}
	r.add(rqliteRows, "rows/s", float64(count*batchRows)/time.Since(begun).Seconds())
	return nil
}

func (q *rqlite) close() error {
	var errs []error
	for _, p := range q.nodes {
		errs = append(errs, p.Kill())
	}
	for _, f := range q.logs {
		errs = append(errs, f.Close())
	}
	q.client.CloseIdleConnections()
	return errors.Join(errs...)
}
