/*
** The two VFS objects.
**
** "hasqlite": a name with no leading / \ ./ ../ or drive letter is the name of
** a replicated database; every other name is a plain path.
**
** "hasqlite-default", for programs that cannot name a VFS: a file is
** replicated if its full path lies under the directory HASQLITE_ROOT, under
** the rest of its path as its name.
**
** Whatever is not replicated is the platform VFS's file, with its methods,
** from xOpen on. SQLite first asks for the full path of a name, then opens
** that path, on one thread without anything in between. The node's answer is
** kept from the one to the other in a slot of the thread.
*/
#include "hasqlite.h"

#include <stdio.h>
#include <stdlib.h>

#ifdef _MSC_VER
#define HA_THREAD_LOCAL __declspec(thread)
#else
#define HA_THREAD_LOCAL __thread
#endif

/* What one of the two VFS objects needs. */
typedef struct HaVfs {
  sqlite3_vfs base;
  sqlite3_vfs *pReal;   /* the platform's default VFS */
  const char *zRoot;    /* HASQLITE_ROOT as given, 0: names, not paths */
  const char *zFullRoot;/* and as the platform spells it */
} HaVfs;

/* A resolved name, between xFullPathname and xOpen. */
typedef struct HaSlot {
  int used;
  HaLink link;
  u8 aId[16];
  char *zPath;
  char *zName;
  char *zSocket;
  char *zMark;  /* bookmark of a database as it was, else 0 */
} HaSlot;

static HA_THREAD_LOCAL HaSlot slot;
static HA_THREAD_LOCAL char zLastError[HA_ERROR_MAX];

static HaVfs aVfs[2];
static sqlite3_mutex *pMutex = 0;
static const char *zClientName = "";
static int logToStderr = 0;

const char *haClientName(void){ return zClientName; }
sqlite3_mutex *haMutex(void){ return pMutex; }

/*
** Keep an error text for xGetLastError. HASQLITE_LOG=1 prints it as well, for
** programs that show neither SQLite's log nor that.
*/
void haSetLastError(const char *zText){
  sqlite3_snprintf(sizeof(zLastError), zLastError, "%s", zText);
  if( logToStderr ) fprintf(stderr, "%s\n", zText);
}

static sqlite3_vfs *realVfs(sqlite3_vfs *pVfs){ return ((HaVfs*)pVfs)->pReal; }

/* ---- names ---- */

static int isSlash(char c){ return c=='/' || c=='\\'; }

/* True if z is a path and not the name of a replicated database. */
static int isPlainPath(const char *z){
  if( isSlash(z[0]) ) return 1;
  if( z[0]=='.' && (isSlash(z[1]) || (z[1]=='.' && isSlash(z[2]))) ) return 1;
  return ((z[0]>='a' && z[0]<='z') || (z[0]>='A' && z[0]<='Z')) && z[1]==':';
}

/* The part of zPath below the directory zRoot, or 0. */
static const char *below(const char *zPath, const char *zRoot){
  size_t n = zRoot ? strlen(zRoot) : 0;
  while( n>1 && isSlash(zRoot[n-1]) ) n--;
  if( n==0 || strncmp(zPath, zRoot, n)!=0 || !isSlash(zPath[n]) ) return 0;
  return zPath[n+1] ? &zPath[n+1] : 0;
}

/*
** The value of a URI parameter of the file name z, or 0. SQLite puts them
** behind every name that it passes to a VFS.
*/
static const char *uriParameter(const char *z, const char *zKey){
  z += strlen(z)+1;
  while( z[0] ){
    int match = strcmp(z, zKey)==0;
    z += strlen(z)+1;
    if( match ) return z;
    z += strlen(z)+1;
  }
  return 0;
}

/* The same as a number; what is none, or over a day in ms, is not there. */
static int uriInt(const char *zName, const char *zKey, int dflt){
  const char *z = uriParameter(zName, zKey);
  int n = z && z[0]>='0' && z[0]<='9' ? atoi(z) : dflt;
  return n>=0 && n<=86400000 ? n : dflt;
}

static int uriBool(const char *zName, const char *zKey){
  const char *z = uriParameter(zName, zKey);
  if( z==0 ) return 0;
  return atoi(z)!=0 || sqlite3_stricmp(z, "on")==0
      || sqlite3_stricmp(z, "yes")==0 || sqlite3_stricmp(z, "true")==0;
}

/* Where the node of the file name z listens. */
static const char *socketOf(const char *z){
  const char *zSocket = uriParameter(z, "node");
  if( zSocket==0 || zSocket[0]==0 ) zSocket = getenv("HASQLITE_SOCKET");
  if( zSocket==0 || zSocket[0]==0 ) zSocket = HA_DEFAULT_SOCKET;
  return zSocket;
}

/* ---- xFullPathname ---- */

static void slotClear(void){
  if( slot.used ){
    haLinkClose(&slot.link);
    sqlite3_free(slot.zPath);
    sqlite3_free(slot.zName);
    sqlite3_free(slot.zSocket);
    sqlite3_free(slot.zMark);
  }
  memset(&slot, 0, sizeof(slot));
}

/*
** Ask the node for the database zDb as it was.
*/
static int resolvePast(
  const char *zDb, const char *zAt, const char *zTo,
  int timeoutMs, int nOut, char *zOut
){
  char zMark[HA_NAME_MAX+1];
  char zNote[HA_ERROR_MAX];
  int rc = haLinkPast(&slot.link, zDb, zAt ? zAt : "", zTo ? zTo : "",
                      timeoutMs, zOut, nOut, zMark, sizeof(zMark),
                      zNote, sizeof(zNote));
  if( rc!=HA_OK ) return rc;
  if( zNote[0] ){
    sqlite3_log(SQLITE_NOTICE, "hasqlite: database %s: %s", zDb, zNote);
  }
  slot.zMark = sqlite3_mprintf("%s", zMark);
  return HA_OK;
}

/*
** Ask the node for the path of the database zDb.
*/
static int resolve(
  const char *zDb,   /* name of the database */
  const char *zUri,  /* the name that SQLite passed, for its parameters */
  int nOut,          /* bytes in zOut */
  char *zOut         /* OUT: the path */
){
  const char *zSocket = socketOf(zUri);
  const char *zAt = uriParameter(zUri, "at");
  const char *zTo = uriParameter(zUri, "to");
  int lockMs = uriInt(zUri, "lock_timeout", HA_LOCK_TIMEOUT_MS);
  int past = zAt!=0 || zTo!=0;
  int rc, exists;
  if( strlen(zDb)>HA_NAME_MAX ){
    return haError(0, SQLITE_CANTOPEN, "the database name %.40s... is longer"
                   " than %d bytes", zDb, HA_NAME_MAX);
  }
  slotClear();
  if( past && ((zAt && zAt[0]!=0)==(zTo && zTo[0]!=0)) ){
    return haError(0, SQLITE_CANTOPEN, "database %s: one of at= and to= says"
                   " which state is meant", zDb);
  }
  haLinkInit(&slot.link);
  slot.used = 1;
  rc = haLinkConnectWithin(&slot.link, zSocket, lockMs);
  if( rc==HA_OK && past ){
    rc = resolvePast(zDb, zAt, zTo, lockMs+HA_REPLY_GRACE_MS, nOut, zOut);
  }else if( rc==HA_OK ){
    rc = haLinkResolve(&slot.link, zDb, lockMs+HA_REPLY_GRACE_MS, &exists,
                       slot.aId, zOut, nOut);
  }
  if( rc!=HA_OK ){
    int code = rc==HA_REFUSED ? slot.link.errCode : SQLITE_CANTOPEN;
    haError(0, code, "database %s: node at %s: %s", zDb, zSocket,
            slot.link.zErr);
    slotClear();
    return code;
  }
  slot.zPath = sqlite3_mprintf("%s", zOut);
  slot.zName = sqlite3_mprintf("%s", zDb);
  slot.zSocket = sqlite3_mprintf("%s", zSocket);
  if( slot.zPath==0 || slot.zName==0 || slot.zSocket==0
   || (past && slot.zMark==0)
  ){
    slotClear();
    return SQLITE_NOMEM;
  }
  return SQLITE_OK;
}

static int haFullPathname(
  sqlite3_vfs *pVfs,
  const char *zName,
  int nOut,
  char *zOut
){
  HaVfs *v = (HaVfs*)pVfs;
  const char *zBelow;
  char *zDb;
  int rc;
  if( v->zRoot==0 ){
    if( v==&aVfs[1] || isPlainPath(zName) ){
      return v->pReal->xFullPathname(v->pReal, zName, nOut, zOut);
    }
    return resolve(zName, zName, nOut, zOut);
  }
  rc = v->pReal->xFullPathname(v->pReal, zName, nOut, zOut);
  if( (rc & 0xff)!=SQLITE_OK ) return rc;
  zBelow = below(zOut, v->zFullRoot);
  if( zBelow==0 ) zBelow = below(zOut, v->zRoot);
  if( zBelow==0 ) return rc;
  zDb = sqlite3_mprintf("%s", zBelow);
  if( zDb==0 ) return SQLITE_NOMEM;
#ifdef _WIN32
  {
    char *z;
    for(z=zDb; *z; z++) if( *z=='\\' ) *z = '/';
  }
#endif
  rc = resolve(zDb, zName, nOut, zOut);
  sqlite3_free(zDb);
  return rc;
}

/* ---- xOpen ---- */

/*
** Fill in p from the slot and the URI parameters. The slot is empty after it.
*/
static void fileInit(HaFile *p, HaVfs *v, const char *zName, int flags){
  const char *z;
  memset(p, 0, sizeof(*p));
  p->pVfs = v->pReal;
  p->pReal = (sqlite3_file*)&p[1];
  p->zPath = zName;
  p->link = slot.link;
  memcpy(p->aId, slot.aId, sizeof(p->aId));
  p->zName = slot.zName;
  p->zSocket = slot.zSocket;
  p->zMark = slot.zMark;
  sqlite3_free(slot.zPath);
  memset(&slot, 0, sizeof(slot));
  p->openFlags = flags;
  p->lockMs = uriInt(zName, "lock_timeout", HA_LOCK_TIMEOUT_MS);
  p->commitMs = uriInt(zName, "commit_timeout", HA_COMMIT_TIMEOUT_MS);
  p->keepBytes = (u32)uriInt(zName, "capture_memory", HA_KEEP_BYTES);
  if( flags & SQLITE_OPEN_READONLY ) p->linkFlags |= HA_OPEN_READONLY;
  if( flags & SQLITE_OPEN_CREATE ) p->linkFlags |= HA_OPEN_CREATE;
  z = uriParameter(zName, "consistency");
  if( z && sqlite3_stricmp(z, "linearizable")==0 ){
    p->linkFlags |= HA_OPEN_LINEARIZABLE;
  }
  p->pageSize = (u32)uriInt(zName, "page_size", 0);
  if( p->pageSize<512 || p->pageSize>65536 || (p->pageSize&(p->pageSize-1)) ){
    p->pageSize = 0;
  }
  p->autoVacuum = (u8)uriInt(zName, "auto_vacuum", 0);
  if( p->autoVacuum>2 ) p->autoVacuum = 0;
}

/*
** Open the platform's file. The node makes the files: this never creates one.
*/
static int fileOpenReal(HaFile *p, int *pOutFlags){
  int rc = p->pVfs->xOpen(p->pVfs, p->zPath, p->pReal,
                          p->openFlags & ~SQLITE_OPEN_CREATE, pOutFlags);
  if( rc!=SQLITE_OK ){
    p->pReal->pMethods = 0;
    return haError(p, rc, "%s does not open", p->zPath);
  }
  if( p->pReal->pMethods->iVersion<2 || p->pReal->pMethods->xShmMap==0 ){
    p->pReal->pMethods->xClose(p->pReal);
    p->pReal->pMethods = 0;
    return haError(p, SQLITE_CANTOPEN, "VFS %s has no shared memory",
                   p->pVfs->zName);
  }
  return SQLITE_OK;
}

/* Everything that can keep p from being opened. */
static int fileOpen(HaFile *p, int *pOutFlags){
  const char *z;
  int rc, exists = 0;
  if( uriBool(p->zPath, "immutable") ){
    return haError(p, SQLITE_CANTOPEN, "it is replicated and changes:"
                   " immutable=1 would read half of it");
  }
  if( uriBool(p->zPath, "nolock") ){
    return haError(p, SQLITE_CANTOPEN, "it is replicated and shared: nolock=1"
                   " is not possible");
  }
  z = uriParameter(p->zPath, "consistency");
  if( z && sqlite3_stricmp(z, "linearizable")!=0
        && sqlite3_stricmp(z, "local")!=0 ){
    return haError(p, SQLITE_CANTOPEN, "consistency=%s is neither local nor"
                   " linearizable", z);
  }
  rc = haFileOpenLink(p, &exists);
  if( rc!=SQLITE_OK ) return rc;
  if( !exists ){
    if( p->openFlags & SQLITE_OPEN_CREATE ){
      if( pOutFlags ) *pOutFlags = p->openFlags;
      return SQLITE_OK; /* the file comes with the first lock */
    }
    return haError(p, SQLITE_CANTOPEN, "no such database");
  }
  return fileOpenReal(p, pOutFlags);
}

/* Open the main file of a replicated database. */
static int openMain(HaVfs *v, const char *zName, HaFile *p, int flags,
                    int *pOutFlags){
  int rc;
  fileInit(p, v, zName, flags);
  rc = p->zMark ? haPastOpen(p, pOutFlags) : fileOpen(p, pOutFlags);
  if( rc!=SQLITE_OK ){
    haLinkClose(&p->link);
    sqlite3_free(p->zName);
    sqlite3_free(p->zSocket);
    sqlite3_free(p->zMark);
    return rc;
  }
  p->base.pMethods = p->zMark ? &haPastMethods : &haMainMethods;
  return SQLITE_OK;
}

/* ---- creation ---- */

/*
** True if SQLite opened p as the target of VACUUM INTO, which attaches it
** under a name of its own.
*/
static int vacuumTarget(HaFile *p){
  sqlite3 *db = p->ppDb ? *p->ppDb : 0;
  int i;
  if( db==0 ) return 0;
  if( sqlite3_db_filename(db, "vacuum_db")==p->zPath ) return 1;
  if( sqlite3_libversion_number()<3039000 ) return 0;
  for(i=2; i<64; i++){
    const char *z = sqlite3_db_name(db, i);
    if( z==0 ) return 0;
    if( sqlite3_strnicmp(z, "vacuum_", 7)==0
     && sqlite3_db_filename(db, z)==p->zPath
    ){
      return 1;
    }
  }
  return 0;
}

/*
** Open the platform's file, after the node made it if it is new. SQLite reads
** the header of a new database before it locks it for the first time; only
** with that lock it is sure to need the database, and page_size and
** auto_vacuum are known.
*/
int haFileCreate(HaFile *p){
  int rc, rcLink;
  if( vacuumTarget(p) ){
    return haError(p, SQLITE_CANTOPEN,
      "VACUUM INTO the name of a replicated database: write a path, such as"
      " './%s', or 'file:%s?vfs=%s'", p->zName, p->zName, p->pVfs->zName);
  }
  rc = haFileConnect(p);
  if( rc!=SQLITE_OK ) return rc;
  rcLink = haLinkCreate(&p->link, p->pageSize ? p->pageSize : 4096,
                        p->autoVacuum, p->lockMs+HA_REPLY_GRACE_MS, &p->epoch);
  if( haFileReconnect(p, rcLink) ){
    rcLink = haLinkCreate(&p->link, p->pageSize ? p->pageSize : 4096,
                        p->autoVacuum, p->lockMs+HA_REPLY_GRACE_MS, &p->epoch);
  }
  if( rcLink!=HA_OK ){
    rc = rcLink==HA_REFUSED ? p->link.errCode : SQLITE_BUSY;
    return haError(p, rc, "it was not created: %s", p->link.zErr);
  }
  return fileOpenReal(p, 0);
}

/* Open the WAL of a replicated database. */
static int openWal(HaFile *pMain, const char *zName, HaWal *w, int flags,
                   int *pOutFlags){
  int rc;
  memset(w, 0, sizeof(*w));
  w->pMain = pMain;
  w->pReal = (sqlite3_file*)&w[1];
  rc = pMain->pVfs->xOpen(pMain->pVfs, zName, w->pReal, flags, pOutFlags);
  if( rc!=SQLITE_OK ) return rc;
  w->base.pMethods = &haWalMethods;
  pMain->pWal = w;
  return SQLITE_OK;
}

static int haOpen(
  sqlite3_vfs *pVfs,
  const char *zName,
  sqlite3_file *pFile,
  int flags,
  int *pOutFlags
){
  HaVfs *v = (HaVfs*)pVfs;
  pFile->pMethods = 0;
  if( (flags & SQLITE_OPEN_MAIN_DB) && slot.used ){
    if( zName && strcmp(zName, slot.zPath)==0 ){
      return openMain(v, zName, (HaFile*)pFile, flags, pOutFlags);
    }
    slotClear();
  }
  if( (flags & SQLITE_OPEN_WAL) && zName ){
    sqlite3_file *pMain = sqlite3_database_file_object(zName);
    if( pMain && pMain->pMethods==&haMainMethods ){
      return openWal((HaFile*)pMain, zName, (HaWal*)pFile, flags, pOutFlags);
    }
  }
  return v->pReal->xOpen(v->pReal, zName, pFile, flags, pOutFlags);
}

/* ---- everything else is the platform's ---- */

static int haDelete(sqlite3_vfs *pVfs, const char *zName, int syncDir){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xDelete(r, zName, syncDir);
}

static int haAccess(sqlite3_vfs *pVfs, const char *zName, int flags, int *pOut){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xAccess(r, zName, flags, pOut);
}

static void *haDlOpen(sqlite3_vfs *pVfs, const char *zName){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xDlOpen(r, zName);
}

static void haDlError(sqlite3_vfs *pVfs, int nByte, char *zErr){
  sqlite3_vfs *r = realVfs(pVfs);
  r->xDlError(r, nByte, zErr);
}

static void (*haDlSym(sqlite3_vfs *pVfs, void *pLib, const char *zSym))(void){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xDlSym(r, pLib, zSym);
}

static void haDlClose(sqlite3_vfs *pVfs, void *pLib){
  sqlite3_vfs *r = realVfs(pVfs);
  r->xDlClose(r, pLib);
}

static int haRandomness(sqlite3_vfs *pVfs, int nByte, char *zOut){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xRandomness(r, nByte, zOut);
}

static int haSleep(sqlite3_vfs *pVfs, int us){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xSleep(r, us);
}

static int haCurrentTime(sqlite3_vfs *pVfs, double *pOut){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xCurrentTime(r, pOut);
}

static int haGetLastError(sqlite3_vfs *pVfs, int nByte, char *zOut){
  sqlite3_vfs *r = realVfs(pVfs);
  if( zOut && nByte>0 && zLastError[0] ){
    sqlite3_snprintf(nByte, zOut, "%s", zLastError);
    return r->xGetLastError ? r->xGetLastError(r, 0, 0) : 0;
  }
  return r->xGetLastError ? r->xGetLastError(r, nByte, zOut) : 0;
}

static int haCurrentTimeInt64(sqlite3_vfs *pVfs, sqlite3_int64 *pOut){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xCurrentTimeInt64(r, pOut);
}

static int haSetSystemCall(
  sqlite3_vfs *pVfs, const char *zName, sqlite3_syscall_ptr pFunc
){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xSetSystemCall(r, zName, pFunc);
}

static sqlite3_syscall_ptr haGetSystemCall(
  sqlite3_vfs *pVfs, const char *zName
){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xGetSystemCall(r, zName);
}

static const char *haNextSystemCall(sqlite3_vfs *pVfs, const char *zName){
  sqlite3_vfs *r = realVfs(pVfs);
  return r->xNextSystemCall(r, zName);
}

/* ---- registration ---- */

static void vfsInit(HaVfs *v, sqlite3_vfs *pReal, const char *zName){
  int nFile = (int)(sizeof(HaFile)>sizeof(HaWal) ? sizeof(HaFile)
                                                 : sizeof(HaWal));
  memset(v, 0, sizeof(*v));
  v->pReal = pReal;
  v->base.iVersion = pReal->iVersion<3 ? pReal->iVersion : 3;
  v->base.szOsFile = nFile + pReal->szOsFile;
  v->base.mxPathname = pReal->mxPathname;
  v->base.zName = zName;
  v->base.xOpen = haOpen;
  v->base.xDelete = haDelete;
  v->base.xAccess = haAccess;
  v->base.xFullPathname = haFullPathname;
  v->base.xDlOpen = haDlOpen;
  v->base.xDlError = haDlError;
  v->base.xDlSym = haDlSym;
  v->base.xDlClose = haDlClose;
  v->base.xRandomness = haRandomness;
  v->base.xSleep = haSleep;
  v->base.xCurrentTime = haCurrentTime;
  v->base.xGetLastError = haGetLastError;
  v->base.xCurrentTimeInt64 = haCurrentTimeInt64;
  v->base.xSetSystemCall = haSetSystemCall;
  v->base.xGetSystemCall = haGetSystemCall;
  v->base.xNextSystemCall = haNextSystemCall;
}

/* Take HASQLITE_ROOT for v, if it is set. */
static void vfsRoot(HaVfs *v){
  const char *z = getenv("HASQLITE_ROOT");
  int n = v->pReal->mxPathname+1;
  char *zFull;
  if( z==0 || z[0]==0 ) return;
  v->zRoot = sqlite3_mprintf("%s", z);
  zFull = sqlite3_malloc(n);
  if( zFull && (v->pReal->xFullPathname(v->pReal, z, n, zFull)&0xff)==0 ){
    v->zFullRoot = zFull;
  }else{
    sqlite3_free(zFull);
  }
}

/* True if an environment variable is set to something but 0. */
static int isOn(const char *z){
  return z && z[0] && strcmp(z, "0")!=0;
}

/*
** Register both VFS objects. Calling it again does nothing.
*/
int haVfsRegister(
  const char *zClient, /* how this library came here: told to the node */
  int makeDefault      /* make "hasqlite-default" the default VFS; so does
                       ** HASQLITE_DEFAULT_VFS in the environment */
){
  sqlite3_vfs *pReal;
  int rc;
  if( aVfs[0].pReal ) return SQLITE_OK;
  if( sqlite3_libversion_number()<3032000 ){
    return haError(0, SQLITE_ERROR, "SQLite %s is too old: 3.32.0 or later is"
                   " needed", sqlite3_libversion());
  }
  pReal = sqlite3_vfs_find(0);
  if( pReal==0 ) return SQLITE_ERROR;
  if( isOn(getenv("HASQLITE_DEFAULT_VFS")) ) makeDefault = 1;
  logToStderr = isOn(getenv("HASQLITE_LOG"));
  zClientName = zClient;
  haForkInit();
  pMutex = sqlite3_mutex_alloc(SQLITE_MUTEX_FAST);
  vfsInit(&aVfs[0], pReal, "hasqlite");
  vfsInit(&aVfs[1], pReal, "hasqlite-default");
  vfsRoot(&aVfs[1]);
  rc = sqlite3_vfs_register(&aVfs[0].base, 0);
  if( rc==SQLITE_OK ) rc = sqlite3_vfs_register(&aVfs[1].base, makeDefault);
  return rc;
}
