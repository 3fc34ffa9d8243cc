/*
** How the VFS comes into a process:
**
**   - linked into a Go program: hasqliteRegister();
**   - loaded by SQLite as an extension: sqlite3_hasqlite_init();
**   - put there by LD_PRELOAD: a constructor looks for the SQLite of the
**     process and has it hand over its functions.
**
** The extension is not linked to any SQLite: it uses the one that loaded it.
*/
#ifndef _WIN32
#define _GNU_SOURCE /* RTLD_DEFAULT */
#endif
#include "hasqlite.h"

#ifdef HASQLITE_EXT

#include <stdlib.h>

const sqlite3_api_routines *sqlite3_api = 0;

#ifdef _WIN32
#define HA_EXPORT __declspec(dllexport)
#else
#define HA_EXPORT __attribute__((visibility("default")))
#include <dlfcn.h>
#endif

/*
** Entry point, found by the name of the file. Whatever comes, the library
** must stay: the VFS points into it.
*/
HA_EXPORT int sqlite3_hasqlite_init(
  sqlite3 *db,                      /* the connection that loads us */
  char **pzErr,                     /* OUT: error text */
  const sqlite3_api_routines *pApi  /* functions of this SQLite */
){
  (void)db;
  if( sqlite3_api==0 ){
    int rc;
    sqlite3_api = pApi;
    rc = haVfsRegister("extension", 0);
    if( rc!=SQLITE_OK ){
      *pzErr = pApi->mprintf("hasqlite: SQLite %s did not take the VFS: it"
                             " must be 3.32.0 or later", pApi->libversion());
      sqlite3_api = 0;
      return rc;
    }
  }else if( sqlite3_api->vfs_register!=pApi->vfs_register ){
    *pzErr = pApi->mprintf("hasqlite: already in use by another SQLite library"
                           " of this process");
    return SQLITE_ERROR;
  }
  return SQLITE_OK_LOAD_PERMANENTLY;
}

#ifndef _WIN32

/* SQLite calls this for the connection that preload() opens. */
static int preloadInit(
  sqlite3 *db, char **pzErr, const sqlite3_api_routines *pApi
){
  (void)db; (void)pzErr;
  if( sqlite3_api ) return SQLITE_OK;
  sqlite3_api = pApi;
  if( haVfsRegister("preload", 1)!=SQLITE_OK ) sqlite3_api = 0;
  return SQLITE_OK;
}

typedef int (*AutoExtension)(void(*)(void));
typedef int (*OpenFunction)(const char*, sqlite3**);
typedef int (*CloseFunction)(sqlite3*);

/* A function of the process's SQLite. POSIX has dlsym return it as data. */
static void symbol(void *pLib, const char *zName, void *pOut){
  void *pSym = dlsym(pLib, zName);
  memcpy(pOut, &pSym, sizeof(pSym));
}

/*
** Runs when the library is loaded. Does nothing unless LD_PRELOAD names it and
** HASQLITE_ROOT says which files are meant. The functions of SQLite come by
** way of an automatic extension, which is how SQLite hands them out.
*/
__attribute__((constructor)) static void preload(void){
  const char *zPreload = getenv("LD_PRELOAD");
  const char *zRoot = getenv("HASQLITE_ROOT");
  void *pLib = RTLD_DEFAULT;
  AutoExtension xAuto = 0, xCancel = 0;
  OpenFunction xOpen = 0;
  CloseFunction xClose = 0;
  sqlite3 *db = 0;
  if( zPreload==0 || strstr(zPreload, "hasqlite")==0 ) return;
  if( zRoot==0 || zRoot[0]==0 ) return;
  symbol(pLib, "sqlite3_auto_extension", &xAuto);
  if( xAuto==0 ){
    /* The program may load SQLite later: be there first. */
    pLib = dlopen("libsqlite3.so.0", RTLD_NOW);
    if( pLib==0 ) return;
    symbol(pLib, "sqlite3_auto_extension", &xAuto);
  }
  symbol(pLib, "sqlite3_cancel_auto_extension", &xCancel);
  symbol(pLib, "sqlite3_open", &xOpen);
  symbol(pLib, "sqlite3_close", &xClose);
  if( xAuto==0 || xCancel==0 || xOpen==0 || xClose==0 ) return;
  if( xAuto((void(*)(void))preloadInit)!=SQLITE_OK ) return;
  xOpen(":memory:", &db);
  xClose(db);
  xCancel((void(*)(void))preloadInit);
}

#endif /* _WIN32 */

#else /* linked into a program */

/* Register the VFS in this process. Returns a SQLITE_ code. */
int hasqliteRegister(void){
  int rc = sqlite3_initialize();
  return rc==SQLITE_OK ? haVfsRegister("go", 0) : rc;
}

#endif
