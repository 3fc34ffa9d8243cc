/*
** The messages of docs/protocol.md, as the application's end sends them.
**
** At most one request is outstanding on a connection. Whenever an answer
** cannot be trusted any more (end of file, a timeout, bytes that make no
** sense) the connection is closed: nothing is ever read from it again.
*/
#include "hasqlite.h"

#define HEADER_SIZE 12

void haPut32(u8 *a, u32 v){
  a[0] = (u8)v; a[1] = (u8)(v>>8); a[2] = (u8)(v>>16); a[3] = (u8)(v>>24);
}

static u32 get32(const u8 *a){
  return (u32)a[0] | (u32)a[1]<<8 | (u32)a[2]<<16 | (u32)a[3]<<24;
}

u32 haGetBe32(const u8 *a){
  return (u32)a[0]<<24 | (u32)a[1]<<16 | (u32)a[2]<<8 | (u32)a[3];
}

static void put16(u8 *a, u32 v){
  a[0] = (u8)v; a[1] = (u8)(v>>8);
}

/* ---- replies ---- */

static const u8 *replyTake(HaReply *r, u32 n){
  const u8 *a;
  if( r->bad || r->n - r->i < n ){
    r->bad = 1;
    return 0;
  }
  a = r->a + r->i;
  r->i += n;
  return a;
}

static u32 replyU8(HaReply *r){
  const u8 *a = replyTake(r, 1);
  return a ? a[0] : 0;
}

static u32 replyU16(HaReply *r){
  const u8 *a = replyTake(r, 2);
  return a ? (u32)a[0] | (u32)a[1]<<8 : 0;
}

static u32 replyU32(HaReply *r){
  const u8 *a = replyTake(r, 4);
  return a ? get32(a) : 0;
}

static u64 replyU64(HaReply *r){
  u64 low = replyU32(r);
  return low | (u64)replyU32(r)<<32;
}

/*
** Copy a string to zOut and end it with a zero byte. What does not fit or
** holds a zero byte makes the reply bad, or is cut if bCut is set.
*/
static void replyText(HaReply *r, char *zOut, u32 nOut, int bCut){
  const u8 *aLen = replyTake(r, 2);
  u32 n = aLen ? (u32)aLen[0] | (u32)aLen[1]<<8 : 0;
  const u8 *a = replyTake(r, n);
  zOut[0] = 0;
  if( a==0 ) return;
  if( !bCut && (n>=nOut || memchr(a, 0, n)!=0) ){
    r->bad = 1;
    return;
  }
  if( n>=nOut ) n = nOut-1;
  memcpy(zOut, a, n);
  zOut[n] = 0;
}

static void replyPrint(HaReply *r, HaPrint *p){
  p->iChange = replyU32(r);
  p->nPage = replyU32(r);
  p->aSalt[0] = replyU32(r);
  p->aSalt[1] = replyU32(r);
  p->mxFrame = replyU32(r);
  p->aCksum[0] = replyU32(r);
  p->aCksum[1] = replyU32(r);
}

static void replyFree(HaReply *r){
  if( r->a!=r->aSmall ) sqlite3_free(r->a);
  r->a = r->aSmall;
  r->n = 0;
}

/* ---- the connection ---- */

void haLinkInit(HaLink *p){
  memset(p, 0, sizeof(*p));
  p->sock = HA_NO_SOCKET;
}

/*
** Close the connection. In a forked child this closes the child's copy of the
** descriptor only: the parent's connection stays as it is (I7).
*/
void haLinkClose(HaLink *p){
  haSockClose(p->sock);
  p->sock = HA_NO_SOCKET;
  p->keepMs = 0;
  p->nIn = p->iIn = 0;
}

/* True if p is connected and belongs to this process. */
int haLinkUsable(const HaLink *p){
  return p->sock!=HA_NO_SOCKET && p->pid==haProcessId();
}

static int linkFail(HaLink *p, int rc, const char *zWhy){
  sqlite3_snprintf(sizeof(p->zErr), p->zErr, "%s", zWhy);
  p->errCode = 0;
  haLinkClose(p);
  return rc;
}

/*
** Receive exactly n bytes to pOut. *pLeftMs is what remains of the time to
** wait; it is only charged while nothing arrives. Returns 0, or the reason.
*/
static const char *linkReceive(HaLink *p, u8 *pOut, u32 n, int *pLeftMs){
  while( n>0 ){
    int got;
    if( p->iIn<p->nIn ){
      u32 have = (u32)(p->nIn - p->iIn);
      if( have>n ) have = n;
      memcpy(pOut, p->aIn + p->iIn, have);
      p->iIn += (int)have;
      pOut += have;
      n -= have;
      continue;
    }
    got = haSockRecv(p->sock, p->aIn, (int)sizeof(p->aIn));
    if( got>0 ){
      p->iIn = 0;
      p->nIn = got;
    }else if( got==HA_SOCK_SLICE ){
      *pLeftMs -= HA_SLICE_MS;
      if( *pLeftMs<=0 ){
        p->silent = 1;
        return "the node did not answer in time";
      }
    }else{
      return "the node closed the connection";
    }
  }
  return 0;
}

/*
** Send one message without waiting for an answer. Returns HA_OK or HA_UNSENT.
*/
static int linkSend(
  HaLink *p,        /* the connection */
  int type,         /* HA_… */
  u8 *aHead,        /* 12 bytes for the header, then nHead bytes of payload */
  u32 nHead,        /* bytes of payload behind the header */
  HaBuf *aBuf,      /* more payload; aBuf[0] is free for the header */
  int nBuf,         /* pieces in aBuf, 0: none, and no aBuf */
  int timeoutMs     /* longest time in which the node takes nothing */
){
  HaBuf one;
  HaBuf *a = nBuf>0 ? aBuf : &one;
  u32 nPayload = nHead;
  int i;
  for(i=1; i<nBuf; i++) nPayload += aBuf[i].n;
  haPut32(aHead, nPayload);
  aHead[4] = (u8)type;
  aHead[5] = aHead[6] = aHead[7] = 0;
  if( type!=HA_PIECE && type!=HA_COMMIT ) p->sequence++;
  haPut32(aHead+8, p->sequence);
  a[0].p = aHead;
  a[0].n = HEADER_SIZE + nHead;
  if( haSockSend(p->sock, a, nBuf>0 ? nBuf : 1, timeoutMs) ){
    return linkFail(p, HA_UNSENT, "the connection to the node is broken");
  }
  return HA_OK;
}

/*
** Wait for the answer of the last request, of the given type. PROGRESS starts
** the time anew. Any other outcome than HA_OK leaves r empty.
**
** With bMore set more of the request is to be sent: where no answer has begun
** to arrive, HA_MORE is returned at once.
*/
static int linkAnswer(
  HaLink *p, int type, int timeoutMs, int bMore,
  HaReply *r
){
  u8 aHead[HEADER_SIZE];
  const char *zWhy;
  int left = timeoutMs;
  r->a = r->aSmall;
  r->n = r->i = 0;
  r->bad = 0;
  for(;;){
    if( bMore && p->iIn==p->nIn && !haSockReady(p->sock) ) return HA_MORE;
    if( (zWhy = linkReceive(p, aHead, HEADER_SIZE, &left))!=0 ){
      return linkFail(p, HA_LOST, zWhy);
    }
    r->n = get32(aHead);
    if( r->n>HA_REPLY_MAX || aHead[5] || aHead[6] || aHead[7] ){
      return linkFail(p, HA_LOST, "the node sent a malformed frame");
    }
    if( aHead[4]!=HA_PROGRESS ) break;
    if( r->n!=0 || (type!=HA_VERDICT && type!=HA_PAST_FILE) ){
      return linkFail(p, HA_LOST, "the node sent a misplaced PROGRESS");
    }
    left = timeoutMs;
  }
  if( r->n>sizeof(r->aSmall) ){
    r->a = sqlite3_malloc64(r->n);
    if( r->a==0 ){
      r->a = r->aSmall;
      return linkFail(p, HA_LOST, "out of memory");
    }
  }
  zWhy = linkReceive(p, r->a, r->n, &left);
  if( zWhy==0 && aHead[4]==HA_ERROR ){
    p->errCode = (int)replyU32(r);
    replyText(r, p->zErr, sizeof(p->zErr), 1);
    if( p->errCode<=0 || r->bad || r->i!=r->n ){
      zWhy = "the node sent a malformed ERROR";
    }else{
      replyFree(r);
      return HA_REFUSED;
    }
  }
  if( zWhy==0 && (aHead[4]!=type || get32(aHead+8)!=p->sequence) ){
    zWhy = "the node sent another answer than was asked for";
  }
  if( zWhy ){
    replyFree(r);
    return linkFail(p, HA_LOST, zWhy);
  }
  return HA_OK;
}

/*
** Close r. Returns rc, or HA_LOST if r was not what its type promises.
*/
static int linkDone(HaLink *p, HaReply *r, int rc){
  int bad = rc==HA_OK && (r->bad || r->i!=r->n);
  replyFree(r);
  return bad ? linkFail(p, HA_LOST, "the node sent a malformed answer") : rc;
}

/* Send a small request and wait for its answer. */
static int linkCall(
  HaLink *p, int type, u8 *aHead, u32 nHead, int answer, int timeoutMs,
  HaReply *r
){
  int rc = linkSend(p, type, aHead, nHead, 0, 0, HA_REPLY_GRACE_MS);
  r->a = r->aSmall;
  r->n = r->i = 0;
  r->bad = 0;
  return rc==HA_OK ? linkAnswer(p, answer, timeoutMs, 0, r) : rc;
}

/* Append a string to a; returns the bytes written. */
static u32 putText(u8 *a, const char *z){
  u32 n = (u32)strlen(z);
  put16(a, n);
  memcpy(a+2, z, n);
  return n+2;
}

/*
** Connect once and exchange greetings. Returns HA_OK, HA_UNSENT if nobody
** listens, HA_REFUSED or HA_LOST.
*/
int haLinkConnect(
  HaLink *p,           /* closed first, if it is connected */
  const char *zSocket, /* socket of the node */
  int timeoutMs        /* how long the greeting may take */
){
  u8 a[HEADER_SIZE+8+2*(2+64)];
  HaReply r;
  char zNode[HA_NAME_MAX+1];
  u32 n;
  int rc;
  haLinkClose(p);
  p->errCode = 0;
  p->silent = 0;
  if( haSockConnect(zSocket, &p->sock, p->zErr, sizeof(p->zErr)) ){
    p->sock = HA_NO_SOCKET;
    return HA_UNSENT;
  }
  p->pid = haProcessId();
  haPut32(a+HEADER_SIZE, HA_PROTOCOL_VERSION);
  haPut32(a+HEADER_SIZE+4, p->pid);
  n = 8;
  n += putText(a+HEADER_SIZE+n, haClientName());
  n += putText(a+HEADER_SIZE+n, sqlite3_libversion());
  rc = linkCall(p, HA_HELLO, a, n, HA_WELCOME, timeoutMs, &r);
  if( rc==HA_OK ){
    u32 version = replyU32(&r);
    replyText(&r, zNode, sizeof(zNode), 1);
    replyTake(&r, 16);
    p->maxTx = replyU64(&r);
    if( version!=HA_PROTOCOL_VERSION ) r.bad = 1;
  }
  rc = linkDone(p, &r, rc);
  if( rc==HA_REFUSED ) haLinkClose(p);
  return rc;
}

/*
** Connect, trying again for timeoutMs while nobody listens.
*/
int haLinkConnectWithin(HaLink *p, const char *zSocket, int timeoutMs){
  u64 end = haClockMs() + (u64)timeoutMs;
  for(;;){
    u64 now = haClockMs();
    int left = now<end ? (int)(end-now) : 0;
    int rc = haLinkConnect(p, zSocket, left<HA_SLICE_MS ? HA_SLICE_MS : left);
    if( rc==HA_OK || rc==HA_REFUSED || haClockMs()>=end ) return rc;
    sqlite3_sleep(20);
  }
}

/* ---- requests ---- */

/*
** Ask which file holds the database zName.
*/
int haLinkResolve(
  HaLink *p, const char *zName, int timeoutMs,
  int *pExists, /* OUT: it has a first page */
  u8 *aId,      /* OUT: its 16-byte id */
  char *zPath,  /* OUT: absolute path of its file */
  int nPath     /* bytes in zPath */
){
  u8 a[HEADER_SIZE+2+HA_NAME_MAX];
  HaReply r;
  u32 n = putText(a+HEADER_SIZE, zName);
  int rc = linkCall(p, HA_RESOLVE, a, n, HA_RESOLVED, timeoutMs, &r);
  if( rc==HA_OK ){
    const u8 *aGot;
    *pExists = (int)replyU8(&r);
    aGot = replyTake(&r, 16);
    if( aGot ) memcpy(aId, aGot, 16);
    replyText(&r, zPath, (u32)nPath, 0);
    if( zPath[0]==0 ) r.bad = 1;
  }
  return linkDone(p, &r, rc);
}

/*
** Ask for a file with a database as it was. The node keeps it as long as the
** connection lives.
*/
int haLinkPast(
  HaLink *p, const char *zName,
  const char *zAt, /* a time, or empty */
  const char *zTo, /* a bookmark, or empty */
  int timeoutMs,   /* longest time without a sign of progress */
  char *zPath,     /* OUT: absolute path of the file */
  int nPath,       /* bytes in zPath */
  char *zMark,     /* OUT: bookmark of the commit that was chosen */
  int nMark,       /* bytes in zMark */
  char *zNote,     /* OUT: a remark, or empty */
  int nNote        /* bytes in zNote */
){
  u8 a[HEADER_SIZE+3*(2+HA_NAME_MAX)];
  HaReply r;
  u32 n;
  int rc;
  if( strlen(zAt)>HA_NAME_MAX || strlen(zTo)>HA_NAME_MAX ){
    p->errCode = SQLITE_CANTOPEN;
    sqlite3_snprintf(sizeof(p->zErr), p->zErr, "at= or to= is too long");
    return HA_REFUSED;
  }
  n = putText(a+HEADER_SIZE, zName);
  n += putText(a+HEADER_SIZE+n, zAt);
  n += putText(a+HEADER_SIZE+n, zTo);
  rc = linkCall(p, HA_PAST, a, n, HA_PAST_FILE, timeoutMs, &r);
  if( rc==HA_OK ){
    replyText(&r, zPath, (u32)nPath, 0);
    replyText(&r, zMark, (u32)nMark, 0);
    replyText(&r, zNote, (u32)nNote, 1);
    if( zPath[0]==0 ) r.bad = 1;
  }
  return linkDone(p, &r, rc);
}

/*
** Make the connection this process's handle on a database.
*/
int haLinkOpen(
  HaLink *p, const char *zName, const u8 *aId,
  int flags,    /* HA_OPEN_… */
  int lockMs,   /* lock_timeout */
  int commitMs, /* commit_timeout */
  int *pExists, /* OUT: it has a first page */
  u32 *pEpoch,  /* OUT: the epoch word to read under */
  char *zNote,  /* OUT: a remark, or empty */
  int nNote     /* bytes in zNote */
){
  u8 a[HEADER_SIZE+2+HA_NAME_MAX+16+9];
  HaReply r;
  u32 n = putText(a+HEADER_SIZE, zName);
  int rc;
  memcpy(a+HEADER_SIZE+n, aId, 16);
  n += 16;
  a[HEADER_SIZE+n++] = (u8)flags;
  haPut32(a+HEADER_SIZE+n, (u32)lockMs);
  haPut32(a+HEADER_SIZE+n+4, (u32)commitMs);
  n += 8;
  rc = linkCall(p, HA_OPEN, a, n, HA_OPENED, lockMs+HA_REPLY_GRACE_MS, &r);
  if( rc==HA_OK ){
    *pExists = (int)replyU8(&r);
    *pEpoch = replyU32(&r);
    replyU32(&r); /* file mode: the node makes the files */
    p->maxTx = replyU64(&r); /* of this database: at most that of WELCOME */
    replyText(&r, zNote, (u32)nNote, 1);
  }
  return linkDone(p, &r, rc);
}

/*
** Have the node make the first page of the database.
*/
int haLinkCreate(
  HaLink *p, u32 pageSize, u8 autoVacuum, int timeoutMs,
  u32 *pEpoch /* OUT: the epoch word to read under */
){
  u8 a[HEADER_SIZE+5];
  HaReply r;
  int rc;
  haPut32(a+HEADER_SIZE, pageSize);
  a[HEADER_SIZE+4] = autoVacuum;
  rc = linkCall(p, HA_CREATE, a, 5, HA_CREATED, timeoutMs, &r);
  if( rc==HA_OK ){
    replyU32(&r); /* its page size: SQLite reads it from the file */
    *pEpoch = replyU32(&r);
  }
  return linkDone(p, &r, rc);
}

/*
** Ask for the right to write one transaction.
*/
int haLinkBegin(
  HaLink *p, int timeoutMs,
  HaPrint *pBase /* OUT: the state that it must be written on */
){
  u8 a[HEADER_SIZE+1];
  HaReply r;
  int rc;
  a[HEADER_SIZE] = 0;
  rc = linkCall(p, HA_BEGIN, a, 1, HA_GRANT, timeoutMs, &r);
  if( rc==HA_OK ){
    replyTake(&r, 16); /* TXID and checksum are the node's business */
    replyPrint(&r, pBase);
  }
  return linkDone(p, &r, rc);
}

/*
** Tell the node that a transaction has begun with the grant of the last one.
** There is no answer.
*/
int haLinkResume(HaLink *p){
  u8 a[HEADER_SIZE+1];
  a[HEADER_SIZE] = HA_BEGIN_KEPT;
  return linkSend(p, HA_BEGIN, a, 1, 0, 0, HA_REPLY_GRACE_MS);
}

/* Send a message of a commit and look for the verdict, or wait for it. */
static int linkCommit(
  HaLink *p, int type, int first, HaBuf *aBuf, int nBuf, int timeoutMs,
  int *pOutcome
){
  u8 aHead[HEADER_SIZE];
  HaReply r;
  int rc;
  if( first ) p->sequence++;
  rc = linkSend(p, type, aHead, 0, aBuf, nBuf, timeoutMs);
  if( rc!=HA_OK ) return rc;
  rc = linkAnswer(p, HA_VERDICT, timeoutMs, type==HA_PIECE, &r);
  if( rc==HA_OK ){
    *pOutcome = (int)replyU8(&r);
    p->keepMs = replyU16(&r);
    replyText(&r, p->zErr, sizeof(p->zErr), 1);
    if( *pOutcome>HA_UNKNOWN ) r.bad = 1;
  }
  rc = linkDone(p, &r, rc);
  /* Without its last message no transaction is proposed. */
  if( type==HA_PIECE && rc==HA_LOST ) rc = HA_UNSENT;
  return rc;
}

/*
** Send some pages of a transaction that is not complete with them. Returns
** HA_MORE, or what haLinkCommit returns where the node has refused it already.
*/
int haLinkPiece(
  HaLink *p,
  int first,     /* no page was sent before */
  HaBuf *aBuf,   /* the payload, behind aBuf[0], which is free */
  int nBuf,      /* pieces in aBuf */
  int timeoutMs, /* longest time in which the node takes nothing */
  int *pOutcome  /* OUT: with HA_OK: HA_NOT_COMMITTED; zErr has the text */
){
  int rc = linkCommit(p, HA_PIECE, first, aBuf, nBuf, timeoutMs, pOutcome);
  if( rc==HA_OK && *pOutcome!=HA_NOT_COMMITTED ){
    return linkFail(p, HA_UNSENT, "the node decided on half a transaction");
  }
  return rc;
}

/*
** Send a transaction, or its last pages, and wait for the verdict.
*/
int haLinkCommit(
  HaLink *p,
  int first,     /* no page was sent before */
  HaBuf *aBuf,   /* the payload, behind aBuf[0], which is free */
  int nBuf,      /* pieces in aBuf */
  int timeoutMs, /* longest time without a sign of progress */
  int *pOutcome  /* OUT: with HA_OK: HA_ACCEPTED, …; zErr has the text */
){
  return linkCommit(p, HA_COMMIT, first, aBuf, nBuf, timeoutMs, pOutcome);
}

static void putPrint(u8 *a, const HaPrint *p){
  haPut32(a, p->iChange);
  haPut32(a+4, p->nPage);
  haPut32(a+8, p->aSalt[0]);
  haPut32(a+12, p->aSalt[1]);
  haPut32(a+16, p->mxFrame);
  haPut32(a+20, p->aCksum[0]);
  haPut32(a+24, p->aCksum[1]);
}

/* Tell how a write transaction ended. There is no answer. */
void haLinkEnd(HaLink *p, int flags, const HaPrint *pSeen){
  u8 a[HEADER_SIZE+29];
  a[HEADER_SIZE] = (u8)flags;
  putPrint(a+HEADER_SIZE+1, pSeen);
  linkSend(p, HA_END, a, 29, 0, 0, HA_REPLY_GRACE_MS);
}

/* Give a grant back: the files are not what it says. There is no answer. */
void haLinkMismatch(HaLink *p, const HaPrint *pSeen){
  u8 a[HEADER_SIZE+28];
  putPrint(a+HEADER_SIZE, pSeen);
  linkSend(p, HA_MISMATCH, a, 28, 0, 0, HA_REPLY_GRACE_MS);
}

/* Wait until a linearizable read may go on. */
int haLinkRead(HaLink *p, int timeoutMs){
  u8 a[HEADER_SIZE];
  HaReply r;
  int rc = linkCall(p, HA_READ, a, 0, HA_READY, timeoutMs, &r);
  return linkDone(p, &r, rc);
}

/*
** Have the node answer a PRAGMA.
*/
int haLinkPragma(
  HaLink *p, const char *zName, const char *zArg, int timeoutMs,
  char **pzText /* OUT: the answer, to be freed by sqlite3_free */
){
  u32 nName = (u32)strlen(zName), nArg = (u32)strlen(zArg), n;
  HaReply r;
  u8 *a;
  int rc;
  *pzText = 0;
  p->errCode = 0;
  if( nName>HA_NAME_MAX || nArg>4096 ){
    p->errCode = SQLITE_TOOBIG;
    sqlite3_snprintf(sizeof(p->zErr), p->zErr, "argument is too long");
    return HA_REFUSED;
  }
  a = sqlite3_malloc64(HEADER_SIZE + (u64)nName + nArg + 4);
  if( a==0 ){
    p->errCode = SQLITE_NOMEM;
    sqlite3_snprintf(sizeof(p->zErr), p->zErr, "out of memory");
    return HA_REFUSED;
  }
  n = putText(a+HEADER_SIZE, zName);
  n += putText(a+HEADER_SIZE+n, zArg);
  rc = linkCall(p, HA_PRAGMA, a, n, HA_TEXT, timeoutMs, &r);
  sqlite3_free(a);
  if( rc==HA_OK ){
    *pzText = sqlite3_malloc64((u64)r.n + 1);
    if( *pzText ) replyText(&r, *pzText, r.n+1, 1);
    else r.bad = 1;
  }
  rc = linkDone(p, &r, rc);
  if( rc!=HA_OK ){
    sqlite3_free(*pzText);
    *pzText = 0;
  }
  return rc;
}
