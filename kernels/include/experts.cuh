// The two expert products over the tiles of moe_group, for any tile product.
#pragma once
#include "prefill.cuh"
#include "results.cuh"

// z = min(gate, limit) * sigmoid(alpha * min(gate, limit)) * (clamp(up, +-limit) + 1)
DEVICE float swiglu(float gate, float up, float limit, float alpha) {
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return __fdividef(gate, 1.0f + __expf(-alpha * gate)) * (up + 1.0f);
}

// How gate_up writes a block's results: rows of UNITS f16 values `pitch` bytes apart in shared memory, whose token i goes to
// row first + i of z. In order, or as the wide product wants its activations (prefill.cuh).
template <class Product>
struct F16Results {
    u16* z;

    template <int UNITS, int PITCH>
    DEVICE void store(int4 tile, int first_unit, int units) const {
        for (int i = threadIdx.x; i < tile.z * (UNITS / 8); i += Product::THREADS) {
            const int token = i / (UNITS / 8), piece = i % (UNITS / 8), unit = first_unit + piece * 8;
            if (unit < units) *(uint4*)(z + (u64)(tile.y + token) * units + unit) = eight(dynamic_shared + token * PITCH, piece);
        }
    }

    static DEVICE uint4 eight(const u8* row, int piece) {
        if (!Product::PERMUTED) return *(const uint4*)(row + piece * 16);
        const u32* from = (const u32*)(row + piece / 4 * 64) + piece % 4;
        return make_uint4(from[0], from[4], from[8], from[12]);
    }
};

// z[place, u] = swiglu(W1[expert] x[pairs[place] / top_k] + b1[expert]); `rows` = 2 * units.
// A lane holds gate (row g) and up (row g + 8) of the same unit. Tiles go through shared memory to 16-byte stores.
template <class Product, class Results>
DEVICE void gate_up(const u8* weights, const u8* scales, const u8* bases, const float* bias, typename Product::Input x, Results results, const int4* tiles, const int* n_tiles, const int* pairs, int rows, int cols, int top_k, float limit, float alpha) {
    constexpr int UNITS = Product::ROW_TILES * 8, PITCH = UNITS * 2 + 16;
    static_assert(Product::NT * PITCH <= Product::SHARED_BYTES, "the results fit the stages");
    Product p;
    const int row_tiles = (rows + 15) / 16, blocks = (row_tiles + Product::ROW_TILES - 1) / Product::ROW_TILES;
    const int units = rows / 2, items = n_tiles[0] * blocks;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int4 tile = tiles[item / blocks];
        const int first_tile = (item % blocks) * Product::ROW_TILES;
        const u32 expert_tiles = tile.x * row_tiles;
        p.run(weights + (u64)expert_tiles * Tile<MXFP4>::stride(cols), scales + (u64)expert_tiles * Tile<MXFP4>::scale_stride(cols), bases + (u64)expert_tiles * 16, x, first_tile, row_tiles, cols, tile.z, [&](int i) { return pairs[tile.y + i] / top_k; });
#pragma unroll
        for (int m = 0; m < Product::MT; m++) {
            const int unit = (first_tile + p.row_tile(m)) * 8 + p.g;
            if (unit >= units) continue;
            const u64 row = (u64)(expert_tiles + first_tile + p.row_tile(m)) * 16 + p.g;
            const float gate_factor = Product::factor(bases, row), up_factor = Product::factor(bases, row + 8);
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
        results.template store<UNITS, PITCH>(tile, first_tile * 8, units);
        __syncthreads();
    }
}

// y[pairs[place]] = W2[expert] z[place] + b2[expert], f32.
template <class Product>
DEVICE void down(const u8* weights, const u8* scales, const u8* bases, const float* bias, typename Product::Input z, float* y, const int4* tiles, const int* n_tiles, const int* pairs, int rows, int cols) {
    Product p;
    const int row_tiles = (rows + 15) / 16, blocks = (row_tiles + Product::ROW_TILES - 1) / Product::ROW_TILES;
    const int items = n_tiles[0] * blocks;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int4 tile = tiles[item / blocks];
        const int first_tile = (item % blocks) * Product::ROW_TILES;
        const u32 expert_tiles = tile.x * row_tiles;
        p.run(weights + (u64)expert_tiles * Tile<MXFP4>::stride(cols), scales + (u64)expert_tiles * Tile<MXFP4>::scale_stride(cols), bases + (u64)expert_tiles * 16, z, first_tile, row_tiles, cols, tile.z, [&](int i) { return tile.y + i; });
        store_rows(
            p, first_tile, rows, tile.z, [&](int row) { return Product::factor(bases, (u64)expert_tiles * 16 + row); },
            [&](int row) { return bias ? bias[(u64)tile.x * rows + row] : 0.0f; }, [&](int token) { return y + (u64)pairs[tile.y + token] * rows; }, false);
    }
}
