package gorm

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

const (
	database = "gorm.db"
	failed   = "failed: " // an outcome that begins so is an error
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// connect opens a database for the mapper. Its clock stands still, so that the rows do not depend on the time of the run.
func connect(t *testing.T, dsn string) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(sqlite.Open(dsn), &gorm.Config{
		Logger:  logger.Discard,
		NowFunc: func() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pool, err := db.DB()
		if err == nil {
			err = pool.Close()
		}
		if err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestMapperWorksOnAClusterAsOnPlainSQLite(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	const params = "_foreign_keys=1&_busy_timeout=20000"
	plain := connect(t, "file:"+filepath.Join(t.TempDir(), "plain.db")+"?_journal_mode=WAL&"+params)
	var nodes []*gorm.DB
	for _, n := range c.Nodes() {
		nodes = append(nodes, connect(t, n.DSN(database, params)))
	}
	for _, db := range []*gorm.DB{plain, nodes[0]} {
		if err := db.AutoMigrate(allModels...); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range scenarios {
		// Each scenario finds on its node what the one before left on another.
		if _, err := c.WaitConverged(testcluster.Context(t, 30*time.Second), database); err != nil {
			t.Fatal(err)
		}
		t.Run(s.name, func(t *testing.T) {
			want := outcome(s, plain)
			if strings.HasPrefix(want, failed) {
				t.Errorf("on plain SQLite: %s", want)
			}
			if got := outcome(s, nodes[i%len(nodes)]); got != want {
				t.Errorf("through %s:\n%s\nwant, as on plain SQLite:\n%s", c.Nodes()[i%len(nodes)].ID, got, want)
			}
		})
	}
	testcluster.Converged(t, c, database)
	want := dump(t, plain)
	for i, db := range nodes {
		got := dump(t, db)
		for line := range max(len(got), len(want)) {
			if line >= len(got) || line >= len(want) || got[line] != want[line] {
				t.Errorf("%s: line %d of %d is\n%s\nwant, as on plain SQLite, of %d\n%s", c.Nodes()[i].ID,
					line, len(got), strings.Join(got[min(line, len(got)):min(line+1, len(got))], ""),
					len(want), strings.Join(want[min(line, len(want)):min(line+1, len(want))], ""))
				break
			}
		}
	}
}

// outcome runs a scenario and writes down what the application sees of it.
func outcome(s scenario, db *gorm.DB) string {
	value, err := s.run(db)
	if err != nil {
		return failed + err.Error()
	}
	text, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		return failed + err.Error()
	}
	return string(text)
}

// dump writes down the schema and all rows.
func dump(t *testing.T, db *gorm.DB) []string {
	t.Helper()
	var out strings.Builder
	var objects []struct{ Type, Name, SQL string }
	if err := db.Raw(`SELECT type, name, coalesce(sql, '') AS sql FROM sqlite_schema ORDER BY type, name`).Scan(&objects).Error; err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		// The mapper writes the constraints of a table in the order of a Go map, another one at every run.
		parts := strings.Split(strings.TrimSuffix(o.SQL, ")"), ",")
		slices.Sort(parts)
		fmt.Fprintf(&out, "%s %s: %s\n", o.Type, o.Name, parts)
		if o.Type != "table" {
			continue
		}
		var rows []map[string]any
		if err := db.Table(o.Name).Order("rowid").Find(&rows).Error; err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			text, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "  %s\n", text)
		}
	}
	return strings.Split(out.String(), "\n")
}
