// cuBLAS and cuRAND, as far as they are called: matrix products column by column, summed in f32 (f64) in the order of k.
#include <vector>
#include "device.h"

struct Blas { void *stream; };
enum { BLAS_SUCCESS = 0, BLAS_INVALID_VALUE = 7, BLAS_NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };

// A matrix of a product as the caller describes it: leading dimension, whether it is taken transposed.
struct Operand { int transposed, leading; long long stride; };

// c = alpha · a · b + beta · c, with a of m × k and b of k × n after transposition.
template <class T, class Sum>
static void gemm(int m, int n, int k, Sum alpha, const T *a, Operand oa, const T *b, Operand ob, Sum beta, T *c, int ldc) {
  std::vector<Sum> wide((size_t)m * k), column(m);
  for (int p = 0; p < k; p++)
    for (int i = 0; i < m; i++)
      wide[(size_t)p * m + i] = (Sum)(oa.transposed ? a[p + (size_t)i * oa.leading] : a[i + (size_t)p * oa.leading]);
  for (int j = 0; j < n; j++) {
    std::fill(column.begin(), column.end(), Sum(0));
    for (int p = 0; p < k; p++) {
      const Sum x = (Sum)(ob.transposed ? b[j + (size_t)p * ob.leading] : b[p + (size_t)j * ob.leading]);
      const Sum *row = &wide[(size_t)p * m];
      for (int i = 0; i < m; i++) column[i] += row[i] * x;
    }
    for (int i = 0; i < m; i++) {
      T &out = c[i + (size_t)j * ldc];
      // with beta = 0 what c held is not read: it may be no number
      out = T(beta == 0 ? alpha * column[i] : alpha * column[i] + beta * (Sum)out);
    }
  }
}

template <class T, class Sum>
static int batched(const char *what, void *handle, int m, int n, int k, const void *alpha, const void *a, Operand oa,
                   const void *b, Operand ob, const void *beta, void *c, int ldc, long long stride, int batch) {
  std::lock_guard<std::recursive_mutex> lock(device_lock);
  count(what);
  // what the documentation of the functions asks for
  if (m < 1 || n < 1 || k < 1 || batch < 1 || oa.leading < (oa.transposed ? k : m) || ob.leading < (ob.transposed ? n : k) || ldc < m)
    give_up("%s of %d, %d, %d with leading dimensions %d, %d, %d", what, m, n, k, oa.leading, ob.leading, ldc);
  StreamId id = stream_id(((Blas *)handle)->stream);
  uint64_t number = enqueue(id);
  access((CUdeviceptr)a, id, number, READ, what);
  access((CUdeviceptr)b, id, number, READ, what);
  access((CUdeviceptr)c, id, number, WRITE, what);
  now_running(what);
  for (int i = 0; i < batch; i++)
    gemm<T, Sum>(m, n, k, *(const Sum *)alpha, (const T *)a + i * oa.stride, oa, (const T *)b + i * ob.stride, ob,
                 *(const Sum *)beta, (T *)c + i * stride, ldc);
  now_running("no kernel");
  return BLAS_SUCCESS;
}

extern "C" {
int cublasCreate_v2(void **handle) { *handle = new Blas{0}; return BLAS_SUCCESS; }
int cublasDestroy_v2(void *handle) { delete (Blas *)handle; return BLAS_SUCCESS; }
int cublasSetStream_v2(void *handle, void *stream) { ((Blas *)handle)->stream = stream; return BLAS_SUCCESS; }
int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                               int a_type, int lda, long long sa, const void *b, int b_type, int ldb, long long sb,
                               const void *beta, void *c, int c_type, int ldc, long long sc, int batch, int, int) {
  if (a_type != b_type || a_type != c_type) return BLAS_NOT_SUPPORTED;
  Operand oa{ta, lda, sa}, ob{tb, ldb, sb};
  auto *product = a_type == R_32F ? batched<float, float> : a_type == R_16F ? batched<__half, float> :
                  a_type == R_16BF ? batched<__nv_bfloat16, float> : 0;
  if (!product) return BLAS_NOT_SUPPORTED;
  return product("cublasGemmStridedBatchedEx", handle, m, n, k, alpha, a, oa, b, ob, beta, c, ldc, sc, batch);
}
int cublasDgemmStridedBatched(void *handle, int ta, int tb, int m, int n, int k, const double *alpha, const double *a,
                              int lda, long long sa, const double *b, int ldb, long long sb, const double *beta,
                              double *c, int ldc, long long sc, int batch) {
  Operand oa{ta, lda, sa}, ob{tb, ldb, sb};
  return batched<double, double>("cublasDgemmStridedBatched", handle, m, n, k, alpha, a, oa, b, ob, beta, c, ldc, sc, batch);
}

// a generator is made with every device; nothing draws from it
int curandCreateGenerator(void **generator, int) { *generator = (void *)1; return 0; }
int curandDestroyGenerator(void *) { return 0; }
int curandSetStream(void *, void *) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
}
