// What the parts of the software device share: memory, streams, counts. Kernels see include/softcuda.h only.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include "softcuda.h"

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NO_BINARY = 218, NOT_FOUND = 500, DRIVER_MISMATCH = 803 };

// One device, one lock: whatever a thread asks is done at once, before another thread's next request.
extern std::recursive_mutex device_lock;
#define ENTER(function) \
  std::lock_guard<std::recursive_mutex> lock(device_lock); \
  count(function)

// Counts of a function's calls and a kernel's launches, bytes moved and held.
void count(const char *function);
void count_kernel(const char *kernel);
extern long bytes_up, bytes_down, bytes_inside, bytes_live, bytes_peak, allocations_live, kernel_launches, races;

// Prints what is wrong and ends the process: nothing after it can be trusted.
[[noreturn]] void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Streams. Work is done when it is enqueued; what the hardware would be free to reorder is checked instead.
// Every enqueued operation has a number on its stream.
typedef long StreamId;
StreamId stream_id(void *handle);
uint64_t enqueue(StreamId stream);
void host_waits_for(StreamId stream);

enum Access { READ, WRITE };
// Operation `number` of a stream uses the allocation that `address` is in.
void access(CUdeviceptr address, StreamId stream, uint64_t number, Access access, const std::string &what);
// The allocation that an address is in, for messages: start and size; 0 where it is in none.
bool allocation_at(CUdeviceptr address, CUdeviceptr &start, size_t &bytes);

// What runs at the moment, for messages about faults.
void now_running(const char *what);
void catch_faults();
