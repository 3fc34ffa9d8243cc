package vfs

/*
#cgo windows LDFLAGS: -lws2_32
int hasqliteRegister(void);
*/
import "C"

import (
	"fmt"

	_ "github.com/mattn/go-sqlite3" // the SQLite that the VFS registers with
)

// Name is the VFS name for URIs: file:shop.db?vfs=hasqlite.
const Name = "hasqlite"

func init() {
	if rc := C.hasqliteRegister(); rc != 0 {
		panic(fmt.Sprintf("register VFS %s: SQLite result code %d", Name, int(rc)))
	}
}
