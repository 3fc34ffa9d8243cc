package nodecmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/node"
	"github.com/uglyer/ha-sqlite/replicate"
)

// fakeNode ends when it is told to.
type fakeNode struct {
	ended    chan error
	down     func(ctx context.Context) error
	shutdown int
}

func (f *fakeNode) Wait() error { return <-f.ended }
func (f *fakeNode) Shutdown(ctx context.Context) error {
	f.shutdown++
	if f.down != nil {
		return f.down(ctx)
	}
	return nil
}

func starts(n *fakeNode) Funcs {
	return Funcs{Start: func(node.Config, *slog.Logger) (Runner, error) { return n, nil }}
}

func TestSupervise(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tests := []struct {
		name     string
		start    func(n *fakeNode) Funcs
		node     fakeNode
		script   func(n *fakeNode, signals chan<- os.Signal)
		code     int
		text     string
		quit     int // 0: not called
		shutdown int
	}{
		{name: "one signal stops cleanly",
			script: func(_ *fakeNode, s chan<- os.Signal) { s <- syscall.SIGTERM }, shutdown: 1},
		{name: "start fails",
			start: func(*fakeNode) Funcs {
				return Funcs{Start: func(node.Config, *slog.Logger) (Runner, error) { return nil, errors.New("directory is held") }}
			}, code: 1, text: "start node: directory is held"},
		{name: "the disk fails at the start",
			start: func(*fakeNode) Funcs {
				return Funcs{Start: func(node.Config, *slog.Logger) (Runner, error) {
					return nil, fmt.Errorf("sync: %w", node.ErrDevice)
				}}
			}, code: 8, text: "see to the device"},
		{name: "node cannot go on",
			script: func(n *fakeNode, _ chan<- os.Signal) { n.ended <- errors.New("newer entry") }, code: 1, text: "node cannot go on: newer entry", shutdown: 1},
		{name: "the disk failed",
			script: func(n *fakeNode, _ chan<- os.Signal) { n.ended <- fmt.Errorf("sync: %w", node.ErrDevice) }, code: 8, text: "see to the device"},
		{name: "the disk failed during the shutdown", node: fakeNode{down: hang},
			script: func(n *fakeNode, s chan<- os.Signal) {
				s <- syscall.SIGTERM
				synctest.Wait()
				n.ended <- node.ErrDevice
			}, code: 8, text: "see to the device", shutdown: 1},
		{name: "node ends by itself",
			script: func(n *fakeNode, _ chan<- os.Signal) { n.ended <- nil }},
		{name: "shutdown fails", node: fakeNode{down: func(context.Context) error { return errors.New("disk full") }},
			script: func(_ *fakeNode, s chan<- os.Signal) { s <- syscall.SIGINT }, code: 1, text: "shut down node: disk full", shutdown: 1},
		{name: "shutdown takes too long", node: fakeNode{down: hang},
			script: func(_ *fakeNode, s chan<- os.Signal) { s <- syscall.SIGINT }, code: 1, text: "deadline exceeded", shutdown: 1},
		{name: "second signal ends at once", node: fakeNode{down: hang},
			script: func(_ *fakeNode, s chan<- os.Signal) { s <- syscall.SIGTERM; synctest.Wait(); s <- syscall.SIGINT }, code: 130, quit: 130, text: "second signal", shutdown: 1},
		{name: "signal while starting",
			start: func(n *fakeNode) Funcs {
				return Funcs{Start: func(node.Config, *slog.Logger) (Runner, error) {
					<-time.After(time.Second)
					return n, nil
				}}
			}, script: func(_ *fakeNode, s chan<- os.Signal) { s <- syscall.SIGTERM }, shutdown: 1},
		{name: "second signal while starting",
			start: func(n *fakeNode) Funcs {
				return Funcs{Start: func(node.Config, *slog.Logger) (Runner, error) {
					<-time.After(time.Second)
					return n, nil
				}}
			}, script: func(_ *fakeNode, s chan<- os.Signal) { s <- syscall.SIGTERM; s <- syscall.SIGTERM }, code: 143, quit: 143, text: "second signal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := tt.node
				n.ended = make(chan error, 1)
				start := tt.start
				if start == nil {
					start = starts
				}
				signals, quit := make(chan os.Signal, 2), 0
				result := make(chan error, 1)
				go func() {
					result <- supervise(node.Config{}, log, start(&n), signals, func(code int) { quit = code }, 30*time.Second)
				}()
				synctest.Wait()
				if tt.script != nil {
					tt.script(&n, signals)
				}
				err := <-result
				close(n.ended)
				if exit.Code(err) != tt.code || quit != tt.quit || n.shutdown != tt.shutdown || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v (code %d), quit %d, %d shutdowns; want code %d with %q, quit %d, %d shutdowns",
						err, exit.Code(err), quit, n.shutdown, tt.code, tt.text, tt.quit, tt.shutdown)
				}
				<-time.After(time.Minute) // lets a start or shutdown that was given up end
			})
		})
	}
}

func TestCommandLine(t *testing.T) {
	var got node.Config
	var migrated string
	f := Funcs{
		Start: func(cfg node.Config, _ *slog.Logger) (Runner, error) {
			got = cfg
			n := &fakeNode{ended: make(chan error, 1)}
			n.ended <- nil
			return n, nil
		},
		Migrate: func(data, to string, _ *slog.Logger) error { migrated = data + " " + to; return nil },
	}
	tests := []struct {
		args string
		code int
		text string
	}{
		{"--data /d --id n1", 0, ""},
		{"", 2, "no data directory"},
		{"--data /d extra", 2, `unknown command "extra"`},
		{"--data /d --no-such", 2, "unknown flag: --no-such; hasqlite-node --help"},
		{"--data /d --http 1", 2, `flag --http="1"`},
		{"--help", 0, "--bootstrap-expect 3"},
		{"--version", 0, "hasqlite-node version "},
		{"completion bash", 0, "bash completion"},
		{"migrate --data /d --raft-log boltdb", 0, ""},
		{"migrate --data /d", 2, "give the kind"},
		{"migrate --raft-log wal", 2, "no data directory"},
		{"migrate --data /d --raft-log x", 2, "wal or boltdb"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			cmd := New("hasqlite-node", f)
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&out)
			cmd.SetArgs(strings.Fields(tt.args))
			if code := Main(cmd); code != tt.code || !strings.Contains(out.String(), tt.text) {
				t.Fatalf("exit code %d, want %d with %q; it said:\n%s", code, tt.code, tt.text, out.String())
			}
		})
	}
	if got.Data != "/d" || got.ID != "n1" || got.Version == "" {
		t.Errorf("started with %+v", got)
	}
	if migrated != "/d boltdb" {
		t.Errorf("migrated %q", migrated)
	}
}

// What the files of a node show and its log does not have is said before anybody confirms, and is not lost with another node.
func TestPrintRecoveryOfFilesAheadOfTheLog(t *testing.T) {
	at := func(txid replicate.TXID) replicate.Position { return replicate.Position{TXID: txid, Checksum: 1 << 63} }
	var out bytes.Buffer
	err := PrintRecovery(&out, &node.Recovery{
		Cluster: "c", Furthest: "/a", Nodes: []node.RecoveryNode{{Data: "/a", Node: "a"}, {Data: "/b", Node: "b"}},
		Database: []node.RecoveryDatabase{{Name: "shop.db", Ends: []node.RecoveryPosition{
			{Present: true, Position: at(7), Certain: 7, Files: at(9)}, {Present: true, Position: at(7), Certain: 7},
		}}},
	})
	text := out.String()
	if err != nil || strings.Count(text, "The files of") != 1 || !strings.Contains(text, `The files of "shop.db" on a show 2 transactions more than its log, up to `+at(9).String()) ||
		strings.Count(text, "2 that another one has") != 1 {
		t.Errorf("%v, %s", err, text)
	}
}
