// cuBLAS's product as its manual defines it (column-major, op(A) m×k, op(B) k×n, C m×n), on the host's memory.
#include <cstddef>
extern "C" {
static void *stream = nullptr;
static size_t workspace = 0;
int cublasCreate_v2(void **handle) { *handle = &workspace; return 0; }
int cublasSetStream_v2(void *handle, void *s) { stream = s; workspace = 0; return handle == &workspace ? 0 : 1; }
int cublasSetWorkspace_v2(void *handle, void *pointer, size_t bytes) {
    workspace = bytes;
    return handle == &workspace && pointer ? 0 : 1;
}
void *fake_stream() { return stream; }
size_t fake_workspace() { return workspace; }
int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a,
                 int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc,
                 int compute, int algorithm) {
    if (handle != &workspace) return 1;                                 // CUBLAS_STATUS_NOT_INITIALIZED
    if (type_a || type_b || type_c || algorithm != -1) return 15;       // CUBLAS_STATUS_NOT_SUPPORTED
    if (compute != 68 && compute != 77) return 15;
    int rows_a = op_a ? k : m, rows_b = op_b ? n : k;
    if (m < 0 || n < 0 || k < 0 || lda < (rows_a > 1 ? rows_a : 1) || ldb < (rows_b > 1 ? rows_b : 1) ||
        ldc < (m > 1 ? m : 1))
        return 7;                                                       // CUBLAS_STATUS_INVALID_VALUE
    float factor = *(const float *)alpha, keep = *(const float *)beta;
    const float *A = (const float *)a, *B = (const float *)b;
    float *C = (float *)c;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += (double)A[op_a ? l + (size_t)i * lda : i + (size_t)l * lda] *
                       B[op_b ? j + (size_t)l * ldb : l + (size_t)j * ldb];
            float &place = C[i + (size_t)j * ldc];
            place = factor * (float)sum + (keep == 0 ? 0 : keep * place);
        }
    return 0;
}
}
