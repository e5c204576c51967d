/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/*
 * Measures CPUID from user space, in ticks of the time stamp counter, in the lines of the EFI program HvBench. What is
 * not the loop's own comes from interrupts, so the least of many passes counts.
 */
#include <stdint.h>
#include <stdio.h>

#define LOOPS 20000

static inline uint64_t now(void)
{
	uint32_t low, high;

	__asm__ __volatile__("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static void cpuid(void)
{
	uint32_t eax = 0, ecx = 0;

	__asm__ __volatile__("cpuid" : "+a"(eax), "+c"(ecx) : : "rbx", "rdx");
}

/* All that cpuid() does, but for the instruction. */
static void nothing(void)
{
	uint32_t eax = 0, ecx = 0;

	__asm__ __volatile__("nop" : "+a"(eax), "+c"(ecx) : : "rbx", "rdx");
}

static void measure(const char *name, void (*volatile operation)(void))
{
	uint64_t least = UINT64_MAX, sum = 0;

	for (int i = 0; i < LOOPS; i++) {
		uint64_t begin = now(), ticks;

		operation();
		ticks = now() - begin;
		sum += ticks;
		if (ticks < least)
			least = ticks;
	}
	printf("hvbench: when=linux name=%s loops=%d min=%llu sum=%llu\n", name, LOOPS, (unsigned long long)least,
	       (unsigned long long)sum);
}

int main(void)
{
	measure("nop", nothing);
	measure("exit.cpuid", cpuid);
	return 0;
}
