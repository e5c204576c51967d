/* SPDX-License-Identifier: BSD-2-Clause-Patent */
/*
 * The self-check of the root guest. As the first program of Linux (process 1) it reads the hypervisor's counters before
 * anything else, prints what each processor sees, runs a script, and powers off. Called from that script, it prints the
 * same and says by its exit code whether it is consistent; or it does what busybox cannot (see usage).
 *
 * Each line that it prints itself begins with "hvcheck: ", each line of the script with "hvcheck| ".
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <Generated/HvCpuid.h>
#include <Generated/HvExitKind.h>
#include <Generated/HvStatus.h>

#define SCRIPT "/hvtools/script"
#define SHELL "/hvtools/bin/sh"
#define PATH "PATH=/hvtools/bin:/bin:/sbin:/usr/bin:/usr/sbin"
#define MAX_CPUS 4096
#define MAX_SUBLEAVES 64

#define KIND_NAME(kind, name) [kind] = name,
static const char *const kind_names[HvExitKindCount] = {HV_EXIT_KIND_LIST(KIND_NAME)};

static const char *const vendors[] = {
    [0] = "none", [HV_CPUID_BACKEND_VMX] = "vmx", [HV_CPUID_BACKEND_SVM] = "svm"};
#define VENDOR(number) ((number) < sizeof(vendors) / sizeof(vendors[0]) ? vendors[number] : "unknown")

static volatile const uint8_t *live; /* the mapped status page */
static size_t live_size;

/* One line in one write, so that nothing comes between its parts. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[2048];
	va_list arguments;
	size_t done = 0;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof(line) - 1, format, arguments);
	va_end(arguments);
	if (length < 0)
		return;
	if ((size_t)length > sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';
	while (done < (size_t)length) {
		ssize_t step = write(STDOUT_FILENO, line + done, (size_t)length - done);

		if (step < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (step > 0)
			done += (size_t)step;
	}
}

/* The signature of the hypervisor leaf; bytes that a key=value line cannot hold become dots. */
static void get_signature(char text[13], uint32_t *last)
{
	uint32_t registers[4];

	__cpuid(HV_CPUID_40000000, registers[0], registers[1], registers[2], registers[3]);
	memcpy(text, &registers[1], 12);
	for (int i = 0; i < 12; i++)
		if (text[i] <= ' ' || text[i] > '~')
			text[i] = '.';
	text[12] = 0;
	*last = registers[0];
}

/* Maps the status page. NULL, or a reason why there is none. */
static const char *map_status(void)
{
	char signature[13];
	uint32_t last, low, high, size, unused;
	void *page;
	int memory;

	if (live != NULL)
		return NULL;
	get_signature(signature, &last);
	if (strcmp(signature, HV_CPUID_SIGNATURE) != 0)
		return "no-hypervisor";
	if (last < HV_CPUID_40000002)
		return "no-status-leaf";
	__cpuid(HV_CPUID_40000002, low, high, size, unused);
	if (size < sizeof(HV_STATUS_HEADER))
		return "no-status-page";
	memory = open("/dev/mem", O_RDONLY | O_CLOEXEC);
	if (memory < 0)
		return "no-dev-mem";
	page = mmap(NULL, size, PROT_READ, MAP_SHARED, memory, (off_t)((uint64_t)high << 32 | low));
	close(memory);
	if (page == MAP_FAILED)
		return "not-mapped";
	if (((const HV_STATUS_HEADER *)page)->Signature != HV_STATUS_SIGNATURE ||
	    ((const HV_STATUS_HEADER *)page)->Version != HV_STATUS_VERSION) {
		munmap(page, size);
		return "wrong-signature-or-version";
	}
	live = page;
	live_size = size;
	return NULL;
}

/* A copy of the status page, or NULL. */
static uint8_t *copy_status(void)
{
	uint8_t *copy;

	if (live == NULL)
		return NULL;
	copy = malloc(live_size);
	if (copy != NULL)
		memcpy(copy, (const void *)live, live_size);
	return copy;
}

/* Whether the arrays behind the header are inside of what was mapped. */
static bool rows_fit(const uint8_t *copy)
{
	const HV_STATUS_HEADER *status = (const void *)copy;

	return status->KindCount <= HV_EXIT_KIND_MAX && status->CpuCount <= MAX_CPUS &&
	       HV_STATUS_BYTES(status->CpuCount) <= live_size;
}

static void print_rows(const char *when, const uint8_t *copy, size_t offset)
{
	const HV_STATUS_HEADER *status = (const void *)copy;
	const uint64_t *row = (const void *)(copy + offset);

	for (uint32_t cpu = 0; cpu < status->CpuCount; cpu++, row += HV_EXIT_KIND_MAX) {
		char text[HV_EXIT_KIND_MAX * 44] = "";
		size_t used = 0;
		uint64_t total = 0;

		for (uint32_t kind = 0; kind < status->KindCount; kind++) {
			char number[24];

			if (row[kind] == 0)
				continue;
			total += row[kind];
			snprintf(number, sizeof(number), "kind-%u", kind);
			used += (size_t)snprintf(text + used, sizeof(text) - used, " %s=%llu",
						 kind < HvExitKindCount ? kind_names[kind] : number,
						 (unsigned long long)row[kind]);
		}
		say("hvcheck: exits when=%s cpu=%u%s total=%llu", when, cpu, text, (unsigned long long)total);
	}
}

static void print_status(const uint8_t *copy)
{
	const HV_STATUS_HEADER *status = (const void *)copy;
	char sizes[16] = "";

	if (status->NestedPageSizes & HV_STATUS_NESTED_4K)
		strcat(sizes, "4k,");
	if (status->NestedPageSizes & HV_STATUS_NESTED_2M)
		strcat(sizes, "2m,");
	if (status->NestedPageSizes & HV_STATUS_NESTED_1G)
		strcat(sizes, "1g,");
	if (sizes[0] == 0)
		strcpy(sizes, "none,");
	sizes[strlen(sizes) - 1] = 0;
	say("hvcheck: status version=%u vendor=%s cpus=%u kinds=%u virtualised=%u reserved=%llu nested=%llu "
	    "page_sizes=%s dma=%u boot_done=%llu",
	    status->Version, VENDOR(status->Vendor), status->CpuCount, status->KindCount, status->Virtualised,
	    (unsigned long long)status->ReservedBytes, (unsigned long long)status->NestedBytes, sizes, status->Dma,
	    (unsigned long long)status->BootDone);
}

/* What the processor sees that this runs on. Returns whether it is under HvPkg; *consistent loses what contradicts. */
static bool print_cpu(const char *when, unsigned cpu, bool *consistent)
{
	uint32_t a, b, c, d, last, apic;
	uint32_t interface = 0, features = 0, backend = 0, index = 0;
	char signature[13];
	bool ours, svm = false, vmx;

	__cpuid(HV_CPUID_1, a, b, c, d);
	apic = (b & HV_CPUID_1_EBX_APIC_ID_MASK) >> HV_CPUID_1_EBX_APIC_ID_SHIFT;
	vmx = (c & HV_CPUID_1_ECX_VMX) != 0;
	__cpuid(HV_CPUID_0, a, b, c, d);
	if (a >= 0xB) {
		__cpuid_count(0xB, 0, a, b, c, d); /* extended topology: EDX is the whole x2APIC id */
		if (b != 0)
			apic = d;
	}
	__cpuid(0x80000000, a, b, c, d);
	if (a >= HV_CPUID_80000001) {
		__cpuid(HV_CPUID_80000001, a, b, c, d);
		svm = (c & HV_CPUID_80000001_ECX_SVM) != 0;
	}
	get_signature(signature, &last);
	ours = strcmp(signature, HV_CPUID_SIGNATURE) == 0;
	if (ours)
		__cpuid(HV_CPUID_40000001, interface, features, backend, index);
	say("hvcheck: cpu when=%s id=%u apic=%u signature=%s interface=%u features=0x%x backend=%s index=%u svm=%u vmx=%u",
	    when, cpu, apic, signature, interface, features, VENDOR(backend), index, svm, vmx);
	if (ours && (svm || vmx))
		*consistent = false;
	return ours;
}

/* Calls print_cpu on each processor that is online. Returns whether all of them say the same. */
static bool print_cpus(const char *when)
{
	size_t bytes = CPU_ALLOC_SIZE(MAX_CPUS);
	cpu_set_t *before = CPU_ALLOC(MAX_CPUS), *one = CPU_ALLOC(MAX_CPUS);
	bool consistent = true;
	unsigned online = 0, ours = 0;

	if (before == NULL || one == NULL || sched_getaffinity(0, bytes, before) != 0)
		return false;
	for (unsigned cpu = 0; cpu < MAX_CPUS; cpu++) {
		if (!CPU_ISSET_S(cpu, bytes, before))
			continue;
		CPU_ZERO_S(bytes, one);
		CPU_SET_S(cpu, bytes, one);
		if (sched_setaffinity(0, bytes, one) != 0) {
			say("hvcheck: error what=affinity cpu=%u errno=%d", cpu, errno);
			consistent = false;
			continue;
		}
		online++;
		ours += print_cpu(when, cpu, &consistent);
	}
	sched_setaffinity(0, bytes, before);
	CPU_FREE(before);
	CPU_FREE(one);
	return consistent && online != 0 && (ours == 0 || ours == online);
}

static bool check(const char *when)
{
	bool consistent = print_cpus(when);
	const char *reason = map_status();
	uint8_t *copy = copy_status();

	if (copy != NULL && rows_fit(copy)) {
		print_status(copy);
		print_rows(when, copy, HV_STATUS_EXITS_OFFSET(((const HV_STATUS_HEADER *)(const void *)copy)->CpuCount));
	} else {
		say("hvcheck: no-status reason=%s", reason != NULL ? reason : "does-not-fit");
		if (reason == NULL || strcmp(reason, "no-hypervisor") != 0)
			consistent = false;
	}
	free(copy);
	return consistent;
}

/* One register of the TPM, as the kernel gives it. */
static void print_register(unsigned index)
{
	char path[64], value[2 * 32 + 1] = "";
	int file;

	snprintf(path, sizeof(path), "/sys/class/tpm/tpm0/pcr-sha256/%u", index);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return;
	if (read(file, value, sizeof(value) - 1) == sizeof(value) - 1)
		say("hvcheck: pcr index=%u sha256=%s", index, value);
	close(file);
}

/* With a TPM: the registers that firmware and kernel extend, and the log of what they measured. */
static void print_measurements(void)
{
	uint8_t bytes[512];
	char text[2 * sizeof(bytes) + 1];
	ssize_t count;
	int file;

	mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL);
	file = open("/sys/kernel/security/tpm0/binary_bios_measurements", O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return;
	for (unsigned index = 0; index < 10; index++)
		print_register(index);
	while ((count = read(file, bytes, sizeof(bytes))) > 0) {
		for (ssize_t i = 0; i < count; i++)
			snprintf(text + 2 * i, 3, "%02x", bytes[i]);
		say("hvcheck: measured log=%s", text);
	}
	close(file);
}

/* Passes the script's output on, each line with its mark; keeps what has no end yet. */
static void pass_on(int from, char *line, size_t size, size_t *used)
{
	char bytes[4096];
	ssize_t count;

	while ((count = read(from, bytes, sizeof(bytes))) > 0) {
		for (ssize_t i = 0; i < count; i++) {
			if (bytes[i] == '\n' || *used == size - 1) {
				line[*used] = 0;
				say("hvcheck| %s", line);
				*used = 0;
				if (bytes[i] == '\n')
					continue;
			}
			if (bytes[i] != 0)
				line[(*used)++] = bytes[i];
		}
	}
}

/* Runs the script and returns its exit code as a shell gives it. */
static int run_script(void)
{
	char line[1024];
	size_t used = 0;
	int ends[2], status = 0;
	sigset_t child_signal;
	int signals;
	pid_t script;

	sigemptyset(&child_signal);
	sigaddset(&child_signal, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child_signal, NULL);
	signals = signalfd(-1, &child_signal, SFD_CLOEXEC);
	if (signals < 0 || pipe2(ends, O_CLOEXEC) != 0)
		return 126;
	script = fork();
	if (script < 0)
		return 126;
	if (script == 0) {
		int nothing = open("/dev/null", O_RDONLY);
		char *const arguments[] = {"sh", SCRIPT, NULL};
		char *const environment[] = {PATH, "HOME=/root", "TERM=dumb", NULL};

		sigprocmask(SIG_UNBLOCK, &child_signal, NULL);
		setsid();
		dup2(nothing, STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execve(SHELL, arguments, environment);
		_exit(127);
	}
	close(ends[1]);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	for (bool runs = true; runs;) {
		struct pollfd events[] = {{.fd = ends[0], .events = POLLIN}, {.fd = signals, .events = POLLIN}};
		struct signalfd_siginfo information;
		pid_t child;
		int child_status;

		if (poll(events, 2, -1) < 0 && errno != EINTR)
			break;
		if ((events[1].revents & POLLIN) && read(signals, &information, sizeof(information)) < 0)
			break;
		while ((child = waitpid(-1, &child_status, WNOHANG)) > 0) {
			if (child == script) {
				status = child_status;
				runs = false;
			}
		}
		pass_on(ends[0], line, sizeof(line), &used);
		if (runs && (events[0].revents & POLLHUP) && !(events[0].revents & POLLIN)) {
			/* It closed its output but still runs. */
			while (waitpid(script, &status, 0) < 0 && errno == EINTR)
				;
			runs = false;
		}
	}
	close(ends[0]);
	close(signals);
	if (used != 0) {
		line[used] = 0;
		say("hvcheck| %s", line);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void init(void)
{
	uint8_t *first;
	struct utsname kernel;

	/* The counters first: what comes later is this program's own doing. */
	map_status();
	first = copy_status();

	uname(&kernel);
	say("hvcheck: init version=1 kernel=%s online=%ld", kernel.release, sysconf(_SC_NPROCESSORS_ONLN));
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	klogctl(8, NULL, 4); /* the kernel's notes stay in its log, its errors still come to the console */
	say("hvcheck: online count=%ld", sysconf(_SC_NPROCESSORS_ONLN));
	if (first != NULL && rows_fit(first)) {
		const HV_STATUS_HEADER *status = (const void *)first;

		if (status->BootDone)
			print_rows("boot", first, HV_STATUS_AT_EXIT_BOOT_SERVICES_OFFSET(status->CpuCount));
		print_rows("init", first, HV_STATUS_EXITS_OFFSET(status->CpuCount));
	}
	check("start");
	print_measurements();
	if (access(SCRIPT, F_OK) == 0) {
		int code;

		say("hvcheck: script-begin");
		tcdrain(STDOUT_FILENO); /* the script may end the machine at once */
		code = run_script();
		say("hvcheck: script-end exit=%d", code);
	}
	check("end");
	say("hvcheck: done");
	sync();
	tcdrain(STDOUT_FILENO); /* the kernel's last line does not wait for what is queued in the terminal */
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* Starts another kernel from this one, without the firmware. */
static int start_kernel(const char *kernel, const char *initrd, const char *command_line)
{
	int kernel_file = open(kernel, O_RDONLY | O_CLOEXEC);
	int initrd_file = open(initrd, O_RDONLY | O_CLOEXEC);

	if (kernel_file < 0 || initrd_file < 0 ||
	    syscall(SYS_kexec_file_load, kernel_file, initrd_file, strlen(command_line) + 1, command_line, 0UL) != 0) {
		say("hvcheck: error what=kexec-load errno=%d", errno);
		return 1;
	}
	sync();
	reboot(RB_KEXEC);
	say("hvcheck: error what=kexec errno=%d", errno);
	return 1;
}

/* Reads a port of 1, 2 or 4 bytes, or writes to it when there is a value. */
static int use_port(int count, char **arguments)
{
	uint16_t port = (uint16_t)strtoul(arguments[0], NULL, 0);
	unsigned size = (unsigned)strtoul(arguments[1], NULL, 0);

	if (iopl(3) != 0) {
		say("hvcheck: error what=iopl errno=%d", errno);
		return 1;
	}
	if (count == 2) {
		printf("0x%x\n", size == 1 ? inb(port) : size == 2 ? inw(port) : inl(port));
	} else {
		uint32_t value = (uint32_t)strtoul(arguments[2], NULL, 0);

		if (size == 1)
			outb((uint8_t)value, port);
		else if (size == 2)
			outw((uint16_t)value, port);
		else
			outl(value, port);
	}
	return 0;
}

/* One leaf. Of the first processor the subleaves that are not as the one before; of others what differs from it. */
static void print_leaf(unsigned cpu, uint32_t leaf, uint32_t first[MAX_SUBLEAVES][4])
{
	for (uint32_t subleaf = 0; subleaf < MAX_SUBLEAVES; subleaf++) {
		uint32_t now[4];
		bool known;

		__cpuid_count(leaf, subleaf, now[0], now[1], now[2], now[3]);
		if (cpu == 0) {
			memcpy(first[subleaf], now, sizeof(now));
			known = subleaf > 0 && memcmp(now, first[subleaf - 1], sizeof(now)) == 0;
		} else {
			known = memcmp(now, first[subleaf], sizeof(now)) == 0;
		}
		if (!known)
			say("leaf %u %08x %u %08x %08x %08x %08x", cpu, leaf, subleaf, now[0], now[1], now[2], now[3]);
	}
}

/* Every leaf of every processor: what there is, and a good piece of what there is not. */
static int print_leaves(void)
{
	static const struct {
		uint32_t first, last;
	} ranges[] = {{0, 0x100}, {0x20000000, 0x20000002}, {0x40000000, 0x40000010}, {0x4fffffff, 0x50000000},
		      {0x7fffffff, 0x80000040}, {0x8fffffff, 0x8fffffff}, {0xc0000000, 0xc0000004}, {0xffffffff, 0xffffffff}};
	static uint32_t first[512][MAX_SUBLEAVES][4];
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	for (unsigned cpu = 0; cpu < (unsigned)cpus; cpu++) {
		size_t leaves = 0;
		cpu_set_t one;

		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (sched_setaffinity(0, sizeof(one), &one) != 0)
			return 1;
		for (size_t range = 0; range < sizeof(ranges) / sizeof(ranges[0]); range++)
			for (uint64_t leaf = ranges[range].first; leaf <= ranges[range].last; leaf++)
				print_leaf(cpu, (uint32_t)leaf, first[leaves++]);
	}
	return 0;
}

int main(int count, char **arguments)
{
	if (getpid() == 1)
		init();
	if (count == 1)
		return check("now") ? 0 : 1;
	if (count == 5 && strcmp(arguments[1], "kexec") == 0)
		return start_kernel(arguments[2], arguments[3], arguments[4]);
	if ((count == 4 || count == 5) && strcmp(arguments[1], "port") == 0)
		return use_port(count - 2, arguments + 2);
	if (count == 2 && strcmp(arguments[1], "leaves") == 0)
		return print_leaves();
	fputs("usage: hvcheck [leaves | kexec KERNEL INITRD COMMAND-LINE | port PORT SIZE [VALUE]]\n", stderr);
	return 2;
}
