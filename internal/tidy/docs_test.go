package tidy

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// symbols maps a package's name to what it declares: Name, and Type.Name for
// methods and fields.
func symbols(t *testing.T) map[string]map[string]bool {
	all := map[string]map[string]bool{}
	for _, s := range sources(t) {
		name := s.ast.Name.Name
		if all[name] == nil {
			all[name] = map[string]bool{}
		}
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					all[name][d.Name.Name] = true
					continue
				}
				typ := d.Recv.List[0].Type
				if star, ok := typ.(*ast.StarExpr); ok {
					typ = star.X
				}
				if id, ok := typ.(*ast.Ident); ok {
					all[name][id.Name+"."+d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.ValueSpec:
						for _, n := range spec.Names {
							all[name][n.Name] = true
						}
					case *ast.TypeSpec:
						all[name][spec.Name.Name] = true
						var members *ast.FieldList
						switch typ := spec.Type.(type) {
						case *ast.StructType:
							members = typ.Fields
						case *ast.InterfaceType:
							members = typ.Methods
						}
						if members == nil {
							continue
						}
						for _, f := range members.List {
							for _, n := range f.Names {
								all[name][spec.Name.Name+"."+n.Name] = true
							}
						}
					}
				}
			}
		}
	}
	return all
}

var (
	codeSpan   = regexp.MustCompile("`([^`\n]+)`")
	goSymbol   = regexp.MustCompile(`^([a-z][a-z0-9]*)\.([A-Za-z]\w*(?:\.[A-Za-z]\w*)?)(?:\(.*\))?$`)
	cSymbol    = regexp.MustCompile(`^(ha[A-Z]\w*|hasqlite[A-Z]\w*|sqlite3_hasqlite\w*)(?:\(\))?$`)
	pathSymbol = regexp.MustCompile(`^(?:[a-z]+/)+([a-z]+)\.([A-Z]\w*(?:\.[A-Z]\w*)?)$`)
	testName   = regexp.MustCompile(`^(Test|Fuzz|Benchmark)[A-Z]\w*$`)
	makeTarget = regexp.MustCompile(`^make ([a-z]+)`)
	repoPath   = regexp.MustCompile(`^(?:\.ci|cmd|docs|internal|replicate|snapshot|test|vfs|wal|tools)/[\w./*-]*$`)
	mdLink     = regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
)

// What documents name in code spans has to exist: Go symbols as pkg.Name or
// pkg.Type.Method, functions of the shim, tests, make targets, files, and the
// targets of links. Commands are looked up by a test of cmd/hasqlite.
func TestWhatDocumentsNameExists(t *testing.T) {
	known := symbols(t)
	var c strings.Builder
	for _, path := range files(t, ".c", ".h") {
		c.Write(read(t, path))
	}
	makefile := string(read(t, "Makefile"))
	for _, path := range files(t, ".md") {
		text := string(read(t, path))
		for i, line := range strings.Split(text, "\n") {
			bad := func(kind, name string) { t.Errorf("%s:%d names the %s %s, which there is not", path, i+1, kind, name) }
			for _, m := range codeSpan.FindAllStringSubmatch(line, -1) {
				span := m[1]
				if g := goSymbol.FindStringSubmatch(span); g != nil && known[g[1]] != nil && !fileName(span) {
					if !known[g[1]][g[2]] {
						bad("symbol", span)
					}
				} else if g := cSymbol.FindStringSubmatch(span); g != nil && !strings.Contains(c.String(), g[1]) {
					bad("function", span)
				} else if testName.MatchString(span) && !anyHas(known, span) {
					bad("test", span)
				} else if g := makeTarget.FindStringSubmatch(span); g != nil && !strings.Contains("\n"+makefile, "\n"+g[1]+":") {
					bad("make target", g[1])
				} else if g := pathSymbol.FindStringSubmatch(span); g != nil {
					if !known[g[1]][g[2]] {
						bad("symbol", span)
					}
				} else if repoPath.MatchString(span) {
					if found, err := filepath.Glob(filepath.Join(root, span)); err != nil || len(found) == 0 {
						bad("file", span)
					}
				}
			}
			for _, m := range mdLink.FindAllStringSubmatch(line, -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				if _, err := os.Stat(filepath.Join(root, filepath.Dir(path), m[1])); err != nil {
					bad("file", m[1])
				}
			}
		}
	}
}

// fileName tells shop.db and node.sock from symbols of packages.
func fileName(span string) bool {
	return slices.Contains([]string{".db", ".sock", ".go", ".md", ".c", ".h", ".so", ".yaml", ".json", ".mod"}, filepath.Ext(span))
}

func anyHas(known map[string]map[string]bool, name string) bool {
	for _, names := range known {
		if names[name] {
			return true
		}
	}
	return false
}
