/** @file
  Log lines: `hv: LEVEL cpuN event key=value ...`.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_CONSOLE_LIB_H_
#define HV_CONSOLE_LIB_H_

#include <Base.h>
#include <Generated/HvLogEvents.h>

#define HV_LOG_RING_SIGNATURE  SIGNATURE_64 ('H', 'v', 'L', 'o', 'g', 'R', 'n', 'g')

///
/// The ring: Text[Head % Size] is where the next byte goes. It is in reserved memory and is not cleared by a warm reset.
///
typedef struct {
  UINT64             Signature;
  UINT32             Size;       ///< bytes of Text, a power of two
  UINT32             Reserved;
  volatile UINT64    Head;       ///< bytes ever written
  CHAR8              Text[];
} HV_LOG_RING;

typedef
VOID
(*HV_LOG_SINK)(
  IN HV_LOG_EVENT  Event,
  IN HV_LOG_LEVEL  Level,
  IN CONST CHAR8   *Line
  );

/**
  Finds the serial and debug ports, and sets the level.

  @param[in] Level  Events above it are not logged.
  @param[in] Ring   The ring, or NULL for none. It is started anew, if it is not the one of the call before.
  @param[in] Bytes  Bytes at Ring.
  @param[in] Sink   Also gets each line, or NULL. Boot life only.

  @par Context: Boot
**/
VOID
HvConsoleInit (
  IN HV_LOG_LEVEL  Level,
  IN HV_LOG_RING   *Ring  OPTIONAL,
  IN UINTN         Bytes,
  IN HV_LOG_SINK   Sink   OPTIONAL
  );

/**
  Replaces what also gets each line.

  @param[in] Sink  The new one, or NULL.

  @par Context: Any
**/
VOID
HvConsoleSetSink (
  IN HV_LOG_SINK  Sink  OPTIONAL
  );

/**
  Logs an event; HV_LOG is the way to call it. What its row calls ring-only (INIT, SIPI and NMI paths, which must not
  wait for a UART) does not go to the ports.

  @param[in] CpuIndex  The processor that logs.
  @param[in] Event     The event: its row has level, name and fields.
  @param[in] Args      A value for each field; a string is its address.

  @par Context: Any
**/
VOID
HvLogEvent (
  IN UINT32        CpuIndex,
  IN HV_LOG_EVENT  Event,
  IN CONST UINT64  *Args
  );

///
/// HV_LOG (Cpu index, event without its prefix, values of the fields).
///
#define HV_LOG(CpuIndex, Event, ...) \
  HvLogEvent ((CpuIndex), HvLogEvent##Event, (CONST UINT64[]) { 0, ##__VA_ARGS__ } + 1)

///
/// Events of one kind that HvLogLimited logs with one counter.
///
#define HV_LOG_LIMIT  16

/**
  Logs an event that a guest can cause as often as it likes: a limited number, the last of them followed by an event that
  says so, and then no more. Events below the level are not counted.

  @param[in]     CpuIndex  The processor that logs.
  @param[in]     Event     The event.
  @param[in,out] Logged    How many there were, 0 at the start.
  @param[in]     Args      As for HvLogEvent.

  @par Context: Any
**/
VOID
HvLogLimited (
  IN     UINT32        CpuIndex,
  IN     HV_LOG_EVENT  Event,
  IN OUT UINT8         *Logged,
  IN     CONST UINT64  *Args
  );

///
/// A string as a value of HV_LOG.
///
#define HV_STR(Text)  ((UINT64)(UINTN)(Text))

#endif // HV_CONSOLE_LIB_H_
