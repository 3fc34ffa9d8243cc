package localcluster

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
)

// fakeNode is the environment variable that turns this test binary into a node that knows the command line and the HTTP
// port of a real one and nothing else. The node n1 is leader unless FAKE_LEADER names another.
const fakeNode = "LOCALCLUSTER_FAKE_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(fakeNode) != "" {
		if err := runFakeNode(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runFakeNode(args []string) error {
	fs := flag.NewFlagSet("fake", flag.ContinueOnError)
	var data, id, addr, raft, socket, join, fail string
	var expect int
	fs.StringVar(&data, "data", "", "")
	fs.StringVar(&id, "id", "", "")
	fs.StringVar(&addr, "http", "", "")
	fs.StringVar(&raft, "raft", "", "")
	fs.StringVar(&socket, "socket", "", "")
	fs.StringVar(&join, "join", "", "")
	fs.StringVar(&fail, "fail", "", "")
	fs.IntVar(&expect, "bootstrap-expect", 0, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fail != "" {
		return fmt.Errorf("told to fail: %s", fail)
	}
	if expect > 0 && len(strings.Split(join, ",")) != expect {
		return fmt.Errorf("expect %d nodes, join %q", expect, join)
	}
	fmt.Println("fake node started", id)
	state := "follower"
	if id == "n1" {
		state = "leader"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		var s Status
		s.Node.ID, s.State, s.Cluster.Leader, s.Cluster.Term = id, state, "n1", 1
		s.Databases = []Database{{
			Name: "shop.db", State: "ok", ID: "1",
			Decided: Position{TXID: "01", Checksum: "aa"}, File: Position{TXID: "01", Checksum: "aa"},
		}}
		_ = json.NewEncoder(w).Encode(s)
	})
	mux.HandleFunc("GET /v1/verify/{name...}", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("name") {
		case "shop.db":
			fmt.Fprintln(w, `{"equal":true}`)
		case "differs":
			fmt.Fprintln(w, `{"equal":false}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintln(w, `{"error":"no such database"}`)
		}
	})
	return http.ListenAndServe(addr, mux)
}
