package tidy

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/uglyer/ha-sqlite/"

// root is the repository, seen from this package.
const root = "../.."

// pkg is what go list says of a package.
type pkg struct {
	Dir, ImportPath, Name string
	GoFiles, CgoFiles     []string
	Imports               []string
}

// short is the import path within the module.
func (p pkg) short() string { return strings.TrimPrefix(p.ImportPath, module) }

var packages = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,Name,GoFiles,CgoFiles,Imports", "./...")
	cmd.Dir = root
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(errs.String()))
	}
	var list []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
})

func allPackages(t *testing.T) []pkg {
	t.Helper()
	list, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// source is one Go file.
type source struct {
	path string // from the root, with slashes
	text []byte
	ast  *ast.File
	set  *token.FileSet
}

func (s source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// at is the place of a node as path:line.
func (s source) at(n ast.Node) string {
	p := s.set.Position(n.Pos())
	return s.path + ":" + itoa(p.Line)
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// files returns the paths of all files with one of the suffixes, also those
// that are built on other systems only.
func files(t *testing.T, suffixes ...string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case ".git", "bin", "build", "testdata":
				return filepath.SkipDir
			}
			return nil
		}
		for _, s := range suffixes {
			if strings.HasSuffix(path, s) {
				rel, err := filepath.Rel(root, path)
				if err != nil {
					return err
				}
				paths = append(paths, filepath.ToSlash(rel))
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sources(t *testing.T) []source {
	t.Helper()
	var list []source
	for _, path := range files(t, ".go") {
		s := source{path: path, text: read(t, path), set: token.NewFileSet()}
		var err error
		if s.ast, err = parser.ParseFile(s.set, path, s.text, parser.ParseComments); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// calls lists the calls of functions of a package in a file, as pkg.Func. The
// package's name is that of its path's last part, or the one it is imported
// as.
func (s source) calls(importPath string) map[*ast.CallExpr]string {
	name := ""
	for _, imp := range s.ast.Imports {
		if strings.Trim(imp.Path.Value, `"`) == importPath {
			name = importPath[strings.LastIndex(importPath, "/")+1:]
			if imp.Name != nil {
				name = imp.Name.Name
			}
		}
	}
	found := map[*ast.CallExpr]string{}
	if name == "" {
		return found
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == name {
				found[call] = sel.Sel.Name
			}
		}
		return true
	})
	return found
}
