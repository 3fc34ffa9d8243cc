package main

/*
#include <stdlib.h>
#include "select.h"
*/
import "C"

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"
)

// selects runs point SELECTs on a database and returns the CPU time they took.
func selects(uri string, rows, count int, seed uint32) (time.Duration, error) {
	runtime.LockOSThread() // the C code reads the CPU time of its thread
	defer runtime.UnlockOSThread()
	name := C.CString(uri)
	defer C.free(unsafe.Pointer(name))
	var cpu C.longlong
	var message [256]C.char
	if rc := C.bench_select(name, C.int(rows), C.int(count), C.uint(seed), &cpu, &message[0], C.int(len(message))); rc != 0 {
		return 0, fmt.Errorf("select from %s: code %d: %s", uri, int(rc), C.GoString(&message[0]))
	}
	return time.Duration(cpu), nil
}
