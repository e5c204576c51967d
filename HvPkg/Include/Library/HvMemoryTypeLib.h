/** @file
  The memory type that the MTRRs give to a physical address, and how far it reaches.

  SDM 11.11 is "Memory Type Range Registers (MTRRs)" of SDM Volume 3A, numbered as in revisions before "User Interrupts"
  became chapter 7 (12.11 or 13.11 later; its subsections kept their numbers). APM2 (AMD 24593) 7.7.

  AMD's SYSCFG.Tom2ForceMemTypeWB (APM2 7.9) is not looked at: with nested paging AMD processors apply the MTRRs by
  themselves.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_MEMORY_TYPE_LIB_H_
#define HV_MEMORY_TYPE_LIB_H_

#define HV_MEMORY_UC  0
#define HV_MEMORY_WC  1
#define HV_MEMORY_WT  4
#define HV_MEMORY_WP  5
#define HV_MEMORY_WB  6

#define HV_MTRR_FIXED_COUNT   11
#define HV_MTRR_VARIABLE_MAX  32

#define HV_MTRR_DEF_TYPE_FIXED_ENABLE  BIT10
#define HV_MTRR_DEF_TYPE_ENABLE        BIT11
#define HV_MTRR_MASK_VALID             BIT11

typedef struct {
  UINT64    DefType;                       ///< MSR 2FFh. Without fixed ranges (IA32_MTRRCAP) clear bit 10.
  UINT64    Fixed[HV_MTRR_FIXED_COUNT];    ///< MSRs 250h, 258h, 259h, 268h, 269h, ... 26Fh
  UINT32    VariableCount;                 ///< IA32_MTRRCAP.VCNT, at most HV_MTRR_VARIABLE_MAX
  UINT64    Base[HV_MTRR_VARIABLE_MAX];    ///< MSRs 200h, 202h, ...
  UINT64    Mask[HV_MTRR_VARIABLE_MAX];    ///< MSRs 201h, 203h, ...
} HV_MTRRS;

/**
  Gives the effective MTRR memory type of an address.

  @par Context: Any

  @param[in]  Mtrrs        The registers.
  @param[in]  AddressBits  Physical address width, 32 to 52.
  @param[in]  Address      Physical address.
  @param[out] Type         HV_MEMORY_*.
  @param[out] UniformEnd   All addresses from Address to UniformEnd, exclusive, have this type and give the same status.
                           It is the next change, or 1 << AddressBits. Only masks with gaps can make it fall short of
                           the next change: the search ends after 256 boundaries at which the type stays the same.

  @retval RETURN_SUCCESS            Type and UniformEnd are set.
  @retval RETURN_COMPROMISED_DATA   Type (UC) and UniformEnd are set, but the manuals leave undefined what the registers
                                    say: types overlap that have no precedence, or a type is reserved.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL, AddressBits or VariableCount is out of range, or Address is not
                                    below 1 << AddressBits. Nothing is set.
**/
RETURN_STATUS
EFIAPI
HvMemoryTypeGet (
  IN  CONST HV_MTRRS  *Mtrrs,
  IN  UINT8           AddressBits,
  IN  UINT64          Address,
  OUT UINT8           *Type,
  OUT UINT64          *UniformEnd
  );

#endif
