// Root-mean-square norm of many rows into the 16-bit activations that the products read.
#include "prefill.cuh"

// y = x * rsqrt(mean(x^2) + epsilon) * weight in f32, rounded once. Grid: one block of 256 threads a row; cols a multiple
// of 4. Reads the row once (4 bytes an element), writes 2.
// x f32 [n, cols], weight f32 [cols], y f16 (format 0) or bf16 (1) [n, cols]; permuted = 1: in the wide product's order, cols
// a multiple of 32.
extern "C" __global__ void __launch_bounds__(256) rms_norm_rows(const float* __restrict__ x, const float* __restrict__ weight, u16* __restrict__ y, int cols, float epsilon, int format, int permuted) {
    __shared__ float sums[8];
    const u64 row = blockIdx.x;
    const float4* from = (const float4*)(x + row * cols);
    float4 kept[4];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = threadIdx.x + i * 256;
        if (at < cols / 4) kept[i] = from[at], sum += kept[i].x * kept[i].x + kept[i].y * kept[i].y + kept[i].z * kept[i].z + kept[i].w * kept[i].w;
    }
    for (int at = threadIdx.x + 1024; at < cols / 4; at += 256) {
        float4 v = from[at];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) sum += sums[w];
    const float scale = rsqrtf(sum / (float)cols + epsilon);
    auto write = [&](int at, float4 v) {
        const float4 w = ((const float4*)weight)[at];
        v.x = v.x * scale * w.x, v.y = v.y * scale * w.y, v.z = v.z * scale * w.z, v.w = v.w * scale * w.w;
        uint2 packed = format ? make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)) : make_uint2(pack_f16(v.x, v.y), pack_f16(v.z, v.w));
        if (permuted) {
            *(u32*)(y + row * cols + permuted_pair(at * 4)) = packed.x;
            *(u32*)(y + row * cols + permuted_pair(at * 4 + 2)) = packed.y;
        } else {
            *(uint2*)(y + row * cols + at * 4) = packed;
        }
    };
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (threadIdx.x + i * 256 < cols / 4) write(threadIdx.x + i * 256, kept[i]);
    for (int at = threadIdx.x + 1024; at < cols / 4; at += 256) write(at, from[at]);
}
