//go:build !(armbe || arm64be || m68k || mips || mips64 || ppc || ppc64 || s390 || s390x || shbe || sparc || sparc64)

package wal

// hostBig tells the byte order of this machine, in which the wal-index is kept
// and in which new logs are checksummed.
const hostBig = false

// evenSlotHigh is 1 where the first of two 16-bit slots is the high half of their
// word.
const evenSlotHigh = 0
