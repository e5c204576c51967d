/** @file
  Ports for HvConsoleLib on the build machine: a UART at COM2 and the debug port.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseLib.h>
#include <Library/IoLib.h>
#include "console_fake.h"

#define COM2           0x2F8
#define DEBUG_PORT     0x402
#define DIVISOR_LATCH  BIT7

HV_PORTS  gPorts;

STATIC
BOOLEAN
Ready (
  VOID
  )
{
  return (BOOLEAN)((gPorts.UartLength < gPorts.DeadAfter) && (gPorts.Waited >= gPorts.ReadyAfter));
}

UINT8
EFIAPI
IoRead8 (
  IN UINTN  Port
  )
{
  switch (Port) {
    case DEBUG_PORT:
      return gPorts.DebugPort ? 0xE9 : 0xFF;
    case COM2 + 5:
      gPorts.StatusReads++;
      gPorts.Waited++;
      return gPorts.Uart ? (Ready () ? 0x60 : 0) : 0xFF;
    case COM2 + 7:
      return gPorts.Uart ? gPorts.Scratch : 0xFF;
    default:
      return 0xFF;
  }
}

UINT8
EFIAPI
IoWrite8 (
  IN UINTN  Port,
  IN UINT8  Value
  )
{
  switch (Port) {
    case DEBUG_PORT:
      gPorts.DebugText[gPorts.DebugLength++ % HV_PORTS_TEXT] = (CHAR8)Value;
      break;
    case COM2:
      if ((gPorts.LineControl & DIVISOR_LATCH) == 0) {
        gPorts.Overruns += Ready () ? 0 : 1;
        gPorts.UartText[gPorts.UartLength++ % HV_PORTS_TEXT] = (CHAR8)Value;
        gPorts.Waited = 0;
      }

      break;
    case COM2 + 3:
      gPorts.LineControl = Value;
      break;
    case COM2 + 7:
      gPorts.Scratch = Value;
      break;
  }

  return Value;
}

VOID
EFIAPI
CpuPause (
  VOID
  )
{
}

CHAR8 *
EFIAPI
AsciiStrStr (
  IN CONST CHAR8  *String,
  IN CONST CHAR8  *SearchString
  )
{
  return __builtin_strstr (String, SearchString);
}

UINT32
EFIAPI
GetPowerOfTwo32 (
  IN UINT32  Operand
  )
{
  return (Operand == 0) ? 0 : 1u << (31 - __builtin_clz (Operand));
}

STATIC
VOID
Sink (
  IN HV_LOG_EVENT  Event,
  IN HV_LOG_LEVEL  Level,
  IN CONST CHAR8   *Line
  )
{
  gPorts.SinkLines++;
  gPorts.SinkEvent = Event;
  gPorts.SinkLevel = Level;
  __builtin_strcpy (gPorts.SinkText, Line);
}

VOID
HvPortsStart (
  IN HV_LOG_LEVEL  Level,
  IN HV_LOG_RING   *Ring,
  IN UINTN         Bytes,
  IN BOOLEAN       WithSink
  )
{
  HvConsoleInit (Level, NULL, 0, NULL);
  HvConsoleInit (Level, Ring, Bytes, WithSink ? Sink : NULL);
}

VOID
HvPortsLevel (
  IN HV_LOG_LEVEL  Level,
  IN HV_LOG_RING   *Ring,
  IN UINTN         Bytes
  )
{
  HvConsoleInit (Level, Ring, Bytes, NULL);
}
