// Layer normalisation over the last axis (ops/layer_norm.py):
//
//     μ = mean(x),   r = 1/√(mean((x − μ)²) + eps),   x̂ = (x − μ) r,   y = w x̂ + b
//     g = w dy,   dx = r (g − mean(g) − x̂ mean(g x̂)),   dw = Σ dy x̂,   db = Σ dy over all rows
//
// x, y, xhat, dy, dx (rows, WIDTH), r (rows,), w, b (WIDTH,). A warp takes a row: lane i holds its elements i, i + 32 ...
// in registers, so the compiler must know their number: WIDTH is a compile-time constant, up to 512.
// Forward moves 12 bytes an element (8 if no gradient is wanted), backward 12. Block (32, WARPS).

constexpr int WARPS = 4;
constexpr int PER_LANE = (WIDTH + 31) / 32;

// Grid (⌈rows/WARPS⌉). keep: whether xhat and r are wanted; if not, other arrays are passed in their place, untouched.
extern "C" __global__ void layer_norm_forward(const float *__restrict__ x, const float *__restrict__ w,
                                              const float *__restrict__ b, float *__restrict__ y,
                                              float *__restrict__ xhat, float *__restrict__ r, int rows, float eps,
                                              int keep)
{
    const int t = blockIdx.x * WARPS + threadIdx.y, lane = threadIdx.x;
    if (t >= rows) return;  // a whole warp
    const size_t row = (size_t)t * WIDTH;

    float v[PER_LANE], sum = 0, squares = 0;
    for (int k = 0; k < PER_LANE; k++) {
        const int j = lane + 32 * k;
        v[k] = j < WIDTH ? x[row + j] : 0;
        sum += v[k];
    }
    const float mean = warp_sum(sum) / WIDTH;
    for (int k = 0; k < PER_LANE; k++) {
        v[k] -= mean;
        if (lane + 32 * k < WIDTH) squares += v[k] * v[k];
    }
    const float variance = warp_sum(squares) / WIDTH;
    const float scale = 1 / sqrtf(variance + eps) + 0 * variance;  // nan, not 0, where the squares overflow
    for (int k = 0; k < PER_LANE; k++) {
        const int j = lane + 32 * k;
        if (j >= WIDTH) continue;
        v[k] *= scale;
        if (keep) xhat[row + j] = v[k];
        y[row + j] = w[j] * v[k] + b[j];
    }
    if (keep && lane == 0) r[t] = scale;
}

// Grid (1, chunks): the block's warps go down the rows of its chunk, WARPS at a time, and sum for dw and db.
// partials (chunks, 2 WIDTH): a row is the chunk's part of dw, then that of db.
extern "C" __global__ void layer_norm_backward(const float *__restrict__ dy, const float *__restrict__ xhat,
                                               const float *__restrict__ r, const float *__restrict__ w,
                                               float *__restrict__ dx, float *__restrict__ partials, int rows)
{
    const int lane = threadIdx.x, warp = threadIdx.y;
    const Chunk chunk = chunk_of(rows);
    float weight[PER_LANE], dw[PER_LANE], db[PER_LANE];
    for (int k = 0; k < PER_LANE; k++) {
        const int j = lane + 32 * k;
        weight[k] = j < WIDTH ? w[j] : 0;
        dw[k] = db[k] = 0;
    }

    for (int t = chunk.first + warp; t < chunk.last; t += WARPS) {
        const size_t row = (size_t)t * WIDTH;
        float g[PER_LANE], h[PER_LANE], sum_g = 0, sum_gh = 0;  // h is x̂
        for (int k = 0; k < PER_LANE; k++) {
            const int j = lane + 32 * k;
            const float d = j < WIDTH ? dy[row + j] : 0;
            h[k] = j < WIDTH ? xhat[row + j] : 0;
            g[k] = weight[k] * d;
            sum_g += g[k];
            sum_gh += g[k] * h[k];
            dw[k] += d * h[k];
            db[k] += d;
        }
        const float mean_g = warp_sum(sum_g) / WIDTH, mean_gh = warp_sum(sum_gh) / WIDTH, scale = r[t];
        for (int k = 0; k < PER_LANE; k++) {
            const int j = lane + 32 * k;
            if (j < WIDTH) dx[row + j] = scale * (g[k] - mean_g - h[k] * mean_gh);
        }
    }

    for (int k = 0; k < PER_LANE; k++) {
        const int j = lane + 32 * k;
        const float sum_w = sum_over_y(dw[k]), sum_b = sum_over_y(db[k]);
        if (warp == 0 && j < WIDTH) {
            partials[(size_t)blockIdx.y * 2 * WIDTH + j] = sum_w;
            partials[(size_t)blockIdx.y * 2 * WIDTH + WIDTH + j] = sum_b;
        }
    }
}
