// Lets g++ compile a .cu file for the CPU: a block's threads are fibres, which stop at barriers and shuffles.
//
// What it catches: a barrier or shuffle that some threads do not reach, or reach at another line; in shared memory, what
// is read before it was written (NaN) and what is overwritten too early (threads run one after another between
// barriers, in rising or falling order, so that a missing barrier gives wrong numbers); a block larger than CUDA's.
// Writes outside of arrays are the loader's matter (emulator.py). One launch at a time.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__ static
#define __restrict__
#define __shared__ static __attribute__((section("shared_memory")))
#define __syncthreads() emulation::block_barrier(__LINE__)
#define __shfl_xor_sync(mask, v, distance) emulation::shuffle(mask, v, emulation::lane() ^ (distance), __LINE__)

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));

namespace emulation {

enum State { RUNS, AT_WARP, AT_BLOCK, ENDED };
const int MOST = 1024, STACK = (64 << 10) + 320;  // no power of 2: else all stacks share the same lines of the cache

struct Fibre {
    ucontext_t start;
    jmp_buf here;
    bool started;
    State state;
    int line;       // of the barrier that it waits at
    int turn;       // which of the two mailboxes its next shuffle uses
    float mail[2];  // two, so that a fast lane does not overwrite what a slow one has still to read
};
static Fibre *fibres;
static char *stacks;
static jmp_buf scheduler;
static ucontext_t scheduler_context;
static int current;
static void (*kernel)(void **);
static void **arguments;
static char error[200];

static inline int lane() { return current & 31; }

static void wait_as(State state, int line)
{
    Fibre &me = fibres[current];
    me.state = state;
    me.line = line;
    if (!_setjmp(me.here)) _longjmp(scheduler, 1);
}

static inline void block_barrier(int line) { wait_as(AT_BLOCK, line); }

static inline float shuffle(unsigned mask, float v, int from, int line)
{
    Fibre &me = fibres[current];
    if (mask != 0xffffffffu) snprintf(error, sizeof error, "line %d: a shuffle among some lanes only", line);
    const int turn = me.turn, sender = (current & ~31) | (from & 31);
    me.turn ^= 1;
    me.mail[turn] = v;
    wait_as(AT_WARP, line);
    return fibres[sender].mail[turn];
}

// A fibre's whole life: it runs the kernel, says that it has ended, and is woken for the next block.
static void live()
{
    for (;;) {
        kernel(arguments);
        wait_as(ENDED, 0);
    }
}

static void resume(int t)
{
    current = t;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    if (_setjmp(scheduler)) return;
    Fibre &f = fibres[t];
    if (f.started) _longjmp(f.here, 1);
    f.started = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = stacks + (size_t)t * STACK;
    f.start.uc_stack.ss_size = STACK;
    f.start.uc_link = NULL;
    makecontext(&f.start, live, 0);
    setcontext(&f.start);
}

// Whether fibres first to last − 1 all wait in the same state at the same line; then they may run on.
static bool released(int first, int last, State state)
{
    for (int t = first; t < last; t++)
        if (fibres[t].state != state || fibres[t].line != fibres[first].line) return false;
    for (int t = first; t < last; t++) fibres[t].state = RUNS;
    return true;
}

static bool in_state(int first, int last, State state)
{
    for (int t = first; t < last; t++)
        if (fibres[t].state == state) return true;
    return false;
}

// Runs a warp until all its lanes wait at a barrier of the block or have ended.
static void run_warp(int first, bool falling)
{
    do {
        for (int i = 0; i < 32; i++) resume(first + (falling ? 31 - i : i));
    } while (!*error && released(first, first + 32, AT_WARP));
    if (!*error && in_state(first, first + 32, AT_WARP))
        snprintf(error, sizeof error, "line %d: not all lanes of a warp reach this shuffle", fibres[first].line);
}

static void run_block(int threads, bool falling)
{
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (int t = 0; t < threads; t++) fibres[t].state = RUNS;
    do {
        for (int w = 0; w < threads / 32 && !*error; w++) {
            const int first = 32 * (falling ? threads / 32 - 1 - w : w);
            if (fibres[first].state != ENDED) run_warp(first, falling);
        }
    } while (!*error && released(0, threads, AT_BLOCK));
    if (!*error && in_state(0, threads, AT_BLOCK))
        snprintf(error, sizeof error, "not all threads of a block reach the same __syncthreads()");
}

// The loader calls this. Returns an error's text, empty if all went well.
static const char *run(void (*call)(void **), const int *grid, const int *block, void **args, int falling)
{
    const int threads = block[0] * block[1] * block[2], blocks = grid[0] * grid[1] * grid[2];
    *error = 0;
    if (threads < 1 || threads > MOST || threads % 32 || blocks < 1 || grid[1] > 65535 || grid[2] > 65535) {
        snprintf(error, sizeof error, "a launch of %d blocks of %d threads", blocks, threads);
        return error;
    }
    if (!fibres) {
        fibres = (Fibre *)calloc(MOST, sizeof(Fibre));
        stacks = (char *)malloc((size_t)MOST * STACK);
    }
    kernel = call;
    arguments = args;
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    blockDim = {(unsigned)block[0], (unsigned)block[1], (unsigned)block[2]};
    for (int n = 0; n < blocks && !*error; n++) {
        const int i = falling ? blocks - 1 - n : n;
        blockIdx = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]), (unsigned)(i / (grid[0] * grid[1]))};
        run_block(threads, falling);
    }
    if (*error)  // fibres are stuck in the middle of the kernel
        for (int t = 0; t < MOST; t++) fibres[t].started = false;
    return error;
}

}  // namespace emulation
