/** @file
  Host life's own copy of the image.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HvDxe.h"

STATIC
EFI_IMAGE_SECTION_HEADER *
Sections (
  IN  UINT64  Base,
  OUT UINTN   *Count
  )
{
  EFI_IMAGE_DOS_HEADER      *Dos;
  EFI_IMAGE_NT_HEADERS64    *Nt;

  Dos = (EFI_IMAGE_DOS_HEADER *)(UINTN)Base;
  Nt  = (EFI_IMAGE_NT_HEADERS64 *)(UINTN)(Base + Dos->e_lfanew);
  if ((Dos->e_magic != EFI_IMAGE_DOS_SIGNATURE) || (Nt->Signature != EFI_IMAGE_NT_SIGNATURE)) {
    return NULL;
  }

  *Count = Nt->FileHeader.NumberOfSections;
  return (EFI_IMAGE_SECTION_HEADER *)((UINT8 *)&Nt->OptionalHeader + Nt->FileHeader.SizeOfOptionalHeader);
}

EFI_STATUS
HvImageFind (
  IN  EFI_HANDLE  ImageHandle,
  OUT HV_IMAGE    *Image
  )
{
  EFI_LOADED_IMAGE_PROTOCOL  *Loaded;
  EFI_IMAGE_SECTION_HEADER   *Section;
  EFI_STATUS                 Status;
  UINTN                      Count;

  Status = gBS->HandleProtocol (ImageHandle, &gEfiLoadedImageProtocolGuid, (VOID **)&Loaded);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  Image->Base  = (UINTN)Loaded->ImageBase;
  Image->Bytes = ALIGN_VALUE (Loaded->ImageSize, EFI_PAGE_SIZE);
  for (Section = Sections (Image->Base, &Count); (Section != NULL) && (Count > 0); Section++, Count--) {
    // Rights are given by the page.
    if ((Section->VirtualAddress & EFI_PAGE_MASK) != 0) {
      return EFI_LOAD_ERROR;
    }

    if ((Section->Characteristics & EFI_IMAGE_SCN_MEM_EXECUTE) != 0) {
      Image->TextBase = Image->Base + Section->VirtualAddress;
      Image->TextEnd  = Image->TextBase + ALIGN_VALUE (Section->Misc.VirtualSize, EFI_PAGE_SIZE);
      return EFI_SUCCESS;
    }
  }

  return EFI_LOAD_ERROR;
}

EFI_STATUS
HvImageCopy (
  IN CONST HV_IMAGE  *Image
  )
{
  PE_COFF_LOADER_IMAGE_CONTEXT  Context;
  EFI_CPU_ARCH_PROTOCOL         *CpuArch;

  CopyMem ((VOID *)(UINTN)Image->CopyBase, (VOID *)(UINTN)Image->Base, Image->Bytes);

  ZeroMem (&Context, sizeof (Context));
  Context.Handle    = (VOID *)(UINTN)Image->CopyBase;
  Context.ImageRead = PeCoffLoaderImageReadFromMemory;
  if (RETURN_ERROR (PeCoffLoaderGetImageInfo (&Context))) {
    return EFI_LOAD_ERROR;
  }

  // The header holds the address that the image was relocated for, so the loader adds just the difference.
  Context.ImageAddress = Image->CopyBase;
  if (RETURN_ERROR (PeCoffLoaderRelocateImage (&Context))) {
    return EFI_LOAD_ERROR;
  }

  // Firmware may map reserved memory no-execute, and a launch begins under the firmware's tables.
  if (!EFI_ERROR (gBS->LocateProtocol (&gEfiCpuArchProtocolGuid, NULL, (VOID **)&CpuArch))) {
    CpuArch->SetMemoryAttributes (
               CpuArch,
               Image->TextBase - Image->Base + Image->CopyBase,
               Image->TextEnd - Image->TextBase,
               0
               );
  }

  return EFI_SUCCESS;
}

EFI_STATUS
HvImageMap (
  IN     CONST HV_IMAGE  *Image,
  IN OUT HV_PAGING       *Paging
  )
{
  EFI_IMAGE_SECTION_HEADER  *Section;
  UINTN                     Count;
  EFI_STATUS                Status;
  UINT64                    Base;
  UINT32                    Attributes;

  // Headers and what stands in no section: read-only.
  Status = HvPagingMap (Paging, Image->CopyBase, Image->CopyBase, Image->Bytes, HV_PAGE_READ | HV_PAGE_TYPE_WB);
  for (Section = Sections (Image->Base, &Count); !EFI_ERROR (Status) && (Count > 0); Section++, Count--) {
    Attributes = HV_PAGE_READ | HV_PAGE_TYPE_WB;
    if ((Section->Characteristics & EFI_IMAGE_SCN_MEM_EXECUTE) != 0) {
      Attributes |= HV_PAGE_EXECUTE;
    } else if ((Section->Characteristics & EFI_IMAGE_SCN_MEM_WRITE) != 0) {
      Attributes |= HV_PAGE_WRITE;
    }

    Base   = Image->CopyBase + Section->VirtualAddress;
    Status = HvPagingMap (Paging, Base, Base, ALIGN_VALUE (Section->Misc.VirtualSize, EFI_PAGE_SIZE), Attributes);
  }

  return Status;
}
