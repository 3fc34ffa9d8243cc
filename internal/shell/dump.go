package shell

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// dump writes the database as SQL that makes an equal one when it is read by
// this shell or by SQLite's own. It reads in one transaction, so that what it
// writes is one state of the database.
func (s *shell) dump(ctx context.Context, tables []string) (err error) {
	if err := s.exec(ctx, "SAVEPOINT hasqlite_dump"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.exec(context.WithoutCancel(ctx), "RELEASE hasqlite_dump")) }()
	where := ""
	if len(tables) > 0 {
		names := make([]string, len(tables))
		for i, t := range tables {
			names[i] = quoteText(t)
		}
		where = " AND tbl_name COLLATE NOCASE IN (" + strings.Join(names, ", ") + ")"
		found, err := s.conn.all(ctx, "SELECT tbl_name FROM sqlite_schema WHERE type IN ('table', 'view')"+where)
		if err != nil {
			return err
		}
		for _, t := range tables {
			if !containsFold(found, t) {
				return fmt.Errorf(".dump: no table or view named %q", t)
			}
		}
	}
	rows, err := s.conn.all(ctx, "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL"+where+
		" ORDER BY name = 'sqlite_sequence', rowid")
	if err != nil {
		return err
	}
	fmt.Fprint(s.out, "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n")
	writable := false
	for _, r := range rows {
		name, sql := r[0], r[1]
		switch {
		case name == "sqlite_sequence":
			fmt.Fprint(s.out, "DELETE FROM sqlite_sequence;\n")
		case name == "sqlite_stat1":
			fmt.Fprint(s.out, "ANALYZE sqlite_schema;\nDELETE FROM sqlite_stat1;\n")
		case strings.HasPrefix(name, "sqlite_stat"):
			continue // made from sqlite_stat1 where it is used at all
		case strings.HasPrefix(strings.ToUpper(sql), "CREATE VIRTUAL TABLE"):
			// CREATE would make the tables behind it, which come by themselves.
			if !writable {
				fmt.Fprint(s.out, "PRAGMA writable_schema=ON;\n")
				writable = true
			}
			fmt.Fprintf(s.out, "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table',%s,%s,0,%s);\n",
				quoteText(name), quoteText(name), quoteText(sql))
			continue
		default:
			fmt.Fprintf(s.out, "%s;\n", sql)
		}
		if err := s.dumpRows(ctx, name); err != nil {
			return err
		}
	}
	err = s.lines(ctx, "SELECT sql FROM sqlite_schema WHERE type IN ('index', 'trigger', 'view') AND sql IS NOT NULL"+where+
		" ORDER BY CASE type WHEN 'index' THEN 0 WHEN 'view' THEN 1 ELSE 2 END, rowid", ";")
	if err != nil {
		return err
	}
	if writable {
		fmt.Fprint(s.out, "PRAGMA writable_schema=OFF;\n")
	}
	_, err = fmt.Fprint(s.out, "COMMIT;\n")
	return err
}

// dumpRows writes an INSERT for each row. Generated columns are left out:
// they make themselves.
func (s *shell) dumpRows(ctx context.Context, table string) error {
	info, err := s.conn.all(ctx, "SELECT name, hidden FROM pragma_table_xinfo("+quoteText(table)+")")
	if err != nil {
		return err
	}
	var names, values []string
	generated := false
	for _, c := range info {
		if c[1] == "2" || c[1] == "3" {
			generated = true
			continue
		}
		names = append(names, quoteName(c[0]))
		values = append(values, "quote("+quoteName(c[0])+")")
	}
	if len(values) == 0 {
		return nil
	}
	into := quoteName(table)
	if generated {
		into += "(" + strings.Join(names, ",") + ")"
	}
	return s.conn.query(ctx, "SELECT "+strings.Join(values, " || ',' || ")+" FROM "+quoteName(table),
		func([]string) error { return nil },
		func(row []any) error {
			_, err := fmt.Fprintf(s.out, "INSERT INTO %s VALUES(%s);\n", into, text(row[0], ""))
			return err
		})
}

// exec runs a statement of our own.
func (s *shell) exec(ctx context.Context, statement string) error {
	return s.conn.query(ctx, statement, func([]string) error { return nil }, func([]any) error { return nil })
}

func containsFold(rows [][]string, name string) bool {
	for _, r := range rows {
		if strings.EqualFold(r[0], name) {
			return true
		}
	}
	return false
}
