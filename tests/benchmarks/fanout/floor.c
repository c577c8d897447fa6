/* The floor: one frame to each of many sockets by one send() each, and nothing else.
 *
 * Returns the CPU time in nanoseconds that this took the calling thread, in the program and in the kernel. Nearly all of it
 * is the kernel's: on the loopback a send() also does what the receiving side of TCP does, and wakes the reader.
 * Adds to *failed for each socket that did not take the whole frame.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/socket.h>
#include <time.h>

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

long long fan_out(const int *sockets, int count, const char *frame, size_t size, int *failed)
{
    long long start = now();
    for (int i = 0; i < count; i++)
        if (send(sockets[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
            ++*failed;
    return now() - start;
}
