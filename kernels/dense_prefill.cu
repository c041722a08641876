// Dense layers of many rows: out[row, r] = W x[row] + bias, or added to out, for Q8, BF16 and MXFP4 weights.
// Launch persistently (a few blocks a multiprocessor, any grid is right), 128 threads (wide: 256), NAME_shared bytes of
// dynamic shared memory. Work items are (NT activation rows, block of weight rows), blocks of weight rows
// first, so that the blocks in flight share activations and, while few, weights in L2.
// Bytes: weights once a NT rows and activations once a block, mostly from L2; flops 2 * n * rows * cols.
#include "results.cuh"
#include "wide.cuh"

template <class Product>
DEVICE void dense(const u8* weights, const u8* scales, const void* bases, const float* bias, const u16* x, float* out, int n, int rows, int cols, int accumulate) {
    Product p;
    const int row_tiles = (rows + 15) / 16, blocks = (row_tiles + Product::ROW_TILES - 1) / Product::ROW_TILES;
    const int items = (n + Product::NT - 1) / Product::NT * blocks;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int first = item / blocks * Product::NT, count = min(Product::NT, n - first);
        const int first_tile = (item % blocks) * Product::ROW_TILES;
        p.run(weights, scales, bases, x, first_tile, row_tiles, cols, count, [&](int i) { return first + i; });
        store_rows(
            p, first_tile, rows, count, [&](int row) { return Product::factor(bases, row); }, [&](int row) { return bias ? bias[row] : 0.0f; },
            [&](int token) { return out + (u64)(first + token) * rows; }, accumulate != 0);
    }
}

// weights, scales, bases in fragment order (null where the format has none); bias f32 [rows] or null;
// x [n, cols] f16 (BF16 weights: bf16); out f32 [n, rows].
#define DENSE(NAME, THREADS, BLOCKS, ...)                                                                                           \
    extern "C" __device__ int dense_##NAME##_shared = __VA_ARGS__::SHARED_BYTES;                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) dense_##NAME(                                                        \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const void* __restrict__ bases, const float* __restrict__ bias, \
        const u16* __restrict__ x, float* __restrict__ out, int n, int rows, int cols, int accumulate) {                               \
        dense<__VA_ARGS__>(weights, scales, bases, bias, x, out, n, rows, cols, accumulate);                                           \
    }

DENSE(q8_16, 128, SMALL_SHARED ? 2 : 3, TileProduct<Q8, 16, 2, 1, 4, (SMALL_SHARED ? 2 : 4)>)
DENSE(q8_32, 128, SMALL_SHARED ? 2 : 3, TileProduct<Q8, 32, 2, 1, 4, (SMALL_SHARED ? 2 : 3)>)
DENSE(q8_64, 128, SMALL_SHARED ? 2 : 3, TileProduct<Q8, 64, 2, 2, 2, (SMALL_SHARED ? 2 : 3)>)
DENSE(q8_128, 128, 2, TileProduct<Q8, 128, 2, 4, 1, (SMALL_SHARED ? 2 : 4)>)
DENSE(bf16_16, 128, SMALL_SHARED ? 2 : 3, TileProduct<BF16, 16, 2, 1, 4, (SMALL_SHARED ? 2 : 3)>)
DENSE(bf16_32, 128, 2, TileProduct<BF16, 32, 2, 1, 4, (SMALL_SHARED ? 2 : 3)>)
DENSE(bf16_64, 128, 2, TileProduct<BF16, 64, 2, 2, 2, (SMALL_SHARED ? 2 : 3)>)
DENSE(bf16_128, 128, SMALL_SHARED ? 1 : 2, TileProduct<BF16, 128, 2, 4, 1, (SMALL_SHARED ? 2 : 3)>)
DENSE(mxfp4_16, 128, SMALL_SHARED ? 2 : 4, TileProduct<MXFP4, 16, 2, 1, 4, 4>)
DENSE(mxfp4_32, 128, SMALL_SHARED ? 2 : 3, TileProduct<MXFP4, 32, 2, 1, 4, (SMALL_SHARED ? 2 : 3)>)
DENSE(mxfp4_64, 128, SMALL_SHARED ? 2 : 3, TileProduct<MXFP4, 64, 2, 2, 2, (SMALL_SHARED ? 2 : 4)>)
DENSE(mxfp4_128, 128, 2, TileProduct<MXFP4, 128, 2, 4, 1, (SMALL_SHARED ? 2 : 4)>)
#if HAS_WARPGROUP
DENSE(q8_wide, 256, 1, WideProduct<Q8, 5>)
DENSE(bf16_wide, 256, 1, WideProduct<BF16, 4>)
DENSE(mxfp4_wide, 256, 1, WideProduct<MXFP4, 6>)
#endif
