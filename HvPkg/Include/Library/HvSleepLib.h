/** @file
  Sleep requests: which ones ACPI describes, and which ones must not reach the machine.

  A processor that wakes from S1 goes on; from S2 and S3 it comes back from reset, into the operating system's waking
  vector, without a hypervisor below it. So these states are refused: the operating system does not find them, and a
  request that it makes all the same is dropped. S4 and S5 end the machine's life, the next one begins in the firmware.

  Copyright (c) HvPkg contributors.<BR>
  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_SLEEP_LIB_H_
#define HV_SLEEP_LIB_H_

#define HV_SLEEP_PORTS_MAX  2

///
/// A port with SLP_TYP in bits 4:2 and SLP_EN in bit 5: the second byte of a PM1 control register, or the sleep control
/// register of hardware-reduced ACPI (ACPI 6.5, 4.8.3.2.1 and 4.8.3.7).
///
typedef struct {
  UINT16    Port;
  UINT8     Allowed; ///< bit n: a request with SLP_TYP n may pass
} HV_SLEEP_PORT;

typedef struct {
  UINT32           Count;
  HV_SLEEP_PORT    Port[HV_SLEEP_PORTS_MAX];
} HV_SLEEP;

/**
  Finds the values of SLP_TYP for a sleep state in a table of AML.

  @par Context: Any

  @param[in]  Aml     The table.
  @param[in]  Size    Its bytes.
  @param[in]  State   1 to 5.
  @param[out] Types   For PM1a_CNT and PM1b_CNT, 0 to 7.

  @retval RETURN_SUCCESS    Types is set.
  @retval RETURN_NOT_FOUND  The table has no package of that name that begins with one or two such constants.
**/
RETURN_STATUS
EFIAPI
HvSleepTypes (
  IN  CONST UINT8  *Aml,
  IN  UINTN        Size,
  IN  UINT8        State,
  OUT UINT8        Types[2]
  );

/**
  Gives the packages and methods of a sleep state another name, so that an operating system does not find the state.

  @par Context: Any

  @param[in,out] Aml    The table. Its checksum in the header is right again afterwards.
  @param[in]     Size   Its bytes, header included.
  @param[in]     State  1 to 5.

  @return  How many objects were renamed.
**/
UINT32
EFIAPI
HvSleepHide (
  IN OUT UINT8  *Aml,
  IN     UINTN  Size,
  IN     UINT8  State
  );

/**
  Takes the request out of a write to the ports, if it is for a state that is refused.

  @par Context: Any

  @param[in]     Sleep  The ports.
  @param[in]     Port   First port of the access.
  @param[in]     Size   Its bytes: 1, 2 or 4.
  @param[in,out] Value  What is written. SLP_EN is cleared in what is refused.

  @retval TRUE   A request was refused.
  @retval FALSE  Value is as it was.
**/
BOOLEAN
EFIAPI
HvSleepRefuse (
  IN     CONST HV_SLEEP  *Sleep,
  IN     UINT16          Port,
  IN     UINT8           Size,
  IN OUT UINT32          *Value
  );

#endif
