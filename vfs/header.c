/*
** The wal-index header, two copies of 48 bytes at the start of the -shm file,
** and the print of the files that is made of it. Format: walformat.html of
** SQLite's documentation, "WAL-Index Header".
*/
#include "hasqlite.h"

/* The checksum that SQLite keeps of a header, in native byte order. */
static int headerValid(const u32 *aHdr){
  const u8 *a = (const u8*)aHdr;
  u32 s1 = 0, s2 = 0;
  int i;
  if( a[12]==0 ) return 0; /* isInit */
  for(i=0; i<10; i+=2){
    s1 += aHdr[i] + s2;
    s2 += aHdr[i+1] + s1;
  }
  return aHdr[10]==s1 && aHdr[11]==s2;
}

/*
** Copy the wal-index header to aHdr[12]. True if it is whole.
*/
int haHeaderRead(HaFile *p, u32 *aHdr){
  const sqlite3_io_methods *m = p->pReal->pMethods;
  u32 aSecond[12];
  int i;
  if( p->pShm==0 ){
    void volatile *pp = 0;
    if( m->xShmMap(p->pReal, 0, 32768, 0, &pp)!=SQLITE_OK || pp==0 ) return 0;
    p->pShm = (volatile u32*)pp;
    if( p->nShm==0 ) p->nShm = 1;
  }
  for(i=0; i<12; i++) aHdr[i] = p->pShm[i];
  m->xShmBarrier(p->pReal);
  for(i=0; i<12; i++) aSecond[i] = p->pShm[12+i];
  return memcmp(aHdr, aSecond, sizeof(aSecond))==0 && headerValid(aHdr);
}

/* What a header says of the files. */
void haPrintOf(const u32 *aHdr, HaPrint *pOut){
  pOut->iChange = aHdr[2];
  pOut->mxFrame = aHdr[4];
  pOut->nPage = aHdr[5];
  pOut->aCksum[0] = aHdr[6];
  pOut->aCksum[1] = aHdr[7];
  pOut->aSalt[0] = aHdr[8];
  pOut->aSalt[1] = aHdr[9];
}

/*
** True if the files are what a grant describes. A restart of the log changes
** the salts and leaves no frame; else the frames must be the same. The change
** counter starts at 0 again after a recovery, so that it alone proves nothing.
*/
int haPrintMatches(const HaPrint *pSeen, const HaPrint *pBase){
  int same = pSeen->iChange==pBase->iChange && pSeen->nPage==pBase->nPage;
  if( memcmp(pSeen->aSalt, pBase->aSalt, sizeof(pSeen->aSalt))!=0 ){
    return same && pSeen->mxFrame==0;
  }
  return (same || pSeen->iChange==0)
      && pSeen->mxFrame==pBase->mxFrame
      && memcmp(pSeen->aCksum, pBase->aCksum, sizeof(pSeen->aCksum))==0;
}

/* The page size in a header, 0 if no frame was ever written. */
u32 haHeaderPageSize(const u32 *aHdr){
  u16 sz;
  memcpy(&sz, (const u8*)aHdr+14, sizeof(sz));
  return sz==1 ? 65536 : sz;
}
