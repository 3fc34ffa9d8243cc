package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/nodecmd"
)

var (
	inSpan  = regexp.MustCompile("`((?:HASQLITE_\\w+=\\S+ )*(?:hasqlite|hasqlite-node)(?: [^`]*)?)`")
	inBlock = regexp.MustCompile(`(?m)^\s*((?:HASQLITE_\w+=\S+ )*(?:hasqlite|hasqlite-node) .*)$`)
	option  = regexp.MustCompile("`--([a-z][a-z-]*)")
)

// Every command line in the documents and in the examples of the help names
// commands and options that exist, and every option in a code span belongs to
// one of the two commands.
func TestCommandsInDocumentsExist(t *testing.T) {
	roots := map[string]*cobra.Command{
		"hasqlite":      newRoot(streams{env: func(string) string { return "" }, now: time.Now}),
		"hasqlite-node": nodecmd.New("hasqlite-node", nodecmd.Real()),
	}
	for _, r := range roots {
		r.InitDefaultHelpFlag()
		r.InitDefaultVersionFlag()
		r.InitDefaultCompletionCmd("")
	}
	texts := map[string]string{}
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/decisions/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			texts[p] = string(b)
		}
	}
	options := map[string]bool{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		texts["help of "+cmd.CommandPath()] = cmd.Example
		for _, line := range strings.Split(cmd.LocalFlags().FlagUsages()+cmd.InheritedFlags().FlagUsages(), "\n") {
			if _, rest, ok := strings.Cut(line, "--"); ok {
				options[strings.FieldsFunc(rest, func(r rune) bool { return r == ' ' || r == '[' || r == '=' })[0]] = true
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	for _, r := range roots {
		walk(r)
	}
	seen := 0
	for where, text := range texts {
		for _, re := range []*regexp.Regexp{inSpan, inBlock} {
			for _, m := range re.FindAllStringSubmatch(strings.ReplaceAll(text, "\\\n", " "), -1) {
				seen++
				checkLine(t, where, m[1], roots)
			}
		}
		for _, m := range option.FindAllStringSubmatch(text, -1) {
			if !options[m[1]] {
				t.Errorf("%s names the option --%s, which there is not", where, m[1])
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d command lines were found", seen)
	}
}

func checkLine(t *testing.T, where, line string, roots map[string]*cobra.Command) {
	words := strings.Fields(line)
	for strings.HasPrefix(words[0], "HASQLITE_") {
		words = words[1:]
	}
	root := roots[words[0]]
	cmd, rest, err := root.Find(words[1:])
	if err != nil {
		t.Errorf("%s: %q: %v", where, line, err)
		return
	}
	if cmd.HasSubCommands() && cmd != roots["hasqlite-node"] && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		t.Errorf("%s: %q: %s has no command %q", where, line, cmd.CommandPath(), rest[0])
	}
	for _, w := range rest {
		if w == "|" || w == ">" || w == "<" || strings.HasPrefix(w, "2>") || strings.HasPrefix(w, `"`) {
			break // what follows is the shell's, or SQL
		}
		name, ok := strings.CutPrefix(w, "--")
		if !ok || name == "" || name == "json" || name == "help" {
			continue
		}
		name, _, _ = strings.Cut(name, "=")
		if cmd.Flag(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
			t.Errorf("%s: %q: %s has no option --%s", where, line, cmd.CommandPath(), name)
		}
	}
}
