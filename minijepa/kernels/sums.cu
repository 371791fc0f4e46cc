// Sums over all rows, and over everything.
//
//     column_sums      partials[c, j] = Σ x[t, j] over the rows t of chunk c        bias gradients
//     sum_of_squares   partials[b]    = Σ x[i]² over the elements of block b        the gradient's norm
//     sum_partials     y[j] = Σ partials[c, j] over c                               the second stage of all such sums
//
// x (rows, n), partials (chunks, n), y (n,). Reads 4 bytes an element; partials are at most a few hundred rows.

// Block (32, 8), grid (⌈n/32⌉, chunks): a thread goes down its column, 8 rows at a time.
extern "C" __global__ void column_sums(const float *__restrict__ x, float *__restrict__ partials, int rows, int n)
{
    const int j = blockIdx.x * 32 + threadIdx.x;
    const Chunk chunk = chunk_of(rows);
    float sum = 0;
    if (j < n) {
#pragma unroll 4
        for (int t = chunk.first + threadIdx.y; t < chunk.last; t += blockDim.y) sum += x[(size_t)t * n + j];
    }
    sum = sum_over_y(sum);
    if (threadIdx.y == 0 && j < n) partials[(size_t)blockIdx.y * n + j] = sum;
}

// Block (32, 8), grid (blocks). The 256 threads of all blocks stride through x together.
extern "C" __global__ void sum_of_squares(const float *__restrict__ x, float *__restrict__ partials, int size)
{
    float sum = 0;
    const int stride = gridDim.x * 256;
#pragma unroll 4
    for (int i = blockIdx.x * 256 + threadIdx.y * 32 + threadIdx.x; i < size; i += stride) sum += x[i] * x[i];
    sum = sum_over_y(warp_sum(sum));
    if (threadIdx.y == 0 && threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// Block (32, 32), grid (⌈n/32⌉).
extern "C" __global__ void sum_partials(const float *__restrict__ partials, float *__restrict__ y, int chunks, int n)
{
    const int j = blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (j < n) {
#pragma unroll 4
        for (int c = threadIdx.y; c < chunks; c += blockDim.y) sum += partials[(size_t)c * n + j];
    }
    sum = sum_over_y(sum);
    if (threadIdx.y == 0 && j < n) y[j] = sum;
}
