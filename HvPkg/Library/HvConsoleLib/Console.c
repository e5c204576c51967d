/** @file
  Log lines to the second serial port, the debug port and a ring.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Base.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/HvConsoleLib.h>
#include <Library/IoLib.h>
#include <Library/SynchronizationLib.h>

#define UART_BASE          0x2F8 // COM2
#define UART_DATA          (UART_BASE + 0)
#define UART_DIVISOR_HIGH  (UART_BASE + 1)
#define UART_FIFO          (UART_BASE + 2)
#define UART_LINE_CONTROL  (UART_BASE + 3)
#define UART_LINE_STATUS   (UART_BASE + 5)
#define UART_SCRATCH       (UART_BASE + 7)
#define UART_DLAB          BIT7
#define UART_8N1           (BIT0 | BIT1)
#define UART_TX_EMPTY      BIT5

#define DEBUG_PORT          0x402
#define DEBUG_PORT_PRESENT  0xE9 // what a read gives where an emulator has the port

#define LINE_MAX       320
#define TX_SPIN_MAX    100000 // a UART that is this slow is gone
#define LOCK_SPIN_MAX  10000000

#define LOG_ROW(Name, Level, Text, Format)  { Level, Text, Format },

#define RING_ONLY_CASE(Name, Text)  case HvLogEvent##Name:

STATIC CONST struct {
  HV_LOG_LEVEL    Level;
  CONST CHAR8     *Name;
  CONST CHAR8     *Format;
} mEvents[] = {
  HV_LOG_EVENT_LIST (LOG_ROW)
};

#define LEVEL_ROW(Level, Text)  [Level] = Text,

STATIC CONST CHAR8  *CONST  mLevels[] = {
  HV_LOG_LEVEL_LIST (LEVEL_ROW)
};

STATIC HV_LOG_LEVEL     mLevel = HvLogInfo;
STATIC HV_LOG_RING      *mRing;
STATIC HV_LOG_SINK      mSink;
STATIC BOOLEAN          mUart;
STATIC BOOLEAN          mDebugPort;
STATIC volatile UINT32  mLock;

typedef struct {
  CHAR8    Text[LINE_MAX];
  UINTN    Length;
} LINE;

STATIC
VOID
PutChar (
  IN OUT LINE   *Line,
  IN     CHAR8  Char
  )
{
  // The last byte is kept for the line's end.
  if (Line->Length < LINE_MAX - 1) {
    Line->Text[Line->Length++] = Char;
  }
}

STATIC
VOID
PutString (
  IN OUT LINE         *Line,
  IN     CONST CHAR8  *Text
  )
{
  while (*Text != '\0') {
    PutChar (Line, *Text++);
  }
}

STATIC
VOID
PutNumber (
  IN OUT LINE    *Line,
  IN     UINT64  Value,
  IN     UINT64  Radix
  )
{
  CHAR8  Digits[20];
  UINTN  Count;

  Count = 0;
  do {
    Digits[Count++] = "0123456789abcdef"[Value % Radix];
    Value          /= Radix;
  } while (Value != 0);

  while (Count > 0) {
    PutChar (Line, Digits[--Count]);
  }
}

STATIC
VOID
PutValue (
  IN OUT LINE    *Line,
  IN     CHAR8   Code,
  IN     UINT64  Value
  )
{
  CONST CHAR8  *Text;

  switch (Code) {
    case 'u':
      PutNumber (Line, Value, 10);
      break;
    case 'x':
      PutString (Line, "0x");
      PutNumber (Line, Value, 16);
      break;
    default:
      Text = (CONST CHAR8 *)(UINTN)Value;
      if ((*Text == '\0') || (AsciiStrStr (Text, " ") != NULL)) {
        PutChar (Line, '"');
        PutString (Line, Text);
        PutChar (Line, '"');
      } else {
        PutString (Line, Text);
      }
  }
}

STATIC
VOID
WriteRing (
  IN CONST LINE  *Line
  )
{
  UINT64  Head;
  UINTN   Index;

  Head = __atomic_fetch_add (&mRing->Head, Line->Length, __ATOMIC_RELAXED);
  for (Index = 0; Index < Line->Length; Index++) {
    mRing->Text[(Head + Index) & (mRing->Size - 1)] = Line->Text[Index];
  }
}

STATIC
VOID
WritePorts (
  IN CONST LINE  *Line
  )
{
  UINTN  Index;
  UINTN  Spin;

  // A processor that died with the lock must not silence the others: lines may then mix.
  for (Spin = 0; Spin < LOCK_SPIN_MAX; Spin++) {
    if (InterlockedCompareExchange32 ((UINT32 *)&mLock, 0, 1) == 0) {
      break;
    }

    CpuPause ();
  }

  for (Index = 0; Index < Line->Length; Index++) {
    if (mDebugPort) {
      IoWrite8 (DEBUG_PORT, (UINT8)Line->Text[Index]);
    }

    if (mUart) {
      for (Spin = 0; (IoRead8 (UART_LINE_STATUS) & UART_TX_EMPTY) == 0; Spin++) {
        if (Spin == TX_SPIN_MAX) {
          mUart = FALSE;
          break;
        }

        CpuPause ();
      }

      if (mUart) {
        IoWrite8 (UART_DATA, (UINT8)Line->Text[Index]);
      }
    }
  }

  mLock = 0;
}

VOID
HvConsoleInit (
  IN HV_LOG_LEVEL  Level,
  IN HV_LOG_RING   *Ring  OPTIONAL,
  IN UINTN         Bytes,
  IN HV_LOG_SINK   Sink   OPTIONAL
  )
{
  mLevel = Level;
  mSink  = Sink;
  mLock  = 0;
  if ((Ring != NULL) && (Ring != mRing)) {
    Ring->Signature = HV_LOG_RING_SIGNATURE;
    Ring->Size      = GetPowerOfTwo32 ((UINT32)(Bytes - sizeof (HV_LOG_RING)));
    Ring->Head      = 0;
  }

  mRing      = Ring;
  mDebugPort = (BOOLEAN)(IoRead8 (DEBUG_PORT) == DEBUG_PORT_PRESENT);

  // A floating bus does not keep what is written to the scratch register.
  IoWrite8 (UART_SCRATCH, 0x5A);
  mUart = (BOOLEAN)(IoRead8 (UART_SCRATCH) == 0x5A);
  if (mUart) {
    IoWrite8 (UART_LINE_CONTROL, UART_DLAB | UART_8N1);
    IoWrite8 (UART_DATA, 1); // 115200 baud
    IoWrite8 (UART_DIVISOR_HIGH, 0);
    IoWrite8 (UART_LINE_CONTROL, UART_8N1);
    IoWrite8 (UART_FIFO, BIT0);
  }
}

VOID
HvConsoleSetSink (
  IN HV_LOG_SINK  Sink  OPTIONAL
  )
{
  mSink = Sink;
}

VOID
HvLogEvent (
  IN UINT32        CpuIndex,
  IN HV_LOG_EVENT  Event,
  IN CONST UINT64  *Args
  )
{
  LINE         Line;
  CONST CHAR8  *Format;

  if (mEvents[Event].Level > mLevel) {
    return;
  }

  Line.Length = 0;
  PutString (&Line, "hv: ");
  PutString (&Line, mLevels[mEvents[Event].Level]);
  PutString (&Line, " cpu");
  PutNumber (&Line, CpuIndex, 10);
  PutChar (&Line, ' ');
  PutString (&Line, mEvents[Event].Name);
  Format = mEvents[Event].Format;
  if (*Format != '\0') {
    PutChar (&Line, ' ');
  }

  for ( ; *Format != '\0'; Format++) {
    if (*Format == '%') {
      Format++;
      PutValue (&Line, *Format, *Args++);
    } else {
      PutChar (&Line, *Format);
    }
  }

  if (mSink != NULL) {
    Line.Text[Line.Length] = '\0';
    mSink (Event, mEvents[Event].Level, Line.Text);
  }

  Line.Text[Line.Length++] = '\n';
  if (mRing != NULL) {
    WriteRing (&Line);
  }

  switch (Event) {
    HV_LOG_RING_ONLY_LIST (RING_ONLY_CASE)
      break;
    default:
      WritePorts (&Line);
  }
}

VOID
HvLogLimited (
  IN     UINT32        CpuIndex,
  IN     HV_LOG_EVENT  Event,
  IN OUT UINT8         *Logged,
  IN     CONST UINT64  *Args
  )
{
  if ((mEvents[Event].Level > mLevel) || (*Logged == HV_LOG_LIMIT)) {
    return;
  }

  HvLogEvent (CpuIndex, Event, Args);
  if (++*Logged == HV_LOG_LIMIT) {
    HV_LOG (CpuIndex, LogLimit, HV_STR (mEvents[Event].Name));
  }
}
