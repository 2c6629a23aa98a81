// Device memory and streams: who used what last, and whether that was ordered.
//
// Every allocation ends within 256 bytes of a page that nobody may touch, is filled with NaN, and is unmapped when it
// is freed. Operations run when they are enqueued, so a wrong order gives right answers here: instead, each
// allocation remembers who wrote it and who has read it since, and an access that no event, synchronisation or common
// stream puts after these is a race.
#include <sys/mman.h>
#include <algorithm>
#include <cstdarg>
#include <set>
#include <unistd.h>
#include "device.h"

std::recursive_mutex device_lock;
long bytes_up, bytes_down, bytes_inside, bytes_live, bytes_peak, allocations_live, kernel_launches, races;

// ---- counts ----
static std::map<std::string, long> &calls() { static auto *map = new std::map<std::string, long>; return *map; }
static std::map<std::string, long> &kernels() { static auto *map = new std::map<std::string, long>; return *map; }
void count(const char *function) { calls()[function]++; }
void count_kernel(const char *kernel) { kernels()[kernel]++; kernel_launches++; }

void give_up(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("softcuda: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  abort();
}

// ---- streams ----
// Everything on stream `first` up to operation `second` happened before.
typedef std::map<StreamId, uint64_t> Seen;
struct Event { Seen seen; };
static std::map<StreamId, uint64_t> enqueued;
static std::map<StreamId, Seen> seen_by;  // what comes next on a stream is after these
static Seen seen_by_host;                 // what any thread enqueues next is after these

static void join(Seen &seen, const Seen &more) {
  for (auto &[stream, number] : more) seen[stream] = std::max(seen[stream], number);
}

StreamId stream_id(void *handle) {
  // threads' own streams: the operating system gives numbers of dead threads to new ones, these are never reused
  static long threads;
  static thread_local long own;
  if (handle != (void *)2) return (long)handle;
  if (!own) { std::lock_guard<std::recursive_mutex> lock(device_lock); own = --threads; }
  return own;
}

static std::string name(StreamId stream) {
  return stream < 0 ? "the stream of thread " + std::to_string(-stream) : "stream " + std::to_string(stream);
}

uint64_t enqueue(StreamId stream) { return ++enqueued[stream]; }

static Seen all_of(StreamId stream) {
  Seen seen = seen_by[stream];
  seen[stream] = enqueued[stream];
  return seen;
}

void host_waits_for(StreamId stream) { join(seen_by_host, all_of(stream)); }

// ---- memory ----
struct Use { StreamId stream; uint64_t number; std::string what; };
struct Allocation { size_t bytes, mapped; char *map; Use write; std::map<StreamId, Use> reads; };
static std::map<CUdeviceptr, Allocation> allocations;
static const size_t PAGE = 4096, ALIGNMENT = 256;
static const unsigned char UNTOUCHED = 0xa5;

static bool ordered(const Use &use, StreamId stream) {
  return use.stream == stream || seen_by_host[use.stream] >= use.number || seen_by[stream][use.stream] >= use.number;
}

static void race(const std::string &what, StreamId stream, const char *does, const Use &use, const char *did) {
  if (++races <= 6)
    fprintf(stderr, "softcuda: RACE: %s on %s %s what %s on %s %s\n", what.c_str(), name(stream).c_str(), does,
            use.what.c_str(), name(use.stream).c_str(), did);
}

static std::map<CUdeviceptr, Allocation>::iterator find(CUdeviceptr address) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return allocations.end();
  --after;
  return address < after->first + after->second.bytes ? after : allocations.end();
}

bool allocation_at(CUdeviceptr address, CUdeviceptr &start, size_t &bytes) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return false;
  --after;
  start = after->first;
  bytes = after->second.bytes;
  return true;
}

void access(CUdeviceptr address, StreamId stream, uint64_t number, Access access, const std::string &what) {
  auto found = find(address);
  if (found == allocations.end()) give_up("%s uses %#lx, which is in no allocation", what.c_str(), (long)address);
  Allocation &a = found->second;
  if (!ordered(a.write, stream)) race(what, stream, access == WRITE ? "writes" : "reads", a.write, "wrote");
  if (access == READ) { a.reads[stream] = {stream, number, what}; return; }
  for (auto &[_, read] : a.reads) if (!ordered(read, stream)) race(what, stream, "writes", read, "reads");
  a.reads.clear();
  a.write = {stream, number, what};
}

// SOFTCUDA_MEMORY, such as 24G; 8 GB without.
static size_t memory() {
  static size_t bytes = [] {
    const char *text = getenv("SOFTCUDA_MEMORY");
    if (!text) return (size_t)8 << 30;
    char *unit;
    double number = strtod(text, &unit);
    int shift = *unit == 'G' ? 30 : *unit == 'M' ? 20 : *unit == 'K' ? 10 : 0;
    return (size_t)(number * (1L << shift));
  }();
  return bytes;
}

// SOFTCUDA_DEVICES=0: a driver without a GPU. SOFTCUDA_DRIVER=none: one that does not start.
static bool is_set_to(const char *name, const char *value) {
  const char *set = getenv(name);
  return set && !strcmp(set, value);
}
static bool has_device() { return !is_set_to("SOFTCUDA_DEVICES", "0"); }

// At the end of the process. With SOFTCUDA_LEAKS, what is still allocated is an error: a process that calls exit
// drops nothing, a test that returns drops all. SOFTCUDA_REPORT names a file to add what was called to.
static void finish() {
  std::lock_guard<std::recursive_mutex> lock(device_lock);
  if (const char *path = getenv("SOFTCUDA_REPORT"))
    if (FILE *file = fopen(path, "a")) {
      std::string text;
      for (auto &[function, n] : calls()) text += "call " + function + " " + std::to_string(n) + "\n";
      for (auto &[kernel, n] : kernels()) text += "kernel " + kernel + " " + std::to_string(n) + "\n";
      fwrite(text.data(), 1, text.size(), file);
      fclose(file);
    }
  if (races) fprintf(stderr, "softcuda: %ld races\n", races);
  bool leaks = allocations_live && getenv("SOFTCUDA_LEAKS");
  if (leaks)
    fprintf(stderr, "softcuda: LEAK: %ld allocations of %ld bytes were never freed\n", allocations_live, bytes_live);
  fflush(0);
  if (races || leaks) _exit(97);
}

extern "C" {
// What tests ask: calls of a driver function, or one of the counts below.
long softcuda_count(const char *what) {
  std::lock_guard<std::recursive_mutex> lock(device_lock);
  std::string name = what;
  if (name == "launches") return kernel_launches;
  if (name == "bytes up") return bytes_up;
  if (name == "bytes down") return bytes_down;
  if (name == "bytes inside") return bytes_inside;
  if (name == "bytes live") return bytes_live;
  if (name == "bytes peak") return bytes_peak;
  if (name == "races") return races;
  auto found = calls().find(name);
  return found == calls().end() ? 0 : found->second;
}

CUresult cuInit(unsigned) {
  static bool first = true;
  if (is_set_to("SOFTCUDA_DRIVER", "none")) return DRIVER_MISMATCH;
  if (!has_device()) return NO_DEVICE;
  if (first) { catch_faults(); atexit(finish); first = false; }
  return SUCCESS;
}
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? SUCCESS : INVALID_DEVICE; }
CUresult cuDeviceGetCount(int *devices) { *devices = has_device(); return SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, int) { snprintf(name, size, "softcuda"); return SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int) {
  // compute capability 9.0; whatever else is asked (memory pools) is there
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1;
  return SUCCESS;
}
// memory that is freed stays with the device or not: only its speed differs
CUresult cuDeviceGetDefaultMemPool(void **pool, int) { ENTER("cuDeviceGetDefaultMemPool"); *pool = (void *)0x2000; return SUCCESS; }
CUresult cuMemPoolSetAttribute(void *, int, void *) { ENTER("cuMemPoolSetAttribute"); return SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(void **context, int) { *context = (void *)0x1000; return SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
static thread_local void *bound;
CUresult cuCtxGetCurrent(void **context) { ENTER("cuCtxGetCurrent"); *context = bound; return SUCCESS; }
CUresult cuCtxSetCurrent(void *context) { bound = context; return SUCCESS; }
CUresult cuCtxSynchronize() {
  ENTER("cuCtxSynchronize");
  for (auto &[stream, _] : enqueued) host_waits_for(stream);
  return SUCCESS;
}
CUresult cuGetErrorName(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" :
          error == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE" : "CUDA_ERROR_OF_SOFTCUDA";
  return SUCCESS;
}
CUresult cuGetErrorString(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "out of memory" : error == NO_DEVICE ? "no CUDA-capable device is detected" :
          error == INVALID_DEVICE ? "invalid device ordinal" : "an error of the software device";
  return SUCCESS;
}

CUresult cuStreamCreate(void **stream, unsigned) { ENTER("cuStreamCreate"); static long next = 100; *stream = (void *)next++; return SUCCESS; }
CUresult cuStreamDestroy_v2(void *) { ENTER("cuStreamDestroy"); return SUCCESS; }
CUresult cuStreamSynchronize(void *stream) { ENTER("cuStreamSynchronize"); host_waits_for(stream_id(stream)); return SUCCESS; }
CUresult cuStreamIsCapturing(void *, int *capturing) { *capturing = 0; return SUCCESS; }
CUresult cuStreamWaitEvent(void *stream, void *event, unsigned) {
  ENTER("cuStreamWaitEvent");
  join(seen_by[stream_id(stream)], ((Event *)event)->seen);
  return SUCCESS;
}
CUresult cuEventCreate(void **event, unsigned) { ENTER("cuEventCreate"); *event = new Event; return SUCCESS; }
CUresult cuEventDestroy_v2(void *event) { ENTER("cuEventDestroy"); delete (Event *)event; return SUCCESS; }
CUresult cuEventRecord(void *event, void *stream) { ENTER("cuEventRecord"); ((Event *)event)->seen = all_of(stream_id(stream)); return SUCCESS; }
CUresult cuEventSynchronize(void *event) { ENTER("cuEventSynchronize"); join(seen_by_host, ((Event *)event)->seen); return SUCCESS; }

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
  ENTER("cuMemGetInfo");
  *total = memory();
  *free = *total - std::min(*total, (size_t)bytes_live);
  return SUCCESS;
}
CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, void *stream) {
  ENTER("cuMemAllocAsync");
  if (bytes == 0) return INVALID_VALUE;
  if (bytes_live + bytes > memory()) return OUT_OF_MEMORY;
  size_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (room + PAGE - 1) / PAGE * PAGE;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char *map = (char *)mmap(0, pages + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (map == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(map + pages, PAGE, PROT_NONE);
  char *start = map + pages - room;
  memset(start, 0xff, bytes);
  memset(start + bytes, UNTOUCHED, room - bytes);
  StreamId id = stream_id(stream);
  allocations[(CUdeviceptr)start] = {bytes, pages + PAGE, map, {id, enqueue(id), "its allocation"}, {}};
  allocations_live++;
  bytes_live += bytes;
  bytes_peak = std::max(bytes_peak, bytes_live);
  *address = (CUdeviceptr)start;
  return SUCCESS;
}
CUresult cuMemFreeAsync(CUdeviceptr address, void *stream) {
  ENTER("cuMemFreeAsync");
  auto found = allocations.find(address);
  if (found == allocations.end()) give_up("%#lx is freed, which is no allocation", (long)address);
  StreamId id = stream_id(stream);
  access(address, id, enqueue(id), WRITE, "the free");
  Allocation &a = found->second;
  for (auto *p = (unsigned char *)address + a.bytes; (CUdeviceptr)p % ALIGNMENT; p++)
    if (*p != UNTOUCHED) give_up("FAULT: something wrote %ld bytes past an allocation of %zu", (long)((CUdeviceptr)p - address - a.bytes), a.bytes);
  allocations_live--;
  bytes_live -= a.bytes;
  munmap(a.map, a.mapped);
  allocations.erase(found);
  return SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) { return cuMemAllocAsync(address, bytes, 0); }
CUresult cuMemFree_v2(CUdeviceptr address) { return cuMemFreeAsync(address, 0); }

static void must_fit(CUdeviceptr address, size_t bytes, const char *what) {
  auto found = find(address);
  if (found != allocations.end() && address + bytes > found->first + found->second.bytes)
    give_up("FAULT: %s of %zu bytes goes past an allocation of %zu", what, bytes, found->second.bytes);
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
  ENTER("cuMemcpyHtoDAsync");
  // from pageable memory: it is read before the call returns, and arrives some time later
  StreamId id = stream_id(stream);
  must_fit(to, bytes, "a copy from the host");
  access(to, id, enqueue(id), WRITE, "a copy from the host");
  memcpy((void *)to, from, bytes);
  bytes_up += bytes;
  return SUCCESS;
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
  ENTER("cuMemcpyDtoHAsync");
  // to pageable memory: it is there when the call returns
  StreamId id = stream_id(stream);
  must_fit(from, bytes, "a copy to the host");
  access(from, id, enqueue(id), READ, "a copy to the host");
  memcpy(to, (void *)from, bytes);
  bytes_down += bytes;
  host_waits_for(id);
  return SUCCESS;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
  ENTER("cuMemcpyDtoDAsync");
  StreamId id = stream_id(stream);
  uint64_t number = enqueue(id);
  must_fit(from, bytes, "a copy");
  must_fit(to, bytes, "a copy");
  access(from, id, number, READ, "a copy");
  access(to, id, number, WRITE, "a copy");
  memmove((void *)to, (void *)from, bytes);
  bytes_inside += bytes;
  return SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, void *stream) {
  ENTER("cuMemsetD8Async");
  StreamId id = stream_id(stream);
  must_fit(to, bytes, "a memset");
  access(to, id, enqueue(id), WRITE, "a memset");
  memset((void *)to, value, bytes);
  return SUCCESS;
}
}
