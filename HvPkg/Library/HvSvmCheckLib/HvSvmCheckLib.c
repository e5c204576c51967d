/** @file
  The rules that VMRUN applies to a VMCB, run in software.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/HvSvmCheckLib.h>
#include <Generated/HvCpuid.h>
#include <Generated/HvMsr.h>
#include <Generated/HvSvmChecks.h>

#define RULE_ROW(Rule, Part, Name, Section, Expected)  { Name, Section, Expected, Part },

STATIC CONST struct {
  CONST CHAR8    *Name;
  CONST CHAR8    *Section;
  CONST CHAR8    *Expected;
  UINT32         Part;
} mRules[HvSvmRuleCount] = {
  HV_SVM_RULE_LIST (RULE_ROW)
};

#define FIELD_ROW(Offset, Bytes, Name)  { Name, Offset, Bytes },

STATIC CONST struct {
  CONST CHAR8    *Name;
  UINT16         Offset;
  UINT16         Bytes;
} mFields[] = {
  HV_SVM_RULE_FIELD_LIST (FIELD_ROW)
};

///
/// Which CPUID bit makes a bit of CR4 or EFER settable (APM3 appendix E; APM2 3.1.3, 3.1.7).
///
typedef struct {
  UINT32    Leaf;
  UINT8     Register; ///< 0 EAX .. 3 EDX
  UINT8     Bit;
  UINT64    Settable;
} FEATURE;

STATIC CONST FEATURE  mCr4Features[] = {
  { HV_CPUID_1, 3, 1,  HV_CR4_VME | HV_CR4_PVI },
  { HV_CPUID_1, 3, 2,  HV_CR4_DE               },
  { HV_CPUID_1, 3, 3,  HV_CR4_PSE              },
  { HV_CPUID_1, 3, 4,  HV_CR4_TSD              },
  { HV_CPUID_1, 3, 6,  HV_CR4_PAE              },
  { HV_CPUID_1, 3, 7,  HV_CR4_MCE              },
  { HV_CPUID_1, 3, 13, HV_CR4_PGE              },
  { HV_CPUID_1, 3, 24, HV_CR4_OSFXSR           },
  { HV_CPUID_1, 3, 25, HV_CR4_OSXMMEXCPT       },
  { HV_CPUID_1, 2, 17, HV_CR4_PCIDE            },
  { HV_CPUID_1, 2, 26, HV_CR4_OSXSAVE          },
  { HV_CPUID_7, 1, 0,  HV_CR4_FSGSBASE         },
  { HV_CPUID_7, 1, 7,  HV_CR4_SMEP             },
  { HV_CPUID_7, 1, 20, HV_CR4_SMAP             },
  { HV_CPUID_7, 2, 2,  HV_CR4_UMIP             },
  { HV_CPUID_7, 2, 3,  HV_CR4_PKE              },
  { HV_CPUID_7, 2, 7,  HV_CR4_CET              },
  { HV_CPUID_7, 2, 16, HV_CR4_LA57             },
};

STATIC CONST FEATURE  mEferFeatures[] = {
  { HV_CPUID_80000001, 3, 11, HV_EFER_SCE                   },
  { HV_CPUID_80000001, 3, 20, HV_EFER_NXE                   },
  { HV_CPUID_80000001, 3, 25, HV_EFER_FFXSR                 },
  { HV_CPUID_80000001, 3, 29, HV_EFER_LME | HV_EFER_LMA     },
  { HV_CPUID_80000001, 2, 2,  HV_EFER_SVME | HV_EFER_LMSLE  },
  { HV_CPUID_80000001, 2, 17, HV_EFER_TCE                   },
  { HV_CPUID_80000008, 1, 8,  HV_EFER_MCOMMIT               },
  { HV_CPUID_80000008, 1, 13, HV_EFER_INTWB                 },
  { 0x80000021,        0, 7,  HV_EFER_UAIE                  },
  { 0x80000021,        0, 8,  HV_EFER_AIBRSE                },
};

// The vectors that are exceptions (APM2 table 8-1); 2 is the NMI, 9 and those without a name are reserved.
#define EXCEPTIONS  (BIT0 | BIT1 | BIT3 | BIT4 | BIT5 | BIT6 | BIT7 | BIT8 | BIT10 | BIT11 | BIT12 | BIT13 | BIT14 | \
                     BIT16 | BIT17 | BIT18 | BIT19 | BIT21 | BIT28 | BIT29 | BIT30)

#define EFER_LONG  (HV_EFER_LME | HV_EFER_LMA)

#define CPUID_80000008_EBX_NO_LMSLE  BIT20 // EFER.LMSLE is reserved all the same

typedef struct {
  CONST HV_VMCB    *Vmcb;
  HV_FINDING       *Findings;
  UINTN            Max;
  UINTN            Count;
  UINT32           Parts;
} CHECK;

STATIC
UINT64
Read (
  IN CONST HV_VMCB  *Vmcb,
  IN UINTN          Offset,
  IN UINTN          Bytes
  )
{
  CONST UINT8  *From;
  UINT64       Value;

  From  = (CONST UINT8 *)Vmcb + Offset;
  Value = 0;
  while (Bytes-- != 0) {
    Value = (Value << 8) | From[Bytes];
  }

  return Value;
}

STATIC
VOID
Expect (
  IN OUT CHECK        *Check,
  IN     HV_SVM_RULE  Rule,
  IN     UINT32       Offset,
  IN     BOOLEAN      Kept
  )
{
  HV_FINDING  *Finding;
  UINTN       Row;

  if (Kept || ((mRules[Rule].Part & Check->Parts) == 0)) {
    return;
  }

  if (Check->Count++ >= Check->Max) {
    return;
  }

  for (Row = 0; (Row < ARRAY_SIZE (mFields) - 1) && (mFields[Row].Offset != Offset); Row++) {
  }

  Finding            = &Check->Findings[Check->Count - 1];
  Finding->Rule      = Rule;
  Finding->Field     = Offset;
  Finding->Value     = Read (Check->Vmcb, Offset, mFields[Row].Bytes);
  Finding->Name      = mRules[Rule].Name;
  Finding->Section   = mRules[Rule].Section;
  Finding->FieldName = mFields[Row].Name;
  Finding->Expected  = mRules[Rule].Expected;
}

///
/// Whether a map lies below the end of physical memory. VMRUN ignores the low 12 bits (APM2 15.10.1, 15.11).
///
STATIC
BOOLEAN
MapFits (
  IN UINT64  Base,
  IN UINT64  Bytes,
  IN UINT8   AddressBits
  )
{
  Base &= ~(UINT64)(SIZE_4KB - 1);
  return (BOOLEAN)((Base >> AddressBits == 0) && ((1ULL << AddressBits) - Base >= Bytes));
}

STATIC
VOID
CheckEvent (
  IN OUT CHECK  *Check
  )
{
  CONST HV_VMCB_SAVE  *Save;
  UINT64              Event;
  UINT64              Type;
  UINT32              Vector;

  Save  = &Check->Vmcb->Save;
  Event = Check->Vmcb->Control.EventInj;
  if ((Event & HV_SVM_EVENT_VALID) == 0) {
    return;
  }

  Type   = Event & HV_SVM_EVENT_TYPE_MASK;
  Vector = (UINT32)(Event & HV_SVM_EVENT_VECTOR_MASK);
  Expect (
    Check,
    HvSvmRuleEventType,
    HV_VMCB_CONTROL_EVENT_INJ,
    (BOOLEAN)((Type == HV_SVM_EVENT_TYPE_INTR) || (Type == HV_SVM_EVENT_TYPE_NMI) ||
              (Type == HV_SVM_EVENT_TYPE_EXCEPTION) || (Type == HV_SVM_EVENT_TYPE_SOFTWARE))
    );
  if (Type != HV_SVM_EVENT_TYPE_EXCEPTION) {
    return;
  }

  Expect (
    Check,
    HvSvmRuleEventVector,
    HV_VMCB_CONTROL_EVENT_INJ,
    (BOOLEAN)((Vector < 32) && ((EXCEPTIONS >> Vector & 1) != 0))
    );
  Expect (
    Check,
    HvSvmRuleEventMode,
    HV_VMCB_CONTROL_EVENT_INJ,
    (BOOLEAN)(((Vector != HV_VECTOR_OF) && (Vector != HV_VECTOR_BR)) ||
              ((Save->Efer & HV_EFER_LMA) == 0) || ((Save->Cs.Attributes & HV_SVM_SEGMENT_L) == 0))
    );
}

STATIC
VOID
CheckControl (
  IN OUT CHECK                   *Check,
  IN     CONST HV_SVM_CHECK_ENV  *Env
  )
{
  CONST HV_VMCB_CONTROL  *Control;
  BOOLEAN                Nested;
  UINT8                  Tlb;

  Control = &Check->Vmcb->Control;
  Expect (
    Check,
    HvSvmRuleInterceptVmrun,
    HV_VMCB_CONTROL_INTERCEPT4,
    (BOOLEAN)((Control->Intercept4 & HV_SVM_INTERCEPT4_VMRUN) != 0)
    );
  Expect (Check, HvSvmRuleAsidZero, HV_VMCB_CONTROL_GUEST_ASID, (BOOLEAN)(Control->GuestAsid != 0));
  Expect (
    Check,
    HvSvmRuleAsidRange,
    HV_VMCB_CONTROL_GUEST_ASID,
    (BOOLEAN)((Control->GuestAsid == 0) || (Control->GuestAsid < Env->Asids))
    );
  Expect (
    Check,
    HvSvmRuleIopmRange,
    HV_VMCB_CONTROL_IOPM_BASE,
    MapFits (Control->IopmBase, HV_SVM_IOPM_BYTES, Env->AddressBits)
    );
  Expect (
    Check,
    HvSvmRuleMsrpmRange,
    HV_VMCB_CONTROL_MSRPM_BASE,
    MapFits (Control->MsrpmBase, HV_SVM_MSRPM_BYTES, Env->AddressBits)
    );

  Tlb = Control->TlbControl;
  Expect (
    Check,
    HvSvmRuleTlbControl,
    HV_VMCB_CONTROL_TLB_CONTROL,
    (BOOLEAN)((Tlb == HV_SVM_TLB_NOTHING) || (Tlb == HV_SVM_TLB_FLUSH_ALL) ||
              (((Env->Features & HV_SVM_FEATURE_FLUSH_BY_ASID) != 0) &&
               ((Tlb == HV_SVM_TLB_FLUSH_ASID) || (Tlb == HV_SVM_TLB_FLUSH_ASID_NOT_GLOBAL))))
    );

  CheckEvent (Check);

  Nested = (BOOLEAN)((Control->NestedControl & HV_SVM_NP_ENABLE) != 0);
  Expect (
    Check,
    HvSvmRuleNpFeature,
    HV_VMCB_CONTROL_NESTED_CONTROL,
    (BOOLEAN)(!Nested || ((Env->Features & HV_SVM_FEATURE_NP) != 0))
    );
  Expect (
    Check,
    HvSvmRuleNpHostPaging,
    HV_VMCB_CONTROL_NESTED_CONTROL,
    (BOOLEAN)(!Nested || ((Env->HostCr0 & HV_CR0_PG) != 0))
    );
  Expect (
    Check,
    HvSvmRuleNcr3Reserved,
    HV_VMCB_CONTROL_NCR3,
    (BOOLEAN)(!Nested || (Control->NCr3 >> Env->AddressBits == 0))
    );
  Expect (
    Check,
    HvSvmRuleVnmiIntercept,
    HV_VMCB_CONTROL_VINTR,
    (BOOLEAN)(((Env->Features & HV_SVM_FEATURE_VNMI) == 0) || ((Control->VIntr & HV_SVM_VINTR_NMI_ENABLE) == 0) ||
              ((Control->Intercept3 & HV_SVM_INTERCEPT3_NMI) != 0))
    );
}

STATIC
VOID
CheckGuest (
  IN OUT CHECK                   *Check,
  IN     CONST HV_SVM_CHECK_ENV  *Env
  )
{
  CONST HV_VMCB_SAVE  *Save;
  UINT64              Cr0;
  UINT64              Cr4;
  UINT64              Efer;
  BOOLEAN             Paging;
  BOOLEAN             LongPaging;
  BOOLEAN             Types;
  UINTN               Entry;
  UINT8               Type;

  Save       = &Check->Vmcb->Save;
  Cr0        = Save->Cr0;
  Cr4        = Save->Cr4;
  Efer       = Save->Efer;
  Paging     = (BOOLEAN)((Cr0 & HV_CR0_PG) != 0);
  LongPaging = (BOOLEAN)(Paging && ((Efer & HV_EFER_LME) != 0));

  Expect (Check, HvSvmRuleEferSvme, HV_VMCB_SAVE_EFER, (BOOLEAN)((Efer & HV_EFER_SVME) != 0));
  Expect (Check, HvSvmRuleEferReserved, HV_VMCB_SAVE_EFER, (BOOLEAN)((Efer & ~(Env->EferValid | EFER_LONG)) == 0));
  Expect (Check, HvSvmRuleEferLongMode, HV_VMCB_SAVE_EFER, (BOOLEAN)(Env->LongMode || ((Efer & EFER_LONG) == 0)));
  Expect (
    Check,
    HvSvmRuleEferLma,
    HV_VMCB_SAVE_EFER,
    (BOOLEAN)(!Env->LongMode || (((Efer & HV_EFER_LMA) != 0) == LongPaging))
    );

  Expect (Check, HvSvmRuleCr0High, HV_VMCB_SAVE_CR0, (BOOLEAN)(Cr0 >> 32 == 0));
  Expect (
    Check,
    HvSvmRuleCr0Nw,
    HV_VMCB_SAVE_CR0,
    (BOOLEAN)(((Cr0 & HV_CR0_NW) == 0) || ((Cr0 & HV_CR0_CD) != 0))
    );
  Expect (Check, HvSvmRuleCr3Reserved, HV_VMCB_SAVE_CR3, (BOOLEAN)(Save->Cr3 >> Env->AddressBits == 0));
  Expect (Check, HvSvmRuleCr4Reserved, HV_VMCB_SAVE_CR4, (BOOLEAN)((Cr4 & ~Env->Cr4Valid) == 0));
  if ((Env->Cr4Valid & HV_CR4_CET) != 0) {
    Expect (
      Check,
      HvSvmRuleCr4Cet,
      HV_VMCB_SAVE_CR4,
      (BOOLEAN)(((Cr4 & HV_CR4_CET) == 0) || ((Cr0 & HV_CR0_WP) != 0))
      );
    Expect (Check, HvSvmRuleSCetReserved, HV_VMCB_SAVE_SCET, (BOOLEAN)(Save->SCet >> 2 == 0));
  }

  Expect (Check, HvSvmRuleDr6High, HV_VMCB_SAVE_DR6, (BOOLEAN)(Save->Dr6 >> 32 == 0));
  Expect (Check, HvSvmRuleDr7High, HV_VMCB_SAVE_DR7, (BOOLEAN)(Save->Dr7 >> 32 == 0));
  if (LongPaging && Env->LongMode) {
    Expect (Check, HvSvmRuleLongModePae, HV_VMCB_SAVE_CR4, (BOOLEAN)((Cr4 & HV_CR4_PAE) != 0));
    Expect (Check, HvSvmRuleLongModePe, HV_VMCB_SAVE_CR0, (BOOLEAN)((Cr0 & HV_CR0_PE) != 0));
    Expect (
      Check,
      HvSvmRuleLongModeCs,
      HV_VMCB_SAVE_CS_ATTRIBUTES,
      (BOOLEAN)(((Cr4 & HV_CR4_PAE) == 0) || ((Save->Cs.Attributes & HV_SVM_SEGMENT_L) == 0) ||
                ((Save->Cs.Attributes & HV_SVM_SEGMENT_DB) == 0))
      );
  }

  if ((Check->Vmcb->Control.NestedControl & HV_SVM_NP_ENABLE) != 0) {
    Expect (Check, HvSvmRuleGPatReserved, HV_VMCB_SAVE_GPAT, (BOOLEAN)((Save->GPat & 0xF8F8F8F8F8F8F8F8ULL) == 0));
    Types = TRUE;
    for (Entry = 0; Entry < 8; Entry++) {
      Type = (UINT8)(Save->GPat >> 8 * Entry & 7);
      if ((Type == 2) || (Type == 3)) {
        Types = FALSE;
      }
    }

    Expect (Check, HvSvmRuleGPatType, HV_VMCB_SAVE_GPAT, Types);
  }
}

STATIC
UINT64
Settable (
  IN HV_SVM_CHECK_CPUID  Cpuid,
  IN CONST FEATURE       *Features,
  IN UINTN               Count
  )
{
  UINT32  Registers[4];
  UINT64  Bits;
  UINTN   Row;

  Bits = 0;
  for (Row = 0; Row < Count; Row++) {
    Cpuid (Features[Row].Leaf, 0, Registers);
    if ((Registers[Features[Row].Register] >> Features[Row].Bit & 1) != 0) {
      Bits |= Features[Row].Settable;
    }
  }

  return Bits;
}

RETURN_STATUS
EFIAPI
HvSvmCheckEnv (
  OUT HV_SVM_CHECK_ENV    *Env,
  IN  HV_SVM_CHECK_CPUID  Cpuid,
  IN  UINT64              HostCr0
  )
{
  UINT32  Registers[4];

  Cpuid (HV_CPUID_80000000, 0, Registers);
  if (Registers[0] < HV_CPUID_8000000A) {
    return RETURN_UNSUPPORTED;
  }

  Env->HostCr0   = HostCr0;
  Env->Cr4Valid  = HV_CR4_PCE | Settable (Cpuid, mCr4Features, ARRAY_SIZE (mCr4Features));
  Env->EferValid = Settable (Cpuid, mEferFeatures, ARRAY_SIZE (mEferFeatures));
  Env->LongMode  = (BOOLEAN)((Env->EferValid & HV_EFER_LME) != 0);
  Cpuid (HV_CPUID_80000008, 0, Registers);
  Env->AddressBits = (UINT8)(Registers[0] & HV_CPUID_80000008_EAX_PHYSICAL_BITS_MASK);
  if ((Registers[1] & CPUID_80000008_EBX_NO_LMSLE) != 0) {
    Env->EferValid &= ~(UINT64)HV_EFER_LMSLE;
  }

  Cpuid (HV_CPUID_8000000A, 0, Registers);
  Env->Asids    = Registers[1];
  Env->Features = Registers[3];
  return RETURN_SUCCESS;
}

UINTN
EFIAPI
HvSvmCheck (
  IN  CONST HV_VMCB           *Vmcb,
  IN  CONST HV_SVM_CHECK_ENV  *Env,
  IN  UINT32                  Parts,
  OUT HV_FINDING              *Findings,
  IN  UINTN                   Max
  )
{
  CHECK  Check;

  Check.Vmcb     = Vmcb;
  Check.Findings = Findings;
  Check.Max      = Max;
  Check.Count    = 0;
  Check.Parts    = Parts;
  CheckControl (&Check, Env);
  CheckGuest (&Check, Env);
  return Check.Count;
}
