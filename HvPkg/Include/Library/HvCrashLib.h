/** @file
  The record that a host exception leaves in reserved memory, for the next boot to find.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_CRASH_LIB_H_
#define HV_CRASH_LIB_H_

#include <Base.h>

#define HV_CRASH_SIGNATURE    0x3168736172437648ULL ///< "HvCrash1"
#define HV_CRASH_STACK_WORDS  64

///
/// One page. The first part is written at launch, the second by the processor that crashes first.
///
typedef struct {
  UINT64             Signature;
  UINT64             Self;        ///< the record's own physical address
  UINT64             Ring;        ///< the log ring
  UINT64             RingBytes;
  UINT64             ImageBase;   ///< the copy of the image that the addresses are in
  UINT64             ImageBytes;
  volatile UINT32    Claimed;     ///< 1: a processor crashed, the rest is its
  UINT32             CpuIndex;
  UINT64             Vector;
  UINT64             ErrorCode;
  UINT64             Cr0;
  UINT64             Cr2;
  UINT64             Cr3;
  UINT64             Cr4;
  UINT64             Regs[18];    ///< in the order of HV_REGS: the general registers, RIP, RFLAGS
  UINT64             StackBase;   ///< address of Stack[0]
  UINT64             StackWords;  ///< entries of Stack in use
  UINT64             Stack[HV_CRASH_STACK_WORDS];
  UINT64             Checksum;    ///< all 64-bit words of a complete record add up to 0
} HV_CRASH_RECORD;

/**
  Completes a record: from here on it is valid.

  @param[in,out] Record  Everything but Checksum is set.

  @return  The checksum.

  @par Context: Any
**/
UINT64
EFIAPI
HvCrashSeal (
  IN OUT HV_CRASH_RECORD  *Record
  );

/**
  Whether a piece of memory, which may hold anything, is a complete record of a crash.

  @param[in] Record   The memory.
  @param[in] Address  Its physical address.

  @retval TRUE   A processor crashed, and nothing was changed since.
  @retval FALSE  It is something else.

  @par Context: Any
**/
BOOLEAN
EFIAPI
HvCrashIsValid (
  IN CONST HV_CRASH_RECORD  *Record,
  IN UINT64                 Address
  );

#endif // HV_CRASH_LIB_H_
