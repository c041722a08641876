// f32 activations of many rows to the 16-bit ones that the products read.
#include "prefill.cuh"

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
