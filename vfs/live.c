/*
** The node's connection to the files of one live database. See live.h.
**
** Invariants:
**
** (1) Files are reached only through the sqlite3_file objects of a connection.
**     Closing any other descriptor of the database or the wal-index would drop
**     all POSIX locks of this process on it.
**
** (2) The main connection is idle between calls: it has no statement that runs,
**     so that its locks on the wal-index are those that hasqlite_live_lock()
**     took. Checkpoints have a connection of their own, so that SQLite's locks
**     order them and the appends of the main connection as those of two
**     processes, and neither waits for the other's syncs.
**
** (3) pDb and pWal stay the same until the connection is closed, because nothing
**     here changes the journal mode. They are fetched anew, and compared, with
**     every write lock all the same.
*/
#include "live.h"

#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <sys/stat.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef _WIN32
#define LIVE_VFS "win32"
#else
#define LIVE_VFS "unix"
#endif

#ifdef __APPLE__
#define LIVE_SYNC SQLITE_SYNC_FULL
#else
#define LIVE_SYNC SQLITE_SYNC_NORMAL
#endif

struct hasqlite_live {
  sqlite3 *db;         /* main connection */
  sqlite3_stmt *pRead; /* a statement of db that reads page 1 */
  sqlite3_file *pDb;   /* files of db */
  sqlite3_file *pWal;
  sqlite3 *ckpt;       /* connection for checkpoints; NULL until the first one */
  char *zPath;
};

/* Fetch the file pointers. The journal pointer is the WAL only after a read. */
static int liveFiles(hasqlite_live *p){
  sqlite3_file *pDb = NULL;
  sqlite3_file *pWal = NULL;
  int rc = sqlite3_file_control(p->db, "main", SQLITE_FCNTL_FILE_POINTER, &pDb);
  if( rc==SQLITE_OK ){
    rc = sqlite3_file_control(p->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &pWal);
  }
  if( rc!=SQLITE_OK ) return rc;
  if( pDb==NULL || pDb->pMethods==NULL || pDb->pMethods->iVersion<2
   || pDb->pMethods->xShmMap==NULL || pWal==NULL || pWal->pMethods==NULL ){
    return SQLITE_CANTOPEN;
  }
  if( p->pDb==NULL ){
    p->pDb = pDb;
    p->pWal = pWal;
  }
  return p->pDb==pDb && p->pWal==pWal ? SQLITE_OK : SQLITE_MISUSE;
}

static sqlite3_file *liveFile(hasqlite_live *p, int which){
  return which==HASQLITE_LIVE_WAL ? p->pWal : p->pDb;
}

/* Run a read transaction from beginning to end. */
static int liveRead(sqlite3_stmt *pRead){
  int rc = sqlite3_step(pRead);
  int rcReset = sqlite3_reset(pRead);
  if( rc==SQLITE_ROW || rc==SQLITE_DONE ) rc = SQLITE_OK;
  return rc!=SQLITE_OK ? rc : rcReset;
}

/* Open a connection that checkpoints only when told to, and read with it. */
static int liveConnect(const char *zPath, sqlite3 **pDb, sqlite3_stmt **ppRead){
  sqlite3_stmt *pRead = NULL;
  int rc = sqlite3_open_v2(zPath, pDb, SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX,
                           LIVE_VFS);
  if( rc!=SQLITE_OK ) return rc;
  /* A node has thousands of these, which prepare one statement each. */
  rc = sqlite3_db_config(*pDb, SQLITE_DBCONFIG_LOOKASIDE, NULL, 0, 0);
  if( rc!=SQLITE_OK ) return rc;
  sqlite3_extended_result_codes(*pDb, 1);
  /*
  ** Most pragmas would parse the schema, which need not be one that this process
  ** understands. Checkpoints sync at any level of synchronous but OFF.
  */
  sqlite3_wal_autocheckpoint(*pDb, 0);
  /* Reads the header and the wal-index, but parses no schema. */
  rc = sqlite3_prepare_v3(*pDb, "PRAGMA schema_version", -1, SQLITE_PREPARE_PERSISTENT,
                          &pRead, NULL);
  if( rc!=SQLITE_OK ) return rc;
  /* Another connection may be recovering. */
  sqlite3_busy_timeout(*pDb, 5000);
  rc = liveRead(pRead);
  sqlite3_busy_timeout(*pDb, 0);
  /* Nothing reads pages through the cache of this connection from now on. */
  (void)sqlite3_db_release_memory(*pDb);
  *ppRead = pRead;
  return rc;
}

int hasqlite_live_open(const char *zPath, hasqlite_live **pp, char *zErr, int nErr){
  hasqlite_live *p = calloc(1, sizeof(*p));
  int rc = SQLITE_NOMEM;

  *pp = NULL;
  if( p!=NULL ) p->zPath = sqlite3_mprintf("%s", zPath);
  if( p==NULL || p->zPath==NULL ){
    sqlite3_snprintf(nErr, zErr, "out of memory");
  }else if( (rc = liveConnect(zPath, &p->db, &p->pRead))!=SQLITE_OK ){
    sqlite3_snprintf(nErr, zErr, "%s", p->db ? sqlite3_errmsg(p->db) : "out of memory");
  }else if( (rc = liveFiles(p))!=SQLITE_OK ){
    sqlite3_snprintf(nErr, zErr, "not a database in WAL mode");
  }
  if( rc==SQLITE_OK ){
    *pp = p;
  }else if( p!=NULL ){
    sqlite3_finalize(p->pRead);
    sqlite3_close(p->db);
    sqlite3_free(p->zPath);
    free(p);
  }
  return rc;
}

int hasqlite_live_close(hasqlite_live *p){
  int rc = sqlite3_close(p->ckpt);
  if( rc!=SQLITE_OK ) return rc;
  p->ckpt = NULL;
  sqlite3_finalize(p->pRead);
  p->pRead = NULL;
  rc = sqlite3_close(p->db);
  if( rc!=SQLITE_OK ) return rc;
  sqlite3_free(p->zPath);
  free(p);
  return SQLITE_OK;
}

int hasqlite_live_lock(hasqlite_live *p, int first, int n, int flags){
  sqlite3_mutex *mutex = sqlite3_db_mutex(p->db);
  int rc = SQLITE_OK;
  sqlite3_mutex_enter(mutex);
  if( first==0 && (flags & SQLITE_SHM_LOCK) ) rc = liveFiles(p);
  if( rc==SQLITE_OK ) rc = p->pDb->pMethods->xShmLock(p->pDb, first, n, flags);
  sqlite3_mutex_leave(mutex);
  return rc;
}

int hasqlite_live_map(hasqlite_live *p, int iRegion, void **ppOut){
  sqlite3_mutex *mutex = sqlite3_db_mutex(p->db);
  void volatile *pMem = NULL;
  int rc;
  sqlite3_mutex_enter(mutex);
  rc = p->pDb->pMethods->xShmMap(p->pDb, iRegion, 32768, 1, &pMem);
  sqlite3_mutex_leave(mutex);
  /* A mapping that cannot be written (SQLITE_READONLY) is of no use here. */
  if( rc==SQLITE_OK && pMem==NULL ) rc = SQLITE_IOERR_SHMMAP;
  *ppOut = rc==SQLITE_OK ? (void *)pMem : NULL;
  return rc;
}

void hasqlite_live_barrier(hasqlite_live *p){
  p->pDb->pMethods->xShmBarrier(p->pDb);
}

int hasqlite_live_read(hasqlite_live *p, int which, void *pBuf, int nBuf,
                       sqlite3_int64 ofst, int *pnRead){
  sqlite3_mutex *mutex = sqlite3_db_mutex(p->db);
  sqlite3_file *pFile;
  int rc;
  sqlite3_mutex_enter(mutex);
  pFile = liveFile(p, which);
  *pnRead = nBuf;
  rc = pFile->pMethods->xRead(pFile, pBuf, nBuf, ofst);
  if( rc==SQLITE_IOERR_SHORT_READ ){
    sqlite3_int64 size = 0;
    rc = pFile->pMethods->xFileSize(pFile, &size);
    if( size<=ofst ){
      *pnRead = 0;
    }else if( size-ofst<nBuf ){
      *pnRead = (int)(size-ofst);
    }
  }
  sqlite3_mutex_leave(mutex);
  return rc;
}

int hasqlite_live_write(hasqlite_live *p, int which, const void *pBuf, int nBuf,
                        sqlite3_int64 ofst){
  sqlite3_mutex *mutex = sqlite3_db_mutex(p->db);
  sqlite3_file *pFile;
  int rc;
  sqlite3_mutex_enter(mutex);
  pFile = liveFile(p, which);
  rc = pFile->pMethods->xWrite(pFile, pBuf, nBuf, ofst);
  sqlite3_mutex_leave(mutex);
  return rc;
}

int hasqlite_live_sync(hasqlite_live *p, int which){
  sqlite3_file *pFile = liveFile(p, which);
  return pFile->pMethods->xSync(pFile, LIVE_SYNC);
}

int hasqlite_live_size(hasqlite_live *p, int which, sqlite3_int64 *pSize){
  sqlite3_mutex *mutex = sqlite3_db_mutex(p->db);
  sqlite3_file *pFile;
  int rc;
  sqlite3_mutex_enter(mutex);
  pFile = liveFile(p, which);
  rc = pFile->pMethods->xFileSize(pFile, pSize);
  sqlite3_mutex_leave(mutex);
  return rc;
}

int hasqlite_live_recover(hasqlite_live *p){
  sqlite3_mutex *mutex = sqlite3_db_mutex(p->db);
  int rc;
  sqlite3_mutex_enter(mutex);
  rc = liveRead(p->pRead);
  (void)sqlite3_db_release_memory(p->db);
  sqlite3_mutex_leave(mutex);
  return rc;
}

int hasqlite_live_checkpoint(hasqlite_live *p, int eMode, int msWait, int *pnLog,
                             int *pnCkpt){
  if( p->ckpt==NULL ){
    sqlite3_stmt *pRead = NULL;
    int rc = liveConnect(p->zPath, &p->ckpt, &pRead);
    sqlite3_finalize(pRead);
    if( rc!=SQLITE_OK ){
      sqlite3_close(p->ckpt);
      p->ckpt = NULL;
      return rc;
    }
  }
  /* With 0 there is no busy handler, and nothing waits. */
  sqlite3_busy_timeout(p->ckpt, msWait);
  return sqlite3_wal_checkpoint_v2(p->ckpt, "main", eMode, pnLog, pnCkpt);
}

/*
** Set *pExists if the file has content. One that starts with zeros was being
** created when the power failed: nobody has used it.
*/
static int liveHasContent(sqlite3_file *pFile, int *pExists){
  static const char aZero[16];
  char aMagic[sizeof(aZero)];
  int rc = pFile->pMethods->xRead(pFile, aMagic, sizeof(aMagic), 0);
  if( rc==SQLITE_IOERR_SHORT_READ ) rc = SQLITE_OK; /* the rest is zero-filled */
  *pExists = rc==SQLITE_OK && memcmp(aMagic, aZero, sizeof(aMagic))!=0;
  return rc;
}

/* Write the image to a file that is open and locked, unless it has content. */
static int liveWriteImage(sqlite3_file *pFile, const char *zFull, int mode,
                          const void *pData, int nData, int *pExists){
  int rc = liveHasContent(pFile, pExists);
  if( rc!=SQLITE_OK || *pExists ) return rc;
#ifndef _WIN32
  /* By name: SQLite creates the WAL and the wal-index with the same mode. */
  if( chmod(zFull, (mode_t)mode)!=0 ) return SQLITE_PERM;
#else
  (void)zFull;
  (void)mode;
#endif
  rc = pFile->pMethods->xTruncate(pFile, 0);
  if( rc==SQLITE_OK ) rc = pFile->pMethods->xWrite(pFile, pData, nData, 0);
  if( rc==SQLITE_OK ) rc = pFile->pMethods->xSync(pFile, LIVE_SYNC);
  /* Leave no half-written image that would pass for a database. */
  if( rc!=SQLITE_OK ) (void)pFile->pMethods->xTruncate(pFile, 0);
  return rc;
}

/* A database file without a connection. */
typedef struct LiveMain {
  sqlite3_vfs *pVfs;
  sqlite3_file *pFile;
  sqlite3_filename zName;
  char *zFull; /* absolute path, with room for a suffix */
} LiveMain;

#define LIVE_SUFFIX 9 /* bytes of the longest one, with its end */

/* Close what liveMainOpen has opened, also if that failed. */
static void liveMainClose(LiveMain *p){
  if( p->pFile!=NULL && p->pFile->pMethods!=NULL ){
    (void)p->pFile->pMethods->xUnlock(p->pFile, SQLITE_LOCK_NONE);
    (void)p->pFile->pMethods->xClose(p->pFile);
  }
  if( p->zName!=NULL ) sqlite3_free_filename(p->zName);
  free(p->zFull);
  free(p->pFile);
  memset(p, 0, sizeof(*p));
}

static int liveMainOpen(
  LiveMain *p,
  const char *zPath,
  int flags /* SQLITE_OPEN_CREATE or 0 */
){
  int rc, outFlags = 0;
  memset(p, 0, sizeof(*p));
  rc = sqlite3_initialize();
  if( rc!=SQLITE_OK ) return rc;
  p->pVfs = sqlite3_vfs_find(LIVE_VFS);
  if( p->pVfs==NULL ) return SQLITE_NOTFOUND;
  p->zFull = calloc(1, (size_t)p->pVfs->mxPathname+1+LIVE_SUFFIX);
  p->pFile = calloc(1, (size_t)p->pVfs->szOsFile);
  if( p->zFull==NULL || p->pFile==NULL ) return SQLITE_NOMEM;
  rc = p->pVfs->xFullPathname(p->pVfs, zPath, p->pVfs->mxPathname, p->zFull);
  if( rc==SQLITE_OK_SYMLINK ) rc = SQLITE_OK;
  if( rc!=SQLITE_OK ) return rc;
  p->zName = sqlite3_create_filename(p->zFull, "", "", 0, NULL);
  if( p->zName==NULL ) return SQLITE_NOMEM;
  rc = p->pVfs->xOpen(p->pVfs, p->zName, p->pFile,
      SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE | flags, &outFlags);
  if( rc==SQLITE_OK && (outFlags & SQLITE_OPEN_READONLY) ) rc = SQLITE_READONLY;
  return rc;
}

/* Lock the file so that nobody else can have it locked. */
static int liveMainLock(LiveMain *p){
  static const int aLock[] = {SQLITE_LOCK_SHARED, SQLITE_LOCK_RESERVED,
                              SQLITE_LOCK_EXCLUSIVE};
  int rc = SQLITE_OK;
  size_t i;
  for(i=0; rc==SQLITE_OK && i<sizeof(aLock)/sizeof(aLock[0]); i++){
    rc = p->pFile->pMethods->xLock(p->pFile, aLock[i]);
  }
  return rc;
}

int hasqlite_live_create(const char *zPath, const void *pData, int nData, int mode,
                         int *pExists){
  LiveMain m;
  int rc = liveMainOpen(&m, zPath, SQLITE_OPEN_CREATE);
  *pExists = 0;
  /* Without a lock first: a database that is in use cannot be locked. */
  if( rc==SQLITE_OK ) rc = liveHasContent(m.pFile, pExists);
  if( rc==SQLITE_OK && !*pExists ) rc = liveMainLock(&m);
  if( rc==SQLITE_OK && !*pExists ) rc = liveWriteImage(m.pFile, m.zFull, mode, pData, nData, pExists);
  liveMainClose(&m);
  return rc;
}

int hasqlite_live_discard(const char *zPath){
  static const char *const azSuffix[] = {"-wal", "-shm", "-journal", ""};
  LiveMain m;
  int rc = liveMainOpen(&m, zPath, 0);
  if( rc==SQLITE_OK ) rc = liveMainLock(&m);
  if( rc==SQLITE_OK ){
    size_t i, n = strlen(m.zFull);
    for(i=0; rc==SQLITE_OK && i<sizeof(azSuffix)/sizeof(azSuffix[0]); i++){
#ifdef _WIN32
      if( azSuffix[i][0]==0 ){ /* no file is removed there that is open */
        (void)m.pFile->pMethods->xClose(m.pFile);
        m.pFile->pMethods = NULL;
      }
#endif
      strcpy(&m.zFull[n], azSuffix[i]);
      rc = m.pVfs->xDelete(m.pVfs, m.zFull, 0);
      if( rc==SQLITE_IOERR_DELETE_NOENT ) rc = SQLITE_OK;
    }
  }
  liveMainClose(&m);
  return rc;
}

void hasqlite_live_trim(void){
#ifdef __GLIBC__
  /* Small blocks that are freed in the order of use leave holes in every arena. */
  (void)malloc_trim(0);
#endif
}
