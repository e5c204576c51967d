/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/* What HvSvmLib's Svm.c asks of others, so that a test can call its functions. */
#include <Library/HvCoreLib.h>
#include <Library/HvHostLib.h>
#include "SvmInternal.h"

CONST HV_BACKEND_OPS  *gOps;

RETURN_STATUS
HvBackendRegister (
  IN CONST HV_BACKEND_OPS  *Ops
  )
{
  gOps = Ops;
  return RETURN_SUCCESS;
}

VOID
SvmProbe (
  OUT HV_PROBE  *Probe
  )
{
}

VOID
SvmRemember (
  IN HV_VCPU  *Vcpu
  )
{
}

VOID *
CopyMem (
  OUT VOID       *Destination,
  IN  CONST VOID  *Source,
  IN  UINTN      Length
  )
{
  return __builtin_memmove (Destination, Source, Length);
}

UINT64
AsmReadMsr64 (
  IN UINT32  Msr
  )
{
  return 0;
}

RETURN_STATUS
HvSvmConstructor (
  VOID
  );

/* The whole machine: one vCPU, and the VMCB. */
STATIC HV_HOST  mHost;
STATIC HV_CPU   mCpu = { .Host = &mHost };
STATIC HV_VCPU  mVcpu = { .Cpu = &mCpu };

VOID
HvCoreMarkPorts (
  IN  CONST HV_SLEEP  *Sleep,
  OUT UINT8           *Map
  )
{
}

/* Sets a control register to what it is, but for one bit. */
VOID
HvTestFlip (
  IN OUT VOID         *Block,
  IN     CONST CHAR8  *Register,
  IN     UINT32       Bit
  )
{
  HV_VCPU_STATE  State;
  UINT64         *Value;

  HvSvmConstructor ();
  mVcpu.Hw = Block;
  gOps->StateGet (&mVcpu, HV_STATE_CONTROL, &State);
  Value = (Register[0] == 'E') ? &State.Efer :
          (Register[2] == '0') ? &State.Cr0 :
          (Register[2] == '3') ? &State.Cr3 : &State.Cr4;
  *Value ^= 1ULL << Bit;
  gOps->StateSet (&mVcpu, HV_STATE_CONTROL, &State);
}

/* Carries out one change; State is taken byte by byte from what the test gives. */
VOID
HvTestChange (
  IN OUT VOID        *Block,
  IN     CONST CHAR8  *What,
  IN     UINT32       Mask,
  IN     UINT8        Pattern
  )
{
  HV_VCPU_STATE  State;

  HvSvmConstructor ();
  mVcpu.Hw = Block;
  __builtin_memset (&State, Pattern, sizeof (State));
  State.InterruptShadow = TRUE;
  switch (What[0]) {
    case 's':
      gOps->StateSet (&mVcpu, Mask, &State);
      break;
    case 'i':
      gOps->InterceptIret (&mVcpu, (BOOLEAN)Mask);
      break;
    case 'd':
      gOps->InterceptDebug (&mVcpu, (BOOLEAN)Mask);
      break;
    case 't':
      gOps->StepTrap (&mVcpu);
      break;
    case 'f':
      gOps->Flush (&mVcpu);
      break;
    case 'g':
      gOps->GuardPorts (&mVcpu);
      break;
  }
}
