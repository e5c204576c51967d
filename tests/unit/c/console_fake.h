/** @file
  Ports for HvConsoleLib on the build machine.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_CONSOLE_FAKE_H_
#define HV_CONSOLE_FAKE_H_

#include <Library/HvConsoleLib.h>

#define HV_PORTS_TEXT  0x8000

typedef struct {
  BOOLEAN    Uart;          ///< there is one
  BOOLEAN    DebugPort;     ///< there is one
  UINT64     ReadyAfter;    ///< status reads until the UART takes the next byte
  UINT64     DeadAfter;     ///< bytes after which the UART takes no more
  UINT64     StatusReads;
  UINT64     Waited;        ///< status reads since the last byte
  UINT64     Overruns;      ///< bytes that were written while the UART was not ready
  UINT8      Scratch;
  UINT8      LineControl;
  UINT32     UartLength;
  UINT32     DebugLength;
  CHAR8      UartText[HV_PORTS_TEXT];
  CHAR8      DebugText[HV_PORTS_TEXT];
  UINT32     SinkLines;
  UINT32     SinkEvent;
  UINT32     SinkLevel;
  CHAR8      SinkText[1024];
} HV_PORTS;

extern HV_PORTS  gPorts;

/**
  Starts the console over these ports.

  @param[in] Level  As for HvConsoleInit.
  @param[in] Ring   As for HvConsoleInit.
  @param[in] Bytes  As for HvConsoleInit.
  @param[in] Sink   TRUE: lines also go to SinkText.
**/
VOID
HvPortsStart (
  IN HV_LOG_LEVEL  Level,
  IN HV_LOG_RING   *Ring,
  IN UINTN         Bytes,
  IN BOOLEAN       Sink
  );

/**
  Starts it again with another level.

  @param[in] Level  As for HvConsoleInit.
  @param[in] Ring   As for HvConsoleInit.
  @param[in] Bytes  As for HvConsoleInit.
**/
VOID
HvPortsLevel (
  IN HV_LOG_LEVEL  Level,
  IN HV_LOG_RING   *Ring,
  IN UINTN         Bytes
  );

#endif
