package datadir

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string, want Want) *Dir {
	t.Helper()
	d, err := Open(dir, want)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func TestANewDirectoryRemembersWhatItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	d := open(t, dir, Want{LogKind: "boltdb"})
	if !d.Created() || !strings.HasPrefix(d.Record().NodeID, "node-") || d.Record().Format != Format || d.Record().Created.IsZero() {
		t.Fatalf("record is %+v", d.Record())
	}
	id := ClusterID{1, 2, 3}
	must(t, d.SetCluster(id, 0))
	must(t, d.SetCluster(id, 2))
	if err := d.SetCluster(id, 1); !errors.Is(err, ErrOtherCluster) {
		t.Fatalf("lineage went back: %v", err)
	}
	if err := d.SetCluster(ClusterID{9}, 5); !errors.Is(err, ErrOtherCluster) {
		t.Fatalf("cluster changed: %v", err)
	}
	if err := d.SetCluster(ClusterID{}, 5); !errors.Is(err, ErrOtherCluster) {
		t.Fatalf("cluster removed: %v", err)
	}
	first := d.Record()
	must(t, d.Close())
	must(t, d.Close())
	d = open(t, dir, Want{NodeID: first.NodeID, LogKind: "boltdb", Cluster: id, Existing: true})
	if d.Created() || d.Record() != first || first.Cluster != id || first.Lineage != 2 {
		t.Fatalf("record is %+v, was %+v", d.Record(), first)
	}
	must(t, d.SetLogKind("wal"))
	must(t, d.Close())
	if got := open(t, dir, Want{}).Record().LogKind; got != "wal" {
		t.Fatalf("log kind %q", got)
	}
}

func TestEachRefusalHasItsOwnError(t *testing.T) {
	member := func(t *testing.T, dir string) {
		d := open(t, dir, Want{NodeID: "n1"})
		must(t, d.SetCluster(ClusterID{1}, 1))
		must(t, d.Close())
	}
	record := func(text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			member(t, dir)
			must(t, os.WriteFile(filepath.Join(dir, recordFile), []byte(text), 0o600))
		}
	}
	tests := map[string]struct {
		prepare func(t *testing.T, dir string)
		want    Want
		err     error
		says    string
	}{
		"other node":     {member, Want{NodeID: "n2"}, ErrOtherNode, `"n1"`},
		"other cluster":  {member, Want{Cluster: ClusterID{2}}, ErrOtherCluster, "0100"},
		"other log kind": {member, Want{LogKind: "boltdb"}, ErrOtherLogKind, "migrate"},
		"newer format":   {record(`{"format": 2, "new": true}`), Want{}, ErrFormat, "format 2"},
		"no format":      {record(`{"node_id": "x"}`), Want{}, ErrCorrupt, "format"},
		"torn record":    {record(`{"format": 1, "node`), Want{}, ErrCorrupt, recordFile},
		"empty record":   {record(``), Want{}, ErrCorrupt, ""},
		"unknown field":  {record(`{"format":1,"node_id":"n1","raft_log":"wal","surprise":1}`), Want{}, ErrCorrupt, "surprise"},
		"two records":    {record(`{"format":1,"node_id":"n1","raft_log":"wal"}{}`), Want{}, ErrCorrupt, ""},
		"short cluster":  {record(`{"format":1,"node_id":"n1","raft_log":"wal","cluster_id":"ab"}`), Want{}, ErrCorrupt, "32"},
		"huge record":    {record(strings.Repeat(" ", maxRecordSize+1)), Want{}, ErrCorrupt, ""},
		"record lost": {func(t *testing.T, dir string) {
			member(t, dir)
			must(t, os.WriteFile(filepath.Join(dir, "raft", "raft.db"), nil, 0o600))
			must(t, os.Remove(filepath.Join(dir, recordFile)))
		}, Want{}, ErrCorrupt, "raft"},
		"somebody else's files": {func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir, 0o700))
			must(t, os.WriteFile(filepath.Join(dir, "letter.txt"), nil, 0o600))
		}, Want{}, ErrNotEmpty, "letter.txt"},
		"a file": {func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir, nil, 0o600))
		}, Want{}, ErrNotDirectory, ""},
		"nothing where something has to be": {func(*testing.T, string) {}, Want{Existing: true}, fs.ErrNotExist, ""},
		"empty where something has to be": {func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o700))
		}, Want{Existing: true}, ErrCorrupt, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			test.prepare(t, dir)
			d, err := Open(dir, test.want)
			if err == nil {
				d.Close()
			}
			if !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("got %v, want %v with %q", err, test.err, test.says)
			}
			if name == "somebody else's files" {
				if entries, _ := os.ReadDir(dir); len(entries) != 1 {
					t.Fatal("the directory was changed")
				}
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(filepath.Join(file, "data"), Want{}); !errors.Is(err, ErrNotDirectory) {
		t.Fatalf("below a file: %v", err)
	}
}

// TestHelperProcess is the other process of the tests below.
func TestHelperProcess(t *testing.T) {
	dir := os.Getenv("DATADIR_TEST_OPEN")
	if dir == "" {
		return
	}
	_, err := Open(dir, Want{})
	if err == nil {
		t.Fatal("OPENED")
	}
	t.Fatal(err)
}

func TestASecondProcessIsRefusedWithThePidOfTheFirst(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d := open(t, dir, Want{})
	_, err := Open(dir, Want{})
	var use *InUseError
	if !errors.As(err, &use) || use.PID != os.Getpid() || !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
	out := func() string {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$")
		cmd.Env = append(os.Environ(), "DATADIR_TEST_OPEN="+dir)
		b, _ := cmd.CombinedOutput() //nolint:errcheck // it always fails
		return string(b)
	}
	if got := out(); !strings.Contains(got, use.Error()) {
		t.Fatalf("other process said %q, want %q", got, use.Error())
	}
	must(t, d.Close())
	if got := out(); !strings.Contains(got, "OPENED") {
		t.Fatalf("after the end of the first, the other process said %q", got)
	}
	open(t, dir, Want{}) // a process that ended leaves no lock
}

func TestNoPermissionSaysSo(t *testing.T) {
	if os.Geteuid() == 0 {
		// root may do everything; a directory that nobody can make stands in.
		if _, err := Open("/proc/self/data", Want{}); err == nil {
			t.Fatal("opened below /proc")
		}
		return
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o500))
	if _, err := Open(filepath.Join(dir, "data"), Want{}); !errors.Is(err, ErrPermission) {
		t.Fatalf("got %v", err)
	}
}

func TestNetworkFileSystemsAreRefused(t *testing.T) {
	for _, typ := range []uint32{0x6969, 0xff534d42, 0x01021997} {
		if err := refuseType(typ); !errors.Is(err, ErrNetworkFS) {
			t.Fatalf("%#x: %v", typ, err)
		}
	}
	must(t, refuseType(0xef53)) // ext4
	mounts := []byte("36 35 98:0 /m /mnt rw,noatime master:1 - ext3 /dev/root rw\n" +
		"37 35 0:55 / /srv rw shared:2 - fuse.sshfs host: rw\n" +
		"38 35 0:56 / /var rw - fuse.fuse-overlayfs overlay rw\nbroken\n- \n")
	for dev, want := range map[uint32]error{55: ErrNetworkFS, 56: nil, 57: ErrNetworkFS} {
		if err := refuseFUSE(mountType(mounts, 0, dev)); !errors.Is(err, want) {
			t.Fatalf("device %d: %v", dev, err)
		}
	}
}

func TestModesLetTheGroupIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	gid := os.Getgid()
	if os.Geteuid() == 0 {
		gid = 12345
	}
	d := open(t, dir, Want{Group: strconv.Itoa(gid), FileMode: 0o640})
	id := strings.Repeat("ab", 16)
	must(t, d.MakeShared(d.DatabaseDir(id)))
	must(t, d.MakeShared(d.DatabaseDir(id)))
	file := filepath.Join(d.DatabaseDir(id), "db")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, d.ShareFile(file))
	for path, want := range map[string]fs.FileMode{
		dir: fs.ModeDir | fs.ModeSetgid | 0o770, d.DatabasesDir(): fs.ModeDir | fs.ModeSetgid | 0o770,
		d.DatabaseDir(id): fs.ModeDir | fs.ModeSetgid | 0o770, d.RaftDir(): fs.ModeDir | 0o700, file: 0o640,
	} {
		fi, err := os.Stat(path)
		must(t, err)
		if fi.Mode()&^(fs.ModeSetgid&^want) != want && fi.Mode() != want|fs.ModeSetgid {
			t.Errorf("%s has mode %v, want %v", path, fi.Mode(), want)
		}
	}
	if d.FileMode() != 0o640 || d.Group() != gid {
		t.Fatalf("mode %v, group %d", d.FileMode(), d.Group())
	}
	if err := d.MakeShared(filepath.Join(dir, "..", "x")); err == nil {
		t.Fatal("made a directory outside")
	}
	if _, err := Open(dir, Want{Group: "no such group here"}); err == nil {
		t.Fatal("unknown group accepted")
	}
}

func TestProbeLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	must(t, probe(dir))
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Fatalf("left %v", entries)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster_id":"01000000000000000000000000000000","lineage":1,"node_id":"n1","raft_log":"wal","created":"2024-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("error without a kind: %v", err)
			}
			return
		}
		out, err := encodeRecord(r)
		if err != nil {
			return // a year that JSON times cannot have
		}
		back, err := decodeRecord(out)
		if err != nil {
			t.Fatal(err)
		}
		if !back.Created.Equal(r.Created) {
			t.Fatalf("time %v became %v", r.Created, back.Created)
		}
		back.Created = r.Created
		if back != r {
			t.Fatalf("%+v became %+v", r, back)
		}
	})
}

func TestSetAsideMovesAllButWhatIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := Open(path, Want{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"raft", "archive"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(path, name), 0o750), os.WriteFile(filepath.Join(path, name, "x"), []byte(name), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	aside, err := d.SetAside(time.Now(), "archive")
	if err != nil {
		t.Fatal(err)
	}
	for at, there := range map[string]bool{filepath.Join(aside, "raft", "x"): true, filepath.Join(path, "raft"): false, filepath.Join(path, "archive", "x"): true, filepath.Join(aside, "archive"): false} {
		if _, err := os.Stat(at); (err == nil) != there {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// Whoever changes the record hears that a sync failed, and not of an error that it could try again after.
func TestFailedSyncOfTheRecord(t *testing.T) {
	former := fsync
	defer func() { fsync = former }()
	for n := range 2 { // the file, the directory
		d, err := Open(t.TempDir(), Want{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		calls := 0
		fsync = func(f *os.File) error {
			if calls++; calls == n+1 {
				return syscall.EIO
			}
			return former(f)
		}
		if err := d.SetCluster(ClusterID{1}, 0); !errors.Is(err, ErrSync) || !errors.Is(err, syscall.EIO) {
			t.Errorf("sync %d fails: %v", n, err)
		}
		fsync = former
	}
}
