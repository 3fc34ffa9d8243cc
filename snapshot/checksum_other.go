//go:build !amd64

package snapshot

const carryless = false

func crcFold(uint64, *byte, int, *[4]uint64) (hi, lo uint64) { panic("no carry-less multiplication") }
