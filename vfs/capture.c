/*
** The WAL file of a replicated database.
**
** SQLite writes a transaction as frames: a 24-byte header and a page, two
** writes each. A frame that SQLite wrote earlier in the same transaction may
** be overwritten in place, data only; after a ROLLBACK TO the next frame takes
** an earlier place. The last frame of a commit is always appended, and its
** header alone has a database size: the commit frame. After it SQLite may
** rewrite headers whose checksums it had left zero.
**
** The commit frame's header is held back (I2). When its page comes, the page
** is written, which reserves its blocks; the wal-index region is mapped, which
** SQLite would do next; then the node is asked. After "accepted" only 24 bytes
** into reserved blocks are left to write.
**
** SQLite keeps no promise about the buffer of a page once its write returned,
** so the pages of the first frames are copied as they pass. Beyond
** capture_memory bytes of them only page numbers are kept, and pages are read
** back from the WAL when they are sent: what lies at a frame's place then is
** the newest image that was written there. The last page is sent from SQLite's
** own memory.
*/
#include "hasqlite.h"

#include <stdlib.h>

#define WAL_HEADER 32
#define FRAME_HEADER 24
#define SHM_REGION 32768
#define KEEP_DATA 262144 /* bytes of page copies kept between transactions */

/* Region of the wal-index that indexes a frame. */
static int regionOf(u32 frame){
  return (int)((frame + 33)/4096);
}

/*
** Forget what was captured: a transaction begins or ended, or the WAL was
** started anew.
*/
void haCaptureReset(
  HaWal *w,     /* may be 0: no WAL is open */
  u32 pageSize  /* of the frames to come, 0: as before */
){
  if( w==0 ) return;
  w->first = w->n = 0;
  w->heldFrame = w->doneFrame = 0;
  if( pageSize ) w->pageSize = pageSize;
  if( w->nData>KEEP_DATA ){
    sqlite3_free(w->aData);
    w->aData = 0;
    w->nData = 0;
  }
}

/* Free all memory of w. */
void haCaptureFree(HaWal *w){
  sqlite3_free(w->aPgno);
  sqlite3_free(w->aData);
  w->aPgno = 0;
  w->aData = 0;
  w->nAlloc = 0;
  w->nData = 0;
}

/* True if the page of frame index i is copied, not read back. */
static int isKept(const HaWal *w, u32 i){
  return ((u64)i+1)*w->pageSize<=w->pMain->keepBytes;
}

/* Make room for the page number of frame index i and, if bData, its page. */
static int captureRoom(HaWal *w, u32 i, int bData){
  if( i>=w->nAlloc ){
    u32 n = w->nAlloc ? w->nAlloc*2 : 16;
    u32 *a = sqlite3_realloc64(w->aPgno, (u64)n*sizeof(u32));
    if( a==0 ) return SQLITE_NOMEM;
    w->aPgno = a;
    w->nAlloc = n;
  }
  if( bData && ((u64)i+1)*w->pageSize>w->nData ){
    u64 n = w->nData ? w->nData*2 : (u64)w->pageSize*8;
    u8 *a;
    while( n<((u64)i+1)*w->pageSize ) n *= 2;
    a = sqlite3_realloc64(w->aData, n);
    if( a==0 ) return SQLITE_NOMEM;
    w->aData = a;
    w->nData = n;
  }
  return SQLITE_OK;
}

/*
** The error that a failed operation on the WAL may return: after "accepted"
** one and the same (I4), and never plain SQLITE_BUSY (I3).
*/
static int walError(HaWal *w, int rc){
  HaFile *p = w->pMain;
  if( rc==SQLITE_OK ) return rc;
  if( p->accepted && rc!=SQLITE_IOERR_WRITE ){
    return haError(p, SQLITE_IOERR_WRITE,
      "the transaction is committed in the cluster, but this process met error"
      " %d before it could see it; the node completes it", rc);
  }
  return rc==SQLITE_BUSY ? SQLITE_BUSY_SNAPSHOT : rc;
}

/* Refuse a transaction of more than the node's limit. */
static int tooLarge(HaWal *w, u64 nByte){
  return haError(w->pMain, SQLITE_FULL,
    "transaction of %lld bytes or more is over the node's limit of %lld bytes",
    (sqlite3_int64)nByte, (sqlite3_int64)w->pMain->link.maxTx);
}

/* One page of the transaction: number, and index of its frame. */
typedef struct Entry {
  u32 pgno;
  u32 i;
} Entry;

static int entryCompare(const void *pA, const void *pB){
  const Entry *a = pA, *b = pB;
  if( a->pgno!=b->pgno ) return a->pgno<b->pgno ? -1 : 1;
  return a->i<b->i ? -1 : 1;
}

/*
** List the transaction's final pages, ascending, without those that the
** database no longer has. Returns their number.
*/
static u32 listPages(
  HaWal *w,       /* n frames, the commit frame last */
  u32 dbSizePages,/* pages of the database after the commit */
  Entry *a        /* OUT: room for w->n */
){
  u32 i, n = 0;
  int sorted = 1;
  for(i=0; i<w->n; i++){
    if( w->aPgno[i]>dbSizePages ) continue;
    a[n].pgno = w->aPgno[i];
    a[n].i = i;
    if( n>0 && a[n-1].pgno>=a[n].pgno ) sorted = 0;
    n++;
  }
  if( !sorted ){
    u32 m = 0;
    qsort(a, n, sizeof(Entry), entryCompare);
    for(i=0; i<n; i++){
      if( i+1<n && a[i+1].pgno==a[i].pgno ) continue; /* the last one wins */
      a[m++] = a[i];
    }
    n = m;
  }
  return n;
}

/*
** What one message of a commit is put together in.
*/
typedef struct Message {
  u8 aFixed[12]; /* page size, pages of the database, pages in the message */
  HaBuf *aBuf;   /* room for the header, aFixed, and two for each page */
  u8 *aPgno;     /* page numbers as they are sent */
  u8 *aPage;     /* pages that were read back, 0: all are in memory */
} Message;

/*
** Point m at n pages of the transaction. Returns SQLITE_OK or why a page
** could not be read back.
*/
static int fillMessage(
  HaWal *w,
  Message *m,
  const Entry *a,     /* the pages */
  u32 n,
  const void *pLast   /* the commit frame's page */
){
  u32 i;
  haPut32(m->aFixed+8, n);
  m->aBuf[1].p = m->aFixed;
  m->aBuf[1].n = sizeof(m->aFixed);
  for(i=0; i<n; i++){
    HaBuf *b = &m->aBuf[2+2*(size_t)i];
    haPut32(&m->aPgno[4*(size_t)i], a[i].pgno);
    b[0].p = &m->aPgno[4*(size_t)i];
    b[0].n = 4;
    b[1].n = w->pageSize;
    if( a[i].i==w->n-1 ){
      b[1].p = pLast;
    }else if( isKept(w, a[i].i) ){
      b[1].p = w->aData + (u64)a[i].i*w->pageSize;
    }else{
      u8 *aPage = m->aPage + (u64)i*w->pageSize;
      u64 frame = (u64)w->first + a[i].i; /* counted from 1 */
      int rc = w->pReal->pMethods->xRead(w->pReal, aPage, (int)w->pageSize,
        (sqlite3_int64)(WAL_HEADER + frame*FRAME_HEADER
                        + (frame-1)*w->pageSize));
      if( rc!=SQLITE_OK ){
        return haError(w->pMain, rc,
          "page %u of the transaction cannot be read back from frame %lld of"
          " the WAL, error %d", a[i].pgno, (sqlite3_int64)frame, rc);
      }
      b[1].p = aPage;
    }
  }
  return SQLITE_OK;
}

/*
** Send the pages, in as many messages as they take, and wait for the verdict.
** *pRc is SQLITE_OK and the return value one of HA_OK, … ; or an error of this
** process kept the transaction from being sent.
*/
static int sendPages(
  HaWal *w,
  Message *m,
  const Entry *aEntry,
  u32 n,              /* pages in all */
  u32 nMax,           /* most in a message */
  const void *pLast,  /* the commit frame's page */
  int *pOutcome,      /* OUT: with HA_OK */
  int *pRc            /* OUT: error of this process */
){
  HaFile *p = w->pMain;
  u32 i = 0;
  for(;;){
    u32 k = n-i<nMax ? n-i : nMax;
    int nBuf = 2 + 2*(int)k;
    int rc;
    *pRc = fillMessage(w, m, &aEntry[i], k, pLast);
    if( *pRc!=SQLITE_OK ) return HA_UNSENT;
    if( i+k==n ){
      return haLinkCommit(&p->link, i==0, m->aBuf, nBuf, p->commitMs,
                          pOutcome);
    }
    rc = haLinkPiece(&p->link, i==0, m->aBuf, nBuf, p->commitMs, pOutcome);
    if( rc!=HA_MORE ) return rc;
    i += k;
  }
}

/*
** Send the captured transaction and wait for its verdict. Returns SQLITE_OK
** if it was accepted.
*/
static int proposeTransaction(
  HaWal *w,           /* holds the commit frame's header */
  const void *pLast   /* the commit frame's page */
){
  HaFile *p = w->pMain;
  u32 dbSizePages = haGetBe32(w->aHeld+4);
  u32 nMax = HA_PIECE_BYTES/w->pageSize;
  Message m;
  Entry *aEntry;
  u32 n;
  int rc, rcLocal = SQLITE_OK, outcome = HA_UNKNOWN;

  if( nMax>w->n ) nMax = w->n;
  aEntry = sqlite3_malloc64((u64)w->n*sizeof(Entry)
    + (2+2*(u64)nMax)*sizeof(HaBuf) + 4*(u64)nMax);
  if( aEntry==0 ) return SQLITE_NOMEM;
  m.aBuf = (HaBuf*)&aEntry[w->n];
  m.aPgno = (u8*)&m.aBuf[2 + 2*(size_t)nMax];
  m.aPage = 0;
  if( w->n>1 && !isKept(w, w->n-2) ){
    m.aPage = sqlite3_malloc64((u64)nMax*w->pageSize);
    if( m.aPage==0 ){
      sqlite3_free(aEntry);
      return SQLITE_NOMEM;
    }
  }
  n = listPages(w, dbSizePages, aEntry);
  haPut32(m.aFixed, w->pageSize);
  haPut32(m.aFixed+4, dbSizePages);
  if( (u64)n*w->pageSize>p->link.maxTx ){
    rcLocal = tooLarge(w, (u64)n*w->pageSize);
    rc = HA_UNSENT;
  }else if( !haLinkUsable(&p->link) ){
    rc = HA_UNSENT;
    sqlite3_snprintf(sizeof(p->link.zErr), p->link.zErr,
                     "the connection to the node is gone");
  }else{
    rc = sendPages(w, &m, aEntry, n, nMax, pLast, &outcome, &rcLocal);
  }
  sqlite3_free(m.aPage);
  sqlite3_free(aEntry);

  if( rcLocal!=SQLITE_OK ) return rcLocal;
  if( rc==HA_OK && outcome==HA_ACCEPTED ) return SQLITE_OK;
  if( rc==HA_UNSENT || (rc==HA_OK && outcome==HA_NOT_COMMITTED) ){
    return haError(p, SQLITE_BUSY_SNAPSHOT,
      "commit refused, nothing was written: %s", p->link.zErr);
  }
  if( rc==HA_REFUSED
   && (p->link.errCode==SQLITE_FULL || p->link.errCode==SQLITE_READONLY)
  ){
    return haError(p, p->link.errCode,
      "commit refused, nothing was written: %s", p->link.zErr);
  }
  return haError(p, SQLITE_IOERR_WRITE,
    "the outcome of the commit is unknown, it may be found committed: %s",
    p->link.zErr);
}

/*
** Do all that could fail after the verdict: write the commit frame's page,
** which reserves its blocks, and map the regions of the wal-index that
** SQLite is about to fill.
*/
static int reserveCommit(
  HaWal *w,           /* holds the commit frame's header */
  const void *pPage,  /* its page */
  sqlite3_int64 iOfst /* where that goes */
){
  HaFile *p = w->pMain;
  int i;
  for(i=regionOf(w->heldFrame); i<=regionOf(w->heldFrame+1); i++){
    void volatile *pRegion = 0;
    int rc;
    if( i<p->nShm ) continue;
    rc = p->pReal->pMethods->xShmMap(p->pReal, i, SHM_REGION, 1, &pRegion);
    if( rc!=SQLITE_OK ) return rc;
    p->nShm = i+1;
  }
  return w->pReal->pMethods->xWrite(w->pReal, pPage, (int)w->pageSize, iOfst);
}

/*
** The commit frame's page arrived: have the cluster commit.
*/
static int commitFrame(
  HaWal *w,           /* holds its header */
  const void *pPage,  /* the page */
  sqlite3_int64 iOfst /* where that goes */
){
  HaFile *p = w->pMain;
  int rc = reserveCommit(w, pPage, iOfst);
  if( rc==SQLITE_OK ) rc = proposeTransaction(w, pPage);
  if( rc!=SQLITE_OK ){
    w->n = w->heldFrame - w->first;
    w->heldFrame = 0;
    return walError(w, rc);
  }
  p->accepted = 1;
  w->doneFrame = w->heldFrame;
  rc = w->pReal->pMethods->xWrite(w->pReal, w->aHeld, FRAME_HEADER,
                                  iOfst-FRAME_HEADER);
  return walError(w, rc);
}

/*
** A frame's header arrived: track the frame. The commit frame's is held.
*/
static int frameHeader(
  HaWal *w,
  u32 frame,           /* its number */
  const u8 *aHeader,   /* the header */
  sqlite3_int64 iOfst  /* where it goes */
){
  HaFile *p = w->pMain;
  u32 n;
  int rc;
  if( w->doneFrame==0 ){
    if( w->n==0 ) w->first = frame;
    if( frame<w->first || frame>w->first+w->n ){
      return haError(p, SQLITE_IOERR_WRITE,
        "SQLite wrote frame %u of a transaction of frames %u to %u",
        frame, w->first, w->first+w->n-1);
    }
    n = frame - w->first; /* less than before: a ROLLBACK TO */
    if( (u64)n*w->pageSize>p->link.maxTx ){
      return tooLarge(w, (u64)n*w->pageSize);
    }
    rc = captureRoom(w, n, 0);
    if( rc!=SQLITE_OK ) return rc;
    w->aPgno[n] = haGetBe32(aHeader);
    w->n = n+1;
    if( haGetBe32(aHeader+4)!=0 ){
      memcpy(w->aHeld, aHeader, FRAME_HEADER);
      w->heldFrame = frame;
      return SQLITE_OK;
    }
  }
  rc = w->pReal->pMethods->xWrite(w->pReal, aHeader, FRAME_HEADER, iOfst);
  return walError(w, rc);
}

/*
** A frame's page arrived, for a new frame or in place of an older image.
*/
static int framePage(
  HaWal *w,
  u32 frame,           /* its number */
  const void *pPage,   /* the page */
  sqlite3_int64 iOfst  /* where it goes */
){
  int rc;
  if( frame==w->heldFrame && w->doneFrame==0 ){
    return commitFrame(w, pPage, iOfst);
  }
  if( w->doneFrame || frame<w->first || frame>=w->first+w->n ){
    return walError(w, haError(w->pMain, SQLITE_IOERR_WRITE,
      "SQLite wrote the page of frame %u outside the transaction", frame));
  }
  if( isKept(w, frame-w->first) ){
    rc = captureRoom(w, frame-w->first, 1);
    if( rc!=SQLITE_OK ) return rc;
    memcpy(w->aData + (u64)(frame-w->first)*w->pageSize, pPage, w->pageSize);
  }
  rc = w->pReal->pMethods->xWrite(w->pReal, pPage, (int)w->pageSize, iOfst);
  return walError(w, rc);
}

/* ---- io methods ---- */

static int walClose(sqlite3_file *pFile){
  HaWal *w = (HaWal*)pFile;
  int rc = SQLITE_OK;
  if( w->pReal->pMethods ) rc = w->pReal->pMethods->xClose(w->pReal);
  if( w->pMain->pWal==w ) w->pMain->pWal = 0;
  haCaptureFree(w);
  w->base.pMethods = 0;
  return rc;
}

static int walRead(sqlite3_file *pFile, void *pBuf, int n, sqlite3_int64 i){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xRead(w->pReal, pBuf, n, i);
}

static int walWrite(
  sqlite3_file *pFile,
  const void *pBuf,
  int nByte,
  sqlite3_int64 iOfst
){
  HaWal *w = (HaWal*)pFile;
  HaFile *p = w->pMain;
  u64 frameSize, in;
  u32 frame;
  if( p->forkGen!=haForkGeneration() ){ /* I7 */
    return haError(p, SQLITE_IOERR_WRITE,
      "this transaction was begun by the parent process before a fork");
  }
  if( !p->begun ){ /* I1 */
    return walError(w, haError(p, SQLITE_BUSY_SNAPSHOT,
      "write without a grant of the node; start the transaction again"));
  }
  p->wrote = 1;
  if( iOfst==0 && nByte==WAL_HEADER ){
    haCaptureReset(w, haGetBe32((const u8*)pBuf+8));
    w->headerLast = 1;
    return walError(w,
      w->pReal->pMethods->xWrite(w->pReal, pBuf, nByte, iOfst));
  }
  w->headerLast = 0;
  frameSize = (u64)w->pageSize + FRAME_HEADER;
  if( w->pageSize>=512 && iOfst>=WAL_HEADER ){
    frame = (u32)((u64)(iOfst-WAL_HEADER)/frameSize) + 1;
    in = (u64)(iOfst-WAL_HEADER)%frameSize;
    if( in==0 && nByte==FRAME_HEADER ){
      return frameHeader(w, frame, pBuf, iOfst);
    }
    if( in==FRAME_HEADER && (u32)nByte==w->pageSize ){
      return framePage(w, frame, pBuf, iOfst);
    }
  }
  return walError(w, haError(p, SQLITE_IOERR_WRITE,
    "SQLite wrote %d bytes at offset %lld of the WAL, which is no frame of"
    " %u-byte pages", nByte, iOfst, w->pageSize));
}

static int walTruncate(sqlite3_file *pFile, sqlite3_int64 size){
  HaWal *w = (HaWal*)pFile;
  if( !w->pMain->begun || w->pMain->forkGen!=haForkGeneration() ){
    return haError(w->pMain, SQLITE_IOERR_TRUNCATE,
                   "the WAL is truncated by the node only");
  }
  return walError(w, w->pReal->pMethods->xTruncate(w->pReal, size));
}

/*
** The sync of a commit is left out: the cluster's log made it durable. The
** sync of a WAL header stays: without it, power loss could bring frames of the
** WAL's former generation back to life.
*/
static int walSync(sqlite3_file *pFile, int flags){
  HaWal *w = (HaWal*)pFile;
  HaFile *p = w->pMain;
  if( (p->exclMask & 3)==1 && !w->headerLast ) return SQLITE_OK;
  return walError(w, w->pReal->pMethods->xSync(w->pReal, flags));
}

static int walFileSize(sqlite3_file *pFile, sqlite3_int64 *pSize){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xFileSize(w->pReal, pSize);
}

static int walLock(sqlite3_file *pFile, int eLock){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xLock(w->pReal, eLock);
}

static int walUnlock(sqlite3_file *pFile, int eLock){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xUnlock(w->pReal, eLock);
}

static int walCheckReservedLock(sqlite3_file *pFile, int *pOut){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xCheckReservedLock(w->pReal, pOut);
}

static int walFileControl(sqlite3_file *pFile, int op, void *pArg){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xFileControl(w->pReal, op, pArg);
}

static int walSectorSize(sqlite3_file *pFile){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xSectorSize(w->pReal);
}

static int walDeviceCharacteristics(sqlite3_file *pFile){
  HaWal *w = (HaWal*)pFile;
  return w->pReal->pMethods->xDeviceCharacteristics(w->pReal);
}

const sqlite3_io_methods haWalMethods = {
  1,
  walClose, walRead, walWrite, walTruncate, walSync, walFileSize, walLock,
  walUnlock, walCheckReservedLock, walFileControl, walSectorSize,
  walDeviceCharacteristics,
  0, 0, 0, 0, 0, 0
};
