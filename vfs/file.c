/*
** The main file of a replicated database: creation, locks and grants.
**
** The right to write is asked of the node before the native lock on slot 0 of
** the wal-index is taken, so that the node itself can still take that slot
** and bring the files up to date while we wait. With the lock in hand, the
** wal-index header is compared with what the grant describes: if they differ,
** somebody wrote past the cluster, and the transaction must not start.
**
** Who takes slot 0 EXCLUSIVE, and how each is told apart:
**   - a checkpoint holds slot 1: never here, slot 1 alone is refused (I5);
**   - a write transaction holds a read lock (slots 3..7);
**   - a host with SQLITE_ENABLE_SETLK_TIMEOUT may take slot 0 before its read
**     lock: it sets the time to block in locks right before that, and the
**     header is valid;
**   - recovery, or a reader that met a half-written header, holds nothing and
**     set a barrier right before that. No grant is needed, and a reader must
**     not be made to wait for one (I6).
*/
#include "hasqlite.h"

#include <stdarg.h>

#define SLOT_WRITE 1    /* mask of wal-index slot 0 */
#define SLOTS_READ 0xF8 /* mask of slots 3..7 */
#define EPOCH_WORD 33   /* offset 132 of the wal-index */
#define NATIVE_TRIES 100
#define NATIVE_PAUSE_US 500

static HaFile *pWriters = 0; /* files with a grant; guarded by haMutex() */

/*
** Record an error on p, where PRAGMA hasqlite_error, xGetLastError and
** SQLite's log show it. Returns rc.
*/
int haError(
  HaFile *p,            /* the database, or 0 */
  int rc,               /* the result code */
  const char *zFormat,  /* what went wrong, as for sqlite3_mprintf */
  ...
){
  char z[HA_ERROR_MAX];
  va_list ap;
  int n = 0;
  if( p ){
    sqlite3_snprintf(sizeof(z), z, "hasqlite: database %s: ", p->zName);
    n = (int)strlen(z);
  }else{
    sqlite3_snprintf(sizeof(z), z, "hasqlite: ");
    n = (int)strlen(z);
  }
  va_start(ap, zFormat);
  sqlite3_vsnprintf((int)sizeof(z)-n, z+n, zFormat, ap);
  va_end(ap);
  if( p ) memcpy(p->zErr, z, sizeof(z));
  haSetLastError(z);
  sqlite3_log(rc, "%s", z);
  return rc;
}

/* ---- the node ---- */

/*
** A series is a run of attempts with small gaps, as a busy handler makes
** them. Returns how long this attempt may wait for a node that does not
** answer: the whole series gets lock_timeout once. After that, one short
** attempt in HA_SERIES_RETRY_MS finds out when the node is back.
*/
static int seriesLeft(HaFile *p){
  u64 now = haClockMs();
  u64 budget = (u64)p->lockMs + HA_REPLY_GRACE_MS; /* seriesStart 0: spent */
  if( p->seriesLast==0 || now-p->seriesLast>HA_SERIES_GAP_MS ){
    p->seriesStart = now;
  }
  p->seriesLast = now;
  if( now-p->seriesStart<budget ){
    return (int)(budget-(now-p->seriesStart));
  }
  if( now-p->seriesTry<HA_SERIES_RETRY_MS ) return 0;
  p->seriesTry = now;
  return HA_SLICE_MS;
}

static void seriesEnd(HaFile *p){
  p->seriesLast = haClockMs();
}

/*
** OPEN on a fresh connection. Returns SQLITE_OK or the error, recorded.
*/
int haFileOpenLink(
  HaFile *p,
  int *pExists /* OUT: the database has its first page */
){
  char zNote[HA_ERROR_MAX];
  u32 epoch = 0;
  int rc = haLinkOpen(&p->link, p->zName, p->aId, p->linkFlags, p->lockMs,
                      p->commitMs, pExists, &epoch, zNote, sizeof(zNote));
  if( rc!=HA_OK ){
    int code = rc==HA_REFUSED ? p->link.errCode : SQLITE_CANTOPEN;
    haError(p, code, "the node at %s did not open it: %s", p->zSocket,
            p->link.zErr);
    haLinkClose(&p->link);
    return code;
  }
  if( p->pReal->pMethods==0 ){
    p->epoch = epoch;
  }else if( epoch!=p->epoch ){
    p->stale = 1; /* healed or replaced while this handle was open */
  }
  if( zNote[0] ) sqlite3_log(SQLITE_NOTICE, "hasqlite: database %s: %s",
                             p->zName, zNote);
  return SQLITE_OK;
}

/*
** Have a connection that belongs to this process. Reconnects after the node
** was restarted, and in a forked child. Returns SQLITE_OK or SQLITE_BUSY; or
** what the node said.
*/
int haFileConnect(HaFile *p){
  int rc, left, exists = 0;
  if( haLinkUsable(&p->link) ) return SQLITE_OK;
  left = seriesLeft(p);
  if( left==0 ){
    seriesEnd(p);
    return haError(p, SQLITE_BUSY, "the node at %s does not answer",
                   p->zSocket);
  }
  rc = haLinkConnect(&p->link, p->zSocket, left);
  if( rc==HA_OK ){
    rc = haFileOpenLink(p, &exists);
    if( rc==SQLITE_CANTOPEN && p->link.errCode==0 ) rc = SQLITE_BUSY;
  }else{
    haError(p, SQLITE_BUSY, "no connection to the node at %s: %s", p->zSocket,
            p->link.zErr);
    rc = SQLITE_BUSY;
  }
  seriesEnd(p);
  return rc;
}

/*
** The node's connection broke in the middle of a request that changes
** nothing: connect again, once. True if that worked. A node that was silent
** has used up the time of this series of attempts.
*/
int haFileReconnect(HaFile *p, int rcLink){
  if( rcLink!=HA_UNSENT && rcLink!=HA_LOST ) return 0;
  if( p->link.silent ){
    seriesEnd(p);
    p->seriesStart = 0;
    p->seriesTry = p->seriesLast;
    return 0;
  }
  return haFileConnect(p)==SQLITE_OK;
}

/* ---- write transactions ---- */

/*
** Put p on the list of writers, unless its connection already writes another
** replicated database: a WAL commit cannot span two files.
*/
static int writerEnter(HaFile *p){
  sqlite3 *db = p->ppDb ? *p->ppDb : 0;
  HaFile *q;
  sqlite3_mutex_enter(haMutex());
  for(q=pWriters; q; q=q->pNextWriter){
    if( db && q!=p && q->ppDb && *q->ppDb==db ) break;
  }
  if( q==0 ){
    p->pNextWriter = pWriters;
    pWriters = p;
  }
  sqlite3_mutex_leave(haMutex());
  if( q==0 ) return SQLITE_OK;
  return haError(p, SQLITE_ERROR,
    "this connection already writes the replicated database %s: one"
    " transaction can write only one replicated database. BEGIN IMMEDIATE"
    " writes every attached database: use BEGIN, or ATTACH the other one with"
    " ?mode=ro", q->zName);
}

static void writerLeave(HaFile *p){
  HaFile **pp;
  sqlite3_mutex_enter(haMutex());
  for(pp=&pWriters; *pp; pp=&(*pp)->pNextWriter){
    if( *pp==p ){
      *pp = p->pNextWriter;
      break;
    }
  }
  sqlite3_mutex_leave(haMutex());
}

/* True, with the error recorded, if this handle was overtaken by a heal. */
static int fileStale(HaFile *p){
  if( !p->stale && p->pShm && p->pShm[EPOCH_WORD]!=p->epoch ) p->stale = 1;
  if( !p->stale ) return 0;
  haError(p, SQLITE_IOERR, "it was healed, replaced or deleted while this"
          " handle was open: close the handle and open it again");
  return 1;
}

/*
** Get a grant for a write transaction.
*/
static int grantAsk(HaFile *p, HaPrint *pBase){
  int rc = haFileConnect(p);
  int rcLink;
  if( rc!=SQLITE_OK ) return rc;
  if( fileStale(p) ) return SQLITE_IOERR;
  rcLink = haLinkBegin(&p->link, p->lockMs+HA_REPLY_GRACE_MS, pBase);
  if( haFileReconnect(p, rcLink) ){
    if( fileStale(p) ) return SQLITE_IOERR;
    rcLink = haLinkBegin(&p->link, p->lockMs+HA_REPLY_GRACE_MS, pBase);
  }
  if( rcLink==HA_OK ) return SQLITE_OK;
  rc = rcLink==HA_REFUSED ? p->link.errCode : SQLITE_BUSY;
  return haError(p, rc, "the write transaction did not start: %s",
                 p->link.zErr);
}

/* Slot 0 is held and the wal-index header is that of the grant. */
static void writeBegun(HaFile *p, const u32 *aHdr){
  p->begun = 1;
  p->accepted = 0;
  p->wrote = 0;
  p->iChange = aHdr[2];
  haCaptureReset(p->pWal, haHeaderPageSize(aHdr));
}

/*
** Begin with the grant of the last transaction, if the node left it to this
** handle, its time is not over, and nothing was written since: then the node
** is told and not asked. True if that worked; else nothing has changed, and
** the node is to be asked.
*/
static int writeResume(HaFile *p){
  const sqlite3_io_methods *m = p->pReal->pMethods;
  HaPrint seen;
  u32 aHdr[12];
  u32 keepMs = p->link.keepMs;
  p->link.keepMs = 0; /* it serves once */
  if( keepMs==0 || !haLinkUsable(&p->link) ) return 0; /* I7 */
  if( p->stale || (p->pShm && p->pShm[EPOCH_WORD]!=p->epoch) ) return 0;
  if( m->xShmLock(p->pReal, 0, 1, SQLITE_SHM_LOCK|SQLITE_SHM_EXCLUSIVE) ){
    return 0;
  }
  if( haHeaderRead(p, aHdr) ){
    haPrintOf(aHdr, &seen);
    if( haPrintMatches(&seen, &p->kept)
     && haClockMs()-p->keptAt<keepMs
     && haLinkResume(&p->link)==HA_OK
    ){
      writeBegun(p, aHdr);
      return 1;
    }
  }
  m->xShmLock(p->pReal, 0, 1, SQLITE_SHM_UNLOCK|SQLITE_SHM_EXCLUSIVE);
  return 0;
}

/*
** Take slot 0 for a write transaction.
*/
static int writeBegin(HaFile *p){
  const sqlite3_io_methods *m = p->pReal->pMethods;
  HaPrint base, seen;
  u32 aHdr[12];
  int rc, i;
  rc = writerEnter(p);
  if( rc!=SQLITE_OK ) return rc;
  if( writeResume(p) ) return SQLITE_OK;
  rc = grantAsk(p, &base);
  if( rc!=SQLITE_OK ){
    writerLeave(p);
    return rc;
  }
  for(i=0; i<NATIVE_TRIES; i++){
    /* The node may hold the slot for a moment, to look at pages. */
    rc = m->xShmLock(p->pReal, 0, 1, SQLITE_SHM_LOCK|SQLITE_SHM_EXCLUSIVE);
    if( rc!=SQLITE_BUSY ) break;
    p->pVfs->xSleep(p->pVfs, NATIVE_PAUSE_US);
  }
  if( rc!=SQLITE_OK ){
    haLinkEnd(&p->link, HA_END_EMPTY, &base);
    writerLeave(p);
    return rc;
  }
  if( !haHeaderRead(p, aHdr) ){
    /* A writer died here. SQLite recovers when it starts again. */
    haLinkEnd(&p->link, HA_END_EMPTY, &base);
    rc = SQLITE_BUSY;
  }else{
    haPrintOf(aHdr, &seen);
    if( !haPrintMatches(&seen, &base) ){
      haLinkMismatch(&p->link, &seen);
      rc = haError(p, SQLITE_BUSY,
        "the files are not what the node granted (change %u pages %u frame %u,"
        " granted %u, %u, %u): another program may have written them",
        seen.iChange, seen.nPage, seen.mxFrame,
        base.iChange, base.nPage, base.mxFrame);
    }
  }
  if( rc!=SQLITE_OK ){
    m->xShmLock(p->pReal, 0, 1, SQLITE_SHM_UNLOCK|SQLITE_SHM_EXCLUSIVE);
    writerLeave(p);
    return rc;
  }
  writeBegun(p, aHdr);
  return SQLITE_OK;
}

/*
** The write transaction is over, slot 0 is still held: tell the node what
** became of it.
*/
static void writeEnd(HaFile *p){
  if( p->forkGen==haForkGeneration() && haLinkUsable(&p->link) ){ /* I7 */
    HaPrint seen;
    u32 aHdr[12];
    int flags = 0;
    int whole = haHeaderRead(p, aHdr);
    haPrintOf(aHdr, &seen);
    if( p->accepted ){
      flags |= HA_END_ACCEPTED;
      if( whole && seen.iChange!=p->iChange ) flags |= HA_END_PUBLISHED;
    }
    if( !p->wrote ) flags |= HA_END_EMPTY;
    if( (flags & HA_END_PUBLISHED)==0 ) p->link.keepMs = 0;
    p->kept = seen;
    p->keptAt = haClockMs();
    haLinkEnd(&p->link, flags, &seen);
  }
  writerLeave(p);
  haCaptureReset(p->pWal, 0);
  p->begun = 0;
  p->accepted = 0;
}

/* ---- read transactions ---- */

/*
** Before the first read lock of a read transaction.
*/
static int readBegin(HaFile *p){
  int rcLink, rc;
  if( fileStale(p) ) return SQLITE_IOERR;
  if( (p->linkFlags & HA_OPEN_LINEARIZABLE)==0 ) return SQLITE_OK; /* I6 */
  if( p->exclMask & SLOT_WRITE ) return SQLITE_OK;
  if( p->readToken ){
    p->readToken = 0; /* SQLite's retry after the wait */
    return SQLITE_OK;
  }
  rc = haFileConnect(p);
  if( rc==SQLITE_OK ){
    rcLink = haLinkRead(&p->link, p->lockMs+HA_REPLY_GRACE_MS);
    if( haFileReconnect(p, rcLink) ){
      rcLink = haLinkRead(&p->link, p->lockMs+HA_REPLY_GRACE_MS);
    }
    if( rcLink==HA_OK ) return fileStale(p) ? SQLITE_IOERR : SQLITE_OK;
    rc = rcLink==HA_REFUSED ? p->link.errCode : SQLITE_BUSY;
  }
  if( (rc&0xff)==SQLITE_BUSY ) rc = SQLITE_IOERR_LOCK; /* BUSY: spins inside */
  return haError(p, rc, "a linearizable read could not be confirmed: %s",
                 p->link.zErr);
}

/* ---- wal-index methods ---- */

/*
** A lock is taken.
*/
static int shmLock(HaFile *p, int ofst, int n, int flags){
  const sqlite3_io_methods *m = p->pReal->pMethods;
  u16 mask = (u16)(((1<<n)-1)<<ofst);
  int rc;
  if( (p->sharedMask|p->exclMask)==0 ){
    p->forkGen = haForkGeneration();
  }else if( p->forkGen!=haForkGeneration() ){ /* I7 */
    return haError(p, SQLITE_MISUSE,
      "a transaction was open when this process was forked: it is the parent's");
  }
  if( flags & SQLITE_SHM_SHARED ){
    int first = (mask & SLOTS_READ) && (p->sharedMask & SLOTS_READ)==0;
    if( first ){
      rc = readBegin(p);
      if( rc!=SQLITE_OK ) return rc;
    }
    rc = m->xShmLock(p->pReal, ofst, n, flags);
    if( rc==SQLITE_OK ){
      p->sharedMask |= mask;
      if( first ) p->readLocked = 1;
    }
    return rc;
  }
  if( ofst==1 && n==1 ){
    return SQLITE_BUSY; /* a checkpoint: the node's (I5) */
  }
  if( ofst==0 && n==1 ){
    u32 aHdr[12];
    if( (p->sharedMask & SLOTS_READ) || (p->blocking && haHeaderRead(p, aHdr)) ){
      rc = writeBegin(p);
      if( rc==SQLITE_OK ) p->exclMask |= mask;
      return rc;
    }
  }
  rc = m->xShmLock(p->pReal, ofst, n, flags);
  if( rc==SQLITE_OK && ofst==0 && n==1 && p->blocking ){
    /* The header was torn a moment ago and is whole now: another process was
    ** publishing. Either way SQLite looks again, and a write then asks for
    ** its grant. */
    u32 aHdr[12];
    if( haHeaderRead(p, aHdr) ){
      m->xShmLock(p->pReal, 0, 1, SQLITE_SHM_UNLOCK|SQLITE_SHM_EXCLUSIVE);
      return SQLITE_BUSY;
    }
  }
  if( rc==SQLITE_OK ) p->exclMask |= mask;
  return rc;
}

static int haShmLock(sqlite3_file *pFile, int ofst, int n, int flags){
  HaFile *p = (HaFile*)pFile;
  u16 mask;
  if( flags & SQLITE_SHM_LOCK ){
    int rc = shmLock(p, ofst, n, flags);
    p->blocking = 0;
    return rc;
  }
  mask = (u16)(((1<<n)-1)<<ofst);
  if( flags & SQLITE_SHM_SHARED ){
    p->sharedMask &= (u16)~mask;
  }else{
    if( p->begun && (mask & SLOT_WRITE) ) writeEnd(p);
    p->exclMask &= (u16)~mask;
  }
  return p->pReal->pMethods->xShmLock(p->pReal, ofst, n, flags);
}

static int haShmMap(
  sqlite3_file *pFile,
  int iRegion,
  int nByte,
  int bExtend,
  void volatile **pp
){
  HaFile *p = (HaFile*)pFile;
  int rc = p->pReal->pMethods->xShmMap(p->pReal, iRegion, nByte, bExtend, pp);
  p->blocking = 0;
  if( rc==SQLITE_OK && *pp ){
    if( iRegion==0 ) p->pShm = (volatile u32*)*pp;
    if( iRegion>=p->nShm ) p->nShm = iRegion+1;
  }else if( rc!=SQLITE_OK && p->accepted ){ /* I4 */
    rc = haError(p, SQLITE_IOERR_WRITE,
      "the transaction is committed in the cluster, but the wal-index could"
      " not be extended (error %d); the node completes it", rc);
  }
  return rc;
}

/*
** SQLite sets a barrier after it read the header and after it took a read
** lock. If the header changed in between, SQLite drops the lock and starts
** again; that second attempt must not wait for the node once more.
*/
static void haShmBarrier(sqlite3_file *pFile){
  HaFile *p = (HaFile*)pFile;
  p->pReal->pMethods->xShmBarrier(p->pReal);
  p->blocking = 0;
  if( (p->linkFlags & HA_OPEN_LINEARIZABLE) && p->pShm ){
    u32 aNow[12];
    int i;
    for(i=0; i<12; i++) aNow[i] = p->pShm[i];
    if( p->readLocked && memcmp(aNow, p->aBarrier, sizeof(aNow))!=0 ){
      p->readToken = 1;
    }
    p->readLocked = 0;
    memcpy(p->aBarrier, aNow, sizeof(aNow));
  }
}

static int haShmUnmap(sqlite3_file *pFile, int bDelete){
  HaFile *p = (HaFile*)pFile;
  p->pShm = 0;
  p->nShm = 0;
  return p->pReal->pMethods->xShmUnmap(p->pReal, bDelete);
}

/* ---- file methods ---- */

static int haClose(sqlite3_file *pFile){
  HaFile *p = (HaFile*)pFile;
  int rc = SQLITE_OK;
  if( p->begun ) writeEnd(p);
  if( p->pReal->pMethods ) rc = p->pReal->pMethods->xClose(p->pReal);
  haLinkClose(&p->link);
  sqlite3_free(p->zName);
  sqlite3_free(p->zSocket);
  p->base.pMethods = 0;
  return rc;
}

static int haRead(sqlite3_file *pFile, void *pBuf, int n, sqlite3_int64 iOfst){
  HaFile *p = (HaFile*)pFile;
  if( p->pReal->pMethods==0 ){
    memset(pBuf, 0, (size_t)n);
    return SQLITE_IOERR_SHORT_READ;
  }
  return p->pReal->pMethods->xRead(p->pReal, pBuf, n, iOfst);
}

static int haWrite(
  sqlite3_file *pFile,
  const void *pBuf,
  int n,
  sqlite3_int64 iOfst
){
  (void)pBuf;
  return haError((HaFile*)pFile, SQLITE_READONLY, "SQLite wrote %d bytes at"
    " offset %lld of the main file: that is the node's", n, iOfst);
}

static int haTruncate(sqlite3_file *pFile, sqlite3_int64 size){
  return haError((HaFile*)pFile, SQLITE_READONLY, "SQLite truncated the main"
    " file to %lld bytes: that is the node's", size);
}

static int haSync(sqlite3_file *pFile, int flags){
  HaFile *p = (HaFile*)pFile;
  if( p->pReal->pMethods==0 ) return SQLITE_OK;
  return p->pReal->pMethods->xSync(p->pReal, flags);
}

static int haFileSize(sqlite3_file *pFile, sqlite3_int64 *pSize){
  HaFile *p = (HaFile*)pFile;
  if( p->pReal->pMethods==0 ){
    *pSize = 0;
    return SQLITE_OK;
  }
  return p->pReal->pMethods->xFileSize(p->pReal, pSize);
}

static int haLock(sqlite3_file *pFile, int eLock){
  HaFile *p = (HaFile*)pFile;
  if( eLock>SQLITE_LOCK_SHARED ) return SQLITE_BUSY; /* I5 */
  if( p->pReal->pMethods==0 && eLock==SQLITE_LOCK_SHARED ){
    int rc = haFileCreate(p);
    if( rc!=SQLITE_OK ) return rc;
  }
  return p->pReal->pMethods->xLock(p->pReal, eLock);
}

static int haUnlock(sqlite3_file *pFile, int eLock){
  HaFile *p = (HaFile*)pFile;
  if( p->pReal->pMethods==0 ) return SQLITE_OK;
  return p->pReal->pMethods->xUnlock(p->pReal, eLock);
}

static int haCheckReservedLock(sqlite3_file *pFile, int *pOut){
  HaFile *p = (HaFile*)pFile;
  if( p->pReal->pMethods==0 ){
    *pOut = 0;
    return SQLITE_OK;
  }
  return p->pReal->pMethods->xCheckReservedLock(p->pReal, pOut);
}

/*
** SQLite hands over the connection when it opens a file. During sqlite3_open,
** and so for the main database, nobody can have set a busy handler yet, and a
** default one does no harm. A begin that had to wait needs one, because its
** snapshot is old by then.
*/
static void fileConnection(HaFile *p, sqlite3 **ppDb){
  p->ppDb = ppDb;
  if( *ppDb ){
    const char *zMain = sqlite3_db_filename(*ppDb, "main");
    if( zMain==0 || zMain==p->zPath ){
      sqlite3_busy_timeout(*ppDb, HA_BUSY_TIMEOUT_MS);
    }
  }
}

static int haFileControl(sqlite3_file *pFile, int op, void *pArg){
  HaFile *p = (HaFile*)pFile;
  switch( op ){
    case SQLITE_FCNTL_PRAGMA: {
      int rc = haFilePragma(p, (char**)pArg);
      if( rc!=SQLITE_NOTFOUND ) return rc;
      break;
    }
    case SQLITE_FCNTL_PDB:
      fileConnection(p, (sqlite3**)pArg);
      break;
    case SQLITE_FCNTL_LOCK_TIMEOUT:
      p->blocking = 1;
      break;
    case SQLITE_FCNTL_VFSNAME: {
      char *z = sqlite3_mprintf("hasqlite/%s", p->pVfs->zName);
      if( z==0 ) return SQLITE_NOMEM;
      *(char**)pArg = z;
      return SQLITE_OK;
    }
    case SQLITE_FCNTL_HAS_MOVED:
      if( p->pReal->pMethods==0 ){
        *(int*)pArg = 0;
        return SQLITE_OK;
      }
      break;
  }
  if( p->pReal->pMethods==0 ) return SQLITE_NOTFOUND;
  return p->pReal->pMethods->xFileControl(p->pReal, op, pArg);
}

static int haSectorSize(sqlite3_file *pFile){
  HaFile *p = (HaFile*)pFile;
  if( p->pReal->pMethods==0 ) return 4096;
  return p->pReal->pMethods->xSectorSize(p->pReal);
}

/*
** POWERSAFE_OVERWRITE keeps SQLite from padding a commit with copies of its
** last frame; SEQUENTIAL would take away the sync of a new WAL header.
*/
static int haDeviceCharacteristics(sqlite3_file *pFile){
  HaFile *p = (HaFile*)pFile;
  int flags = 0;
  if( p->pReal->pMethods ){
    flags = p->pReal->pMethods->xDeviceCharacteristics(p->pReal);
  }
  flags &= ~(SQLITE_IOCAP_SEQUENTIAL|SQLITE_IOCAP_IMMUTABLE);
  return flags | SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

/*
** No mapping of the main file is ever made: a reader that over-reads the end
** of its last page would be killed when another process truncates the file.
*/
static int haFetch(sqlite3_file *pFile, sqlite3_int64 iOfst, int n, void **pp){
  (void)pFile; (void)iOfst; (void)n;
  *pp = 0;
  return SQLITE_OK;
}

static int haUnfetch(sqlite3_file *pFile, sqlite3_int64 iOfst, void *pPage){
  (void)pFile; (void)iOfst; (void)pPage;
  return SQLITE_OK;
}

const sqlite3_io_methods haMainMethods = {
  3,
  haClose, haRead, haWrite, haTruncate, haSync, haFileSize, haLock, haUnlock,
  haCheckReservedLock, haFileControl, haSectorSize, haDeviceCharacteristics,
  haShmMap, haShmLock, haShmBarrier, haShmUnmap, haFetch, haUnfetch
};
