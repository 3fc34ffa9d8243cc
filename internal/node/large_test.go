package node

import (
	"database/sql"
	"testing"
)

// insertBlobs writes n rows of a KiB that does not compress, in one transaction.
func insertBlobs(db *sql.DB, n int) error {
	_, err := db.Exec(`INSERT INTO big(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<?) SELECT randomblob(1024) FROM c`, n)
	return err
}

func largeCluster(t *testing.T, n int, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	c := newCluster(t, n, func(i int, cfg *Config) {
		cfg.VerifyFull = false
		if change != nil {
			change(i, cfg)
		}
	})
	db := c.open(0, "big.db")
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB)`); err != nil {
		t.Fatal(err)
	}
	return c
}

// A transaction of many parts commits from every node, and all have the same bytes; so does the VACUUM that
// writes all of it once more.
func TestLargeTransactionFromEveryNode(t *testing.T) {
	c := largeCluster(t, 3, nil)
	for i := range c.nodes {
		db := c.open(i, "big.db")
		if err := insertBlobs(db, 6000); err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		if _, err := db.Exec(`DELETE FROM big WHERE id%3=0`); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`VACUUM`); err != nil {
			t.Fatalf("node %d: VACUUM: %v", i, err)
		}
		db.Close()
	}
	c.equal("big.db")
	for i := range c.nodes {
		db := c.open(i, "big.db")
		var n, bytes int
		if err := db.QueryRow(`SELECT count(*), sum(length(b)) FROM big`).Scan(&n, &bytes); err != nil {
			t.Fatal(err)
		}
		if want := n * 1024; bytes != want || n == 0 {
			t.Errorf("node %d: %d rows with %d bytes", i, n, bytes)
		}
		db.Close()
		if f := c.fences(i); f != 0 {
			t.Errorf("node %d was fenced %d times", i, f)
		}
	}
}
