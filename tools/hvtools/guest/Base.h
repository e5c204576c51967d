/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/* What the generated headers of HvPkg take from EDK2's Base.h, for a program of Linux. */
#ifndef HV_GUEST_BASE_H_
#define HV_GUEST_BASE_H_

#include <stddef.h>
#include <stdint.h>

typedef uint8_t UINT8;
typedef uint16_t UINT16;
typedef uint32_t UINT32;
typedef uint64_t UINT64;
typedef uintptr_t UINTN;

#define STATIC_ASSERT _Static_assert
#define OFFSET_OF offsetof

#endif
