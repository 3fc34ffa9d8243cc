/*
** The byte stream between this process and its node.
**
** Everything that depends on the operating system is in this file: sockets,
** the process id, a clock, and noticing a fork.
*/
#include "hasqlite.h"

#ifdef _WIN32
#include <winsock2.h>
#include <windows.h>
typedef int SockLen;
struct haSockaddrUn {
  ADDRESS_FAMILY sun_family;
  char sun_path[108];
};
#define HA_AF_UNIX 1
#else
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#endif

/* Pieces handed to the kernel in one call. */
#define HA_IOV_MAX 128

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

#ifdef _WIN32

u32 haProcessId(void){ return (u32)GetCurrentProcessId(); }
u64 haClockMs(void){ return (u64)GetTickCount64(); }
unsigned haForkGeneration(void){ return 0; }
void haForkInit(void){}

void haSockClose(HaSocket s){
  if( s!=HA_NO_SOCKET ) closesocket((SOCKET)s);
}

/*
** Connect to the unix socket zPath. Returns 0, else writes why into zErr.
*/
int haSockConnect(
  const char *zPath, /* socket of the node */
  HaSocket *pSock,   /* OUT: the connection */
  char *zErr,        /* OUT: the reason when it does not return 0 */
  int nErr           /* bytes in zErr */
){
  struct haSockaddrUn addr;
  DWORD slice = HA_SLICE_MS;
  WSADATA data;
  SOCKET s;
  *pSock = HA_NO_SOCKET;
  memset(&addr, 0, sizeof(addr));
  if( strlen(zPath)>=sizeof(addr.sun_path) ){
    sqlite3_snprintf(nErr, zErr, "socket path is too long");
    return 1;
  }
  addr.sun_family = HA_AF_UNIX;
  memcpy(addr.sun_path, zPath, strlen(zPath));
  if( WSAStartup(MAKEWORD(2, 2), &data)!=0 ){
    sqlite3_snprintf(nErr, zErr, "Winsock does not start");
    return 1;
  }
  s = socket(HA_AF_UNIX, SOCK_STREAM, 0);
  if( s==INVALID_SOCKET ){
    sqlite3_snprintf(nErr, zErr, "socket: error %d", WSAGetLastError());
    return 1;
  }
  setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (const char*)&slice, sizeof(slice));
  setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, (const char*)&slice, sizeof(slice));
  if( connect(s, (struct sockaddr*)&addr, sizeof(addr))!=0 ){
    sqlite3_snprintf(nErr, zErr, "connect: error %d", WSAGetLastError());
    closesocket(s);
    return 1;
  }
  *pSock = (HaSocket)s;
  return 0;
}

/*
** Send all pieces. Returns 0 or HA_SOCK_LOST.
*/
int haSockSend(
  HaSocket s,        /* the connection */
  const HaBuf *aBuf, /* pieces */
  int nBuf,          /* how many */
  int timeoutMs      /* longest time without any progress */
){
  int i, waited = 0;
  for(i=0; i<nBuf; i++){
    const char *z = (const char*)aBuf[i].p;
    u32 left = aBuf[i].n;
    while( left>0 ){
      int got = send((SOCKET)s, z, (int)left, 0);
      if( got>0 ){
        z += got;
        left -= (u32)got;
        waited = 0;
      }else if( WSAGetLastError()==WSAETIMEDOUT && waited<timeoutMs ){
        waited += HA_SLICE_MS;
      }else{
        return HA_SOCK_LOST;
      }
    }
  }
  return 0;
}

/*
** Receive at least one byte. Returns the number, HA_SOCK_LOST or
** HA_SOCK_SLICE.
*/
int haSockRecv(
  HaSocket s, /* the connection */
  void *pBuf, /* OUT: bytes */
  int nBuf    /* room there */
){
  int got = recv((SOCKET)s, (char*)pBuf, nBuf, 0);
  if( got>0 ) return got;
  if( got<0 && WSAGetLastError()==WSAETIMEDOUT ) return HA_SOCK_SLICE;
  return HA_SOCK_LOST;
}

/* True if haSockRecv would return at once. */
int haSockReady(HaSocket s){
  WSAPOLLFD fd;
  fd.fd = (SOCKET)s;
  fd.events = POLLRDNORM;
  fd.revents = 0;
  return WSAPoll(&fd, 1, 0)>0;
}

#else /* POSIX */

static volatile unsigned forkGeneration = 0;
static pthread_once_t forkOnce = PTHREAD_ONCE_INIT;

static void forkChild(void){ forkGeneration++; }
static void forkSetup(void){ pthread_atfork(0, 0, forkChild); }

/* A number that is another one in a forked child. Costs a memory read. */
unsigned haForkGeneration(void){ return forkGeneration; }
void haForkInit(void){ pthread_once(&forkOnce, forkSetup); }

u32 haProcessId(void){ return (u32)getpid(); }

u64 haClockMs(void){
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec*1000 + (u64)t.tv_nsec/1000000;
}

void haSockClose(HaSocket s){
  if( s!=HA_NO_SOCKET ) close(s);
}

static int newSocket(void){
#ifdef SOCK_CLOEXEC
  int s = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0);
#else
  int s = socket(AF_UNIX, SOCK_STREAM, 0);
  if( s>=0 ) fcntl(s, F_SETFD, FD_CLOEXEC);
#endif
#ifdef SO_NOSIGPIPE
  if( s>=0 ){
    int on = 1;
    setsockopt(s, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
  }
#endif
  return s;
}

/*
** Connect to the unix socket zPath. Returns 0, else writes why into zErr.
*/
int haSockConnect(
  const char *zPath, /* socket of the node */
  HaSocket *pSock,   /* OUT: the connection */
  char *zErr,        /* OUT: the reason when it does not return 0 */
  int nErr           /* bytes in zErr */
){
  struct sockaddr_un addr;
  struct timeval slice;
  int s, rc;
  *pSock = HA_NO_SOCKET;
  memset(&addr, 0, sizeof(addr));
  addr.sun_family = AF_UNIX;
  if( strlen(zPath)>=sizeof(addr.sun_path) ){
    sqlite3_snprintf(nErr, zErr, "socket path is too long");
    return 1;
  }
  memcpy(addr.sun_path, zPath, strlen(zPath));
  s = newSocket();
  if( s<0 ){
    sqlite3_snprintf(nErr, zErr, "socket: %s", strerror(errno));
    return 1;
  }
  slice.tv_sec = 0;
  slice.tv_usec = HA_SLICE_MS*1000;
  setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof(slice));
  do{
    rc = connect(s, (struct sockaddr*)&addr, sizeof(addr));
  }while( rc!=0 && errno==EINTR );
  if( rc!=0 ){
    sqlite3_snprintf(nErr, zErr, "connect: %s", strerror(errno));
    close(s);
    return 1;
  }
  *pSock = s;
  return 0;
}

/*
** Send all pieces without copying them. Returns 0 or HA_SOCK_LOST.
*/
int haSockSend(
  HaSocket s,        /* the connection */
  const HaBuf *aBuf, /* pieces */
  int nBuf,          /* how many */
  int timeoutMs      /* longest time without any progress */
){
  struct iovec aIov[HA_IOV_MAX];
  struct msghdr msg;
  int iBuf = 0;      /* first piece that is not sent completely */
  size_t done = 0;   /* bytes of it that are */
  int waited = 0;
  while( iBuf<nBuf ){
    int n = 0;
    ssize_t sent;
    while( n<HA_IOV_MAX && iBuf+n<nBuf ){
      size_t skip = n==0 ? done : 0;
      aIov[n].iov_base = (void*)((const u8*)aBuf[iBuf+n].p + skip);
      aIov[n].iov_len = aBuf[iBuf+n].n - skip;
      n++;
    }
    memset(&msg, 0, sizeof(msg));
    msg.msg_iov = aIov;
    msg.msg_iovlen = n;
    sent = sendmsg(s, &msg, MSG_NOSIGNAL);
    if( sent<0 ){
      if( errno==EINTR ) continue;
      if( (errno==EAGAIN || errno==EWOULDBLOCK) && waited<timeoutMs ){
        waited += HA_SLICE_MS;
        continue;
      }
      return HA_SOCK_LOST;
    }
    waited = 0;
    done += (size_t)sent;
    while( iBuf<nBuf && done>=aBuf[iBuf].n ){
      done -= aBuf[iBuf].n;
      iBuf++;
    }
  }
  return 0;
}

/*
** Receive at least one byte. Returns the number, HA_SOCK_LOST or
** HA_SOCK_SLICE.
**
** It waits in poll, not in recv: Linux wakes a recv on a unix socket also
** whenever the other end has read something, here up to three times for each
** transaction, and a poll for bytes only when there are some.
*/
int haSockRecv(
  HaSocket s, /* the connection */
  void *pBuf, /* OUT: bytes */
  int nBuf    /* room there */
){
  for(;;){
    struct pollfd fd;
    ssize_t got;
    int n;
    fd.fd = s;
    fd.events = POLLIN;
    fd.revents = 0;
    n = poll(&fd, 1, HA_SLICE_MS);
    if( n==0 ) return HA_SOCK_SLICE;
    if( n<0 && errno!=EINTR ) return HA_SOCK_LOST;
    if( n<0 ) continue;
    got = recv(s, pBuf, (size_t)nBuf, MSG_DONTWAIT);
    if( got>0 ) return (int)got;
    if( got<0 && (errno==EINTR || errno==EAGAIN || errno==EWOULDBLOCK) ) continue;
    return HA_SOCK_LOST;
  }
}

/* True if haSockRecv would return at once. */
int haSockReady(HaSocket s){
  struct pollfd fd;
  fd.fd = s;
  fd.events = POLLIN;
  fd.revents = 0;
  return poll(&fd, 1, 0)>0;
}

#endif
