// The end of a step, on flat vectors (training/optim.py, ema.py). What differs from step to step is in device memory.
//
//     adamw:  θ ← decay θ   for elements before `decay_until` and from `decay_from` on
//             m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
//             θ ← θ − rate m / (√v + eps)               scalars (3,) = rate, eps, decay
//     ema:    θ̄ ← momentum θ̄ + (1 − momentum) θ        scalars (2,) = momentum, 1 − momentum
//
// Everything else (size,). adamw moves 28 bytes an element, ema 12. Block (256), grid (⌈size/256⌉).

extern "C" __global__ void adamw(float *__restrict__ data, const float *__restrict__ grad, float *__restrict__ m,
                                 float *__restrict__ v, const float *__restrict__ scalars, float beta1,
                                 float one_minus_beta1, float beta2, float one_minus_beta2, int decay_until,
                                 int decay_from, int size)
{
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= size) return;
    const float rate = scalars[0], eps = scalars[1], decay = scalars[2], g = grad[i];
    const float value = i < decay_until || i >= decay_from ? data[i] * decay : data[i];
    const float m_ = beta1 * m[i] + one_minus_beta1 * g, v_ = beta2 * v[i] + one_minus_beta2 * (g * g);
    m[i] = m_;
    v[i] = v_;
    data[i] = value - rate * (m_ / (sqrtf(v_) + eps));
}

extern "C" __global__ void ema(float *__restrict__ target, const float *__restrict__ source,
                               const float *__restrict__ scalars, int size)
{
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < size) target[i] = scalars[0] * target[i] + scalars[1] * source[i];
}
