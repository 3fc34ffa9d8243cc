/*
** The PRAGMAs that a replicated database answers itself.
*/
#include "hasqlite.h"

#include <stdlib.h>

/* Answer with an error text. */
static int pragmaError(HaFile *p, char **azArg, int rc){
  sqlite3_free(azArg[0]);
  azArg[0] = sqlite3_mprintf("%s", p->zErr);
  return rc;
}

/*
** PRAGMA page_size and auto_vacuum before the database has its first page are
** remembered for its creation. SQLite handles them as well.
*/
static void pragmaRemember(HaFile *p, const char *zName, const char *zArg){
  if( p->pReal->pMethods || zArg==0 ) return;
  if( sqlite3_stricmp(zName, "page_size")==0 ){
    int n = atoi(zArg);
    if( n>=512 && n<=65536 && (n&(n-1))==0 ) p->pageSize = (u32)n;
  }else if( sqlite3_stricmp(zName, "auto_vacuum")==0 ){
    if( sqlite3_stricmp(zArg, "none")==0 || strcmp(zArg, "0")==0 ){
      p->autoVacuum = 0;
    }else if( sqlite3_stricmp(zArg, "full")==0 || strcmp(zArg, "1")==0 ){
      p->autoVacuum = 1;
    }else if( sqlite3_stricmp(zArg, "incremental")==0 || strcmp(zArg, "2")==0 ){
      p->autoVacuum = 2;
    }
  }
}

/* PRAGMA hasqlite_…: the node answers. */
static int pragmaNode(HaFile *p, char **azArg){
  const char *zArg = azArg[2] ? azArg[2] : "";
  int timeoutMs = p->lockMs>p->commitMs ? p->lockMs : p->commitMs;
  char *zText = 0;
  int rc, rcLink;
  if( sqlite3_stricmp(azArg[1], "hasqlite_error")==0 ){
    azArg[0] = sqlite3_mprintf("%s", p->zErr);
    return SQLITE_OK;
  }
  timeoutMs += HA_REPLY_GRACE_MS;
  rc = haFileConnect(p);
  if( rc!=SQLITE_OK ) return pragmaError(p, azArg, rc);
  rcLink = haLinkPragma(&p->link, azArg[1], zArg, timeoutMs, &zText);
  if( !p->begun && haFileReconnect(p, rcLink) ){
    rcLink = haLinkPragma(&p->link, azArg[1], zArg, timeoutMs, &zText);
  }
  if( rcLink!=HA_OK ){
    rc = rcLink==HA_REFUSED ? p->link.errCode : SQLITE_IOERR;
    haError(p, rc, "PRAGMA %s: %s", azArg[1], p->link.zErr);
    return pragmaError(p, azArg, rc);
  }
  azArg[0] = zText;
  return SQLITE_OK;
}

/*
** SQLITE_FCNTL_PRAGMA. Returns SQLITE_NOTFOUND to let SQLite go on.
*/
int haFilePragma(
  HaFile *p,
  char **azArg /* [0] OUT: result or error; [1] name; [2] argument or 0 */
){
  const char *zName = azArg[1];
  const char *zArg = azArg[2];
  if( sqlite3_strnicmp(zName, "hasqlite_", 9)==0 ) return pragmaNode(p, azArg);
  if( sqlite3_stricmp(zName, "journal_mode")==0 && zArg
   && sqlite3_stricmp(zArg, "wal")!=0
  ){
    haError(p, SQLITE_ERROR, "it is replicated: journal_mode stays wal and"
            " cannot become %s", zArg);
    return pragmaError(p, azArg, SQLITE_ERROR);
  }
  if( sqlite3_stricmp(zName, "locking_mode")==0 && zArg
   && sqlite3_stricmp(zArg, "exclusive")==0
  ){
    haError(p, SQLITE_ERROR, "it is replicated: locking_mode stays normal, the"
            " node and other programs share the file");
    return pragmaError(p, azArg, SQLITE_ERROR);
  }
  pragmaRemember(p, zName, zArg);
  return SQLITE_NOTFOUND;
}
