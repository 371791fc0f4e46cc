// Normalised patches of chosen images, flipped and shifted, straight from the resident bytes: augment (data/augment.py),
// normalise (data/cifar10.py) and patchify (models/vit.py) in one pass.
//
//     y[t, (c, i, j)] = images[chosen[b], c, row, col] · channels[c] + channels[3 + c]
//     of patch numbers[t] = b N + place, where N = (S/p)²:  (r, l) = its first row and column + (i, j)
//     row = mirror(top[b] − padding + r),   col = mirror(left[b] − padding + l),  S − 1 − col where flip[b]
//     mirror(i) = S − 1 − |S − 1 − |i||
//
// images (n, 3, S, S) of bytes, chosen, flip, top, left (B,), numbers (rows,), channels (6,): 1/(255 std) of the three
// channels, then −mean/std; y (rows, 3 p²). Reads 1 byte an element and writes 4.
// Block (32, 8), grid (⌈rows/8⌉): a warp takes a patch.

__device__ int mirror(int i, int size)
{
    i = i < 0 ? -i : i;
    return i < size ? i : 2 * (size - 1) - i;
}

extern "C" __global__ void patches(const unsigned char *__restrict__ images, const int *__restrict__ chosen,
                                   const int *__restrict__ flip, const int *__restrict__ top,
                                   const int *__restrict__ left, const int *__restrict__ numbers,
                                   const float *__restrict__ channels, float *__restrict__ y, int rows, int size, int p,
                                   int padding)
{
    const int t = blockIdx.x * 8 + threadIdx.y;
    if (t >= rows) return;
    const int side = size / p, b = numbers[t] / (side * side), place = numbers[t] % (side * side);
    const int r0 = top[b] - padding + place / side * p, l0 = left[b] - padding + place % side * p;
    for (int e = threadIdx.x; e < 3 * p * p; e += 32) {
        const int c = e / (p * p), i = e / p % p, j = e % p;
        const int row = mirror(r0 + i, size), col = mirror(l0 + j, size);
        const size_t at = (((size_t)chosen[b] * 3 + c) * size + row) * size + (flip[b] ? size - 1 - col : col);
        y[(size_t)t * 3 * p * p + e] = images[at] * channels[c] + channels[3 + c];
    }
}
