/** @file
  Guest-virtual to guest-physical translation in software, for every paging mode.

  SDM 4.x is section x of the chapter "Paging" of SDM Volume 3A (chapter 5 in revisions that have "Linear-Address
  Pre-Processing" before it); APM2 is AMD 24593, chapter 5.

  Not covered: shadow-stack accesses and supervisor protection keys (CR4.CET, CR4.PKS). The walk sets neither accessed
  nor dirty flags.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_GUEST_WALK_LIB_H_
#define HV_GUEST_WALK_LIB_H_

#define HV_INSTRUCTION_MAX  15  ///< Longest instruction in bytes

typedef struct {
  UINT64     Cr0;
  UINT64     Cr3;
  UINT64     Cr4;
  UINT64     Efer;
  UINT64     Rflags;       ///< AC counts, for SMAP
  UINT32     Pkru;         ///< Counts if CR4.PKE = 1
  UINT8      Cpl;          ///< 3: user-mode access
  UINT8      AddressBits;  ///< MAXPHYADDR that the guest was told: entries have reserved bits from here to 51
  BOOLEAN    Page1G;       ///< 1 GiB pages exist (CPUID 80000001h EDX bit 26)
  BOOLEAN    PdpteLoaded;  ///< PAE: take the PDPTEs from Pdpte (VMX keeps them in registers), not from memory (SVM
                           ///< with nested paging, APM2 15.25.10)
  UINT64     Pdpte[4];
} HV_GUEST_PAGING;

//
// Kind of access. A read is 0.
//
#define HV_ACCESS_READ    0x00u
#define HV_ACCESS_WRITE   0x01u
#define HV_ACCESS_FETCH   0x02u
#define HV_ACCESS_SYSTEM  0x04u  ///< Implicit supervisor access (descriptor tables, TSS) whatever the CPL
typedef UINT32 HV_ACCESS;

//
// Error code of a page fault (SDM 4.7, APM2 8.4.2).
//
#define HV_PF_PRESENT   0x01u
#define HV_PF_WRITE     0x02u
#define HV_PF_USER      0x04u
#define HV_PF_RESERVED  0x08u
#define HV_PF_FETCH     0x10u
#define HV_PF_KEY       0x20u

typedef struct {
  UINT32    ErrorCode;  ///< HV_PF_*
  UINT64    Cr2;
} HV_PAGE_FAULT;

/**
  Reads guest-physical memory. The range never crosses a 4 KiB boundary.

  @par Context: Host

  @param[in]  Context  As handed to the library.
  @param[in]  Gpa      Guest-physical address.
  @param[out] Buffer   Where to.
  @param[in]  Size     Number of bytes.

  @retval RETURN_SUCCESS  Read.
  @retval Others          Not readable; the library passes RETURN_DEVICE_ERROR on.
**/
typedef
RETURN_STATUS
(EFIAPI *HV_GUEST_READ)(
  IN  VOID    *Context,
  IN  UINT64  Gpa,
  OUT VOID    *Buffer,
  IN  UINTN   Size
  );

/**
  Translates one address and checks the access.

  @par Context: Host

  @param[in]  State    The guest's control registers.
  @param[in]  Linear   Linear address. Outside long mode (EFER.LMA = 0) bits 63:32 are ignored.
  @param[in]  Access   HV_ACCESS_*; WRITE and FETCH exclude each other.
  @param[in]  Read     How guest-physical memory is read.
  @param[in]  Context  For Read.
  @param[out] Gpa      Guest-physical address, set on success.
  @param[out] Fault    The page fault that the access raises, set for RETURN_ACCESS_DENIED.

  @retval RETURN_SUCCESS            Gpa is set.
  @retval RETURN_ACCESS_DENIED      The access raises #PF: Fault is set.
  @retval RETURN_NOT_FOUND          Linear is not canonical: #GP, or #SS for a stack access.
  @retval RETURN_DEVICE_ERROR       A table entry could not be read.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL, or Access or AddressBits is not possible.
**/
RETURN_STATUS
EFIAPI
HvGuestWalk (
  IN  CONST HV_GUEST_PAGING  *State,
  IN  UINT64                 Linear,
  IN  HV_ACCESS              Access,
  IN  HV_GUEST_READ          Read,
  IN  VOID                   *Context,
  OUT UINT64                 *Gpa,
  OUT HV_PAGE_FAULT          *Fault
  );

/**
  Fetches the bytes of an instruction, as many as can be read, up to HV_INSTRUCTION_MAX, across a page boundary.

  @par Context: Host

  @param[in]  State    The guest's control registers.
  @param[in]  Linear   Linear address of the first byte (CS base + RIP). What follows wraps at 4 GiB outside long
                       mode; in compatibility mode the caller cuts Count at 4 GiB.
  @param[in]  Read     How guest-physical memory is read.
  @param[in]  Context  For Read.
  @param[out] Buffer   HV_INSTRUCTION_MAX bytes; those that were not read are 0.
  @param[out] Count    Number of bytes that were read.
  @param[out] Fault    Set for RETURN_ACCESS_DENIED; also set, on success, if Count is less than HV_INSTRUCTION_MAX
                       because the second page faults. Else ErrorCode and Cr2 are 0.

  @retval RETURN_SUCCESS            At least one byte was read.
  @retval RETURN_ACCESS_DENIED      The first byte raises #PF: Fault is set.
  @retval RETURN_NOT_FOUND          Linear is not canonical.
  @retval RETURN_DEVICE_ERROR       A table entry or the first byte could not be read.
  @retval RETURN_INVALID_PARAMETER  A pointer is NULL, or AddressBits is not possible.
**/
RETURN_STATUS
EFIAPI
HvGuestFetch (
  IN  CONST HV_GUEST_PAGING  *State,
  IN  UINT64                 Linear,
  IN  HV_GUEST_READ          Read,
  IN  VOID                   *Context,
  OUT UINT8                  Buffer[HV_INSTRUCTION_MAX],
  OUT UINTN                  *Count,
  OUT HV_PAGE_FAULT          *Fault
  );

#endif
