// Command hasqlite-node runs a node of HA-Sqlite.
package main

import (
	"os"

	"github.com/uglyer/ha-sqlite/internal/nodecmd"
)

func main() {
	os.Exit(nodecmd.Main(nodecmd.New("hasqlite-node", nodecmd.Real())))
}
