/** @file
  CPUID of every processor: all leaves and their first subleaves.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <PiDxe.h>
#include "Fuzz.h"
#include <Library/MemoryAllocationLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Protocol/MpService.h>

#define SUBLEAVES   16
#define TIMEOUT_US  60000000

STATIC CONST struct {
  UINT32    First;
  UINT32    Count;
} mRanges[] = {
  { HV_CPUID_0,        0x101 },
  { 0x20000000,        2     },
  { HV_CPUID_40000000, 0x100 },
  { 0x4FFFFFFF,        2     },
  { HV_CPUID_80000000, 0x101 },
  { 0x8FFFFFFF,        2     },
  { 0xC0000000,        2     },
};

typedef struct {
  UINT32    Register[4];
} ANSWER;

STATIC
UINTN
AnswerCount (
  VOID
  )
{
  UINTN  Range;
  UINTN  Count;

  Count = 0;
  for (Range = 0; Range < ARRAY_SIZE (mRanges); Range++) {
    Count += mRanges[Range].Count * SUBLEAVES;
  }

  return Count;
}

STATIC
VOID
EFIAPI
AskAll (
  IN OUT VOID  *Buffer
  )
{
  ANSWER  *Answer;
  UINTN   Range;
  UINT32  Leaf;
  UINT32  SubLeaf;

  Answer = Buffer;
  for (Range = 0; Range < ARRAY_SIZE (mRanges); Range++) {
    for (Leaf = 0; Leaf < mRanges[Range].Count; Leaf++) {
      for (SubLeaf = 0; SubLeaf < SUBLEAVES; SubLeaf++, Answer++) {
        AsmCpuidEx (
          mRanges[Range].First + Leaf,
          SubLeaf,
          &Answer->Register[0],
          &Answer->Register[1],
          &Answer->Register[2],
          &Answer->Register[3]
          );
      }
    }
  }
}

///
/// What is not as before it. Of the first processor: not as the leaf before in all subleaves, and not as the subleaf
/// before. Of the others: not as the first processor's.
///
STATIC
VOID
PrintAnswers (
  IN UINTN         Cpu,
  IN CONST ANSWER  *Answers,
  IN CONST ANSWER  *First
  )
{
  CONST ANSWER  *Answer;
  UINTN         Range;
  UINT32        Leaf;
  UINT32        SubLeaf;
  BOOLEAN       Known;

  for (Range = 0; Range < ARRAY_SIZE (mRanges); Range++) {
    for (Leaf = 0; Leaf < mRanges[Range].Count; Leaf++, Answers += SUBLEAVES, First += SUBLEAVES) {
      if ((Cpu == 0) && (Leaf != 0) && (CompareMem (Answers, Answers - SUBLEAVES, SUBLEAVES * sizeof (ANSWER)) == 0)) {
        continue;
      }

      for (SubLeaf = 0; SubLeaf < SUBLEAVES; SubLeaf++) {
        Answer = Answers + SubLeaf;
        if (Cpu == 0) {
          Known = (BOOLEAN)((SubLeaf != 0) && (CompareMem (Answer, Answer - 1, sizeof (*Answer)) == 0));
        } else {
          Known = (BOOLEAN)(CompareMem (Answer, First + SubLeaf, sizeof (*Answer)) == 0);
        }

        if (!Known) {
          Print (
            L"HvFuzz: cpuid %d %08x %d %08x %08x %08x %08x\n",
            Cpu,
            mRanges[Range].First + Leaf,
            SubLeaf,
            Answer->Register[0],
            Answer->Register[1],
            Answer->Register[2],
            Answer->Register[3]
            );
        }
      }
    }
  }
}

VOID
FuzzCpuid (
  VOID
  )
{
  EFI_MP_SERVICES_PROTOCOL  *Mp;
  EFI_STATUS                Status;
  ANSWER                    *First;
  ANSWER                    *Other;
  UINTN                     Count;
  UINTN                     Enabled;
  UINTN                     Cpu;

  Count = 0;
  if (!EFI_ERROR (gBS->LocateProtocol (&gEfiMpServiceProtocolGuid, NULL, (VOID **)&Mp))) {
    Mp->GetNumberOfProcessors (Mp, &Count, &Enabled);
  }

  First = AllocatePool (AnswerCount () * sizeof (ANSWER));
  Other = AllocatePool (AnswerCount () * sizeof (ANSWER));
  if ((First == NULL) || (Other == NULL)) {
    Print (L"HvFuzz: no memory for CPUID\n");
    return;
  }

  AskAll (First);
  PrintAnswers (0, First, First);
  for (Cpu = 1; Cpu < Count; Cpu++) {
    Status = Mp->StartupThisAP (Mp, AskAll, Cpu, NULL, TIMEOUT_US, Other, NULL);
    if (EFI_ERROR (Status)) {
      Print (L"HvFuzz: cpuid %d %r\n", Cpu, Status);
    } else {
      PrintAnswers (Cpu, Other, First);
    }
  }

  Print (L"HvFuzz: cpuid cpus=%d answers=%d\n", MAX (Count, 1), AnswerCount ());
  FreePool (First);
  FreePool (Other);
}
