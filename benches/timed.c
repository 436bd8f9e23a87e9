/*
 * Runs a program and prints what it took, from exec to exit: microseconds, microseconds of
 * processor time in user mode and in the kernel, peak memory in KiB. A small parent: the
 * kernel counts its memory as the child's (exec_mmap of fs/exec.c).
 *
 * timed <program> <argument>...
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long microseconds(struct timeval time)
{
	return time.tv_sec * 1000000L + time.tv_usec;
}

int main(int argc, char **argv)
{
	struct timespec start, end;
	struct rusage usage;
	int status;

	if (argc < 2)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &start);
	pid_t child = vfork();
	if (child == 0) {
		int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
		dup2(null, 1);
		execv(argv[1], argv + 1);
		_exit(127);
	}
	if (child < 0 || wait4(child, &status, 0, &usage) < 0)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld %ld %ld %ld\n",
	       (end.tv_sec - start.tv_sec) * 1000000L + (end.tv_nsec - start.tv_nsec) / 1000,
	       microseconds(usage.ru_utime), microseconds(usage.ru_stime), usage.ru_maxrss);
	return status != 0;
}
