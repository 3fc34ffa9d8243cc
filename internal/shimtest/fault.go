package shimtest

/*
#cgo CFLAGS: -I${SRCDIR}/../../vfs
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include "sqlite3.h"

static volatile int faultAfter = -1; // writes that still succeed; -1: all do
static ssize_t (*realWrite)(int, const void*, size_t, off_t) = 0;

static ssize_t faultyWrite(int fd, const void *p, size_t n, off_t o){
  if( faultAfter==0 ){
    errno = ENOSPC;
    return -1;
  }
  if( faultAfter>0 ) faultAfter--;
  return realWrite(fd, p, n, o);
}

static int faultSetup(void){
  static const char *azName[] = {"pwrite", "pwrite64", 0};
  sqlite3_vfs *p = sqlite3_vfs_find("unix");
  int i, n = 0;
  if( realWrite ) return 1;
  for(i=0; azName[i]; i++){
    sqlite3_syscall_ptr x = p->xGetSystemCall(p, azName[i]);
    if( x==0 ) continue;
    memcpy(&realWrite, &x, sizeof(x));
    p->xSetSystemCall(p, azName[i], (sqlite3_syscall_ptr)faultyWrite);
    n++;
  }
  return n;
}

static void faultArm(int n){ faultAfter = n; }

static char *lastError(const char *zVfs){
  char *z = calloc(1, 1024);
  sqlite3_vfs *p = sqlite3_vfs_find(zVfs);
  if( p && z ) p->xGetLastError(p, 1023, z);
  return z;
}
*/
import "C"

import "unsafe"

// FailWrites lets n more writes of SQLite in this process succeed and fails
// the rest as a full disk does; -1 ends that.
func FailWrites(n int) {
	if C.faultSetup() == 0 {
		panic("this SQLite writes by no call that can be replaced")
	}
	C.faultArm(C.int(n))
}

// LastError is the text that the VFS hasqlite keeps for this thread.
func LastError() string {
	name := C.CString("hasqlite")
	defer C.free(unsafe.Pointer(name))
	text := C.lastError(name)
	defer C.free(unsafe.Pointer(text))
	return C.GoString(text)
}
