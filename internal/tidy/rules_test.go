package tidy

import (
	"bytes"
	"go/ast"
	"go/format"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mayImport says which packages of ours a package may import, tests apart.
// A package that is not here may be imported by nobody and imports nothing.
var mayImport = map[string][]string{
	"wal":                      {},
	"vfs":                      {"wal"},
	"snapshot":                 {"wal"},
	"snapshot/store":           {},
	"snapshot/store/storetest": {"snapshot/store"},
	"snapshot/s3store":         {"snapshot/store"},
	"snapshot/archive":         {"snapshot", "snapshot/store"},
	"internal/when":            {},
	"internal/moment":          {"internal/when", "snapshot/archive"},
	"vfs/history":              {"internal/moment", "internal/storeurl", "snapshot", "snapshot/archive"},
	"internal/rowdiff":         {},
	"internal/testarchive":     {"wal", "snapshot", "snapshot/archive", "snapshot/store"},
	"internal/storeurl":        {"snapshot/store", "snapshot/s3store"},
	"replicate":                {"wal", "snapshot", "snapshot/archive", "replicate/pagesums", "replicate/peer", "replicate/logstore", "internal/histogram"},
	"replicate/pagesums":       {},
	"replicate/peer":           {},
	"replicate/logstore":       {},
	"internal/histogram":       {},
	"internal/buildinfo":       {},
	"internal/link":            {},
	"internal/datadir":         {},
	"internal/api":             {"internal/histogram", "snapshot/store"},
	"internal/exit":            {"internal/api"},
	"internal/shell":           {},
	"internal/reflink":         {},
	"internal/sqlitefile":      {"wal", "internal/shell"},
	"internal/node":            {"wal", "vfs", "replicate", "replicate/peer", "replicate/logstore", "internal/link", "internal/datadir", "internal/api", "internal/histogram", "internal/moment", "internal/reflink", "internal/sqlitefile", "internal/storeurl", "snapshot/archive", "snapshot/store"},
	"internal/config":          {"internal/node"},
	"internal/nodecmd":         {"internal/node", "internal/config", "internal/exit", "internal/buildinfo"},
	"internal/localcluster":    {},
	"internal/demo":            {"internal/localcluster", "vfs"},
	"internal/testcluster":     {"internal/localcluster", "vfs"},
	"internal/shimtest":        {"internal/link"},
	"internal/clusterrun":      {"internal/localcluster"},
	"internal/bench":           {"internal/localcluster", "vfs", "replicate/logstore", "snapshot/store", "snapshot/store/storetest", "snapshot/archive", "internal/testarchive"},
	"cmd/hasqlite-node":        {"internal/nodecmd"},
	"cmd/hasqlite":             {"vfs", "internal/api", "internal/buildinfo", "internal/demo", "internal/exit", "internal/moment", "internal/node", "internal/nodecmd", "internal/rowdiff", "internal/shell", "internal/sqlitefile", "internal/storeurl", "internal/when", "snapshot", "snapshot/archive", "vfs/history", "snapshot/store"},
}

// onlyStandard lists the packages that import nothing from outside either.
var onlyStandard = []string{"wal", "internal/histogram", "internal/buildinfo", "internal/localcluster", "internal/tidy", "internal/when", "snapshot/store", "replicate/pagesums"}

func TestPackagesImportOnlyWhatTheTableAllows(t *testing.T) {
	for _, p := range allPackages(t) {
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module); ok {
				if !slices.Contains(mayImport[p.short()], own) {
					t.Errorf("%s imports %s, which the table does not allow", p.short(), own)
				}
			} else if slices.Contains(onlyStandard, p.short()) && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s imports %s; it may import the standard library only", p.short(), imp)
			}
		}
	}
}

// opens lists the files, tests apart, that open files by themselves, and what
// they open. None of it is a database: a process that has a database open
// through SQLite and closes any other descriptor of it drops all its POSIX
// locks on it, and the next plain SQLite process to leave deletes the log
// under it.
var opens = map[string]string{
	"cmd/hasqlite/restoreall.go":         "files that it has just restored",
	"snapshot/archive/backlog.go":        "commits that are not archived yet, in files of its own",
	"snapshot/archive/identities.go":     "age identities",
	"snapshot/archive/restore.go":        "the directory of a restored file, to sync it",
	"snapshot/s3store/s3.go":             "certificates to trust",
	"snapshot/store/dir.go":              "objects of an archive",
	"internal/bench/catchup.go":          "the file that measures the disk",
	"internal/bench/main.go":             "the report",
	"internal/bench/proc.go":             "/proc",
	"internal/bench/restore.go":          "restored files, and their copies",
	"internal/bench/rounds.go":           "the growing file of the reference measurement",
	"internal/bench/rqlite.go":           "logs of rqlite",
	"internal/config/config.go":          "the configuration",
	"internal/datadir/ballast.go":        "the reserve for a full disk",
	"internal/datadir/datadir.go":        "the lock file of the data directory",
	"internal/datadir/probe.go":          "a file of its own, to probe the file system",
	"internal/datadir/probe_linux.go":    "/proc/self/mountinfo",
	"internal/datadir/record.go":         "hasqlite.json and directories to sync them",
	"internal/localcluster/node.go":      "logs of nodes",
	"internal/node/archive.go":           "keys of the archive",
	"internal/node/files.go":             "directories, to sync them",
	"internal/reflink/clone_linux.go":    "a database file, in a process that has it open by no other means, and its clone",
	"internal/shell/command.go":          "what .read is given",
	"internal/shell/shell.go":            "the line history",
	"internal/shimtest/node.go":          "databases of its own, before any process opens them",
	"internal/testarchive/db.go":         "the files of a database of its own",
	"internal/sqlitefile/source.go":      "files that are to be imported, and what lies beside them",
	"internal/testcluster/cluster.go":    "logs of nodes",
	"internal/testcluster/disk_linux.go": "images of disks, their mount points, and the file that fills them",
	"replicate/fetched.go":               "pages and targets of catch-ups in the spool",
	"replicate/pagesums/store.go":        "segments of page checksums, and their directory to sync it",
	"replicate/logstore/backends.go":     "raft-wal's metadata, to reserve blocks for them",
	"replicate/logstore/dir.go":          "directories, to sync them",
	"replicate/logstore/mend.go":         "the last segment of the raft log, before raft-wal does",
	"replicate/logstore/segments.go":     "segments of the raft log",
	"replicate/logstore/snapshots.go":    "marks in the directory of snapshots",
	"replicate/readers_linux.go":         "/proc/locks",
	"replicate/record.go":                "directories, to sync them",
	"replicate/spool.go":                 "parts of large transactions",
	"test/fault/journal.go":              "journals of writers",
	"vfs/live.go":                        "directories, to sync them",
}

// openers are the functions that open a file by its path.
var openers = map[string][]string{
	"os":                    {"Open", "OpenFile", "OpenRoot", "OpenInRoot", "Create", "ReadFile", "WriteFile", "DirFS", "CopyFS", "Truncate"},
	"syscall":               {"Open", "Openat"},
	"golang.org/x/sys/unix": {"Open", "Openat", "Openat2"},
	"io/ioutil":             {"ReadFile", "WriteFile"},
}

func TestNobodyOpensDatabaseFilesByPath(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		for imp, names := range openers {
			for call, name := range s.calls(imp) {
				if !slices.Contains(names, name) {
					continue
				}
				used[s.path] = true
				if _, ok := opens[s.path]; !ok {
					t.Errorf("%s calls %s.%s; if it cannot be a database's file, say so in the table", s.at(call), imp, name)
				}
			}
		}
	}
	for path := range opens {
		if !used[path] {
			t.Errorf("%s opens no file any more: take it out of the table", path)
		}
	}
}

func TestTestsDoNotSleep(t *testing.T) {
	for _, s := range sources(t) {
		if !s.test() {
			continue
		}
		for call, name := range s.calls("time") {
			if name == "Sleep" {
				t.Errorf("%s sleeps; wait for the condition, or run it in testing/synctest", s.at(call))
			}
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "t" || x.Name == "b") && (sel.Sel.Name == "Skip" || sel.Sel.Name == "Skipf" || sel.Sel.Name == "SkipNow") {
					t.Errorf("%s skips; a test that cannot run is a failure", s.at(sel))
				}
			}
			return true
		})
	}
}

func TestGoFilesAreFormatted(t *testing.T) {
	for _, s := range sources(t) {
		want, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
		} else if !bytes.Equal(want, s.text) {
			t.Errorf("%s is not formatted: gofmt -w %s", s.path, s.path)
		}
	}
}

const maxLines = 750

// vendored are files that others wrote.
var vendored = []string{"vfs/sqlite3.h", "vfs/sqlite3ext.h"}

// unfinished finds what is left to be done. The words are put together here
// so that this file does not hold them.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b|not (yet )?imple` + `mented`)

func TestFilesAreFinishedAndShort(t *testing.T) {
	for _, path := range files(t, ".go", ".c", ".h", ".md", ".py", ".sh", "Makefile") {
		if slices.Contains(vendored, path) {
			continue
		}
		text := read(t, path)
		lines := bytes.Split(text, []byte("\n"))
		if len(lines) > maxLines && !strings.HasSuffix(path, ".md") {
			t.Errorf("%s has %d lines; split it at %d", path, len(lines), maxLines)
		}
		for i, line := range lines {
			if m := unfinished.Find(line); m != nil {
				t.Errorf("%s:%d says %q", path, i+1, m)
			}
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	doc := map[string]string{}
	for _, s := range sources(t) {
		if s.ast.Doc != nil {
			doc[s.path[:max(0, strings.LastIndex(s.path, "/"))]] += s.ast.Doc.Text()
		}
	}
	for _, p := range allPackages(t) {
		words := []string{"Package " + p.Name, "Owns:", "Imports:", "Invariant"}
		if p.Name == "main" {
			words = []string{"Command "}
		}
		for _, w := range words {
			if !strings.Contains(doc[p.short()], w) {
				t.Errorf("the comment of package %s does not say %q", p.short(), w)
			}
		}
	}
}

func TestExportedNamesHaveComments(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || s.ast.Name.Name == "main" {
			continue
		}
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && (d.Recv == nil || d.Name.Name != "Error") {
					t.Errorf("%s: %s has no comment", s.at(d), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if spec.Name.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
							t.Errorf("%s: %s has no comment", s.at(spec), spec.Name.Name)
						}
					case *ast.ValueSpec:
						if spec.Names[0].IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
							t.Errorf("%s: %s has no comment", s.at(spec), spec.Names[0].Name)
						}
					}
				}
			}
		}
	}
}

// exportedReceiver says whether d can be called from outside: it is a
// function, or a method of an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
			continue
		case *ast.IndexExpr:
			typ = x.X
			continue
		case *ast.Ident:
			return x.IsExported()
		}
		return false
	}
}
