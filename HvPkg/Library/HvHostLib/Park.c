/** @file
  The end of a processor after a failure of the host.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include "HostInternal.h"

VOID
HvHostPark (
  IN HV_CPU       *Cpu,
  IN CONST CHAR8  *Reason
  )
{
  HV_CPU  *Other;
  UINT32  Index;

  Cpu->State = HvMpShutdown;
  HV_LOG (Cpu->Index, HostPark, HV_STR (Reason));

  // It may hold a lock, and what it was changing is half done: nobody goes on with the host's data.
  for (Index = 0; Index < Cpu->Host->CpuCount; Index++) {
    Other = HvHostCpu (Cpu->Host, Index);
    if ((Other->State != HvMpNative) && (Other->State != HvMpShutdown) && HvMailboxPost (&Other->Mailbox, HV_MAIL_PARK)) {
      HvHostKick (Cpu, Other);
    }
  }

  HvHostStop ();
}
