/* The loop is C, so that the share of SQLite and its VFS is not hidden under that of a driver. */
#define _GNU_SOURCE
#include "select.h"
#include "../../vfs/sqlite3.h"

#include <stdio.h>
#include <sys/resource.h>
#include <sys/time.h>

#ifdef RUSAGE_THREAD
#define BENCH_WHO RUSAGE_THREAD
#else
#define BENCH_WHO RUSAGE_SELF
#endif

/* CPU time that the caller has used, user and system, in nanoseconds. */
static long long cpu_now(void) {
  struct rusage u;
  getrusage(BENCH_WHO, &u);
  return ((long long)u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000LL +
         ((long long)u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000LL;
}

/* One SELECT by key. Returns SQLITE_ROW when it found the row. */
static int one(sqlite3_stmt *stmt, int key) {
  int rc;
  sqlite3_bind_int(stmt, 1, key);
  rc = sqlite3_step(stmt);
  if (rc == SQLITE_ROW) sqlite3_column_blob(stmt, 0);
  sqlite3_reset(stmt);
  return rc;
}

int bench_select(const char *uri, int rows, int count, unsigned int seed, long long *cpu_ns, char *message, int size) {
  sqlite3 *db = 0;
  sqlite3_stmt *stmt = 0;
  unsigned int x = seed * 2654435761u + 1;
  long long begun;
  int i, rc;

  rc = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, 0);
  if (rc == SQLITE_OK) rc = sqlite3_prepare_v2(db, "SELECT payload FROM item WHERE id = ?", -1, &stmt, 0);
  if (rc == SQLITE_OK && one(stmt, 1) != SQLITE_ROW) rc = SQLITE_NOTFOUND;
  begun = cpu_now();
  for (i = 0; rc == SQLITE_OK && i < count; i++) {
    int key;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    key = 1 + (int)(x % (unsigned int)rows);
    if (one(stmt, key) != SQLITE_ROW) rc = SQLITE_NOTFOUND;
  }
  *cpu_ns = cpu_now() - begun;
  if (rc != SQLITE_OK) snprintf(message, (size_t)size, "%s", db ? sqlite3_errmsg(db) : "out of memory");
  sqlite3_finalize(stmt);
  sqlite3_close(db);
  return rc;
}
