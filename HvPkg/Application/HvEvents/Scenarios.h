/** @file
  What the scenarios and their table share; C and NASM include it.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#ifndef SCENARIOS_H_
#define SCENARIOS_H_

// Flags of a scenario.
#define LOST               1   // has a stack that does not keep what is written to it
#define ASYNC              2   // where the events come is not compared
#define NO_GATE_GP         4   // the gate of this vector is not present
#define NO_GATE_UD         8
#define NO_GATE_PF         16
#define NO_GATE_INTERRUPT  32

// SCENARIO_CONTEXT
#define CONTEXT_STACK  0
#define CONTEXT_ICR    8

#define INTERRUPT  0x50 // HV_TRAP_INTERRUPT
#define NMI        0x02 // HV_TRAP_NMI
#define ICR_NMI    0x4400

#define UNMAPPED  0x7F0000000000 // a linear address without a translation
#define HOLES     0x7E8000000000 // where the lost stacks are mapped

#endif // SCENARIOS_H_
