package config

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/uglyer/ha-sqlite/internal/node"
)

// load reads args, env ("NAME=value") and file, if there is one.
func load(t *testing.T, args, env []string, file string) (Config, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if file != "" {
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	fs := pflag.NewFlagSet("node", pflag.ContinueOnError)
	Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	c, err := Load(fs, func(name string) (string, bool) {
		for _, e := range env {
			if k, v, _ := strings.Cut(e, "="); k == name {
				return v, true
			}
		}
		return "", false
	})
	return c, path, err
}

func TestDefaults(t *testing.T) {
	c, _, err := load(t, []string{"--data", "/d"}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{LogFormat: "text", LogLevel: slog.LevelInfo, Node: node.Config{Data: "/d", HTTP: "127.0.0.1:7440", Raft: "127.0.0.1:7441",
		RaftLog: "wal", FileMode: 0o660, SnapshotEntries: 65536, TrailingEntries: 10240,
		LogLimit: 1 << 30, CatchupRate: 1 << 30, WriteLease: 10 * time.Second, IdleClose: time.Minute,
		ArchiveInterval: time.Second, ArchiveWindow: 24 * time.Hour, ArchiveLevels: [3]time.Duration{30 * time.Second, 5 * time.Minute, time.Hour},
		ArchiveKeep:     [3]time.Duration{24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour},
		ArchiveSnapshot: 24 * time.Hour, ArchiveSnapshots: 30 * 24 * time.Hour, ArchiveBacklog: 4 << 30, PastLimit: 16 << 30, DrillInterval: time.Hour}}
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("got  %+v\nwant %+v", c, want)
	}
}

// everyOption sets each option once; the test fails when one is forgotten.
var everyOption = map[string]string{
	"data": "/srv/hs", "id": "n1", "http": "127.0.0.1:0", "raft": "db1.lan:7441", "socket": "/run/x.sock", "join": "db1.lan:7441, db2.lan:7441",
	"bootstrap-expect": "2", "non-voter": "false", "raft-log": "boltdb", "group": "0", "file-mode": "0640", "log-format": "json",
	"log-level": "debug", "snapshot-entries": "50", "trailing-entries": "10",
	"log-limit": "64MiB", "max-transaction": "16MiB", "catchup-rate": "1048576", "quota": "a/*:databases=3,size=1GiB", "write-lease": "3s", "idle-close": "1m30s", "verify": "full",
	"past-limit": "2GiB", "drill-interval": "0", "archive": "s3://b/p?endpoint=http://127.0.0.1:1", "archive-interval": "2s", "archive-key": "/k", "archive-recipients": "/r", "archive-window": "1h",
	"archive-levels": "1s,2s, 3s", "archive-keep": "1h,2h,3h", "archive-snapshot": "6h", "archive-snapshots": "48h", "archive-backlog": "1GiB",
}

func wantEvery() Config {
	return Config{LogFormat: "json", LogLevel: slog.LevelDebug, Node: node.Config{Data: "/srv/hs", ID: "n1", HTTP: "127.0.0.1:0", Raft: "db1.lan:7441",
		Socket: "/run/x.sock", Join: []string{"db1.lan:7441", "db2.lan:7441"}, BootstrapExpect: 2, RaftLog: "boltdb", Group: "0", FileMode: 0o640,
		SnapshotEntries: 50, TrailingEntries: 10, LogLimit: 64 << 20, MaxTransaction: 16 << 20, CatchupRate: 1 << 20, Quotas: []node.Quota{{Pattern: "a/*", Databases: 3, Size: 1 << 30}}, WriteLease: 3 * time.Second, IdleClose: 90 * time.Second, VerifyFull: true,
		Archive: "s3://b/p?endpoint=http://127.0.0.1:1", ArchiveInterval: 2 * time.Second, ArchiveKey: "/k", ArchiveRecipients: "/r", ArchiveWindow: time.Hour,
		ArchiveLevels: [3]time.Duration{time.Second, 2 * time.Second, 3 * time.Second}, ArchiveKeep: [3]time.Duration{time.Hour, 2 * time.Hour, 3 * time.Hour},
		ArchiveSnapshot: 6 * time.Hour, ArchiveSnapshots: 48 * time.Hour, ArchiveBacklog: 1 << 30, PastLimit: 2 << 30, DrillInterval: node.NoDrills}}
}

func TestEverySourceSetsEveryOption(t *testing.T) {
	var args, env []string
	var file strings.Builder
	for _, o := range options {
		v, ok := everyOption[o.name]
		if !ok {
			t.Fatalf("option %s is not in the table", o.name)
		}
		args = append(args, "--"+o.name+"="+v)
		env = append(env, o.env()+"="+v)
		file.WriteString(o.name + ": " + v + "\n")
	}
	check := func(source string, c Config, path string, err error) {
		want := wantEvery()
		want.Used = path
		if err != nil || !reflect.DeepEqual(c, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", source, err, c, want)
		}
	}
	c, _, err := load(t, args, nil, "")
	check("flags", c, "", err)
	c, _, err = load(t, nil, env, "")
	check("environment", c, "", err)
	c, path, err := load(t, nil, nil, file.String())
	check("file", c, path, err)
}

func TestPrecedence(t *testing.T) {
	base := []string{"--data", "/d"}
	tests := []struct {
		name            string
		flag, env, file string
		want            string
	}{
		{"default", "", "", "", "127.0.0.1:7440"},
		{"file over default", "", "", "127.0.0.1:3", "127.0.0.1:3"},
		{"environment over file", "", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:2"},
		{"flag over all", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"},
		{"flag equal to the default still wins", "127.0.0.1:7440", "127.0.0.1:2", "", "127.0.0.1:7440"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args, file := slices.Clone(base), ""
			if tt.flag != "" {
				args = append(args, "--http", tt.flag)
			}
			if tt.file != "" {
				file = "http: " + tt.file
			}
			c, _, err := load(t, args, []string{"HASQLITE_HTTP=" + tt.env}, file)
			if err != nil || c.Node.HTTP != tt.want {
				t.Fatalf("got %q, %v; want %q", c.Node.HTTP, err, tt.want)
			}
		})
	}
}

func TestFileForms(t *testing.T) {
	c, _, err := load(t, []string{"--data", "/d"}, nil, "# cluster\njoin:\n  - a.lan:1\n  - b.lan:2\nbootstrap-expect: 2\nfile-mode: 0600\nnon-voter: false\n")
	if err != nil || !reflect.DeepEqual(c.Node.Join, []string{"a.lan:1", "b.lan:2"}) || c.Node.FileMode != 0o600 {
		t.Fatalf("got %+v, %v", c, err)
	}
	for _, empty := range []string{"# nothing\n", "---\n", "{}\n"} {
		if _, _, err := load(t, []string{"--data", "/d"}, nil, empty); err != nil {
			t.Errorf("file %q: %v", empty, err)
		}
	}
}

func TestBadValuesNameTheirSource(t *testing.T) {
	tests := []struct {
		name string
		args []string
		env  []string
		file string
		want []string // FILE stands for the file's path
	}{
		{name: "nothing at all", want: []string{"no data directory", "--data", "HASQLITE_DATA"}},
		{name: "flag", args: []string{"--http", "7440"}, want: []string{`flag --http="7440"`, "want host:port"}},
		{name: "empty flag", args: []string{"--data="}, want: []string{"flag --data", "no value"}},
		{name: "variable", env: []string{"HASQLITE_WRITE_LEASE=10"}, want: []string{`variable HASQLITE_WRITE_LEASE="10"`, "want a duration"}},
		{name: "file", file: "data: /d\n\nraft-log: bolt\n", want: []string{`FILE:3: raft-log "bolt"`, "wal or boltdb"}},
		{name: "bad file value hidden by a flag", args: []string{"--verify=off"}, file: "verify: yes\n", want: []string{"FILE:1", "full or off"}},
		{name: "unknown key", file: "data: /d\ndatadir: /x\n", want: []string{`FILE:2: unknown key "datadir"`}},
		{name: "key with underscores", file: "raft_log: wal\n", want: []string{`FILE:1: unknown key "raft_log"; did you mean "raft-log"?`}},
		{name: "key of another file", file: "config: x\n", want: []string{"FILE:1", "cannot name another"}},
		{name: "key twice", file: "id: a\nid: b\n", want: []string{`FILE:2: key "id" was given on line 1`}},
		{name: "no value", file: "id:\n", want: []string{"FILE:1: id: no value"}},
		{name: "nested", file: "raft:\n  port: 1\n", want: []string{"FILE:2: raft: want a plain value"}},
		{name: "list of lists", file: "join: [[a]]\n", want: []string{"FILE:1: join: want a list of plain"}},
		{name: "empty list", file: "join: []\n", want: []string{"FILE:1: join: the list is empty"}},
		{name: "a list at the top", file: "- id: a\n", want: []string{"FILE:1: want lines of the form"}},
		{name: "two documents", file: "id: a\n---\nid: b\n", want: []string{"FILE:2: a second document"}},
		{name: "not YAML", file: "id: a\n  b: \"c\n", want: []string{"FILE:"}},
		{name: "no such file", args: []string{"--config", "/nonexistent/x"}, want: []string{"flag --config", "/nonexistent/x"}},
		{name: "no such file by variable", env: []string{"HASQLITE_CONFIG=/nonexistent/x"}, want: []string{"variable HASQLITE_CONFIG", "/nonexistent/x"}},
		{name: "id", args: []string{"--id", "a b"}, want: []string{"--id", "1 to 64 letters"}},
		{name: "port", args: []string{"--http", "a:99999"}, want: []string{"--http", "0 to 65535"}},
		{name: "raft on all addresses", args: []string{"--raft", "0.0.0.0:7441"}, want: []string{"--raft", "other nodes dial"}},
		{name: "raft without host", args: []string{"--raft", ":7441"}, want: []string{"--raft", "other nodes dial"}},
		{name: "join port 0", args: []string{"--join", "a:0"}, want: []string{"--join", `"a:0"`, "port 0"}},
		{name: "join with a gap", args: []string{"--join", "a:1,,b:2"}, want: []string{"--join", `address ""`}},
		{name: "expect", args: []string{"--bootstrap-expect", "0"}, want: []string{"--bootstrap-expect", "1 to 99"}},
		{name: "switch", args: []string{"--non-voter=perhaps"}, want: []string{"--non-voter", "true or false"}},
		{name: "group", args: []string{"--group", "no such group"}, want: []string{"--group", "no such group"}},
		{name: "mode not octal", args: []string{"--file-mode", "0680"}, want: []string{"--file-mode", "octal"}},
		{name: "mode without owner", args: []string{"--file-mode", "0060"}, want: []string{"--file-mode", "owner"}},
		{name: "mode with x", args: []string{"--file-mode", "0770"}, want: []string{"--file-mode", "executed"}},
		{name: "format", args: []string{"--log-format", "xml"}, want: []string{"--log-format", "text or json"}},
		{name: "level", args: []string{"--log-level", "loud"}, want: []string{"--log-level", "debug, info"}},
		{name: "entries", args: []string{"--snapshot-entries", "-1"}, want: []string{"--snapshot-entries", "at least 1"}},
		{name: "size", args: []string{"--log-limit", "1TB"}, want: []string{"--log-limit", "512MiB"}},
		{name: "size too small", args: []string{"--log-limit", "1MiB"}, want: []string{"--log-limit", "at least 32MiB"}},
		{name: "size too large", args: []string{"--log-limit", "9999999999999GiB"}, want: []string{"--log-limit", "number of bytes"}},
		{name: "non-voter alone", args: []string{"--data=/d", "--non-voter"}, want: []string{"non-voter", "join"}},
		{name: "non-voter and bootstrap", args: []string{"--data=/d", "--non-voter", "--bootstrap-expect=1"}, want: []string{"both set"}},
		{name: "expect without join", args: []string{"--data=/d", "--bootstrap-expect=3"}, want: []string{"bootstrap-expect is 3", "join"}},
		{name: "socket path too long", args: []string{"--data=/d", "--socket=/" + strings.Repeat("s", 107)}, want: []string{"socket", "108 bytes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, path, err := load(t, tt.args, tt.env, tt.file)
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("not an ErrInvalid: %v", err)
			}
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "FILE", path); !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
		})
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	Config{LogFormat: "json", LogLevel: slog.LevelWarn}.Logger(&out).Info("hidden")
	Config{LogFormat: "json", LogLevel: slog.LevelWarn}.Logger(&out).Warn("seen", "node", "a")
	Config{LogFormat: "text"}.Logger(&out).Info("seen", "node", "a")
	got := out.String()
	if strings.Contains(got, "hidden") || !strings.Contains(got, `"msg":"seen","node":"a"}`) || !strings.Contains(got, "msg=seen node=a\n") {
		t.Fatalf("got %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("data: /d\njoin: [a:1, b:2]\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("--- \n...\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := parse("f", b)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Fatalf("error does not begin with the file: %v", err)
			}
			return
		}
		for key, v := range values {
			if !known(key) || v.line < 1 || v.text == "" {
				t.Fatalf("key %q got %+v", key, v)
			}
		}
	})
}
