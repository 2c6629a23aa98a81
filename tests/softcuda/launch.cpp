// Kernels: modules, launches, and the threads of a block where a kernel has barriers.
//
// A kernel is a host function that runs once for every thread of every block, in order. Where its module has barriers
// or shuffles, the threads of a block are fibers: each runs to its next barrier, and the barrier lets all go on.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include "device.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;
SoftKernel *softcuda_kernels;
static SoftKernel *kernel;
static void **arguments;
static const char *running = "no kernel";

void now_running(const char *what) { running = what; kernel = 0; }

// ---- faults ----
static void fault(int, siginfo_t *info, void *) {
  CUdeviceptr address = (CUdeviceptr)info->si_addr, start;
  size_t bytes;
  fprintf(stderr, "softcuda: FAULT at %#lx in %s (grid %u,%u,%u block %u,%u,%u; block %u,%u thread %u,%u)\n", (long)address,
          running, gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y, blockDim.z, blockIdx.x, blockIdx.y,
          threadIdx.x, threadIdx.y);
  if (allocation_at(address, start, bytes))
    fprintf(stderr, "softcuda: %ld bytes after the start of an allocation of %zu\n", (long)(address - start), bytes);
  if (kernel)
    for (int i = 0; i < kernel->count; i++) fprintf(stderr, "softcuda: argument %d is %#lx\n", i, *(long *)arguments[i]);
  _exit(98);
}
void catch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, 0);
  sigaction(SIGBUS, &action, 0);
}

// ---- fibers ----
// Saves the registers that a call keeps and the stack, and goes on where another fiber stopped. x86-64, System V.
extern "C" void softcuda_switch(void **save, void *load);
asm(R"(.globl softcuda_switch
softcuda_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
enum State { RUNS, AT_SHUFFLE, AT_BARRIER, DONE };
static const int THREADS = 1024, WARP = 32;
static const size_t STACK = 32768;
static void *fiber[THREADS], *block_loop;
static State state[THREADS];
static char lane[THREADS][16];
static int current;

static dim3 index_of(int thread) {
  return {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}
static void stop(State at) {
  int self = current;
  state[self] = at;
  softcuda_switch(&fiber[self], block_loop);
}
static void begin() {
  kernel->call(arguments);
  stop(DONE);
  abort();
}
void softcuda_sync_block() {
  if (!kernel->fibers) give_up("%s has a barrier, its module was said to have none", kernel->name);
  stop(AT_BARRIER);
}
void softcuda_shuffle(void *value, size_t size, int mask) {
  if (!kernel->fibers) give_up("%s shuffles, its module was said not to", kernel->name);
  int self = current;
  memcpy(lane[self], value, size);
  stop(AT_SHUFFLE);
  memcpy(value, lane[self ^ mask], size);
  stop(AT_SHUFFLE);
}

// Lets warps go on whose lanes all shuffle; returns how many threads are done.
static int shuffle_warps(int threads, bool &moved) {
  int done = 0;
  for (int first = 0; first < threads; first += WARP) {
    int end = std::min(first + WARP, threads), waiting = 0, finished = 0;
    for (int t = first; t < end; t++) { waiting += state[t] == AT_SHUFFLE; finished += state[t] == DONE; }
    if (waiting && waiting == end - first) {
      for (int t = first; t < end; t++) state[t] = RUNS;
      moved = true;
    } else if (waiting && waiting + finished == end - first) give_up("%s shuffles with lanes that have returned", kernel->name);
    done += finished;
  }
  return done;
}
static void run_block(int threads) {
  static char *stacks = (char *)mmap(0, STACK * THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (int t = 0; t < threads; t++) {
    void **top = (void **)(stacks + STACK * (t + 1)) - 2;
    *top = (void *)begin;
    fiber[t] = top - 6;  // the registers that the first switch takes from there
    state[t] = RUNS;
  }
  for (;;) {
    bool moved = false;
    for (int t = 0; t < threads; t++) {
      if (state[t] != RUNS) continue;
      moved = true;
      current = t;
      threadIdx = index_of(t);
      softcuda_switch(&block_loop, fiber[t]);
    }
    int done = shuffle_warps(threads, moved), at_barrier = std::count(state, state + threads, AT_BARRIER);
    if (done == threads) return;
    if (at_barrier == threads) std::fill(state, state + threads, RUNS);
    else if (at_barrier && at_barrier + done == threads) give_up("%s has a barrier that not all threads reach", kernel->name);
    else if (!moved) give_up("%s waits for ever at a barrier", kernel->name);
  }
}

extern "C" {
// A module is text that names it: what the stand-in for nvcc writes.
CUresult cuModuleLoadData(void **module, const void *data) {
  ENTER("cuModuleLoadData");
  const char *kernels = getenv("SOFTCUDA_KERNELS");
  if (kernels && !strcmp(kernels, "none")) return NO_BINARY;  // as if they were made for another GPU
  const char *mark = "//softcuda module ", *found = strstr((const char *)data, mark);
  if (!found) return NO_BINARY;
  std::string name = found + strlen(mark);
  *module = strdup(name.substr(0, name.find_first_of("\r\n")).c_str());
  return SUCCESS;
}
CUresult cuModuleUnload(void *module) { free(module); return SUCCESS; }
CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
  ENTER("cuModuleGetFunction");
  for (SoftKernel *k = softcuda_kernels; k; k = k->next)
    if (!strcmp(k->name, name) && !strcmp(k->module, (char *)module)) { *function = k; return SUCCESS; }
  give_up("module %s has no kernel %s", (char *)module, name);
}
CUresult cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned, void *stream, void **parameters, void **) {
  ENTER("cuLaunchKernel");
  SoftKernel *k = (SoftKernel *)function;
  count_kernel(k->name);
  long threads = (long)bx * by * bz;
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !threads || threads > THREADS || bz > 64)
    give_up("%s is launched with grid %u,%u,%u and block %u,%u,%u", k->name, gx, gy, gz, bx, by, bz);
  StreamId id = stream_id(stream);
  uint64_t number = enqueue(id);
  for (int i = 0; i < k->count; i++) {
    CUdeviceptr pointer = k->kinds[i] ? *(CUdeviceptr *)parameters[i] : 0;
    if (pointer) access(pointer, id, number, k->kinds[i] == SOFT_WRITES ? WRITE : READ, k->name);
  }
  now_running(k->name);
  kernel = k;
  arguments = parameters;
  gridDim = {gx, gy, gz};
  blockDim = {bx, by, bz};
  for (unsigned z = 0; z < gz; z++)
    for (unsigned y = 0; y < gy; y++)
      for (unsigned x = 0; x < gx; x++) {
        blockIdx = {x, y, z};
        if (k->fibers) { run_block(threads); continue; }
        for (int t = 0; t < threads; t++) { threadIdx = index_of(t); k->call(parameters); }
      }
  now_running("no kernel");
  return SUCCESS;
}
}
