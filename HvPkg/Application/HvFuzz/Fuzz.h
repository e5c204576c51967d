/** @file
  What the parts of HvFuzz have in common.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_FUZZ_H_
#define HV_FUZZ_H_

#include <Uefi.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvTrapLib.h>
#include <Library/UefiLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvHypercall.h>
#include <Generated/HvMsr.h>

#define FUZZ_DIGEST  1469598103934665603ULL ///< of nothing: FNV-1a over words

///
/// How much is tried, by the command line.
///
typedef struct {
  UINT64     Seed;
  UINT64     Calls;  ///< hypercalls of each kind, with random registers
  BOOLEAN    Strict; ///< the processor refuses what the manual says it refuses
  BOOLEAN    Amd;
} FUZZ;

extern FUZZ  gFuzz;

//
// X64/Snippets.nasm.
//
extern CONST UINT8  HvTryRdmsr[], HvTryWrmsr[], HvTryFlipMsr[], HvTryXsetbv[], HvTryXgetbv[], HvTryVmcall[], HvTryVmmcall[];
extern CONST UINT8  HvTryIn8[], HvTryIn16[], HvTryIn32[], HvTryIns8[], HvTryIns16[], HvTryIns32[];
extern CONST UINT8  HvTryOut8[], HvTryOut16[], HvTryOut32[], HvTryOuts8[];
extern CONST UINT8  HvTryLoad8[], HvTryLoad16[], HvTryLoad32[], HvTryLoad64[];
extern CONST UINT8  HvTryStore8[], HvTryStore16[], HvTryStore32[], HvTryStore64[];
extern CONST UINT8  HvTryXchg32[], HvTryAdd16[], HvTryStos32[];
extern CONST UINT8  HvTryCr0[], HvTryCr4[];
extern CONST UINT8  HvTryDr0[], HvTryDr1[], HvTryDr2[], HvTryDr3[], HvTryDr4[], HvTryDr6[], HvTryDr7[];

/**
  The next random number of a sequence, which is never at 0.

  @par Context: Boot
**/
UINT64
FuzzRandom (
  IN OUT UINT64  *State
  );

/**
  The start of a sequence that depends on the seed and Number alone.

  @par Context: Boot
**/
UINT64
FuzzSequence (
  IN UINT64  Number
  );

/**
  Takes a word into a digest.

  @par Context: Boot
**/
UINT64
FuzzDigest (
  IN UINT64  Digest,
  IN UINT64  Word
  );

/**
  Reads an MSR.

  @retval TRUE   Value is set.
  @retval FALSE  There was an exception.

  @par Context: Boot
**/
BOOLEAN
FuzzReadMsr (
  IN  UINT32  Msr,
  OUT UINT64  *Value
  );

/**
  Writes an MSR.

  @return  The vector of its exception, or HV_TRAP_NONE.

  @par Context: Boot
**/
UINT32
FuzzWriteMsr (
  IN UINT32  Msr,
  IN UINT64  Value
  );

/**
  All MSRs of the ranges, in runs of the same outcome.

  @par Context: Boot
**/
VOID
FuzzMsrs (
  VOID
  );

/**
  All CPUID leaves of all processors.

  @par Context: Boot
**/
VOID
FuzzCpuid (
  VOID
  );

/**
  Control and debug registers, XCR0, ports, memory-mapped registers.

  @par Context: Boot
**/
VOID
FuzzRegisters (
  VOID
  );

#endif // HV_FUZZ_H_
