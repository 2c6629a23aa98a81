// The part of CUDA C++ that kernels use, for a host compiler: every kernel becomes a function that is called once for
// each thread, and registers itself by name. Included before everything else.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

// ---- the language ----
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__
// one block runs at a time: its shared memory is whatever static memory the one before left, as on a device
#define __shared__ static
struct dim3 { unsigned x, y, z; };
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
void softcuda_sync_block();
void softcuda_shuffle(void *value, size_t size, int mask);
inline void __syncthreads() { softcuda_sync_block(); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  static_assert(sizeof value <= 16);
  softcuda_shuffle(&value, sizeof value, mask);
  return value;
}

// ---- built-in types and functions ----
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
template <class A, class B> std::common_type_t<A, B> min(A a, B b) { return a < b ? a : b; }
template <class A, class B> std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
using std::isnan;
using std::signbit;
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.7071067811865476); }

// threads run one after the other: nothing comes between
template <class T> T atomicAdd(T *p, T value) { T old = *p; *p = old + value; return old; }
template <class T> T atomicCAS(T *p, T expected, T value) { T old = *p; if (old == expected) *p = value; return old; }
template <class T, class V> T atomicMin(T *p, V value) { T old = *p; if ((T)value < old) *p = (T)value; return old; }
template <class T, class V> T atomicMax(T *p, V value) { T old = *p; if (old < (T)value) *p = (T)value; return old; }

template <class To, class From> To softcuda_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  memcpy(&to, &from, sizeof to);
  return to;
}
#define __uint_as_float(x) softcuda_bits<float>((unsigned)(x))
#define __float_as_uint(x) softcuda_bits<unsigned>((float)(x))
#define __int_as_float(x) softcuda_bits<float>((int)(x))
#define __float_as_int(x) softcuda_bits<int>((float)(x))
#define __longlong_as_double(x) softcuda_bits<double>((long long)(x))
#define __double_as_longlong(x) softcuda_bits<long long>((double)(x))

// ---- bf16 and f16: one rounding an operation, to nearest even, as the device's scalar instructions have ----
struct SoftBf16 {
  static uint16_t from(float f) {
    uint32_t bits = softcuda_bits<uint32_t>(f);
    if (f != f) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  }
  // by way of an f32 that is rounded to odd, so that two roundings are one
  static uint16_t from(double d) {
    float f = (float)d;
    if (d == d && (double)f != d && std::isfinite(f)) {
      uint32_t bits = softcuda_bits<uint32_t>(f);
      if (fabs((double)f) > fabs(d)) bits -= 1;
      f = softcuda_bits<float>(bits | 1);
    }
    return from(f);
  }
  static float to(uint16_t bits) { return softcuda_bits<float>((uint32_t)bits << 16); }
};
struct SoftF16 {
  template <class N> static uint16_t from(N value) { return softcuda_bits<uint16_t>((_Float16)value); }
  static float to(uint16_t bits) { return (float)softcuda_bits<_Float16>(bits); }
};
template <class Format> struct SoftHalf {
  uint16_t __x;
  SoftHalf() = default;
  template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>> SoftHalf(N value) {
    if constexpr (std::is_same_v<N, double>) __x = Format::from(value);
    else __x = Format::from((float)value);
  }
  operator float() const { return Format::to(__x); }
  SoftHalf &operator+=(SoftHalf b) { return *this = *this + b; }
  SoftHalf &operator*=(SoftHalf b) { return *this = *this * b; }
  friend SoftHalf operator+(SoftHalf a, SoftHalf b) { return (float)a + (float)b; }
  friend SoftHalf operator-(SoftHalf a, SoftHalf b) { return (float)a - (float)b; }
  friend SoftHalf operator*(SoftHalf a, SoftHalf b) { return (float)a * (float)b; }
  friend SoftHalf operator/(SoftHalf a, SoftHalf b) { return (float)a / (float)b; }
  friend SoftHalf operator-(SoftHalf a) { a.__x ^= 0x8000; return a; }
  friend bool operator==(SoftHalf a, SoftHalf b) { return (float)a == (float)b; }
  friend bool operator!=(SoftHalf a, SoftHalf b) { return (float)a != (float)b; }
  friend bool operator<(SoftHalf a, SoftHalf b) { return (float)a < (float)b; }
  friend bool operator<=(SoftHalf a, SoftHalf b) { return (float)a <= (float)b; }
  friend bool operator>(SoftHalf a, SoftHalf b) { return (float)a > (float)b; }
  friend bool operator>=(SoftHalf a, SoftHalf b) { return (float)a >= (float)b; }
  friend bool __hisnan(SoftHalf a) { return (float)a != (float)a; }
  friend SoftHalf hsqrt(SoftHalf a) { return sqrtf(a); }
  friend SoftHalf hcos(SoftHalf a) { return cosf(a); }
  friend SoftHalf hsin(SoftHalf a) { return sinf(a); }
  friend SoftHalf hlog(SoftHalf a) { return logf(a); }
  friend SoftHalf hexp(SoftHalf a) { return expf(a); }
  friend SoftHalf __habs(SoftHalf a) { return fabsf(a); }
  friend SoftHalf __hmax(SoftHalf a, SoftHalf b) { return a < b ? b : a; }
  friend SoftHalf __hmin(SoftHalf a, SoftHalf b) { return b < a ? b : a; }
  friend SoftHalf __hmax_nan(SoftHalf a, SoftHalf b) { return __hisnan(a) ? a : __hisnan(b) ? b : a < b ? b : a; }
  friend SoftHalf __hmin_nan(SoftHalf a, SoftHalf b) { return __hisnan(a) ? a : __hisnan(b) ? b : b < a ? b : a; }
};
typedef SoftHalf<SoftBf16> __nv_bfloat16;
typedef SoftHalf<SoftF16> __half;
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
inline float __half2float(__half h) { return h; }
inline __half __float2half(float f) { return f; }
inline float __bfloat162float(__nv_bfloat16 b) { return b; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline unsigned short __half_as_ushort(__half h) { return h.__x; }
inline __half __ushort_as_half(unsigned short bits) { __half h; h.__x = bits; return h; }
// fp8 only has to compile: nothing here computes in it
enum { __NV_E4M3 };
struct __nv_fp8_e4m3 {
  uint8_t __x;
  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float) { abort(); }
  __nv_fp8_e4m3(int) { abort(); }
  __nv_fp8_e4m3(double) { abort(); }
};
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { abort(); }

// ---- registration: how to call a kernel through the addresses of its parameters, and which of them it writes ----
enum SoftParameter : uint8_t { SOFT_VALUE, SOFT_READS, SOFT_WRITES };
struct SoftKernel {
  const char *module, *name;
  void (*call)(void **);
  int count;
  const SoftParameter *kinds;
  SoftKernel *next;
  // whether the threads of a block wait for each other
  bool fibers;
};
extern SoftKernel *softcuda_kernels;
template <class A> constexpr SoftParameter softcuda_kind() {
  if constexpr (!std::is_pointer_v<A>) return SOFT_VALUE;
  else return std::is_const_v<std::remove_pointer_t<A>> ? SOFT_READS : SOFT_WRITES;
}
template <auto Kernel> struct SoftInvoke;
template <class... A, void (*Kernel)(A...)> struct SoftInvoke<Kernel> {
  static constexpr SoftParameter kinds[] = {softcuda_kind<A>()...};
  template <size_t... I> static void go(void **p, std::index_sequence<I...>) {
    Kernel(*(std::remove_const_t<A> *)p[I]...);
  }
  static void call(void **p) { go(p, std::index_sequence_for<A...>{}); }
};
template <auto Kernel> struct SoftRegister {
  SoftKernel kernel;
  SoftRegister(const char *module, const char *name, bool fibers)
      : kernel{module, name, SoftInvoke<Kernel>::call, (int)sizeof SoftInvoke<Kernel>::kinds,
               SoftInvoke<Kernel>::kinds, softcuda_kernels, fibers} {
    softcuda_kernels = &kernel;
  }
};
