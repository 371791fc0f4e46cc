// Attention within each sequence of packed rows (ops/attention.py). For a sequence of L rows and a head, with q, k, v
// (L, d) and s = 1/√d:
//
//     a[i, j] = s q[i]·k[j],   lse[i] = ln Σⱼ e^a[i, j],   p[i, j] = e^(a[i, j] − lse[i]),   y[i] = Σⱼ p[i, j] v[j]
//     dv[j] = Σᵢ p[i, j] dy[i],   da[i, j] = p[i, j] (dy[i]·v[j] − delta[i])   with   delta[i] = dy[i]·y[i]
//     dq[i] = s Σⱼ da[i, j] k[j],   dk[j] = s Σᵢ da[i, j] q[i]
//
// qkv, dqkv (rows, 3, heads, d), y, dy (rows, heads, d), lse, delta (rows, heads), offsets (sequences + 1): sequence n is
// rows offsets[n] to offsets[n + 1], none if these are equal. Rows from offsets[sequences] on are spare: they get zeros.
// d is HEAD_DIM, a compile-time constant like PARTS (below). L has no limit.
//
// No (L, L) matrix is stored: backward recomputes the scores from q, k and lse. Forward moves 16 d bytes a row and head,
// backward 36 d (not counting that blocks of one sequence read the same k and v again, from the cache).
//
// A block takes a sequence and a head; grid (sequences + a few for the spare rows, heads), block (a multiple of 32).
// A row (a query; or, for dk and dv, a key) belongs to PARTS neighbouring lanes, each with HEAD_DIM/PARTS of its
// elements: every PARTS-th float4. The other factor's rows go through shared memory, TILE at a time. Lanes without a
// row run every loop too, because of shuffles and barriers.

constexpr int QUADS = HEAD_DIM / 4 / PARTS;  // float4s that a lane holds of its row
constexpr int TILE = 32;
static_assert(QUADS * 4 * PARTS == HEAD_DIM, "HEAD_DIM must be a multiple of 4 PARTS");

struct Part {
    float4 quad[QUADS];
};

__device__ Part zero_part()
{
    Part a;
    for (int c = 0; c < QUADS; c++) a.quad[c] = make_float4(0, 0, 0, 0);
    return a;
}

// This lane's part of a row, times f; zeros where there is no row.
__device__ Part load_part(const float *row, int part, bool exists, float f)
{
    Part a = zero_part();
    if (!exists) return a;
    for (int c = 0; c < QUADS; c++) {
        const float4 v = ((const float4 *)row)[c * PARTS + part];
        a.quad[c] = make_float4(f * v.x, f * v.y, f * v.z, f * v.w);
    }
    return a;
}

__device__ void store_part(float *row, int part, const Part &a, float f)
{
    for (int c = 0; c < QUADS; c++) {
        const float4 v = a.quad[c];
        ((float4 *)row)[c * PARTS + part] = make_float4(f * v.x, f * v.y, f * v.z, f * v.w);
    }
}

// The inner product of a row in registers with one in shared memory, on each of its lanes.
__device__ float dot(const Part &a, const float4 *b, int part)
{
    float sum = 0;
    for (int c = 0; c < QUADS; c++) {
        const float4 u = a.quad[c], v = b[c * PARTS + part];
        sum += u.x * v.x + u.y * v.y + u.z * v.z + u.w * v.w;
    }
    for (int step = 1; step < PARTS; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    return sum;
}

// a += f b
__device__ void add_scaled(Part &a, float f, const float4 *b, int part)
{
    for (int c = 0; c < QUADS; c++) {
        const float4 v = b[c * PARTS + part];
        a.quad[c].x += f * v.x;
        a.quad[c].y += f * v.y;
        a.quad[c].z += f * v.z;
        a.quad[c].w += f * v.w;
    }
}

// Load rows 0 to count − 1, which are `stride` floats apart, into shared memory, with all threads of the block.
__device__ void load_tile(float4 (*tile)[HEAD_DIM / 4], const float *rows, size_t stride, int count)
{
    for (int i = threadIdx.x; i < count * (HEAD_DIM / 4); i += blockDim.x) {
        const int row = i / (HEAD_DIM / 4), c = i % (HEAD_DIM / 4);
        tile[row][c] = ((const float4 *)(rows + row * stride))[c];
    }
}

// Zeros for the spare rows, by the blocks after those of the sequences: `copies` times HEAD_DIM floats a row, `apart`
// floats from each other.
__device__ void clear_spare_rows(float *x, int first, int rows, int sequences, size_t stride, int copies, size_t apart)
{
    for (int t = first + blockIdx.x - sequences; t < rows; t += gridDim.x - sequences)
        for (int i = threadIdx.x; i < copies * HEAD_DIM; i += blockDim.x)
            x[t * stride + i / HEAD_DIM * apart + i % HEAD_DIM] = 0;
}

// Whether none of the warp's rows, from base on, is in the sequence: then it has nothing to compute in this round.
__device__ bool warp_is_idle(int base, int length) { return base + ((int)threadIdx.x & ~31) / PARTS >= length; }

extern "C" __global__ void attention_forward(const float *__restrict__ qkv, const int *__restrict__ offsets,
                                             float *__restrict__ y, float *__restrict__ lse, int rows, int sequences,
                                             int heads)
{
    __shared__ float4 k_tile[TILE][HEAD_DIM / 4], v_tile[TILE][HEAD_DIM / 4];
    const size_t width = heads * HEAD_DIM, stride = 3 * width;
    const int head = blockIdx.y;
    if ((int)blockIdx.x >= sequences) {
        clear_spare_rows(y + head * HEAD_DIM, offsets[sequences], rows, sequences, width, 1, 0);
        return;
    }
    const int first = offsets[blockIdx.x], length = offsets[blockIdx.x + 1] - first;
    const float *q = qkv + first * stride + head * HEAD_DIM, *k = q + width, *v = k + width;
    const int part = threadIdx.x % PARTS, seats = blockDim.x / PARTS;

    for (int base = 0; base < length; base += seats) {
        const int i = base + threadIdx.x / PARTS;
        const bool idle = warp_is_idle(base, length);
        const Part q_i = load_part(q + i * stride, part, i < length, 1 / sqrtf(HEAD_DIM));
        Part y_i = zero_part();
        float top = -3.0e38f, sum = 0;  // the largest score so far; Σ e^(a − top) and, in y_i, Σ e^(a − top) v
        for (int start = 0; start < length; start += TILE) {
            const int count = length - start < TILE ? length - start : TILE;
            __syncthreads();  // nobody reads the last tile any more
            load_tile(k_tile, k + start * stride, stride, count);
            load_tile(v_tile, v + start * stride, stride, count);
            __syncthreads();
            for (int j = 0; j < count && !idle; j++) {
                const float a = dot(q_i, k_tile[j], part);
                if (a > top) {  // from here on relative to the new one
                    const float shrink = expf(top - a);
                    for (int c = 0; c < QUADS; c++) {
                        y_i.quad[c].x *= shrink;
                        y_i.quad[c].y *= shrink;
                        y_i.quad[c].z *= shrink;
                        y_i.quad[c].w *= shrink;
                    }
                    sum *= shrink;
                    top = a;
                }
                const float e = expf(a - top);
                sum += e;
                add_scaled(y_i, e, v_tile[j], part);
            }
        }
        if (i < length) {
            const size_t t = first + i;
            store_part(y + t * width + head * HEAD_DIM, part, y_i, 1 / sum);
            if (part == 0) lse[t * heads + head] = top + logf(sum);
        }
    }
}

// delta: scratch (rows, heads), which this kernel fills and reads.
extern "C" __global__ void attention_backward(const float *__restrict__ qkv, const int *__restrict__ offsets,
                                              const float *__restrict__ y, const float *__restrict__ lse,
                                              const float *__restrict__ dy, float *dqkv, float *delta, int rows,
                                              int sequences, int heads)
{
    __shared__ float4 left[TILE][HEAD_DIM / 4], right[TILE][HEAD_DIM / 4];
    __shared__ float lse_tile[TILE], delta_tile[TILE];
    const size_t width = heads * HEAD_DIM, stride = 3 * width;
    const int head = blockIdx.y;
    if ((int)blockIdx.x >= sequences) {
        clear_spare_rows(dqkv + head * HEAD_DIM, offsets[sequences], rows, sequences, stride, 3, width);
        return;
    }
    const int first = offsets[blockIdx.x], length = offsets[blockIdx.x + 1] - first;
    const size_t at = first * stride + head * HEAD_DIM, at_y = first * width + head * HEAD_DIM;
    const float *q = qkv + at, *k = q + width, *v = k + width;
    float *dq = dqkv + at, *dk = dq + width, *dv = dk + width;
    y += at_y, dy += at_y, lse += (size_t)first * heads + head, delta += (size_t)first * heads + head;
    const int part = threadIdx.x % PARTS, seats = blockDim.x / PARTS;
    const float s = 1 / sqrtf(HEAD_DIM);

    // A lane's row is a query i; it loops over keys and values.
    for (int base = 0; base < length; base += seats) {
        const int i = base + threadIdx.x / PARTS;
        const bool exists = i < length, idle = warp_is_idle(base, length);
        const Part q_i = load_part(q + i * stride, part, exists, s), dy_i = load_part(dy + i * width, part, exists, 1);
        float delta_i = 0;
        {
            const Part y_i = load_part(y + i * width, part, exists, 1);
            for (int c = 0; c < QUADS; c++) {
                const float4 a = y_i.quad[c], b = dy_i.quad[c];
                delta_i += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
            }
            for (int step = 1; step < PARTS; step *= 2) delta_i += __shfl_xor_sync(ALL_LANES, delta_i, step);
        }
        const float lse_i = exists ? lse[i * heads] : 0;
        if (exists && part == 0) delta[i * heads] = delta_i;
        Part dq_i = zero_part();
        for (int start = 0; start < length; start += TILE) {
            const int count = length - start < TILE ? length - start : TILE;
            __syncthreads();
            load_tile(left, k + start * stride, stride, count);
            load_tile(right, v + start * stride, stride, count);
            __syncthreads();
            for (int j = 0; j < count && !idle; j++) {
                const float p = expf(dot(q_i, left[j], part) - lse_i);
                add_scaled(dq_i, p * (dot(dy_i, right[j], part) - delta_i), left[j], part);
            }
        }
        if (exists) store_part(dq + i * stride, part, dq_i, s);
    }

    // A lane's row is a key j; it loops over queries. The loop's barriers make other threads' writes to delta visible.
    for (int base = 0; base < length; base += seats) {
        const int j = base + threadIdx.x / PARTS;
        const bool exists = j < length, idle = warp_is_idle(base, length);
        const Part k_j = load_part(k + j * stride, part, exists, s), v_j = load_part(v + j * stride, part, exists, 1);
        Part dk_j = zero_part(), dv_j = zero_part();
        for (int start = 0; start < length; start += TILE) {
            const int count = length - start < TILE ? length - start : TILE;
            __syncthreads();
            load_tile(left, q + start * stride, stride, count);
            load_tile(right, dy + start * width, width, count);
            for (int i = threadIdx.x; i < count; i += blockDim.x) {
                lse_tile[i] = lse[(start + i) * heads];
                delta_tile[i] = delta[(start + i) * heads];
            }
            __syncthreads();
            for (int i = 0; i < count && !idle; i++) {
                const float p = expf(dot(k_j, left[i], part) - lse_tile[i]);
                add_scaled(dv_j, p, right[i], part);
                add_scaled(dk_j, p * (dot(v_j, right[i], part) - delta_tile[i]), left[i], part);
            }
        }
        if (exists) {
            store_part(dk + j * stride, part, dk_j, s);
            store_part(dv + j * stride, part, dv_j, 1);
        }
    }
}
