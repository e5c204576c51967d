/** @file
  What a consistency check found.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef HV_FINDING_H_
#define HV_FINDING_H_

///
/// Parts of the state that a check can be restricted to.
///
typedef enum {
  HvPartControl = 1, ///< control fields
  HvPartHost    = 2, ///< host state
  HvPartGuest   = 4, ///< guest state, alone or together with control fields
  HvPartAll     = 7
} HV_PART;

///
/// A rule of the manual that does not hold. The texts are constants of the library.
///
typedef struct {
  UINT32         Rule;      ///< HV_SVM_RULE or HV_VMX_RULE
  UINT32         Field;     ///< offset in the VMCB, or encoding of the VMCS field
  UINT64         Value;     ///< of the field
  CONST CHAR8    *Name;     ///< of the rule
  CONST CHAR8    *Section;  ///< of the manual
  CONST CHAR8    *FieldName;
  CONST CHAR8    *Expected;
} HV_FINDING;

#endif // HV_FINDING_H_
