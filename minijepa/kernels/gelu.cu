// GELU in its tanh form, with the bias of the linear layer before it (ops/gelu.py):
//
//     z = x + bias,   u = C (z + A z³),   s = ½ (1 + tanh u),   y = z s
//     g = dy/dz = s + 2u' (z − y) s   with   u' = C (1 + 3A z²);   (z − y) s first: for very negative z it is 0
//     dx = g dy,   dbias = Σ dx over all rows
//
// x, y, dy, dx (rows, n), bias, dbias (n,). Backward computes z and s again, so that g need not be stored: forward moves
// 8 bytes an element, backward 12, including the column sums.
// Block (32, 8), grid (⌈n/32⌉, chunks): a thread goes down its column, 8 rows at a time.

struct Gelu {
    float y, g;
};

__device__ Gelu gelu(float z)
{
    const float C = 0.7978845608028654f, A = 0.044715f;  // C = √(2/π)
    const float z2 = z * z, s = 0.5f * (1 + tanhf(C * z * (1 + A * z2))), y = z * s;
    return {y, s + 2 * C * (1 + 3 * A * z2) * ((z - y) * s)};
}

// has_bias: 0 if there is none (another array is passed in its place and is not touched).
extern "C" __global__ void gelu_forward(const float *__restrict__ x, const float *__restrict__ bias,
                                        float *__restrict__ y, int rows, int n, int has_bias)
{
    const int j = blockIdx.x * 32 + threadIdx.x;
    if (j >= n) return;
    const float b = has_bias ? bias[j] : 0;
    const Chunk chunk = chunk_of(rows);
#pragma unroll 4
    for (int t = chunk.first + threadIdx.y; t < chunk.last; t += blockDim.y) {
        const size_t i = (size_t)t * n + j;
        y[i] = gelu(x[i] + b).y;
    }
}

extern "C" __global__ void gelu_backward(const float *__restrict__ dy, const float *__restrict__ x,
                                         const float *__restrict__ bias, float *__restrict__ dx,
                                         float *__restrict__ partials, int rows, int n, int has_bias)
{
    const int j = blockIdx.x * 32 + threadIdx.x;
    const Chunk chunk = chunk_of(rows);
    float sum = 0;
    if (j < n) {
        const float b = has_bias ? bias[j] : 0;
#pragma unroll 4
        for (int t = chunk.first + threadIdx.y; t < chunk.last; t += blockDim.y) {
            const size_t i = (size_t)t * n + j;
            const float d = gelu(x[i] + b).g * dy[i];
            dx[i] = d;
            sum += d;
        }
    }
    sum = sum_over_y(sum);
    if (threadIdx.y == 0 && j < n) partials[(size_t)blockIdx.y * n + j] = sum;
}
