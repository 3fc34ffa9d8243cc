package snapshot

import "golang.org/x/sys/cpu"

// carryless reports that the processor multiplies without carries.
var carryless = cpu.X86.HasPCLMULQDQ

// crcFold advances a state over n bytes, a multiple of 64 and not 0, but for the
// last multiplication by x^128: the state after them is that of the words hi and lo.
//
//go:noescape
func crcFold(c uint64, p *byte, n int, constants *[4]uint64) (hi, lo uint64)
