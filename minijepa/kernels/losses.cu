// The squared distance and its smooth-L1 variant (ops/losses.py), with e = p − q:
//
//     y = (1/c) Σ e²,             dp = 2e dy / c                                where beta is 0
//     y = (1/(c n)) Σ h(e),       dp = clip(e/β, −1, 1) dy / (c n)              else
//     h(e) = ½ e²/β where |e| < β, |e| − ½ β elsewhere
//
// p, q, dp (rows, n), dy (1,), y (1,). counts (2,): the number of valid rows (the rest is padding, with loss 0 and
// gradient 0), and c, the divisor. Both are on the device, because they differ from step to step. Forward moves 8 bytes
// an element, backward 12. Block (32, 8), grid (blocks); all threads of all blocks stride through the matrix together.
// y is sum_partials of partials (blocks,).

extern "C" __global__ void loss_forward(const float *__restrict__ p, const float *__restrict__ q,
                                        const int *__restrict__ counts, float *__restrict__ partials, int n, float beta)
{
    const size_t size = (size_t)counts[0] * n, stride = (size_t)gridDim.x * 256;
    float sum = 0;
    for (size_t i = (size_t)blockIdx.x * 256 + threadIdx.y * 32 + threadIdx.x; i < size; i += stride) {
        const float e = p[i] - q[i], a = fabsf(e);
        sum += beta == 0 ? e * e : a < beta ? 0.5f / beta * e * e : a - 0.5f * beta;
    }
    sum = sum_over_y(warp_sum(sum));
    const float divisor = (float)counts[1] * (beta == 0 ? 1 : n);
    if (threadIdx.y == 0 && threadIdx.x == 0) partials[blockIdx.x] = sum / divisor;
}

extern "C" __global__ void loss_backward(const float *__restrict__ p, const float *__restrict__ q,
                                         const int *__restrict__ counts, const float *__restrict__ dy,
                                         float *__restrict__ dp, int rows, int n, float beta)
{
    const size_t size = (size_t)rows * n, used = (size_t)counts[0] * n, stride = (size_t)gridDim.x * 256;
    const float factor = dy[0] / ((float)counts[1] * (beta == 0 ? 1 : n));
    for (size_t i = (size_t)blockIdx.x * 256 + threadIdx.y * 32 + threadIdx.x; i < size; i += stride) {
        if (i >= used) {
            dp[i] = 0;
            continue;
        }
        const float e = p[i] - q[i];
        dp[i] = factor * (beta == 0 ? 2 * e : e < -beta ? -1 : e > beta ? 1 : e / beta);  // NaN stays
    }
}
