// Rows gathered by number, and the backward of that (ops/rows.py):
//
//     gather       y[t] = x[index[t]]
//     gather_sum   dx[i] = Σ dy[t] over the t with index[t] = i
//
// x (n_x, n), y, dy (rows, n), index (rows,).
//
// gather_sum is given, for each i, the list of these t: members[starts[i]] to members[starts[i + 1] − 1], made on the
// host by a stable sort. So nothing is added atomically, unused rows get 0, and rows t in no list (the spare ones) add
// nothing.
//
// Each moves 8 bytes an element of y.

// Block (32, 8), grid (⌈rows/8⌉): a warp takes a row.
extern "C" __global__ void gather(const float *__restrict__ x, const int *__restrict__ index, float *__restrict__ y,
                                  int rows, int n)
{
    const int t = blockIdx.x * 8 + threadIdx.y;
    if (t >= rows) return;
    const size_t from = (size_t)index[t] * n, to = (size_t)t * n;
    for (int j = threadIdx.x; j < n; j += 32) y[to + j] = x[from + j];
}

// Block (32, share, group), grid (⌈rows/group⌉, ⌈n/32⌉): a block takes `group` rows i; the `share` threads of a column
// divide the list's members among themselves. One of the two is 1.
extern "C" __global__ void gather_sum(const float *__restrict__ dy, const int *__restrict__ starts,
                                      const int *__restrict__ members, float *__restrict__ dx, int rows, int n)
{
    const int i = blockIdx.x * blockDim.z + threadIdx.z, j = blockIdx.y * 32 + threadIdx.x;
    const bool exists = i < rows && j < n;
    float sum = 0;
    if (exists) {
        const int stop = starts[i + 1];
#pragma unroll 4
        for (int m = starts[i] + threadIdx.y; m < stop; m += blockDim.y) sum += dy[(size_t)members[m] * n + j];
    }
    if (blockDim.y > 1) sum = sum_over_y(sum);
    if (threadIdx.y == 0 && exists) dx[(size_t)i * n + j] = sum;
}
