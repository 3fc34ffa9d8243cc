package shell

import (
	"reflect"
	"strings"
	"testing"
)

// cut splits text that arrives in pieces of n bytes.
func cut(text string, n int) []string {
	var s splitter
	var out []string
	for len(text) > 0 {
		k := min(n, len(text))
		s.add(text[:k])
		text = text[k:]
		for {
			statement, ok := s.next()
			if !ok {
				break
			}
			out = append(out, statement)
		}
	}
	for {
		statement, ok := s.rest()
		if !ok {
			return out
		}
		out = append(out, statement)
	}
}

func TestSplitter(t *testing.T) {
	trigger := "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT CASE WHEN 1 THEN 2 END; UPDATE a SET b=';END;'; -- ; END;\n END"
	tests := []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", nil},
		{"blanks and comments", " \n-- a;\n/* b; */ ;;", nil},
		{"two", "SELECT 1; SELECT 2;", []string{"SELECT 1;", "SELECT 2;"}},
		{"last without a semicolon", "SELECT 1;\nSELECT 2", []string{"SELECT 1;", "SELECT 2"}},
		{"semicolons in quotes", "SELECT ';', \";\", `;`, [;], 'it''s;';x;", []string{"SELECT ';', \";\", `;`, [;], 'it''s;';", "x;"}},
		{"semicolons in comments", "SELECT 1 -- ;\n/* ; */ + 2;y", []string{"SELECT 1 -- ;\n/* ; */ + 2;", "y"}},
		{"minus and slash are no comments", "SELECT 2-1/1;y;", []string{"SELECT 2-1/1;", "y;"}},
		{"star after slash star", "SELECT /**/1;/***/x;", []string{"SELECT /**/1;", "/***/x;"}},
		{"trigger", trigger + "; SELECT 1;", []string{trigger + ";", "SELECT 1;"}},
		{"temporary trigger", "create temp /* x */ trigger t begin select 1; end;x;", []string{"create temp /* x */ trigger t begin select 1; end;", "x;"}},
		{"explained trigger", "EXPLAIN QUERY PLAN CREATE TRIGGER t BEGIN SELECT 1; END; x;", []string{"EXPLAIN QUERY PLAN CREATE TRIGGER t BEGIN SELECT 1; END;", "x;"}},
		{"END that is a name's front", "CREATE TRIGGER t BEGIN SELECT 1; ENDS; END; x;", []string{"CREATE TRIGGER t BEGIN SELECT 1; ENDS; END;", "x;"}},
		{"CREATE TABLE trigger_log", "CREATE TABLE trigger_log(a); x;", []string{"CREATE TABLE trigger_log(a);", "x;"}},
		{"open quote", "SELECT 'a; b;", []string{"SELECT 'a; b;"}},
		{"open comment", "/* SELECT 1;", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, n := range []int{1, 2, 3, 7, 1000} {
				if got := cut(tt.text, n); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("in pieces of %d: got %q, want %q", n, got, tt.want)
				}
			}
		})
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add("SELECT ';' -- x\n;", 3)
	f.Add("create trigger a begin b; end;", 1)
	f.Fuzz(func(t *testing.T, text string, n int) {
		if n < 1 || len(text) > 1000 {
			return
		}
		whole, pieces := cut(text, len(text)+1), cut(text, n)
		if !reflect.DeepEqual(whole, pieces) {
			t.Fatalf("whole %q, in pieces of %d %q", whole, n, pieces)
		}
		if !strings.Contains(text, ";") && len(whole) > 1 {
			t.Fatalf("%q was cut into %q", text, whole)
		}
	})
}
