/*
** The main file of a database as it was: at= or to= in the URI.
**
** The node has made a file of that state, which nobody changes, and keeps it
** as long as our connection lives. SQLite is told that it is immutable: it
** takes no locks, looks for no WAL and no journal, and refuses to write.
*/
#include "hasqlite.h"

#define WRITE_VERSION 18 /* offset in page 1: 2 says that there is a WAL */
#define READ_VERSION 19  /* likewise */

/*
** Open the platform's file, read-only whatever SQLite asked for.
*/
int haPastOpen(HaFile *p, int *pOutFlags){
  int flags = p->openFlags;
  int rc;
  flags &= ~(SQLITE_OPEN_CREATE|SQLITE_OPEN_READWRITE|SQLITE_OPEN_EXCLUSIVE);
  flags |= SQLITE_OPEN_READONLY;
  rc = p->pVfs->xOpen(p->pVfs, p->zPath, p->pReal, flags, 0);
  if( rc!=SQLITE_OK ){
    p->pReal->pMethods = 0;
    return haError(p, rc, "%s, its state %s, does not open", p->zPath, p->zMark);
  }
  if( pOutFlags ) *pOutFlags = flags;
  return SQLITE_OK;
}

static int pastClose(sqlite3_file *pFile){
  HaFile *p = (HaFile*)pFile;
  int rc = p->pReal->pMethods->xClose(p->pReal);
  haLinkClose(&p->link);
  sqlite3_free(p->zName);
  sqlite3_free(p->zSocket);
  sqlite3_free(p->zMark);
  p->base.pMethods = 0;
  return rc;
}

/*
** The header of a replicated database says that there is a WAL. Of this file
** there is none.
*/
static int pastRead(sqlite3_file *pFile, void *pBuf, int n, sqlite3_int64 iOfst){
  HaFile *p = (HaFile*)pFile;
  int rc = p->pReal->pMethods->xRead(p->pReal, pBuf, n, iOfst);
  int i;
  for(i=WRITE_VERSION; rc==SQLITE_OK && i<=READ_VERSION; i++){
    if( i>=iOfst && i<iOfst+n ) ((u8*)pBuf)[i-iOfst] = 1;
  }
  return rc;
}

static int pastRefuse(HaFile *p){
  return haError(p, SQLITE_READONLY, "it is the state %s: nobody can write it",
                 p->zMark);
}

static int pastWrite(
  sqlite3_file *pFile, const void *pBuf, int n, sqlite3_int64 iOfst
){
  (void)pBuf; (void)n; (void)iOfst;
  return pastRefuse((HaFile*)pFile);
}

static int pastTruncate(sqlite3_file *pFile, sqlite3_int64 size){
  (void)size;
  return pastRefuse((HaFile*)pFile);
}

static int pastSync(sqlite3_file *pFile, int flags){
  (void)pFile; (void)flags;
  return SQLITE_OK;
}

static int pastFileSize(sqlite3_file *pFile, sqlite3_int64 *pSize){
  HaFile *p = (HaFile*)pFile;
  return p->pReal->pMethods->xFileSize(p->pReal, pSize);
}

static int pastLock(sqlite3_file *pFile, int eLock){
  (void)pFile; (void)eLock;
  return SQLITE_OK;
}

static int pastCheckReservedLock(sqlite3_file *pFile, int *pOut){
  (void)pFile;
  *pOut = 0;
  return SQLITE_OK;
}

static int pastFileControl(sqlite3_file *pFile, int op, void *pArg){
  HaFile *p = (HaFile*)pFile;
  if( op==SQLITE_FCNTL_PRAGMA ){
    char **azArg = (char**)pArg;
    const char *z = 0;
    if( sqlite3_stricmp(azArg[1], "hasqlite_position")==0 ) z = p->zMark;
    if( sqlite3_stricmp(azArg[1], "hasqlite_error")==0 ) z = p->zErr;
    if( sqlite3_stricmp(azArg[1], "journal_mode")==0 ) z = "off";
    if( z==0 ) return SQLITE_NOTFOUND;
    azArg[0] = sqlite3_mprintf("%s", z);
    return azArg[0] ? SQLITE_OK : SQLITE_NOMEM;
  }
  if( op==SQLITE_FCNTL_VFSNAME ){
    *(char**)pArg = sqlite3_mprintf("hasqlite/%s", p->pVfs->zName);
    return SQLITE_OK;
  }
  return SQLITE_NOTFOUND;
}

static int pastSectorSize(sqlite3_file *pFile){
  HaFile *p = (HaFile*)pFile;
  return p->pReal->pMethods->xSectorSize(p->pReal);
}

static int pastDeviceCharacteristics(sqlite3_file *pFile){
  (void)pFile;
  return SQLITE_IOCAP_IMMUTABLE;
}

const sqlite3_io_methods haPastMethods = {
  1,
  pastClose, pastRead, pastWrite, pastTruncate, pastSync, pastFileSize,
  pastLock, pastLock, pastCheckReservedLock, pastFileControl, pastSectorSize,
  pastDeviceCharacteristics, 0, 0, 0, 0, 0, 0
};
