/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/*
 * CPUID as the last instruction below 4 GiB, in 32-bit code: behind it, EIP is 0. Any user can do that, and a hypervisor
 * that goes on at 1_0000_0000h has a guest which no processor enters (SDM volume 3, 27.3.1.4).
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define USER32_CS 0x23
#define LAST_PAGE 0xfffff000u

static void on_fault(int signal, siginfo_t *info, void *context)
{
	const ucontext_t *at = context;

	(void)info;
	printf("signal=%d rip=%#llx\n", signal, at->uc_mcontext.gregs[REG_RIP]);
	fflush(stdout);
	_exit(0);
}

int main(void)
{
	static const struct __attribute__((packed)) {
		uint32_t offset;
		uint16_t selector;
	} target = {LAST_PAGE + 4094, USER32_CS};
	static uint8_t stack[65536];
	const stack_t handlers_stack = {.ss_sp = stack, .ss_size = sizeof(stack)};
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	uint8_t *page = mmap((void *)(uintptr_t)LAST_PAGE, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (page == MAP_FAILED || sigaltstack(&handlers_stack, NULL) != 0 || sigaction(SIGSEGV, &action, NULL) != 0) {
		perror("eipwrap");
		return 1;
	}
	memcpy(page + 4094, "\x0f\xa2", 2);
	/* A far jump: QEMU 7.2 does a far return's loads from the stack as the kernel's, which SMAP forbids. */
	__asm__ volatile("ljmp *%0" : : "m"(target), "a"(0), "c"(0));
	__builtin_unreachable();
}
