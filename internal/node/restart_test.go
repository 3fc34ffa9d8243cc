package node

import (
	"errors"
	"testing"
)

// A node's log may end in an entry that changes no database: a member that announced itself, a refused
// transaction. The node that restarts then in an idle cluster must still learn that its log is confirmed
// (RULES A3), or it is never ready and writes no database again.
func TestRestartInAnIdleClusterBecomesReady(t *testing.T) {
	c := newCluster(t, 3, nil)
	db := c.open(0, "db")
	exec(t, db, `CREATE TABLE t(v)`)
	c.equal("db")
	eventually(t, "all nodes are announced", func() error {
		for _, m := range c.nodes[0].svc.LocalStatus().Cluster.Members {
			if m.HTTP == "" {
				return errors.New(m.ID)
			}
		}
		return nil
	})
	f := c.follower()
	for range 2 {
		c.stop(f)
		c.start(f)
		c.ready(f)
	}
	exec(t, c.open(f, "db"), `INSERT INTO t VALUES(1)`)
	c.equal("db")
}
