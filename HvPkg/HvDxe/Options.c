/** @file
  The variable `HvOptions`: `name=value name=value`.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"

#define OPTION_ROW(Id, Name, Type, Default, Minimum, Maximum, AllowsNone, DebugOnly, Choices) \
  { Name, Choices, Type, Default, Minimum, Maximum, AllowsNone, DebugOnly },

STATIC CONST struct {
  CONST CHAR8       *Name;
  CONST CHAR8       *Choices; ///< separated by |
  HV_OPTION_TYPE    Type;
  UINT64            Default;
  UINT64            Minimum;
  UINT64            Maximum;
  BOOLEAN           AllowsNone;
  BOOLEAN           DebugOnly;
} mOptions[HvOptionCount] = {
  HV_OPTION_LIST (OPTION_ROW)
};

#ifdef MDEPKG_NDEBUG
STATIC CONST BOOLEAN  mDebugBuild = FALSE;
#else
STATIC CONST BOOLEAN  mDebugBuild = TRUE;
#endif

STATIC
BOOLEAN
ParseChoice (
  IN  CONST CHAR8  *Choices,
  IN  CONST CHAR8  *Text,
  OUT UINT64       *Value
  )
{
  UINTN  Length;

  Length = AsciiStrLen (Text);
  for (*Value = 0; ; (*Value)++) {
    if ((AsciiStrnCmp (Choices, Text, Length) == 0) && ((Choices[Length] == '|') || (Choices[Length] == '\0'))) {
      return TRUE;
    }

    Choices = AsciiStrStr (Choices, "|");
    if (Choices == NULL) {
      return FALSE;
    }

    Choices++;
  }
}

STATIC
CONST CHAR8 *
Parse (
  IN     CONST CHAR8  *Name,
  IN     CONST CHAR8  *Text,
  IN OUT HV_OPTIONS   *Options
  )
{
  UINTN   Index;
  UINT64  Value;
  CHAR8   *End;

  for (Index = 0; Index < HvOptionCount; Index++) {
    if (AsciiStrCmp (mOptions[Index].Name, Name) == 0) {
      break;
    }
  }

  if (Index == HvOptionCount) {
    return "unknown option";
  }

  if (mOptions[Index].DebugOnly && !mDebugBuild) {
    return "only in a DEBUG build";
  }

  if (mOptions[Index].Type == HvOptionChoice) {
    if ((*Text == '\0') || !ParseChoice (mOptions[Index].Choices, Text, &Value)) {
      return mOptions[Index].Choices;
    }
  } else if (mOptions[Index].AllowsNone && (AsciiStrCmp (Text, "none") == 0)) {
    Value = HV_OPTION_NONE;
  } else if (RETURN_ERROR (AsciiStrDecimalToUint64S (Text, &End, &Value)) || (End == Text) || (*End != '\0') ||
             (Value < mOptions[Index].Minimum) || (Value > mOptions[Index].Maximum))
  {
    return "not a number in range";
  }

  Options->Value[Index] = Value;
  return NULL;
}

VOID
HvOptionsRead (
  OUT HV_OPTIONS  *Options
  )
{
  CHAR8        Text[HV_OPTIONS_MAX_BYTES + 1];
  UINTN        Size;
  EFI_STATUS   Status;
  CHAR8        *Item;
  CHAR8        *Next;
  CHAR8        *Value;
  CONST CHAR8  *Reason;
  UINTN        Index;

  for (Index = 0; Index < HvOptionCount; Index++) {
    Options->Value[Index] = mOptions[Index].Default;
  }

  Size   = sizeof (Text) - 1;
  Status = gRT->GetVariable (HV_OPTIONS_VARIABLE, &gHvOptionsGuid, NULL, &Size, Text);
  if (Status == EFI_BUFFER_TOO_SMALL) {
    HV_LOG (0, OptionBad, HV_STR ("HvOptions"), HV_STR ("the variable is too long"));
    return;
  }

  if (EFI_ERROR (Status)) {
    return;
  }

  Text[Size] = '\0';
  for (Item = Text; *Item != '\0'; Item = Next) {
    Next = AsciiStrStr (Item, " ");
    if (Next != NULL) {
      *Next++ = '\0';
    } else {
      Next = Item + AsciiStrLen (Item);
    }

    if (*Item == '\0') {
      continue;
    }

    Value = AsciiStrStr (Item, "=");
    if (Value == NULL) {
      HV_LOG (0, OptionBad, HV_STR (Item), HV_STR ("no value"));
      continue;
    }

    *Value++ = '\0';
    Reason   = Parse (Item, Value, Options);
    if (Reason == NULL) {
      HV_LOG (0, Option, HV_STR (Item), HV_STR (Value));
    } else {
      HV_LOG (0, OptionBad, HV_STR (Item), HV_STR (Reason));
    }
  }
}
