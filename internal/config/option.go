package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/node"
)

// option is one setting of a node.
type option struct {
	name  string
	hint  string // what stands for the value in the help; empty for a switch
	def   string // shown in the help
	usage string
	set   func(c *Config, v string) error
}

// isSwitch says that the flag may stand without a value.
func (o option) isSwitch() bool { return o.hint == "" }

// env is the name of the option's environment variable.
func (o option) env() string {
	return "HASQLITE_" + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// options is in the order of the help.
var options = []option{
	{"data", "DIR", "", "data directory, made if absent (required)", setPath(func(c *Config) *string { return &c.Node.Data })},
	{"id", "NAME", "", "name of this node in the cluster (default: random, kept in the data directory)", setID},
	{"http", "HOST:PORT", node.DefaultHTTP, "address of the HTTP interface; port 0 takes a free one", setAddr(func(c *Config) *string { return &c.Node.HTTP }, false)},
	{"raft", "HOST:PORT", node.DefaultRaft, "address at which the other nodes reach this one; port 0 takes a free one", setAddr(func(c *Config) *string { return &c.Node.Raft }, true)},
	{"socket", "PATH", "", "socket for applications (default: " + node.DefaultSocket + ", else node.sock in the data directory)", setPath(func(c *Config) *string { return &c.Node.Socket })},
	{"join", "ADDR,...", "", "raft addresses of nodes of the cluster; this node's own may be among them", setJoin},
	{"bootstrap-expect", "N", "", "start a new cluster as soon as N nodes have found each other", setCount(func(c *Config) *int { return &c.Node.BootstrapExpect })},
	{"non-voter", "", "", "join without a vote", setBool(func(c *Config) *bool { return &c.Node.NonVoter })},
	{"raft-log", "wal|boltdb", node.DefaultRaftLog, "kind of the log store; a data directory keeps the one it was made with", setWord(func(c *Config) *string { return &c.Node.RaftLog }, "wal", "boltdb")},
	{"group", "NAME", "", "group that owns the socket and the database files (default: that of the process)", setGroup},
	{"file-mode", "MODE", fmt.Sprintf("%04o", node.DefaultFileMode), "permissions of the socket and the database files, octal", setMode},
	{"log-format", "text|json", "text", "form of the log on standard error", setWord(func(c *Config) *string { return &c.LogFormat }, "text", "json")},
	{"log-level", "debug|info|warn|error", "info", "least level that is logged", setLevel},
	{"snapshot-entries", "N", strconv.Itoa(node.DefaultSnapshotEntries), "log entries after which the log is compacted", setUint(func(c *Config) *uint64 { return &c.Node.SnapshotEntries })},
	{"trailing-entries", "N", strconv.Itoa(node.DefaultTrailingEntries), "log entries kept after a compaction", setUint(func(c *Config) *uint64 { return &c.Node.TrailingEntries })},
	{"log-limit", "SIZE", formatSize(node.DefaultLogLimit), "most bytes of the raft log on this node", setSize(func(c *Config) *int64 { return &c.Node.LogLimit }, 32<<20)},
	{"max-transaction", "SIZE", "", "most bytes of pages in one transaction (default and most: 40 % of --log-limit)", setSize(func(c *Config) *int64 { return &c.Node.MaxTransaction }, 1<<20)},
	{"quota", "PATTERN:LIMIT=VALUE,...", "", "limits of databases whose names match, of databases=N, size=SIZE and transaction=SIZE; repeat it for more, the first that matches counts", setQuotas},
	{"catchup-rate", "SIZE", formatSize(node.DefaultCatchupRate), "most bytes a second fetched from other nodes to catch up", setSize(func(c *Config) *int64 { return &c.Node.CatchupRate }, 64<<10)},
	{"write-lease", "DURATION", node.DefaultWriteLease.String(), "how long a silent writer keeps the write lock while another waits", setDuration(func(c *Config) *time.Duration { return &c.Node.WriteLease })},
	{"idle-close", "DURATION", "60s", "how long a database stays open after its last application", setDuration(func(c *Config) *time.Duration { return &c.Node.IdleClose })},
	{"archive", "URL", "", "where every commit is kept: file:///path, s3://bucket/prefix or none (default: the directory archive in the data directory)", setArchive},
	{"archive-interval", "DURATION", node.DefaultArchiveInterval.String(), "time from a commit to its upload", setDuration(func(c *Config) *time.Duration { return &c.Node.ArchiveInterval })},
	{"archive-key", "FILE", "", "file of age identities: what is archived is encrypted to them", setPath(func(c *Config) *string { return &c.Node.ArchiveKey })},
	{"archive-recipients", "FILE", "", "file of age recipients to encrypt to (default: those of --archive-key)", setPath(func(c *Config) *string { return &c.Node.ArchiveRecipients })},
	{"archive-window", "DURATION", "24h", "for how long every single commit can be restored", setDuration(func(c *Config) *time.Duration { return &c.Node.ArchiveWindow })},
	{"archive-levels", "L1,L2,L3", "30s,5m,1h", "how much time a file of levels 1, 2 and 3 covers", setLevels(func(c *Config) *[3]time.Duration { return &c.Node.ArchiveLevels })},
	{"archive-keep", "L1,L2,L3", "24h,168h,720h", "for how long files of levels 1, 2 and 3 are kept", setLevels(func(c *Config) *[3]time.Duration { return &c.Node.ArchiveKeep })},
	{"archive-snapshot", "DURATION", "24h", "time between snapshots in the archive", setDuration(func(c *Config) *time.Duration { return &c.Node.ArchiveSnapshot })},
	{"archive-snapshots", "DURATION", "720h", "for how long snapshots in the archive are kept", setDuration(func(c *Config) *time.Duration { return &c.Node.ArchiveSnapshots })},
	{"archive-backlog", "SIZE", formatSize(node.DefaultArchiveBacklog), "most bytes on this node of commits that wait for the archive", setSize(func(c *Config) *int64 { return &c.Node.ArchiveBacklog }, 1<<20)},
	{"past-limit", "SIZE", formatSize(node.DefaultPastLimit), "most bytes on this node of databases as they were that applications have open", setSize(func(c *Config) *int64 { return &c.Node.PastLimit }, 1<<20)},
	{"drill-interval", "DURATION", node.DefaultDrillInterval.String(), "time between two states that are restored from the archive to see that it works; 0 for never", setDrill},
	{"verify", "full|off", "off", "full: compare the whole file with its checksums after every commit (slow)", setVerify},
}

func setPath(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if strings.ContainsRune(v, 0) {
			return errors.New("a path cannot hold a zero byte")
		}
		abs, err := filepath.Abs(v)
		if err != nil {
			return err
		}
		*field(c) = abs
		return nil
	}
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func setID(c *Config, v string) error {
	if !idPattern.MatchString(v) {
		return errors.New("want 1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or digit")
	}
	c.Node.ID = v
	return nil
}

// setAddr reads a host and port. An address that others dial needs a host
// that means this machine to them.
func setAddr(field func(*Config) *string, dialled bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		if err := checkAddr(v, dialled, true); err != nil {
			return err
		}
		*field(c) = v
		return nil
	}
}

func checkAddr(v string, dialled, zeroPort bool) error {
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		return fmt.Errorf("want host:port: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("port %q is not a number from 0 to 65535", port)
	}
	if n == 0 && !zeroPort {
		return errors.New("port 0 cannot be dialled")
	}
	if !dialled {
		return nil
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return errors.New("other nodes dial this address: give a name or address of the machine, not all of them")
	}
	return nil
}

func setJoin(c *Config, v string) error {
	var join []string
	for part := range strings.SplitSeq(v, ",") {
		part = strings.TrimSpace(part)
		if err := checkAddr(part, true, false); err != nil {
			return fmt.Errorf("address %q: %w", part, err)
		}
		join = append(join, part)
	}
	c.Node.Join = join
	return nil
}

func setCount(field func(*Config) *int) func(*Config, string) error {
	return func(c *Config, v string) error {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil || n == 0 || n > 99 {
			return errors.New("want a number from 1 to 99")
		}
		*field(c) = int(n)
		return nil
	}
}

func setUint(field func(*Config) *uint64) func(*Config, string) error {
	return func(c *Config, v string) error {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil || n == 0 {
			return errors.New("want a whole number of at least 1")
		}
		*field(c) = n
		return nil
	}
}

func setBool(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return errors.New("want true or false")
		}
		*field(c) = b
		return nil
	}
}

func setDuration(field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return errors.New("want a duration above zero, such as 500ms, 10s or 2m")
		}
		*field(c) = d
		return nil
	}
}

func setDrill(c *Config, v string) error {
	if v == "0" {
		c.Node.DrillInterval = node.NoDrills
		return nil
	}
	return setDuration(func(c *Config) *time.Duration { return &c.Node.DrillInterval })(c, v)
}

func setWord(field func(*Config) *string, words ...string) func(*Config, string) error {
	return func(c *Config, v string) error {
		for _, w := range words {
			if v == w {
				*field(c) = v
				return nil
			}
		}
		return errors.New("want " + strings.Join(words, " or "))
	}
}

func setVerify(c *Config, v string) error {
	var word string
	if err := setWord(func(*Config) *string { return &word }, "full", "off")(c, v); err != nil {
		return err
	}
	c.Node.VerifyFull = word == "full"
	return nil
}

func setLevel(c *Config, v string) error {
	switch v {
	case "debug", "info", "warn", "error":
		return c.LogLevel.UnmarshalText([]byte(v))
	}
	return errors.New("want debug, info, warn or error")
}

func setGroup(c *Config, v string) error {
	if _, err := user.LookupGroup(v); err != nil {
		if _, idErr := strconv.ParseUint(v, 10, 31); idErr != nil {
			return errors.New("this machine has no such group")
		}
	}
	c.Node.Group = v
	return nil
}

func setMode(c *Config, v string) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(v, "0o"), 8, 32)
	if err != nil || n > 0o777 {
		return errors.New("want permissions in octal, such as 0660")
	}
	if n&0o600 != 0o600 {
		return errors.New("the owner must be able to read and write")
	}
	if n&0o111 != 0 {
		return errors.New("a database file is not to be executed")
	}
	c.Node.FileMode = os.FileMode(n)
	return nil
}

// defaults is the Config before any source was read.
func defaults() Config {
	return Config{Node: node.Config{}.WithDefaults(), LogFormat: "text", LogLevel: slog.LevelInfo}
}
