// f32 activations of many rows to the 16- and 8-bit ones that the products read.
#include "fp8.cuh"

// y = x, rounded once. Grid: one block of 256 threads a row; cols a multiple of 32.
// x f32 [n, cols]; y f16 (format 0) or bf16 (1) [n, cols]; permuted = 1: in the wide product's order.
// With `rest` not null it gets, in bf16, what rounding to bf16 left: x = y + rest to 16 bits (format 1).
extern "C" __global__ void __launch_bounds__(256) narrow_rows(const float* __restrict__ x, u16* __restrict__ y, u16* __restrict__ rest, int cols, int format, int permuted) {
    const u64 row = blockIdx.x;
    for (int pair = threadIdx.x; pair < cols / 2; pair += 256) {
        const float2 v = ((const float2*)(x + row * cols))[pair];
        const u64 at = row * cols + (permuted ? permuted_pair(pair * 2) : pair * 2);
        const u32 packed = format ? pack_bf16(v.x, v.y) : pack_f16(v.x, v.y);
        *(u32*)(y + at) = packed;
        if (rest) *(u32*)(rest + at) = pack_bf16(v.x - __uint_as_float(packed << 16), v.y - __uint_as_float(packed & 0xffff0000u));
    }
}

// x in MXFP8: y e4m3 [n, cols] in the order of pack_e4m3, scales E8M0 [n, scale_columns(cols)], zero beyond cols / 32. Grid: one
// block of 256 threads a row; cols a multiple of 32. Eight neighbouring threads share a scale. What is not finite stays so.
extern "C" __global__ void __launch_bounds__(256) narrow_rows_fp8(const float* __restrict__ x, u8* __restrict__ y, u8* __restrict__ scales, int cols) {
    const u64 row = blockIdx.x;
    const int columns = scale_columns(cols);
    // Whole warps, also past the end: their lanes ask each other.
    for (int base = 0; base < columns * 8; base += 256) {
        const int at = base + threadIdx.x;
        const bool inside = at < cols / 4;
        const float4 v = inside ? ((const float4*)(x + row * cols))[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
        for (int d = 4; d > 0; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
        const u32 byte = e8m0_for(largest);
        const float inverse = e8m0_inverse(byte);
        if (inside) *(u32*)(y + row * cols + at * 4) = pack_e4m3(v.x * inverse, v.y * inverse, v.z * inverse, v.w * inverse);
        if (at % 8 == 0 && at / 8 < columns) scales[row * columns + at / 8] = inside ? (u8)byte : 0;
    }
}
