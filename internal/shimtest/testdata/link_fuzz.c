/*
** Feeds arbitrary bytes of a node to the client of vfs/link.c.
**
** Standard input is a sequence of cases: u32 length (little-endian), one byte
** that selects the request, and the bytes that the node sends. The few
** functions of SQLite that the client calls are here, so that this needs
** nothing but a C compiler and its sanitizers.
*/
#define _GNU_SOURCE
#include "hasqlite.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

char *sqlite3_snprintf(int n, char *z, const char *zFormat, ...){
  va_list ap;
  va_start(ap, zFormat);
  vsnprintf(z, (size_t)n, zFormat, ap);
  va_end(ap);
  return z;
}
void *sqlite3_malloc64(sqlite3_uint64 n){ return malloc(n); }
void sqlite3_free(void *p){ free(p); }
int sqlite3_sleep(int ms){ return ms; }
const char *sqlite3_libversion(void){ return "3.54.1"; }
const char *haClientName(void){ return "fuzz"; }

/* Call one request on p. Returns HA_OK or the reason why not. */
static int request(HaLink *p, int which){
  char zText[64], zMark[32], zNote[16], *zAnswer = 0;
  u8 aPage[512], aId[16], aFixed[12];
  u32 epoch = 0;
  int exists = 0, outcome = 0, rc;
  HaPrint print;
  HaBuf aBuf[3];
  int i;
  memset(aId, 0, sizeof(aId));
  switch( which%10 ){
    case 0: return haLinkResolve(p, "shop.db", 100, &exists, aId, zText,
                                 sizeof(zText));
    case 1: return haLinkOpen(p, "shop.db", aId, 0, 1, 1, &exists, &epoch,
                              zNote, sizeof(zNote));
    case 2: return haLinkCreate(p, 4096, 0, 100, &epoch);
    case 3: return haLinkBegin(p, 100, &print);
    case 4:
      memset(aPage, 7, sizeof(aPage));
      memset(aFixed, 0, sizeof(aFixed));
      aBuf[1].p = aFixed;
      aBuf[1].n = sizeof(aFixed);
      aBuf[2].p = aPage;
      aBuf[2].n = sizeof(aPage);
      rc = haLinkCommit(p, 1, aBuf, 3, 100, &outcome);
      if( rc==HA_OK && (outcome<HA_ACCEPTED || outcome>HA_UNKNOWN) ) abort();
      return rc;
    case 8:
      memset(aPage, 7, sizeof(aPage));
      memset(aFixed, 0, sizeof(aFixed));
      rc = HA_MORE;
      for(i=0; i<4 && rc==HA_MORE; i++){
        aBuf[1].p = aFixed;
        aBuf[1].n = sizeof(aFixed);
        aBuf[2].p = aPage;
        aBuf[2].n = sizeof(aPage);
        if( i<3 ){
          rc = haLinkPiece(p, i==0, aBuf, 3, 100, &outcome);
          if( rc==HA_OK && outcome!=HA_NOT_COMMITTED ) abort();
          if( rc==HA_LOST ) abort();
        }else{
          rc = haLinkCommit(p, 0, aBuf, 3, 100, &outcome);
          if( rc==HA_MORE ) abort();
        }
      }
      return rc;
    case 5: return haLinkRead(p, 100);
    case 9:
      rc = haLinkPast(p, "shop.db", "now", "", 100, zText, sizeof(zText),
                      zMark, sizeof(zMark), zNote, sizeof(zNote));
      if( rc==HA_OK && zText[0]==0 ) abort();
      return rc;
    case 6:
      rc = haLinkPragma(p, "hasqlite_status", "", 100, &zAnswer);
      if( (rc==HA_OK)!=(zAnswer!=0) ) abort();
      sqlite3_free(zAnswer);
      return rc;
  }
  memset(&print, 0, sizeof(print));
  haLinkEnd(p, 0, &print);
  haLinkMismatch(p, &print);
  return HA_OK;
}

int main(void){
  u8 aHead[5];
  unsigned nCase = 0, nOk = 0, nRefused = 0;
  while( fread(aHead, 1, sizeof(aHead), stdin)==sizeof(aHead) ){
    u32 n = (u32)aHead[0] | (u32)aHead[1]<<8 | (u32)aHead[2]<<16;
    u8 *a = malloc(n ? n : 1);
    int aSock[2], rc, i;
    HaLink link;
    if( fread(a, 1, n, stdin)!=n || socketpair(AF_UNIX, SOCK_STREAM, 0, aSock) ){
      return 1;
    }
    haLinkInit(&link);
    link.sock = aSock[0];
    link.pid = haProcessId();
    if( write(aSock[1], a, n)!=(ssize_t)n ) return 1;
    shutdown(aSock[1], SHUT_WR);
    for(i=0; i<3; i++){
      if( !haLinkUsable(&link) ) break;
      rc = request(&link, aHead[4]);
      if( strlen(link.zErr)>=sizeof(link.zErr) ) abort();
      if( rc==HA_OK ) nOk++;
      else if( rc==HA_REFUSED ) nRefused++;
      else if( link.sock!=HA_NO_SOCKET ) abort();
    }
    haLinkClose(&link);
    close(aSock[1]);
    free(a);
    nCase++;
  }
  printf("cases=%u answered=%u refused=%u\n", nCase, nOk, nRefused);
  return 0;
}
