// Package vfs makes SQLite of this process open replicated databases.
//
// Importing it registers the SQLite VFS "hasqlite":
//
//	import _ "github.com/uglyer/ha-sqlite/vfs"
//
//	db, err := sql.Open("sqlite3", "file:shop.db?vfs=hasqlite")
//
// Owns: the C shim that every language shares, its connection to the node of
// this machine, and the node's own handles on live files.
// Imports: github.com/mattn/go-sqlite3, whose SQLite is the one used, and wal.
// Invariant: hasqlite.h numbers them; above all, the header of a commit frame
// is written only after the node said that the cluster has the transaction.
// Format: docs/protocol.md, between the shim and the node.
//
// The same C files make the loadable extension for every other language, with
// nothing but a C compiler:
//
//	gcc -O2 -fPIC -shared -fvisibility=hidden -DHASQLITE_EXT -Wall -Wextra -Werror -o hasqlite.so vfs/hasqlite.c vfs/vfs.c vfs/file.c vfs/header.c vfs/past.c vfs/pragma.c vfs/capture.c vfs/link.c vfs/transport.c
//
// # Names
//
// With vfs=hasqlite a name with no leading /, \, ./, ../ or drive letter is the
// name of a replicated database; anything else is a plain path and is opened by
// the platform's VFS. For programs that can name no VFS there is
// "hasqlite-default": it is the process's default VFS when HASQLITE_DEFAULT_VFS
// is 1, or when hasqlite.so comes by LD_PRELOAD, and replicates files whose full
// path lies under the directory HASQLITE_ROOT.
//
// # URI parameters
//
//	node=PATH                  socket of the node; else HASQLITE_SOCKET, else /run/hasqlite/node.sock
//	lock_timeout=MS            how long a begin, or an open, waits for the cluster (5000)
//	commit_timeout=MS          how long a commit waits without a sign of progress (10000)
//	consistency=linearizable   each read transaction first asks the leader; else local
//	at=TIME, to=BOOKMARK       the database as it was, read-only
//	page_size=N, auto_vacuum=N used when the database is created
//
// The PRAGMAs page_size and auto_vacuum do the same as long as nothing was read
// on the connection. mattn/go-sqlite3 reads the schema while it opens, so a Go
// program writes them into the URI.
//
// # PRAGMAs
//
// hasqlite_position, hasqlite_status, hasqlite_lag and hasqlite_wait=BOOKMARK
// are answered by the node; hasqlite_error gives the last error text of this
// handle, which SQLite itself does not pass on. With HASQLITE_LOG=1 every such text
// is also printed on standard error.
package vfs
