/** @file
  Starts HvDxe from the folder EFI/HvPkg beside this program, and then what the machine boots anyway.

  With a file `command` in that folder its text names a program on the same volume and the program's command line.
  Without, the firmware's own boot options follow in their order, but for those on the volume that this comes from.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Uefi.h>
#include <Guid/GlobalVariable.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/DevicePathLib.h>
#include <Library/MemoryAllocationLib.h>
#include <Library/PrintLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Library/UefiLib.h>
#include <Library/UefiRuntimeServicesTableLib.h>
#include <Protocol/DevicePath.h>
#include <Protocol/LoadedImage.h>
#include <Protocol/SimpleFileSystem.h>

#define DRIVER       L"\\EFI\\HvPkg\\HvDxe.efi"
#define COMMAND      L"\\EFI\\HvPkg\\command"
#define COMMAND_MAX  2048

/**
  Loads an image and starts it.

  @param[in] Parent   Handle of this program.
  @param[in] Path     Where the image is; a firmware that knows its kind of device reads it.
  @param[in] Options  Its load options, or NULL.
  @param[in] Size     Bytes of the options.

  @return What the image returned, or why it was not started.

  @par Context: Boot
**/
STATIC
EFI_STATUS
LoadAndStart (
  IN EFI_HANDLE                Parent,
  IN EFI_DEVICE_PATH_PROTOCOL  *Path,
  IN VOID                      *Options OPTIONAL,
  IN UINT32                    Size
  )
{
  EFI_HANDLE                 Image;
  EFI_LOADED_IMAGE_PROTOCOL  *Loaded;
  EFI_STATUS                 Status;

  Image  = NULL;
  Status = gBS->LoadImage (TRUE, Parent, Path, NULL, 0, &Image);
  if (EFI_ERROR (Status)) {
    if (Status == EFI_SECURITY_VIOLATION) {
      // UEFI 2.10, 7.4: the image is there all the same, and may not be started.
      gBS->UnloadImage (Image);
    }

    return Status;
  }

  if (Options != NULL) {
    Status = gBS->HandleProtocol (Image, &gEfiLoadedImageProtocolGuid, (VOID **)&Loaded);
    if (EFI_ERROR (Status)) {
      gBS->UnloadImage (Image);
      return Status;
    }

    Loaded->LoadOptions     = Options;
    Loaded->LoadOptionsSize = Size;
  }

  return gBS->StartImage (Image, NULL, NULL);
}

///
/// Starts a file of this program's own volume.
///
STATIC
EFI_STATUS
StartFile (
  IN EFI_HANDLE    Parent,
  IN EFI_HANDLE    Volume,
  IN CONST CHAR16  *Name,
  IN VOID          *Options OPTIONAL,
  IN UINT32        Size
  )
{
  EFI_DEVICE_PATH_PROTOCOL  *Path;
  EFI_STATUS                Status;

  Path = FileDevicePath (Volume, Name);
  if (Path == NULL) {
    return EFI_OUT_OF_RESOURCES;
  }

  Status = LoadAndStart (Parent, Path, Options, Size);
  FreePool (Path);
  return Status;
}

///
/// Whether LoadImage gave what it gives to an image whose signature it does not accept (UEFI 2.10, 7.4).
///
STATIC
BOOLEAN
IsRefused (
  IN EFI_STATUS  Status
  )
{
  return (BOOLEAN)((Status == EFI_ACCESS_DENIED) || (Status == EFI_SECURITY_VIOLATION));
}

/**
  Reads a short text file.

  @param[in]  Volume  Its volume.
  @param[in]  Name    Its path.
  @param[out] Text    COMMAND_MAX + 1 characters; ends at the first line end.

  @retval EFI_SUCCESS            It is in Text.
  @retval EFI_NOT_FOUND          There is none.
  @retval EFI_BAD_BUFFER_SIZE    It is longer than COMMAND_MAX.
  @return Other errors of the file system.

  @par Context: Boot
**/
STATIC
EFI_STATUS
ReadLine (
  IN  EFI_HANDLE    Volume,
  IN  CONST CHAR16  *Name,
  OUT CHAR8         *Text
  )
{
  EFI_SIMPLE_FILE_SYSTEM_PROTOCOL  *System;
  EFI_FILE_PROTOCOL                *Root;
  EFI_FILE_PROTOCOL                *File;
  EFI_STATUS                       Status;
  UINTN                            Size;
  UINTN                            Index;

  Status = gBS->HandleProtocol (Volume, &gEfiSimpleFileSystemProtocolGuid, (VOID **)&System);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Status = System->OpenVolume (System, &Root);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Status = Root->Open (Root, &File, (CHAR16 *)Name, EFI_FILE_MODE_READ, 0);
  Root->Close (Root);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Size   = COMMAND_MAX + 1;
  Status = File->Read (File, &Size, Text);
  File->Close (File);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  if (Size > COMMAND_MAX) {
    return EFI_BAD_BUFFER_SIZE;
  }

  Text[Size] = '\0';
  for (Index = 0; Text[Index] != '\0'; Index++) {
    if ((Text[Index] == '\r') || (Text[Index] == '\n')) {
      Text[Index] = '\0';
      break;
    }
  }

  return EFI_SUCCESS;
}

/**
  Starts what the command file says: a program's path, and all of the line as its load options.

  @param[in] Parent  Handle of this program.
  @param[in] Volume  Where the program is.
  @param[in] Line    The command.

  @return What the program returned, or why it was not started.

  @par Context: Boot
**/
STATIC
EFI_STATUS
StartCommand (
  IN EFI_HANDLE   Parent,
  IN EFI_HANDLE   Volume,
  IN CONST CHAR8  *Line
  )
{
  CHAR16  Options[COMMAND_MAX + 1];
  CHAR16  Name[COMMAND_MAX + 1];
  UINTN   Index;

  UnicodeSPrint (Options, sizeof (Options), L"%a", Line);
  for (Index = 0; (Options[Index] != L'\0') && (Options[Index] != L' '); Index++) {
    Name[Index] = Options[Index];
  }

  Name[Index] = L'\0';
  return StartFile (Parent, Volume, Name, Options, (UINT32)StrSize (Options));
}

///
/// Bytes of a device path without its end.
///
STATIC
UINTN
Length (
  IN CONST EFI_DEVICE_PATH_PROTOCOL  *Path
  )
{
  return GetDevicePathSize (Path) - END_DEVICE_PATH_LENGTH;
}

/**
  Completes the path of a boot option (UEFI 2.10, 3.1.2 and 3.5.1) by a volume that it may mean.

  @param[in] Option  Of a file on a partition that is only named by its signature, of a file, or of a device.
  @param[in] Volume  The volume's path.

  @return The whole path of the file, to be freed, or NULL: it is not on this volume.

  @par Context: Boot
**/
STATIC
EFI_DEVICE_PATH_PROTOCOL *
OnVolume (
  IN EFI_DEVICE_PATH_PROTOCOL  *Option,
  IN EFI_DEVICE_PATH_PROTOCOL  *Volume
  )
{
  EFI_DEVICE_PATH_PROTOCOL  *Node;

  if ((DevicePathType (Option) == MEDIA_DEVICE_PATH) && (DevicePathSubType (Option) == MEDIA_HARDDRIVE_DP)) {
    for (Node = Volume; !IsDevicePathEnd (Node); Node = NextDevicePathNode (Node)) {
      if ((DevicePathNodeLength (Node) == DevicePathNodeLength (Option)) &&
          (CompareMem (Node, Option, DevicePathNodeLength (Option)) == 0))
      {
        return AppendDevicePath (Volume, NextDevicePathNode (Option));
      }
    }

    return NULL;
  }

  if (CompareMem (Option, Volume, MIN (Length (Option), Length (Volume))) != 0) {
    return NULL;
  }

  if (Length (Option) > Length (Volume)) {
    return DuplicateDevicePath (Option);
  }

  Node = FileDevicePath (NULL, EFI_REMOVABLE_MEDIA_FILE_NAME);
  if (Node == NULL) {
    return NULL;
  }

  Option = AppendDevicePath (Volume, Node);
  FreePool (Node);
  return Option;
}

/**
  Starts one boot option of the firmware (UEFI 2.10, 3.1.3), if it is a file on a volume.

  @param[in] Parent  Handle of this program.
  @param[in] Own     The volume whose options are passed over.
  @param[in] Number  Of the variable Boot####.

  @retval EFI_NOT_FOUND  There is no such option, it is not active, or it is on no other volume.
  @return What the option's image returned, or why it was not started.

  @par Context: Boot
**/
STATIC
EFI_STATUS
StartOption (
  IN EFI_HANDLE  Parent,
  IN EFI_HANDLE  Own,
  IN UINT16      Number
  )
{
  CHAR16                    Name[sizeof ("Boot####")];
  EFI_LOAD_OPTION           *Option;
  EFI_DEVICE_PATH_PROTOCOL  *Path;
  EFI_DEVICE_PATH_PROTOCOL  *Volume;
  EFI_DEVICE_PATH_PROTOCOL  *Full;
  EFI_HANDLE                *Volumes;
  CHAR16                    *Title;
  UINT8                     *End;
  UINT8                     *Data;
  UINTN                     Size;
  UINTN                     Count;
  UINTN                     Index;
  EFI_STATUS                Status;

  UnicodeSPrint (Name, sizeof (Name), L"Boot%04X", Number);
  if (EFI_ERROR (GetEfiGlobalVariable2 (Name, (VOID **)&Option, &Size))) {
    return EFI_NOT_FOUND;
  }

  Status  = EFI_NOT_FOUND;
  Volumes = NULL;
  End     = (UINT8 *)Option + Size;
  Title   = (CHAR16 *)(Option + 1);
  if ((Size <= sizeof (*Option)) || ((Option->Attributes & LOAD_OPTION_ACTIVE) == 0)) {
    goto Done;
  }

  Path = (EFI_DEVICE_PATH_PROTOCOL *)(Title + StrnLenS (Title, (End - (UINT8 *)Title) / sizeof (CHAR16)) + 1);
  Data = (UINT8 *)Path + Option->FilePathListLength;
  if (((UINT8 *)Path >= End) || (Data > End) || !IsDevicePathValid (Path, Option->FilePathListLength) ||
      EFI_ERROR (gBS->LocateHandleBuffer (ByProtocol, &gEfiSimpleFileSystemProtocolGuid, NULL, &Count, &Volumes)))
  {
    goto Done;
  }

  for (Index = 0; Index < Count; Index++) {
    Volume = DevicePathFromHandle (Volumes[Index]);
    Full   = ((Volumes[Index] == Own) || (Volume == NULL)) ? NULL : OnVolume (Path, Volume);
    if (Full != NULL) {
      Print (L"HvStart: %s %s\n", Name, Title);
      Status = LoadAndStart (Parent, Full, (Data < End) ? Data : NULL, (UINT32)(End - Data));
      Print (L"HvStart: %s came back: %r\n", Name, Status);
      FreePool (Full);
    }
  }

Done:
  if (Volumes != NULL) {
    FreePool (Volumes);
  }

  FreePool (Option);
  return Status;
}

/**
  Starts HvDxe, whatever comes of it, and then the command or the machine's boot options.

  @param[in] ImageHandle  Of this program.
  @param[in] SystemTable  The system table.

  @return What the last program returned; a firmware goes on with its next boot option.

  @par Context: Boot
**/
EFI_STATUS
EFIAPI
HvStartMain (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_LOADED_IMAGE_PROTOCOL  *Self;
  CHAR8                      Line[COMMAND_MAX + 1];
  UINT16                     *Order;
  UINTN                      Size;
  UINTN                      Index;
  EFI_STATUS                 Status;

  Status = gBS->HandleProtocol (ImageHandle, &gEfiLoadedImageProtocolGuid, (VOID **)&Self);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Status = StartFile (ImageHandle, Self->DeviceHandle, DRIVER, NULL, 0);
  Print (L"HvStart: HvDxe %r%s\n", Status, IsRefused (Status) ? L": Secure Boot refuses its signature" : L"");

  Status = ReadLine (Self->DeviceHandle, COMMAND, Line);
  if (!EFI_ERROR (Status)) {
    Status = StartCommand (ImageHandle, Self->DeviceHandle, Line);
    Print (L"HvStart: %a came back: %r\n", Line, Status);
    return Status;
  }

  if (Status != EFI_NOT_FOUND) {
    Print (L"HvStart: the command cannot be read: %r\n", Status);
  }

  Status = GetEfiGlobalVariable2 (L"BootOrder", (VOID **)&Order, &Size);
  if (EFI_ERROR (Status)) {
    Print (L"HvStart: the firmware has no boot order: %r\n", Status);
    return Status;
  }

  Status = EFI_NOT_FOUND;
  for (Index = 0; Index < Size / sizeof (*Order); Index++) {
    Status = StartOption (ImageHandle, Self->DeviceHandle, Order[Index]);
  }

  FreePool (Order);
  return Status;
}
