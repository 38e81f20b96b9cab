/* A wall clock that can be set for one process. Preload this library, name a file of eight bytes in STEPPED_CLOCK, and write
 * into it by how many nanoseconds the clock is to be ahead: the processes that have loaded it see that at once.
 *
 * As with a real clock that somebody sets, a thread that waits until a moment of the wall clock wakes early when the clock
 * jumps ahead, and waits longer when it jumps back. Of such waits the servers have cnd_timedwait alone, in librdkafka. The
 * monotonic clock stays as it is. For glibc, whose conditions and mutexes of <threads.h> are those of <pthread.h>. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define NANOS_PER_S INT64_C(1000000000)
/* How long a thread sleeps at most until it looks at the clock again. */
#define SLICE_NS INT64_C(20000000)

/* Null until the library is ready: other libraries ask for the time before. */
static const _Atomic int64_t *ahead_ns;

__attribute__((constructor)) static void map_clock(void) {
  const char *path = getenv("STEPPED_CLOCK");
  int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead_ns, PROT_READ, MAP_SHARED, file, 0);
  if (page == MAP_FAILED) {
    fputs("STEPPED_CLOCK names no file that can be mapped\n", stderr);
    _exit(1);
  }
  close(file);
  ahead_ns = page;
}

static int64_t nanos(const struct timespec *time) { return time->tv_sec * NANOS_PER_S + time->tv_nsec; }

static struct timespec timespec_of(int64_t nanos) {
  return (struct timespec){.tv_sec = nanos / NANOS_PER_S, .tv_nsec = nanos % NANOS_PER_S};
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  /* Not by the next library's function, because looking for that may ask for the time. */
  if (syscall(SYS_clock_gettime, clock, now) != 0) return -1;
  if (ahead_ns != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    *now = timespec_of(nanos(now) + atomic_load(ahead_ns));
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec time;
  if (clock_gettime(CLOCK_REALTIME, &time) != 0) return -1;
  *now = (struct timeval){.tv_sec = time.tv_sec, .tv_usec = time.tv_nsec / 1000};
  return 0;
}

time_t time(time_t *now) {
  struct timespec time;
  if (clock_gettime(CLOCK_REALTIME, &time) != 0) return -1;
  if (now != NULL) *now = time.tv_sec;
  return time.tv_sec;
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  for (;;) {
    struct timespec now, awake;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0 || clock_gettime(CLOCK_MONOTONIC, &awake) != 0) return thrd_error;
    int64_t left = nanos(until) - nanos(&now);
    if (left <= 0) return thrd_timedout;
    awake = timespec_of(nanos(&awake) + (left < SLICE_NS ? left : SLICE_NS));
    int ended = pthread_cond_clockwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, CLOCK_MONOTONIC, &awake);
    if (ended == 0) return thrd_success;
    if (ended != ETIMEDOUT) return thrd_error;
  }
}
