// cuBLAS's product as its manual defines it (column-major, op(A) m×k, op(B) k×n, C m×n), on the host's memory.
#include <cstddef>
#include <cstring>
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

// cuBLASLt, as far as the binding uses it: a product with EPILOGUE_BIAS, described by objects with attributes.
struct Product { int compute, op_a, op_b, epilogue; const float *bias; };
struct Layout { unsigned long long rows, cols; long long ld; };
struct Search { size_t workspace; int alignments[4]; };
static int set(void *to, const void *from, size_t bytes, size_t wanted) {
    if (bytes != wanted) return 7;
    std::memcpy(to, from, bytes);
    return 0;
}
int cublasLtMatmulDescCreate(Product **product, int compute, int type) {
    if (type || (compute != 68 && compute != 77)) return 15;
    *product = new Product{compute, 0, 0, 1, nullptr};
    return 0;
}
int cublasLtMatmulDescSetAttribute(Product *p, int name, const void *value, size_t bytes) {
    if (name == 3) return set(&p->op_a, value, bytes, 4);
    if (name == 4) return set(&p->op_b, value, bytes, 4);
    if (name == 7) return set(&p->epilogue, value, bytes, 4);
    return name == 8 ? set(&p->bias, value, bytes, 8) : 7;
}
int cublasLtMatrixLayoutCreate(Layout **layout, int type, unsigned long long rows, unsigned long long cols, long long ld) {
    if (type || ld < (long long)rows) return 7;
    *layout = new Layout{rows, cols, ld};
    return 0;
}
int cublasLtMatmulPreferenceCreate(Search **search) { *search = new Search{0, {256, 256, 256, 256}}; return 0; }
int cublasLtMatmulPreferenceDestroy(Search *search) { delete search; return 0; }
int cublasLtMatmulPreferenceSetAttribute(Search *s, int name, const void *value, size_t bytes) {
    if (name == 1) return set(&s->workspace, value, bytes, 8);
    return name >= 5 && name <= 8 ? set(&s->alignments[name - 5], value, bytes, 4) : 7;
}
static int known = 1; // how many algorithms there are
void fake_algorithms(int count) { known = count; }
struct Found { unsigned long long algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
int cublasLtMatmulAlgoGetHeuristic(void *handle, Product *product, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Search *search, int wanted, Found *found, int *count) {
    if (handle != &::workspace || !product->bias || product->epilogue != 4) return 15;
    for (int alignment : search->alignments) if (alignment > 16) return 15;
    *count = known < wanted ? known : wanted;
    if (*count) *found = Found{{42}};
    return known ? 0 : 15;
}
int cublasLtMatmul(void *handle, Product *p, const void *alpha, const float *A, Layout *a, const float *B, Layout *b,
                   const void *beta, const void *C, Layout *c, float *D, Layout *d, const Found *algorithm,
                   void *memory, size_t bytes, void *on) {
    if (handle != &::workspace || on != stream || algorithm->algorithm[0] != 42 || !memory || *(const float *)beta) return 7;
    int m = d->rows, n = d->cols, k = p->op_a ? a->rows : a->cols;
    if ((p->op_a ? a->cols : a->rows) != m || (p->op_b ? b->rows : b->cols) != n || (p->op_b ? b->cols : b->rows) != k)
        return 7;
    int status = cublasGemmEx(handle, p->op_a, p->op_b, m, n, k, alpha, A, 0, a->ld, B, 0, b->ld, beta, D, 0, d->ld,
                              p->compute, -1);
    for (int j = 0; j < n && !status; j++)
        for (int i = 0; i < m; i++) D[i + (size_t)j * d->ld] += p->bias[i];
    return status;
}
}
