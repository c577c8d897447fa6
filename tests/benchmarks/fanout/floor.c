/* The floor: sends one frame to many sockets, with one send() for each, and does nothing else.
 *
 * Returns the CPU time of the calling thread in nanoseconds, including that of the kernel. Nearly all of it is spent in
 * the kernel: on the loopback, send() also does the work of the receiving side of TCP, and wakes the client.
 * Adds 1 to *failed for each socket that did not take the whole frame.
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
