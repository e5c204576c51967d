/** @file
  Constants that C and NASM share; SvmInternal.h asserts them.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef SVM_ASM_H_
#define SVM_ASM_H_

#define SVM_CLEAN  0x3FF // all that the host ever changes in a VMCB, and that a processor may keep (APM2 15.15.3)

#endif // SVM_ASM_H_
