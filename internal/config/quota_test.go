package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/uglyer/ha-sqlite/internal/node"
)

// loadArgs reads a command line, with an environment and the text of a file.
func loadArgs(t *testing.T, args []string, env map[string]string, file string) (Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("node", pflag.ContinueOnError)
	Flags(fs)
	args = append([]string{"--data", t.TempDir()}, args...)
	if file != "" {
		path := filepath.Join(t.TempDir(), "node.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(fs, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
}

func TestQuotasComeFromEverySource(t *testing.T) {
	want := []node.Quota{
		{Pattern: "acme/*", Databases: 100, Size: 2 << 30, Transaction: 64 << 20},
		{Pattern: "a:b", Databases: 1},
		{Pattern: "*", Size: 1 << 30},
	}
	texts := []string{"acme/*:databases=100,size=2GiB,transaction=64MiB", "a:b:databases=1", "*:size=1GiB"}
	for name, row := range map[string]struct {
		args []string
		env  map[string]string
		file string
	}{
		"repeated flag":    {args: []string{"--quota", texts[0], "--quota", texts[1], "--quota", texts[2]}},
		"one flag":         {args: []string{"--quota", strings.Join(texts, "; ")}},
		"variable":         {env: map[string]string{"HASQLITE_QUOTA": strings.Join(texts, ";")}},
		"file":             {file: "quota:\n  - \"" + strings.Join(texts, "\"\n  - \"") + "\"\n"},
		"flag before file": {args: []string{"--quota", strings.Join(texts, ";")}, file: "quota: [\"x:databases=1\"]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := loadArgs(t, row.args, row.env, row.file)
			if err != nil || !slices.Equal(c.Node.Quotas, want) {
				t.Errorf("got %+v, want %+v: %v", c.Node.Quotas, want, err)
			}
		})
	}
}

func TestQuotasThatMakeNoSenseAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"acme/*":                     "want PATTERN:LIMIT=VALUE",
		":databases=1":               "want PATTERN:LIMIT=VALUE",
		"a:":                         "want LIMIT=VALUE",
		"a:databases":                "want LIMIT=VALUE",
		"a:databases=0":              "at least 1",
		"a:databases=-1":             "at least 1",
		"a:databases=many":           "at least 1",
		"a:size=1KiB":                "at least 64KiB",
		"a:size=lots":                "number of bytes",
		"a:pages=3":                  `no limit "pages"`,
		"a:size=1GiB,size=2GiB":      "twice",
		"a:databases=1;a:size=1GiB":  "given before",
		"a:databases=1;;b:size=1GiB": "want PATTERN:LIMIT=VALUE",
	} {
		if _, err := loadArgs(t, []string{"--quota", text}, nil, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that says %q", text, err, want)
		}
	}
}
