/*
** A host whose SQLite may lock the WAL before it reads: the amalgamation with
** SQLITE_ENABLE_SETLK_TIMEOUT, and SQLite's assertions on. Two threads write
** and two read one replicated database by way of the loaded extension.
**
**   setlk EXTENSION URI ROUNDS
*/
#include "sqlite3.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *zUri;
static int nRound;

static sqlite3 *openDb(void){
  sqlite3 *db = 0;
  int flags = SQLITE_OPEN_READWRITE|SQLITE_OPEN_CREATE|SQLITE_OPEN_URI;
  if( sqlite3_open_v2(zUri, &db, flags, 0)!=SQLITE_OK ){
    fprintf(stderr, "open: %s\n", sqlite3_errmsg(db));
    exit(1);
  }
  sqlite3_busy_timeout(db, 20000); /* also the time to block in locks */
  return db;
}

static void must(sqlite3 *db, const char *zSql){
  int rc = sqlite3_exec(db, zSql, 0, 0, 0);
  if( rc!=SQLITE_OK ){
    fprintf(stderr, "%s: %d %s\n", zSql, sqlite3_extended_errcode(db),
            sqlite3_errmsg(db));
    exit(1);
  }
}

static void *writer(void *pArg){
  sqlite3 *db = openDb();
  int i;
  (void)pArg;
  for(i=0; i<nRound; i++){
    if( i%3==0 ){
      must(db, "BEGIN IMMEDIATE");
      must(db, "INSERT INTO a VALUES(randomblob(1500))");
      must(db, "COMMIT");
    }else{
      must(db, "INSERT INTO a VALUES(1)");
    }
  }
  sqlite3_close(db);
  return 0;
}

static void *reader(void *pArg){
  sqlite3 *db = openDb();
  int i;
  (void)pArg;
  for(i=0; i<nRound*4; i++) must(db, "SELECT count(*) FROM a");
  sqlite3_close(db);
  return 0;
}

static int printCount(void *p, int n, char **az, char **azName){
  (void)p; (void)n; (void)azName;
  printf("rows=%s\n", az[0]);
  return 0;
}

int main(int argc, char **argv){
  pthread_t a[4];
  sqlite3 *db = 0;
  char *zErr = 0;
  int i;
  if( argc!=4 ) return 2;
  zUri = argv[2];
  nRound = atoi(argv[3]);
  sqlite3_open(":memory:", &db);
  sqlite3_enable_load_extension(db, 1);
  if( sqlite3_load_extension(db, argv[1], 0, &zErr)!=SQLITE_OK ){
    fprintf(stderr, "load: %s\n", zErr);
    return 1;
  }
  sqlite3_close(db);
  db = openDb();
  must(db, "CREATE TABLE IF NOT EXISTS a(x)");
  for(i=0; i<4; i++) pthread_create(&a[i], 0, i%2 ? reader : writer, 0);
  for(i=0; i<4; i++) pthread_join(a[i], 0);
  sqlite3_exec(db, "SELECT count(*) FROM a", printCount, 0, 0);
  sqlite3_close(db);
  return 0;
}
