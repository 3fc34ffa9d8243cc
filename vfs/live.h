/*
** The node's connection to the files of one live database, for live.go.
**
** Every function that uses the connection holds its mutex from beginning to
** end, so functions may be called from several threads. The exceptions are
** marked.
*/
#ifndef HASQLITE_LIVE_H
#define HASQLITE_LIVE_H

#include "sqlite3.h"

typedef struct hasqlite_live hasqlite_live;

/* Which file a function is about. */
#define HASQLITE_LIVE_DB 0
#define HASQLITE_LIVE_WAL 1

/*
** Open the database zPath over the platform's own VFS, open its WAL and
** wal-index, and set *pp. On failure *pp is NULL and zErr (nErr bytes) has the
** reason.
*/
int hasqlite_live_open(const char *zPath, hasqlite_live **pp, char *zErr, int nErr);

/* Close and free p. On SQLITE_BUSY p is still open. */
int hasqlite_live_close(hasqlite_live *p);

/*
** Take or release lock slots first..first+n-1 of the wal-index; flags are those
** of xShmLock. Taking slot 0 fetches the file pointers anew first.
*/
int hasqlite_live_lock(hasqlite_live *p, int first, int n, int flags);

/* Map region iRegion of the wal-index, extending it, and set *ppOut. */
int hasqlite_live_map(hasqlite_live *p, int iRegion, void **ppOut);

/* The memory barrier of the VFS. Takes no mutex of the connection. */
void hasqlite_live_barrier(hasqlite_live *p);

/*
** Read nBuf bytes at ofst into pBuf and set *pnRead to how many the file has
** there; the rest of pBuf is zero.
*/
int hasqlite_live_read(hasqlite_live *p, int which, void *pBuf, int nBuf,
                       sqlite3_int64 ofst, int *pnRead);

/* Write nBuf bytes at ofst; nBuf is less than 128 KiB. */
int hasqlite_live_write(hasqlite_live *p, int which, const void *pBuf, int nBuf,
                        sqlite3_int64 ofst);

/* Make what was written durable. Takes no mutex: writes may go on. */
int hasqlite_live_sync(hasqlite_live *p, int which);

/* Set *pSize to the length of the file in bytes. */
int hasqlite_live_size(hasqlite_live *p, int which, sqlite3_int64 *pSize);

/*
** Run a read transaction, in which SQLite recovers the wal-index if need be. The
** caller holds no lock slot.
*/
int hasqlite_live_recover(hasqlite_live *p);

/*
** Run a checkpoint of mode eMode (SQLITE_CHECKPOINT_*), waiting at most msWait
** milliseconds for readers and writers, on a connection of its own: other functions may be called meanwhile,
** except this one. Sets the frames in the log and those copied, -1 where not
** known.
*/
int hasqlite_live_checkpoint(hasqlite_live *p, int eMode, int msWait, int *pnLog,
                             int *pnCkpt);

/*
** Create the database file zPath with the nData bytes pData and permissions
** mode, and sync it. *pExists is set, and nothing is changed, if the file has
** content already.
*/
int hasqlite_live_create(const char *zPath, const void *pData, int nData, int mode,
                         int *pExists);

/*
** Remove the database file zPath, with its WAL, wal-index and journal. SQLITE_BUSY,
** and nothing is changed, if somebody has read it and has it open still, in this
** process or another: every connection to a database in WAL mode keeps a shared
** lock on the file.
*/
int hasqlite_live_discard(const char *zPath);

/* Give memory that closed connections have left back to the system. */
void hasqlite_live_trim(void);

#endif
