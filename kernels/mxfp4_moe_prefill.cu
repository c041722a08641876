// The experts of many rows: two grouped products over the tiles of moe_group, and the weighted sum of their results.
// Launch gate_up and down persistently (a few blocks a multiprocessor, any grid is right) with 128 threads and
// STAGES * STAGE_BYTES of dynamic shared memory; kernels/README.md has the numbers. tile_rows given to moe_group must be
// the NT in the kernel's name. Every work item is one (tile of pairs, block of rows); an expert's items are neighbours, so
// that its second tile finds the weights in L2. Bytes: each expert's weights once (0.53 B a weight) while they stay in L2,
// and the activations once for each block of rows, from L2.
#include "prefill.cuh"
#include "wide.cuh"

// z = min(gate, limit) * sigmoid(alpha * min(gate, limit)) * (clamp(up, +-limit) + 1)
DEVICE float swiglu(float gate, float up, float limit, float alpha) {
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return gate / (1.0f + __expf(-alpha * gate)) * (up + 1.0f);
}

// Eight units of a row of results, in order or as the wide product wants its activations (see prefill.cuh).
template <bool PERMUTED>
DEVICE uint4 z_piece(const u8* row, int piece) {
    if (!PERMUTED) return *(const uint4*)(row + piece * 16);
    const u32* from = (const u32*)(row + piece / 4 * 64) + piece % 4;
    return make_uint4(from[0], from[4], from[8], from[12]);
}

// z[place, u] = swiglu(W1[expert] x[pairs[place] / top_k] + b1[expert]), rounded once to f16; `rows` = 2 * units.
// A lane holds gate (row g) and up (row g + 8) of the same unit. Tiles go through shared memory to 16-byte stores.
template <class Product, int STAGES>
DEVICE void gate_up(const u8* weights, const u8* scales, const u8* bases, const float* bias, const u16* x, u16* z, const int4* tiles, const int* n_tiles, const int* pairs, int rows, int cols, int top_k, float limit, float alpha) {
    constexpr int UNITS = Product::ROW_TILES * 8, PITCH = UNITS * 2 + 16;
    static_assert(Product::NT * PITCH <= STAGES * Product::STAGE_BYTES, "the results fit the stages");
    Product p;
    const int row_tiles = (rows + 15) / 16, blocks = (row_tiles + Product::ROW_TILES - 1) / Product::ROW_TILES;
    const int units = rows / 2, items = n_tiles[0] * blocks;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int4 tile = tiles[item / blocks];
        const int first_tile = (item % blocks) * Product::ROW_TILES;
        const u64 expert_tiles = (u64)tile.x * row_tiles;
        p.run(weights + expert_tiles * Tile<MXFP4>::stride(cols), scales + expert_tiles * Tile<MXFP4>::scale_stride(cols), bases + expert_tiles * 16, x, first_tile, row_tiles, cols, tile.z, [&](int i) { return pairs[tile.y + i] / top_k; });
#pragma unroll
        for (int m = 0; m < Product::MT; m++) {
            const int unit = (first_tile + p.row_tile(m)) * 8 + p.g;
            if (unit >= units) continue;
            const u64 row = (expert_tiles + first_tile + p.row_tile(m)) * 16 + p.g;
            const float gate_factor = RowScale<MXFP4>::factor(bases, row), up_factor = RowScale<MXFP4>::factor(bases, row + 8);
            const float gate_bias = bias ? bias[(u64)tile.x * rows + 2 * unit] : 0.0f;
            const float up_bias = bias ? bias[(u64)tile.x * rows + 2 * unit + 1] : 0.0f;
#pragma unroll
            for (int n = 0; n < Product::NT / 8; n++) {
                if (!p.owns(n) || n * 8 >= tile.z) continue;
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float gate = p.acc[m][n][c] * gate_factor + gate_bias, up = p.acc[m][n][2 + c] * up_factor + up_bias;
                    float v = swiglu(gate, up, limit, alpha);
                    *(u16*)(dynamic_shared + (n * 8 + p.t * 2 + c) * PITCH + (p.row_tile(m) * 8 + p.g) * 2) = (u16)pack_f16(v, 0.0f);
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < tile.z * (UNITS / 8); i += Product::THREADS) {
            const int token = i / (UNITS / 8), piece = i % (UNITS / 8), unit = first_tile * 8 + piece * 8;
            if (unit < units) *(uint4*)(z + (u64)(tile.y + token) * units + unit) = z_piece<Product::PERMUTED>(dynamic_shared + token * PITCH, piece);
        }
        __syncthreads();
    }
}

// y[pairs[place]] = W2[expert] z[place] + b2[expert], f32. Eight lanes store 32 neighbouring bytes.
template <class Product>
DEVICE void down(const u8* weights, const u8* scales, const u8* bases, const float* bias, const u16* z, float* y, const int4* tiles, const int* n_tiles, const int* pairs, int rows, int cols) {
    Product p;
    const int row_tiles = (rows + 15) / 16, blocks = (row_tiles + Product::ROW_TILES - 1) / Product::ROW_TILES;
    const int items = n_tiles[0] * blocks;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int4 tile = tiles[item / blocks];
        const int first_tile = (item % blocks) * Product::ROW_TILES;
        const u64 expert_tiles = (u64)tile.x * row_tiles;
        p.run(weights + expert_tiles * Tile<MXFP4>::stride(cols), scales + expert_tiles * Tile<MXFP4>::scale_stride(cols), bases + expert_tiles * 16, z, first_tile, row_tiles, cols, tile.z, [&](int i) { return tile.y + i; });
#pragma unroll
        for (int n = 0; n < Product::NT / 8; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int token = n * 8 + p.t * 2 + c;
                if (!p.owns(n) || token >= tile.z) continue;
                float* to = y + (u64)pairs[tile.y + token] * rows;
#pragma unroll
                for (int m = 0; m < Product::MT; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int row = (first_tile + p.row_tile(m)) * 16 + half * 8 + p.g;
                        if (row >= rows) continue;
                        const float factor = RowScale<MXFP4>::factor(bases, expert_tiles * 16 + row);
                        to[row] = p.acc[m][n][half * 2 + c] * factor + (bias ? bias[(u64)tile.x * rows + row] : 0.0f);
                    }
            }
    }
}

// weights, scales, bases, bias: MXFP4 in fragment order, [expert]...; bias f32 in the checkpoint's order or null.
// x f16 [n, cols]; z f16 [pairs, rows / 2]; y f32 [pairs, rows].
#define EXPERTS(NAME, THREADS, BLOCKS, STAGES, ...)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mxfp4_moe_gate_up_##NAME(                                            \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const u8* __restrict__ bases, const float* __restrict__ bias,   \
        const u16* __restrict__ x, u16* __restrict__ z, const int4* __restrict__ tiles, const int* __restrict__ n_tiles,               \
        const int* __restrict__ pairs, int rows, int cols, int top_k, float limit, float alpha) {                                      \
        gate_up<__VA_ARGS__, STAGES>(weights, scales, bases, bias, x, z, tiles, n_tiles, pairs, rows, cols, top_k, limit, alpha);      \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mxfp4_moe_down_##NAME(                                               \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const u8* __restrict__ bases, const float* __restrict__ bias,   \
        const u16* __restrict__ z, float* __restrict__ y, const int4* __restrict__ tiles, const int* __restrict__ n_tiles,             \
        const int* __restrict__ pairs, int rows, int cols) {                                                                           \
        down<__VA_ARGS__>(weights, scales, bases, bias, z, y, tiles, n_tiles, pairs, rows, cols);                                      \
    }

EXPERTS(16, 128, 4, 4, TileProduct<MXFP4, 16, 2, 2, 2, 4>)
EXPERTS(32, 128, 4, 4, TileProduct<MXFP4, 32, 2, 2, 2, 4>)
EXPERTS(64, 128, SMALL_SHARED ? 2 : 3, 4, TileProduct<MXFP4, 64, 2, 4, 1, 4>)
EXPERTS(128, 128, 2, SMALL_SHARED ? 2 : 4, TileProduct<MXFP4, 128, 2, 4, 1, (SMALL_SHARED ? 2 : 4)>)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
EXPERTS(wide, 256, 1, 6, WideProduct<MXFP4, 6>)
#endif

// residual[row] += sum over choices s, in order, of routing[row, s] * y[row * top_k + s]; choices whose id is outside
// 0..experts add nothing. Grid: one block of 128 threads a row; cols a multiple of 4.
extern "C" __global__ void __launch_bounds__(128) moe_combine(const float* __restrict__ y, const int* __restrict__ ids, const float* __restrict__ routing, float* __restrict__ residual, int cols, int top_k, int experts) {
    const u64 row = blockIdx.x;
    for (int i = threadIdx.x; i < cols / 4; i += 128) {
        float4 sum = ((const float4*)(residual + row * cols))[i];
        for (int s = 0; s < top_k; s++) {
            int id = ids[row * top_k + s];
            if (id < 0 || id >= experts) continue;
            float w = routing[row * top_k + s];
            float4 v = ((const float4*)(y + (row * top_k + s) * cols))[i];
            sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
        }
        ((float4*)(residual + row * cols))[i] = sum;
    }
}
