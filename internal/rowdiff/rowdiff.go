// Package rowdiff compares two databases, by schema and row by row.
//
// Owns: what counts as a change, and the SQL that finds them.
// Imports: the SQLite that the caller's connection has; none of ours.
// Invariant: values are equal when they are of one type and have the same bytes,
// whatever the collation and the affinity of their column say.
package rowdiff

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kinds of changes.
const (
	Inserted = "inserted"
	Deleted  = "deleted"
	Updated  = "updated"
	Created  = "created"
	Dropped  = "dropped"
	Changed  = "changed"
)

// Result is what differs between two databases.
type Result struct {
	Schema  []SchemaChange `json:"schema"`
	Tables  []TableChange  `json:"tables"`
	Skipped []string       `json:"skipped"` // tables whose rows were not compared, with the reason
}

// SchemaChange is a table, index, view or trigger that differs.
type SchemaChange struct {
	Change string `json:"change"`
	Type   string `json:"type"`
	Name   string `json:"name"`
	Before string `json:"before,omitempty"` // SQL
	After  string `json:"after,omitempty"`
}

// TableChange counts the rows of a table that differ.
type TableChange struct {
	Name     string      `json:"name"`
	Inserted int64       `json:"inserted"`
	Deleted  int64       `json:"deleted"`
	Updated  int64       `json:"updated"`
	Rows     []RowChange `json:"rows,omitempty"`
	More     bool        `json:"more,omitempty"` // there are more than the limit
}

// RowChange is a row that differs.
type RowChange struct {
	Change string  `json:"change"`
	Key    []Field `json:"key"`
	Before []Field `json:"before,omitempty"` // of an update those that differ
	After  []Field `json:"after,omitempty"`
}

// Field is a value of a column.
type Field struct {
	Column string
	Value  any // nil, int64, float64, string or []byte
}

// MarshalJSON writes a blob as an object with its hex digits.
func (f Field) MarshalJSON() ([]byte, error) {
	v := f.Value
	if b, ok := v.([]byte); ok {
		v = map[string]string{"blob": hex.EncodeToString(b)}
	}
	return json.Marshal(struct {
		Column string `json:"column"`
		Value  any    `json:"value"`
	}{f.Column, v})
}

// Text is the value as SQL has it.
func (f Field) Text() string {
	switch v := f.Value.(type) {
	case nil:
		return "NULL"
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	case string:
		return "'" + strings.ReplaceAll(v, "'", "''") + "'"
	}
	return fmt.Sprint(f.Value)
}

// Options of Compare.
type Options struct {
	Before, After string // schemas of the connection
	Rows          int    // most rows of a table that are listed; they are all counted
	// Progress, if not nil, is called before a table is compared.
	Progress func(table string)
}

// Compare compares two databases that a connection has attached.
func Compare(ctx context.Context, c *sql.Conn, o Options) (*Result, error) {
	d := &differ{ctx: ctx, c: c, o: o}
	r := &Result{Schema: []SchemaChange{}, Tables: []TableChange{}, Skipped: []string{}}
	if err := d.compare(r); err != nil {
		return nil, err
	}
	return r, nil
}

type differ struct {
	ctx context.Context
	c   *sql.Conn
	o   Options
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// each calls f for every row of a query, with a function that scans it.
func (d *differ) each(query string, f func(scan func(...any) error) error) (err error) {
	rows, err := d.c.QueryContext(d.ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

type object struct{ kind, name, sql string }

// objects lists what the schema has, without what SQLite makes by itself.
func (d *differ) objects(schema string) ([]object, error) {
	var list []object
	err := d.each("SELECT type, name, coalesce(sql, '') FROM "+quote(schema)+".sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type = 'table' DESC, type, name", func(scan func(...any) error) error {
		var x object
		err := scan(&x.kind, &x.name, &x.sql)
		list = append(list, x)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the schema of %s: %w", schema, err)
	}
	return list, nil
}

func (d *differ) compare(r *Result) error {
	before, err := d.objects(d.o.Before)
	if err != nil {
		return err
	}
	after, err := d.objects(d.o.After)
	if err != nil {
		return err
	}
	find := func(list []object, o object) (object, bool) {
		i := slices.IndexFunc(list, func(x object) bool { return x.kind == o.kind && strings.EqualFold(x.name, o.name) })
		if i < 0 {
			return object{}, false
		}
		return list[i], true
	}
	for _, a := range before {
		switch b, ok := find(after, a); {
		case !ok:
			r.Schema = append(r.Schema, SchemaChange{Change: Dropped, Type: a.kind, Name: a.name, Before: a.sql})
		case a.sql != b.sql:
			r.Schema = append(r.Schema, SchemaChange{Change: Changed, Type: a.kind, Name: b.name, Before: a.sql, After: b.sql})
		}
	}
	for _, b := range after {
		if _, ok := find(before, b); !ok {
			r.Schema = append(r.Schema, SchemaChange{Change: Created, Type: b.kind, Name: b.name, After: b.sql})
		}
	}
	names := before
	for _, b := range after {
		if _, ok := find(before, b); !ok {
			names = append(names, b)
		}
	}
	for _, x := range names {
		if x.kind != "table" {
			continue
		}
		if d.o.Progress != nil {
			d.o.Progress(x.name)
		}
		if err := d.table(r, x.name); err != nil {
			return fmt.Errorf("compare table %s: %w", x.name, err)
		}
	}
	return nil
}

// table is a table as one of the schemas has it.
type table struct {
	there   bool
	special string // why its rows are not compared
	key     []string
	rowid   bool // key is the name of the rowid
	columns []string
}

func (d *differ) describe(schema, name string) (table, error) {
	var t table
	var kind string
	withoutRowid := false
	nameText, schemaText := Field{Value: name}.Text(), Field{Value: schema}.Text()
	if err := d.each("SELECT type, wr FROM pragma_table_list("+nameText+") WHERE schema = "+schemaText, func(scan func(...any) error) error {
		t.there = true
		return scan(&kind, &withoutRowid)
	}); err != nil || !t.there {
		return t, err
	}
	if kind == "virtual" || kind == "shadow" {
		t.special = kind
		return t, nil
	}
	type keyed struct {
		name string
		pk   int
	}
	var pk []keyed
	if err := d.each("SELECT name, pk, hidden FROM pragma_table_xinfo("+nameText+", "+schemaText+")", func(scan func(...any) error) error {
		var column string
		var n, hidden int
		if err := scan(&column, &n, &hidden); err != nil {
			return err
		}
		if n > 0 {
			pk = append(pk, keyed{column, n})
		}
		if hidden == 0 { // others are computed
			t.columns = append(t.columns, column)
		}
		return nil
	}); err != nil {
		return t, err
	}
	if withoutRowid {
		slices.SortFunc(pk, func(a, b keyed) int { return a.pk - b.pk })
		for _, k := range pk {
			t.key = append(t.key, k.name)
		}
		return t, nil
	}
	for _, alias := range []string{"rowid", "_rowid_", "oid"} {
		if !slices.ContainsFunc(t.columns, func(c string) bool { return strings.EqualFold(c, alias) }) {
			t.key, t.rowid = []string{alias}, true
			return t, nil
		}
	}
	t.special = "columns hide its rowid"
	return t, nil
}

func (d *differ) table(r *Result, name string) error {
	a, err := d.describe(d.o.Before, name)
	if err != nil {
		return err
	}
	b, err := d.describe(d.o.After, name)
	if err != nil {
		return err
	}
	for _, t := range []table{a, b} {
		if t.special != "" {
			if t.special != "shadow" { // it belongs to a virtual one
				r.Skipped = append(r.Skipped, name+": "+t.special)
			}
			return nil
		}
	}
	c := TableChange{Name: name}
	same := a.there && b.there && a.rowid == b.rowid && slices.EqualFunc(a.key, b.key, strings.EqualFold)
	if err := d.only(&c, Deleted, d.o.Before, d.o.After, a, same); err != nil {
		return err
	}
	if err := d.only(&c, Inserted, d.o.After, d.o.Before, b, same); err != nil {
		return err
	}
	if same {
		if err := d.updated(&c, a, b); err != nil {
			return err
		}
	}
	if c.Inserted+c.Deleted+c.Updated > 0 {
		r.Tables = append(r.Tables, c)
	}
	return nil
}

// take counts a row, and keeps it within the limit.
func (d *differ) take(c *TableChange, n *int64, row func() RowChange) {
	*n++
	if d.o.Rows == 0 {
		return
	}
	if len(c.Rows) >= d.o.Rows {
		c.More = true
		return
	}
	c.Rows = append(c.Rows, row())
}

// selected lists columns of a schema's table without their declared types, by
// which a driver would change values.
func selected(alias string, columns []string) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = "+" + alias + "." + quote(c)
	}
	return strings.Join(parts, ", ")
}

func keyEqual(key []string) string {
	parts := make([]string, len(key))
	for i, k := range key {
		parts[i] = "x." + quote(k) + " = y." + quote(k)
	}
	return strings.Join(parts, " AND ")
}

// only finds the rows that one side has and the other has not.
func (d *differ) only(c *TableChange, change, in, notIn string, t table, joined bool) error {
	if !t.there {
		return nil
	}
	all := append(slices.Clone(t.key), t.columns...)
	query := "SELECT " + selected("x", all) + " FROM " + quote(in) + "." + quote(c.Name) + " AS x"
	if joined {
		query += " WHERE NOT EXISTS (SELECT 1 FROM " + quote(notIn) + "." + quote(c.Name) + " AS y WHERE " + keyEqual(t.key) + ")"
	}
	n := &c.Inserted
	if change == Deleted {
		n = &c.Deleted
	}
	return d.each(query, func(scan func(...any) error) error {
		fields, err := scanFields(scan, all)
		if err != nil {
			return err
		}
		d.take(c, n, func() RowChange {
			row := RowChange{Change: change, Key: fields[:len(t.key)]}
			if change == Deleted {
				row.Before = fields[len(t.key):]
			} else {
				row.After = fields[len(t.key):]
			}
			return row
		})
		return nil
	})
}

// updated finds the rows that both have, with other values in columns that both have.
func (d *differ) updated(c *TableChange, a, b table) error {
	var columns, differ []string
	for _, col := range a.columns {
		if !slices.ContainsFunc(b.columns, func(x string) bool { return strings.EqualFold(x, col) }) {
			continue
		}
		columns = append(columns, col)
		x, y := "x."+quote(col), "y."+quote(col)
		differ = append(differ, "(typeof("+x+") <> typeof("+y+") OR "+x+" IS NOT "+y+" COLLATE BINARY)")
	}
	if len(columns) == 0 {
		return nil
	}
	query := "SELECT " + selected("x", a.key) + ", " + selected("x", columns) + ", " + selected("y", columns) +
		" FROM " + quote(d.o.Before) + "." + quote(c.Name) + " AS x CROSS JOIN " + quote(d.o.After) + "." + quote(c.Name) + " AS y ON " + keyEqual(a.key) +
		" WHERE " + strings.Join(differ, " OR ")
	all := slices.Concat(a.key, columns, columns)
	return d.each(query, func(scan func(...any) error) error {
		fields, err := scanFields(scan, all)
		if err != nil {
			return err
		}
		d.take(c, &c.Updated, func() RowChange {
			row := RowChange{Change: Updated, Key: fields[:len(a.key)]}
			for i := range columns {
				before, after := fields[len(a.key)+i], fields[len(a.key)+len(columns)+i]
				if before.Text() != after.Text() {
					row.Before, row.After = append(row.Before, before), append(row.After, after)
				}
			}
			return row
		})
		return nil
	})
}

func scanFields(scan func(...any) error, columns []string) ([]Field, error) {
	fields, to := make([]Field, len(columns)), make([]any, len(columns))
	for i := range fields {
		fields[i].Column = columns[i]
		to[i] = &fields[i].Value
	}
	return fields, scan(to...)
}
