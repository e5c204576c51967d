/** @file
  Sleep requests: what ACPI describes, and what must not reach the machine.

  AML is not interpreted: the objects are found by their encoding (ACPI 6.5, 20.2). Names of sleep states are packages of
  constants on every machine known; one that a method computes is hidden, but its values are not known.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/HvSleepLib.h>

#define AML_ZERO     0x00
#define AML_ONE      0x01
#define AML_NAME     0x08
#define AML_BYTE     0x0A
#define AML_WORD     0x0B
#define AML_DWORD    0x0C
#define AML_PACKAGE  0x12
#define AML_METHOD   0x14
#define AML_ROOT     '\\'

#define NAME_BYTES          4
#define PKG_LENGTH_MAX      4 // bytes of a PkgLength (ACPI 6.5, 20.2.4)
#define TABLE_CHECKSUM      9 // offset in a table's header (ACPI 6.5, 5.2.6)
#define TABLE_HEADER_BYTES  36

#define SLP_EN          BIT5
#define SLP_TYP_SHIFT   2
#define SLP_TYP_MAX     7

/**
  Tells whether a name is \_Sn of a state.

  @param[in] Name   Four characters.
  @param[in] State  n.

  @retval TRUE   It is.
  @retval FALSE  It is not.
**/
STATIC
BOOLEAN
HvSleepIsName (
  IN CONST UINT8  *Name,
  IN UINT8        State
  )
{
  return (BOOLEAN)((Name[0] == '_') && (Name[1] == 'S') && (Name[2] == '0' + State) && (Name[3] == '_'));
}

/**
  Tells whether a name is that of a package that it defines, or of a method.

  @param[in] Aml    The table.
  @param[in] Size   Its bytes.
  @param[in] Name   Offset of the name.

  @return  AML_PACKAGE or AML_METHOD; AML_ZERO for neither.
**/
STATIC
UINT8
HvSleepObject (
  IN CONST UINT8  *Aml,
  IN UINTN        Size,
  IN UINTN        Name
  )
{
  UINTN  Before;
  UINTN  Length;

  Before = Name;
  if ((Before > 0) && (Aml[Before - 1] == AML_ROOT)) {
    Before--;
  }

  if ((Before >= 1) && (Aml[Before - 1] == AML_NAME) &&
      (Name + NAME_BYTES < Size) && (Aml[Name + NAME_BYTES] == AML_PACKAGE))
  {
    return AML_PACKAGE;
  }

  // A method's length stands between its opcode and its name; the first byte says how many follow.
  for (Length = 1; (Length <= PKG_LENGTH_MAX) && (Before > Length); Length++) {
    if ((Aml[Before - Length - 1] == AML_METHOD) && ((UINTN)(Aml[Before - Length] >> 6) == Length - 1)) {
      return AML_METHOD;
    }
  }

  return AML_ZERO;
}

/**
  Reads a constant that is a value of SLP_TYP.

  @param[in]     Aml     The table.
  @param[in]     Size    Its bytes.
  @param[in,out] Offset  Where it stands; behind it on success.
  @param[out]    Type    The value.

  @retval TRUE   Type is set.
  @retval FALSE  There is no such constant.
**/
STATIC
BOOLEAN
HvSleepConstant (
  IN     CONST UINT8  *Aml,
  IN     UINTN        Size,
  IN OUT UINTN        *Offset,
  OUT    UINT8        *Type
  )
{
  UINTN  Bytes;
  UINTN  Index;

  if (*Offset >= Size) {
    return FALSE;
  }

  switch (Aml[*Offset]) {
    case AML_ZERO:
    case AML_ONE:
      *Type    = Aml[*Offset];
      *Offset += 1;
      return TRUE;
    case AML_BYTE:
      Bytes = 1;
      break;
    case AML_WORD:
      Bytes = 2;
      break;
    case AML_DWORD:
      Bytes = 4;
      break;
    default:
      return FALSE;
  }

  if (Bytes >= Size - *Offset) {
    return FALSE;
  }

  for (Index = 1; Index < Bytes; Index++) {
    if (Aml[*Offset + 1 + Index] != 0) {
      return FALSE;
    }
  }

  *Type    = Aml[*Offset + 1];
  *Offset += 1 + Bytes;
  return (BOOLEAN)(*Type <= SLP_TYP_MAX);
}

RETURN_STATUS
EFIAPI
HvSleepTypes (
  IN  CONST UINT8  *Aml,
  IN  UINTN        Size,
  IN  UINT8        State,
  OUT UINT8        Types[2]
  )
{
  UINTN  Name;
  UINTN  Offset;

  for (Name = 0; Name + NAME_BYTES < Size; Name++) {
    if (!HvSleepIsName (&Aml[Name], State) || (HvSleepObject (Aml, Size, Name) != AML_PACKAGE)) {
      continue;
    }

    // Behind the opcode: PkgLength, whose first byte says how many follow, and the number of elements.
    Offset = Name + NAME_BYTES + 1;
    if (Offset >= Size) {
      continue;
    }

    Offset += 2 + (Aml[Offset] >> 6);
    if (HvSleepConstant (Aml, Size, &Offset, &Types[0])) {
      if (!HvSleepConstant (Aml, Size, &Offset, &Types[1])) {
        Types[1] = Types[0];
      }

      return RETURN_SUCCESS;
    }
  }

  return RETURN_NOT_FOUND;
}

UINT32
EFIAPI
HvSleepHide (
  IN OUT UINT8  *Aml,
  IN     UINTN  Size,
  IN     UINT8  State
  )
{
  UINTN   Name;
  UINT32  Count;

  Count = 0;
  for (Name = TABLE_HEADER_BYTES; Name + NAME_BYTES < Size; Name++) {
    if (HvSleepIsName (&Aml[Name], State) && (HvSleepObject (Aml, Size, Name) != AML_ZERO)) {
      Aml[Name]            = 'X';
      Aml[TABLE_CHECKSUM] += (UINT8)('_' - 'X');
      Count++;
    }
  }

  return Count;
}

BOOLEAN
EFIAPI
HvSleepRefuse (
  IN     CONST HV_SLEEP  *Sleep,
  IN     UINT16          Port,
  IN     UINT8           Size,
  IN OUT UINT32          *Value
  )
{
  CONST HV_SLEEP_PORT  *Guarded;
  UINT32               Index;
  UINT16               Byte;
  UINT8                Written;
  BOOLEAN              Refused;

  Refused = FALSE;
  for (Index = 0; Index < Sleep->Count; Index++) {
    Guarded = &Sleep->Port[Index];
    Byte    = (UINT16)(Guarded->Port - Port); // an access does not go on from port FFFFh to 0, but a difference does
    if ((Byte >= Size) || (Guarded->Port < Port)) {
      continue;
    }

    Written = (UINT8)(*Value >> (8 * Byte));
    if (((Written & SLP_EN) != 0) && ((Guarded->Allowed & (1 << ((Written >> SLP_TYP_SHIFT) & SLP_TYP_MAX))) == 0)) {
      *Value &= ~((UINT32)SLP_EN << (8 * Byte));
      Refused = TRUE;
    }
  }

  return Refused;
}
