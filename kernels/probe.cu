// What the device can do, for comparison with what the kernels achieve.
#include "tandem.cuh"

// Reads `count` 16-byte words once, four loads of a thread under way at a time. The sum keeps the loads from being dropped.
// Launch: (2 blocks a multiprocessor), 512 threads.
extern "C" __global__ void __launch_bounds__(512) read_once(const uint4* words, u64 count, u32* sink) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, step = (u64)gridDim.x * blockDim.x;
    u32 sum = 0;
    for (; at + 3 * step < count; at += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = load_weights(words + at + i * step);
#pragma unroll
        for (int i = 0; i < 4; i++) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    for (; at < count; at += step) sum ^= load_weights(words + at).x;
    if (sum == 0x9e3779b9u) *sink = sum;
}
