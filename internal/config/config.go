package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/uglyer/ha-sqlite/internal/node"
)

// fileFlag is the one option that a configuration file cannot hold.
const fileFlag = "config"

// maxFileBytes bounds the configuration file.
const maxFileBytes = 1 << 20

// ErrInvalid is wrapped by every error about a value or about what is missing;
// the user has to change something. Other errors are about reading the file.
var ErrInvalid = errors.New("invalid configuration")

// Config is what hasqlite-node is told.
type Config struct {
	Node      node.Config
	LogFormat string // "text" or "json"
	LogLevel  slog.Level
	// Used is the configuration file that was read, empty if none.
	Used string
}

// Logger returns a logger to w in the form that c asks for.
func (c Config) Logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// value is a flag's text before it is read as what it is: so the same reader
// serves flag, variable and file, and pflag's own messages stay out.
type value struct {
	text string
	kind string
	sep  string // of a list whose flag can be repeated
	set  bool
}

func (v *value) String() string { return v.text }
func (v *value) Type() string   { return v.kind }

// Set implements pflag.Value. Each time a flag of a list is given it adds to it.
func (v *value) Set(s string) error {
	if v.sep != "" && v.set {
		s = v.text + v.sep + s
	}
	v.text, v.set = s, true
	return nil
}

// Flags adds all options to fs. Given names only those.
func Flags(fs *pflag.FlagSet, only ...string) {
	for _, o := range options {
		if len(only) > 0 && !contains(only, o.name) {
			continue
		}
		f := fs.VarPF(&value{text: o.def, kind: o.hint, sep: separators[o.name]}, o.name, "", o.usage)
		if o.isSwitch() {
			f.NoOptDefVal = "true"
		}
	}
	fs.VarP(&value{kind: "FILE"}, fileFlag, "", "YAML file of options, named as the flags")
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// Load reads the options that were added to fs by Flags, after fs was parsed.
// lookup finds an environment variable, as os.LookupEnv does; an empty one
// counts as not set.
func Load(fs *pflag.FlagSet, lookup func(string) (string, bool)) (Config, error) {
	c := defaults()
	env := func(name string) string {
		v, _ := lookup(name)
		return v
	}
	path, source := env("HASQLITE_CONFIG"), "variable HASQLITE_CONFIG"
	if f := fs.Lookup(fileFlag); f != nil && f.Changed {
		path, source = f.Value.String(), "flag --"+fileFlag
		if path == "" {
			return Config{}, fmt.Errorf("%s: no file name given: %w", source, ErrInvalid)
		}
	}
	file := map[string]fileValue{}
	if path != "" {
		var err error
		if file, err = readFile(path); err != nil {
			return Config{}, fmt.Errorf("%s: %w", source, err)
		}
		c.Used = path
	}
	for _, o := range options {
		// The file is checked whole, also where another source wins: a bad
		// line must not wait until somebody drops a flag.
		if v, ok := file[o.name]; ok {
			if err := o.set(&c, v.text); err != nil {
				return Config{}, fmt.Errorf("%s:%d: %s %q: %w: %w", path, v.line, o.name, v.text, err, ErrInvalid)
			}
		}
		if v := env(o.env()); v != "" {
			if err := o.set(&c, v); err != nil {
				return Config{}, fmt.Errorf("variable %s=%q: %w: %w", o.env(), v, err, ErrInvalid)
			}
		}
		if f := fs.Lookup(o.name); f != nil && f.Changed {
			v := f.Value.String()
			if v == "" {
				return Config{}, fmt.Errorf("flag --%s: no value given: %w", o.name, ErrInvalid)
			}
			if err := o.set(&c, v); err != nil {
				return Config{}, fmt.Errorf("flag --%s=%q: %w: %w", o.name, v, err, ErrInvalid)
			}
		}
	}
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return c, nil
}

// check judges options against each other.
func (c Config) check() error {
	n := c.Node
	switch {
	case n.Data == "":
		return errors.New("no data directory: give --data, HASQLITE_DATA or the key data in the file of --config")
	case n.NonVoter && n.BootstrapExpect > 0:
		return errors.New("non-voter and bootstrap-expect are both set: a node without a vote cannot start a cluster")
	case n.NonVoter && len(n.Join) == 0:
		return errors.New("non-voter is set but not join: a node without a vote needs a cluster to join")
	case n.BootstrapExpect > 1 && len(n.Join) == 0:
		return fmt.Errorf("bootstrap-expect is %d but join is not set: list the raft addresses of the %d nodes in it", n.BootstrapExpect, n.BootstrapExpect)
	case n.Socket != "" && len(n.Socket) > maxSocketPath:
		return fmt.Errorf("socket: the path %q has %d bytes, and the system takes %d at most", n.Socket, len(n.Socket), maxSocketPath)
	}
	return checkArchive(n)
}

// maxSocketPath is the longest path of a Unix socket (sun_path less its zero).
const maxSocketPath = 107

// fileValue is one value of the file and where it stands.
type fileValue struct {
	text string
	line int
}

func readFile(path string) (map[string]fileValue, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("read configuration %s: longer than %d bytes: %w", path, maxFileBytes, ErrInvalid)
	}
	values, err := parse(path, b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return values, nil
}

// parse reads a flat YAML mapping. A list becomes the text with separators, mostly
// commas, that the flag of the same name takes. Errors begin with path:line.
func parse(path string, b []byte) (map[string]fileValue, error) {
	values := map[string]fileValue{}
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return values, nil // an empty file, or comments only
	} else if err != nil {
		return nil, yamlError(path, err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, fmt.Errorf("%s:%d: a second document; want one", path, second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, yamlError(path, err)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return values, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: want lines of the form key: value", path, root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, val := root.Content[i], root.Content[i+1]
		if !known(key.Value) {
			return nil, fmt.Errorf("%s:%d: unknown key %q%s", path, key.Line, key.Value, suggest(key.Value))
		}
		if first, ok := values[key.Value]; ok {
			return nil, fmt.Errorf("%s:%d: key %q was given on line %d already", path, key.Line, key.Value, first.line)
		}
		text, err := scalar(val, cmp.Or(separators[key.Value], ","))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %s: %w", path, val.Line, key.Value, err)
		}
		values[key.Value] = fileValue{text: text, line: val.Line}
	}
	return values, nil
}

func scalar(n *yaml.Node, sep string) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Value == "" || n.Tag == "!!null" {
			return "", errors.New("no value given")
		}
		return n.Value, nil
	case yaml.SequenceNode:
		var parts []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("want a list of plain values")
			}
			parts = append(parts, item.Value)
		}
		if len(parts) == 0 {
			return "", errors.New("the list is empty")
		}
		return strings.Join(parts, sep), nil
	default:
		return "", errors.New("want a plain value or a list of them")
	}
}

// yamlError puts the file before the parser's text, which has the line.
func yamlError(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return fmt.Errorf("%s:%s", path, rest)
	}
	return fmt.Errorf("%s: %s", path, text)
}

func known(key string) bool {
	for _, o := range options {
		if o.name == key {
			return true
		}
	}
	return false
}

// suggest names the option that key was probably meant to be.
func suggest(key string) string {
	if key == fileFlag {
		return ": a file cannot name another file"
	}
	want := strings.ToLower(strings.ReplaceAll(key, "_", "-"))
	for _, o := range options {
		if o.name == want || strings.ReplaceAll(o.name, "-", "") == want {
			return fmt.Sprintf("; did you mean %q?", o.name)
		}
	}
	return ""
}
