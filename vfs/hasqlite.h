/*
** The SQLite VFS "hasqlite": what the C files of this directory share.
**
**   transport.c   a byte stream to the node: the only code that knows sockets
**   link.c        the messages of docs/protocol.md over that stream
**   capture.c     the -wal file: collects a transaction, holds its commit frame
**   file.c        the main database file: locks, grants, creation, file control
**   header.c      the wal-index header, and the print of the files made of it
**   past.c        the main file of a database as it was, which never changes
**   pragma.c      the PRAGMAs that a replicated database answers itself
**   vfs.c         names, opening and the two VFS objects
**   hasqlite.c    registration, and the entry points of the loadable extension
**
** Invariants, referred to by number in the code:
**
**  I1  No frame of a replicated database is written without a grant for the
**      write transaction that holds slot 0 of the wal-index.
**  I2  The 24-byte header of a commit frame is written only after the node
**      said "accepted". Until then no reader and no recovery can see the
**      transaction, whatever became of its pages.
**  I3  SQLITE_BUSY (5) is never returned by a write, sync or truncate of the
**      WAL: SQLite would keep the transaction open on a broken checksum chain.
**  I4  From the accepted verdict until slot 0 is released every error on the
**      handle is SQLITE_IOERR_WRITE: the application must not take it for
**      refused.
**  I5  This process never checkpoints, never writes the main file and never
**      locks it above SHARED: those are the node's.
**  I6  A reader is never made to wait for the node, unless it asked for
**      linearizable reads.
**  I7  After a fork, the child sends nothing on the parent's connection and
**      writes nothing in a transaction that the parent began.
*/
#ifndef HASQLITE_H
#define HASQLITE_H

#ifdef HASQLITE_EXT
#include "sqlite3ext.h"
extern const sqlite3_api_routines *sqlite3_api;
#else
#include "sqlite3.h"
#endif

#include <stddef.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef sqlite3_uint64 u64;

#ifdef _WIN32
typedef u64 HaSocket;
#define HA_NO_SOCKET (~(HaSocket)0)
#define HA_DEFAULT_SOCKET "C:\\ProgramData\\hasqlite\\node.sock"
#else
typedef int HaSocket;
#define HA_NO_SOCKET (-1)
#define HA_DEFAULT_SOCKET "/run/hasqlite/node.sock"
#endif

#define HA_PROTOCOL_VERSION 1
#define HA_LOCK_TIMEOUT_MS 5000    /* default of URI parameter lock_timeout */
#define HA_COMMIT_TIMEOUT_MS 10000 /* default of URI parameter commit_timeout */
#define HA_REPLY_GRACE_MS 5000     /* a node may answer this much later */
#define HA_BUSY_TIMEOUT_MS 5000    /* for handles that set none themselves */
#define HA_SERIES_GAP_MS 250       /* attempts this close are one series */
#define HA_SERIES_RETRY_MS 1000    /* between attempts when its time is up */
#define HA_SLICE_MS 100            /* longest single wait in the kernel */
#define HA_ERROR_MAX 512           /* longest error text, end mark included */
#define HA_NAME_MAX 255            /* longest database name in bytes */
#define HA_REPLY_MAX 65536         /* longest payload that a node may send */
#define HA_PIECE_BYTES 524288      /* page bytes in one message of a commit */
#define HA_KEEP_BYTES 1048576      /* default of URI parameter capture_memory */

/* ---- transport.c ---- */

/* One piece of an outgoing message. */
typedef struct HaBuf {
  const void *p;
  u32 n;
} HaBuf;

#define HA_SOCK_LOST (-1)  /* the connection is of no further use */
#define HA_SOCK_SLICE (-2) /* nothing happened for HA_SLICE_MS */

int haSockConnect(const char *zPath, HaSocket *pSock, char *zErr, int nErr);
int haSockSend(HaSocket s, const HaBuf *aBuf, int nBuf, int timeoutMs);
int haSockRecv(HaSocket s, void *pBuf, int nBuf);
int haSockReady(HaSocket s);
void haSockClose(HaSocket s);
u32 haProcessId(void);
u64 haClockMs(void);
unsigned haForkGeneration(void);
void haForkInit(void);

/* ---- link.c ---- */

/* Types of messages, as in docs/protocol.md. */
enum {
  HA_HELLO = 1, HA_WELCOME = 2, HA_RESOLVE = 3, HA_RESOLVED = 4, HA_OPEN = 5,
  HA_OPENED = 6, HA_CREATE = 7, HA_CREATED = 8, HA_BEGIN = 9, HA_GRANT = 10,
  HA_COMMIT = 11, HA_VERDICT = 12, HA_PROGRESS = 13, HA_END = 14,
  HA_MISMATCH = 15, HA_READ = 16, HA_READY = 17, HA_PRAGMA = 18, HA_TEXT = 19,
  HA_PIECE = 20, HA_PAST = 21, HA_PAST_FILE = 22, HA_ERROR = 255
};

/* Flags of HA_OPEN, HA_BEGIN and HA_END. */
enum {
  HA_OPEN_READONLY = 1, HA_OPEN_CREATE = 2, HA_OPEN_LINEARIZABLE = 4,
  HA_BEGIN_KEPT = 1,
  HA_END_ACCEPTED = 1, HA_END_PUBLISHED = 2, HA_END_EMPTY = 4
};

/* What became of a request. */
enum {
  HA_OK = 0,      /* answered */
  HA_REFUSED = 1, /* answered by ERROR: HaLink.errCode and zErr say why */
  HA_UNSENT = 2,  /* the node certainly did not get all of it */
  HA_LOST = 3,    /* sent, and the answer will never come */
  HA_MORE = 4     /* a piece was sent, and no answer has come */
};

/* Outcomes in HA_VERDICT. */
enum { HA_ACCEPTED = 0, HA_NOT_COMMITTED = 1, HA_UNKNOWN = 2 };

/*
** The identity of a state of the files: words of the wal-index header.
*/
typedef struct HaPrint {
  u32 iChange;
  u32 nPage;
  u32 aSalt[2];
  u32 mxFrame;
  u32 aCksum[2];
} HaPrint;

/*
** A connection to the node. All zero but sock is "not connected".
*/
typedef struct HaLink {
  HaSocket sock;  /* HA_NO_SOCKET: not connected */
  u32 pid;        /* the process that connected (I7) */
  u32 sequence;   /* of the last request */
  u64 maxTx;      /* most page bytes in one transaction */
  u32 keepMs;     /* the last transaction's grant serves the next for so long */
  int errCode;    /* SQLite code of the last ERROR, or 0 */
  int silent;     /* the connection was given up because nothing came */
  int nIn;        /* bytes in aIn */
  int iIn;        /* of which this many are used */
  u8 aIn[512];    /* received */
  char zErr[HA_ERROR_MAX]; /* why the last call did not return HA_OK */
} HaLink;

/*
** A reply's payload, with a cursor. A read beyond the end sets bad.
*/
typedef struct HaReply {
  u8 *a;
  u32 n;
  u32 i;
  int bad;
  u8 aSmall[256]; /* where most replies fit */
} HaReply;

void haLinkInit(HaLink *p);
int haLinkConnect(HaLink *p, const char *zSocket, int timeoutMs);
int haLinkConnectWithin(HaLink *p, const char *zSocket, int timeoutMs);
int haLinkUsable(const HaLink *p);
void haLinkClose(HaLink *p);
int haLinkResolve(HaLink *p, const char *zName, int timeoutMs, int *pExists,
                  u8 *aId, char *zPath, int nPath);
int haLinkPast(HaLink *p, const char *zName, const char *zAt, const char *zTo,
               int timeoutMs, char *zPath, int nPath, char *zMark, int nMark,
               char *zNote, int nNote);
int haLinkOpen(HaLink *p, const char *zName, const u8 *aId, int flags,
               int lockMs, int commitMs, int *pExists, u32 *pEpoch,
               char *zNote, int nNote);
int haLinkCreate(HaLink *p, u32 pageSize, u8 autoVacuum, int timeoutMs,
                 u32 *pEpoch);
int haLinkBegin(HaLink *p, int timeoutMs, HaPrint *pBase);
int haLinkResume(HaLink *p);
int haLinkPiece(HaLink *p, int first, HaBuf *aBuf, int nBuf, int timeoutMs,
                int *pOutcome);
int haLinkCommit(HaLink *p, int first, HaBuf *aBuf, int nBuf, int timeoutMs,
                 int *pOutcome);
void haLinkEnd(HaLink *p, int flags, const HaPrint *pSeen);
void haLinkMismatch(HaLink *p, const HaPrint *pSeen);
int haLinkRead(HaLink *p, int timeoutMs);
int haLinkPragma(HaLink *p, const char *zName, const char *zArg, int timeoutMs,
                 char **pzText);
void haPut32(u8 *a, u32 v);
u32 haGetBe32(const u8 *a);

/* ---- capture.c, file.c ---- */

typedef struct HaFile HaFile;
typedef struct HaWal HaWal;

/*
** The main file of a replicated database. The platform's file object lies
** right behind it.
*/
struct HaFile {
  sqlite3_file base;    /* must be first */
  sqlite3_vfs *pVfs;    /* the platform's VFS */
  sqlite3_file *pReal;  /* the platform's file; pMethods==0: not created yet */
  const char *zPath;    /* its path; SQLite's, valid while open */
  char *zName;          /* name of the database */
  char *zSocket;        /* where its node listens */
  char *zMark;          /* bookmark of a database as it was, else 0 */
  HaWal *pWal;          /* its WAL file, while that is open */
  sqlite3 **ppDb;       /* the connection that uses it, from FCNTL_PDB */
  HaFile *pNextWriter;  /* list of files in a write transaction */
  HaLink link;
  u8 aId[16];           /* its id in the cluster */
  int openFlags;        /* as SQLite passed them */
  int linkFlags;        /* HA_OPEN_… */
  int lockMs;           /* lock_timeout */
  int commitMs;         /* commit_timeout */
  u32 keepBytes;        /* capture_memory: page copies of a transaction */
  u32 pageSize;         /* asked for before creation, 0: default */
  u8 autoVacuum;        /* likewise */
  u8 begun;             /* holds a grant and slot 0 */
  u8 accepted;          /* and a commit was accepted (I4) */
  u8 wrote;             /* and something was written to the WAL */
  u8 stale;             /* the node said that this handle may not go on */
  u8 readToken;         /* the next read lock is a retry and does not wait */
  u8 blocking;          /* the last call set the time to block in locks */
  u8 readLocked;        /* a read lock was taken since the last barrier */
  u16 sharedMask;       /* wal-index slots held SHARED */
  u16 exclMask;         /* wal-index slots held EXCLUSIVE */
  unsigned forkGen;     /* haForkGeneration() when the first slot was locked */
  u32 epoch;            /* the epoch word that belongs to this handle */
  u32 iChange;          /* change counter when the transaction began */
  HaPrint kept;         /* what the last transaction left, while link.keepMs */
  u64 keptAt;           /* clock when it ended */
  u64 seriesStart;      /* clock at the first of a series of attempts */
  u64 seriesLast;       /* clock at the end of the last attempt */
  u64 seriesTry;        /* clock at the last attempt after its time was up */
  volatile u32 *pShm;   /* first wal-index region, 0: not mapped */
  int nShm;             /* regions known to be mapped */
  u32 aBarrier[12];     /* wal-index header at the last barrier */
  char zErr[HA_ERROR_MAX]; /* last error on this handle */
};

/*
** The WAL file of a replicated database, and what was captured of the
** running transaction.
*/
struct HaWal {
  sqlite3_file base;    /* must be first */
  HaFile *pMain;
  sqlite3_file *pReal;  /* the platform's file, right behind */
  u32 pageSize;
  u32 first;            /* first frame of the transaction, counted from 1 */
  u32 n;                /* its frames so far */
  u32 nAlloc;           /* room in the arrays below */
  u32 *aPgno;           /* page number per frame */
  u8 *aData;            /* images of the first frames' pages */
  u64 nData;            /* bytes allocated there */
  u32 heldFrame;        /* the commit frame whose header is in aHeld, or 0 */
  u32 doneFrame;        /* the commit frame that was let through, or 0 */
  u8 aHeld[24];
  u8 headerLast;        /* the last write was the 32-byte WAL header */
};

extern const sqlite3_io_methods haMainMethods;
extern const sqlite3_io_methods haWalMethods;
extern const sqlite3_io_methods haPastMethods;

int haError(HaFile *p, int rc, const char *zFormat, ...);
int haFileConnect(HaFile *p);
int haFileCreate(HaFile *p);
int haFileReconnect(HaFile *p, int rcLink);
int haFileOpenLink(HaFile *p, int *pExists);
int haHeaderRead(HaFile *p, u32 *aHdr);
void haPrintOf(const u32 *aHdr, HaPrint *pOut);
int haPrintMatches(const HaPrint *pSeen, const HaPrint *pBase);
u32 haHeaderPageSize(const u32 *aHdr);
void haCaptureReset(HaWal *w, u32 pageSize);
void haCaptureFree(HaWal *w);
int haFilePragma(HaFile *p, char **azArg);
int haPastOpen(HaFile *p, int *pOutFlags);

/* ---- vfs.c, hasqlite.c ---- */

int haVfsRegister(const char *zClient, int makeDefault);
const char *haClientName(void);
void haSetLastError(const char *zText);
sqlite3_mutex *haMutex(void);

#ifndef HASQLITE_EXT
int hasqliteRegister(void);
#endif

#endif
