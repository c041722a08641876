// The experts of many rows: two grouped products over the tiles of moe_group, and the weighted sum of their results.
// Launch gate_up and down persistently (a few blocks a multiprocessor, any grid is right) with 128 threads (wide: 256) and
// as much dynamic shared memory as the variable beside each kernel holds for the host, NAME_shared. tile_rows given to
// moe_group must be the number in the kernel's name (wide: 256), wide's x and z are in the permuted order of prefill.cuh. Every work
// item is one (tile of pairs, block of rows); an expert's items are neighbours, so that its second tile finds the weights in
// L2. Bytes: each expert's weights once (0.53 B a weight) while they stay in L2, and the activations once for each block of
// rows, from L2.
#include "experts.cuh"
#include "wide.cuh"

// weights, scales, bases, bias: MXFP4 in fragment order, [expert]...; bias f32 in the checkpoint's order or null.
// x f16 [n, cols]; z f16 [pairs, rows / 2]; y f32 [pairs, rows].
#define EXPERTS(NAME, THREADS, BLOCKS, ...)                                                                                    \
    extern "C" { __device__ int mxfp4_moe_gate_up_##NAME##_shared = __VA_ARGS__::SHARED_BYTES, mxfp4_moe_down_##NAME##_shared = __VA_ARGS__::SHARED_BYTES; } \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mxfp4_moe_gate_up_##NAME(                                            \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const u8* __restrict__ bases, const float* __restrict__ bias,   \
        const u16* __restrict__ x, u16* __restrict__ z, const int4* __restrict__ tiles, const int* __restrict__ n_tiles,               \
        const int* __restrict__ pairs, int rows, int cols, int top_k, float limit, float alpha) {                                      \
        gate_up<__VA_ARGS__>(weights, scales, bases, bias, x, F16Results<__VA_ARGS__>{z}, tiles, n_tiles, pairs, rows, cols, top_k, limit, alpha);      \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mxfp4_moe_down_##NAME(                                               \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const u8* __restrict__ bases, const float* __restrict__ bias,   \
        const u16* __restrict__ z, float* __restrict__ y, const int4* __restrict__ tiles, const int* __restrict__ n_tiles,             \
        const int* __restrict__ pairs, int rows, int cols) {                                                                           \
        down<__VA_ARGS__>(weights, scales, bases, bias, z, y, tiles, n_tiles, pairs, rows, cols);                                      \
    }

EXPERTS(16, 128, SMALL_SHARED ? 2 : 4, TileProduct<MXFP4, 16, 2, 4, 1, 7>)
EXPERTS(32, 128, SMALL_SHARED ? 2 : 3, TileProduct<MXFP4, 32, 2, 4, 1, (SMALL_SHARED ? 5 : 6)>)
EXPERTS(64, 128, SMALL_SHARED ? 2 : 3, TileProduct<MXFP4, 64, 2, 4, 1, 4>)
EXPERTS(128, 128, 2, TileProduct<MXFP4, 128, 2, 4, 1, (SMALL_SHARED ? 2 : 4)>)
#if HAS_WARPGROUP
EXPERTS(wide, 256, 1, WideProduct<MXFP4, 6>)
#endif

// residual[row] += sum over choices s, in order, of routing[row, s] * y[row * top_k + s]; choices of others than the
// `experts` from first_held on add nothing. Grid: one block of 128 threads a row; cols a multiple of 4.
extern "C" __global__ void __launch_bounds__(128) moe_combine(const float* __restrict__ y, const int* __restrict__ ids, const float* __restrict__ routing, float* __restrict__ residual, int cols, int top_k, int first_held, int experts) {
    const u64 row = blockIdx.x;
    for (int i = threadIdx.x; i < cols / 4; i += 128) {
        float4 sum = ((const float4*)(residual + row * cols))[i];
        for (int s = 0; s < top_k; s++) {
            int id = ids[row * top_k + s] - first_held;
            if (id < 0 || id >= experts) continue;
            float w = routing[row * top_k + s];
            float4 v = ((const float4*)(y + (row * top_k + s) * cols))[i];
            sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
        }
        ((float4*)(residual + row * cols))[i] = sum;
    }
}
