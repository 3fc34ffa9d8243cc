#ifndef BENCH_SELECT_H
#define BENCH_SELECT_H

/* Opens `uri`, runs `count` point SELECTs with keys drawn by `seed` from 1..`rows`, and stores the CPU time of this thread
** for them in `*cpu_ns`. Returns SQLITE_OK or the code of the first error, whose text it copies to `message` of `size` bytes. */
int bench_select(const char *uri, int rows, int count, unsigned int seed, long long *cpu_ns, char *message, int size);

#endif
