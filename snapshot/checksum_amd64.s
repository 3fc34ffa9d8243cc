#include "textflag.h"

// func crcFold(c uint64, p *byte, n int, constants *[4]uint64) (hi, lo uint64)
//
// X0 to X3 are 64 bytes of the message, in which all before is folded.
TEXT ·crcFold(SB), NOSPLIT, $0-48
	MOVQ  c+0(FP), X4
	MOVQ  p+8(FP), SI
	MOVQ  n+16(FP), CX
	MOVQ  constants+24(FP), DX
	MOVOU 0(SI), X0
	MOVOU 16(SI), X1
	MOVOU 32(SI), X2
	MOVOU 48(SI), X3
	PXOR  X4, X0
	MOVOU 0(DX), X8
	JMP   next

fold:
	MOVO      X0, X4
	PCLMULQDQ $0x00, X8, X0
	PCLMULQDQ $0x11, X8, X4
	MOVOU     0(SI), X9
	PXOR      X4, X0
	PXOR      X9, X0
	MOVO      X1, X5
	PCLMULQDQ $0x00, X8, X1
	PCLMULQDQ $0x11, X8, X5
	MOVOU     16(SI), X9
	PXOR      X5, X1
	PXOR      X9, X1
	MOVO      X2, X6
	PCLMULQDQ $0x00, X8, X2
	PCLMULQDQ $0x11, X8, X6
	MOVOU     32(SI), X9
	PXOR      X6, X2
	PXOR      X9, X2
	MOVO      X3, X7
	PCLMULQDQ $0x00, X8, X3
	PCLMULQDQ $0x11, X8, X7
	MOVOU     48(SI), X9
	PXOR      X7, X3
	PXOR      X9, X3

next:
	ADDQ $64, SI
	SUBQ $64, CX
	JNZ  fold

	// 16 bytes are left of them.
	MOVOU 16(DX), X8
	MOVO      X0, X4
	PCLMULQDQ $0x00, X8, X0
	PCLMULQDQ $0x11, X8, X4
	PXOR      X0, X1
	PXOR      X4, X1
	MOVO      X1, X4
	PCLMULQDQ $0x00, X8, X1
	PCLMULQDQ $0x11, X8, X4
	PXOR      X1, X2
	PXOR      X4, X2
	MOVO      X2, X4
	PCLMULQDQ $0x00, X8, X2
	PCLMULQDQ $0x11, X8, X4
	PXOR      X2, X3
	PXOR      X4, X3
	MOVQ   X3, AX
	PSRLDQ $8, X3
	MOVQ   X3, BX
	MOVQ   AX, hi+32(FP)
	MOVQ   BX, lo+40(FP)
	RET
