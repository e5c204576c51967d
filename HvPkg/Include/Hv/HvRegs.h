/** @file
  Registers of a processor, as the core, the backends and the pure libraries hold them.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_REGS_H_
#define HV_REGS_H_

///
/// General registers in the order of their instruction encoding.
///
typedef union {
  struct {
    UINT64    Rax;
    UINT64    Rcx;
    UINT64    Rdx;
    UINT64    Rbx;
    UINT64    Rsp;
    UINT64    Rbp;
    UINT64    Rsi;
    UINT64    Rdi;
    UINT64    R8;
    UINT64    R9;
    UINT64    R10;
    UINT64    R11;
    UINT64    R12;
    UINT64    R13;
    UINT64    R14;
    UINT64    R15;
    UINT64    Rip;
    UINT64    Rflags;
  };
  UINT64    Index[18];
} HV_REGS;

///
/// A segment register with its hidden part. Attributes are the descriptor's bits 40..47 and 52..55 put together
/// (the VMCB's format); a clear present bit means unusable.
///
typedef struct {
  UINT16    Selector;
  UINT16    Attributes;
  UINT32    Limit;
  UINT64    Base;
} HV_SEGMENT;

#define HV_SEGMENT_CONFORMING  BIT2 // of a code segment
#define HV_SEGMENT_PRESENT  BIT7
#define HV_SEGMENT_LONG     BIT9
#define HV_SEGMENT_DB       BIT10

typedef enum {
  HvSegmentEs,
  HvSegmentCs,
  HvSegmentSs,
  HvSegmentDs,
  HvSegmentFs,
  HvSegmentGs,
  HvSegmentLdtr,
  HvSegmentTr,
  HvSegmentCount
} HV_SEGMENT_NAME;

#endif // HV_REGS_H_
