// What several kernels need; launcher.py puts this text before every .cu file.
//
// Sums use no atomic additions: who adds what, and in which order, depends on the shapes alone, so the same input gives
// the same bits every time. Sums down a column of many rows have two stages: each block writes the sum of its own rows
// to a row of `partials`, and sum_partials (sums.cu) adds these.

#define ALL_LANES 0xffffffffu

// Σ of v over the 32 lanes of a warp, on every lane. All lanes must call it.
__device__ float warp_sum(float v)
{
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// Σ of v over threadIdx.y, for each threadIdx.x; valid where threadIdx.y is 0. Blocks of (32, up to 32) threads, all of
// which must call it.
__device__ float sum_over_y(float v)
{
    __shared__ float values[32][32];
    values[threadIdx.y][threadIdx.x] = v;
    __syncthreads();
    float sum = 0;
    if (threadIdx.y == 0)
        for (int y = 0; y < (int)blockDim.y; y++) sum += values[y][threadIdx.x];
    __syncthreads();  // values may be written again from here on
    return sum;
}

// The rows of this block if a matrix's rows are divided among gridDim.y blocks: first ≤ row < last.
struct Chunk {
    int first, last;
};

__device__ Chunk chunk_of(int rows)
{
    const int size = (rows + gridDim.y - 1) / gridDim.y;
    const int first = blockIdx.y * size, last = first + size;
    return {first < rows ? first : rows, last < rows ? last : rows};
}
