// How a tile product's sums leave for f32 rows.
#pragma once
#include "prefill.cuh"

// Four neighbouring values of a row of `rows`, as one store where rows is a multiple of 4.
DEVICE void store4(float* to, int row, int rows, float4 v, bool accumulate) {
    if (rows % 4 == 0) {
        if (row >= rows) return;
        float4* at = (float4*)(to + row);
        if (accumulate) v.x += at->x, v.y += at->y, v.z += at->z, v.w += at->w;
        *at = v;
        return;
    }
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (row + i < rows) to[row + i] = accumulate ? to[row + i] + values[i] : values[i];
}

// to(token)[row] = sum * factor(row) + bias(row), or added to it, for the block's rows and tokens < count. Through shared
// memory to 16-byte stores where the tile fits; otherwise eight lanes store 32 neighbouring bytes.
template <class Product, class Factor, class Bias, class To>
DEVICE void store_rows(const Product& p, int first_tile, int rows, int count, Factor factor, Bias bias, To to, bool accumulate) {
    constexpr int ROWS = Product::ROW_TILES * 16, PITCH = ROWS * 4 + 16;
    constexpr bool STAGED = Product::NT * PITCH <= Product::SHARED_BYTES;
#pragma unroll
    for (int m = 0; m < Product::MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int local = p.row_tile(m) * 16 + half * 8 + p.g, row = first_tile * 16 + local;
            if (row >= rows) continue;
            const float f = factor(row), b = bias(row);
#pragma unroll
            for (int n = 0; n < Product::NT / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int token = n * 8 + p.t * 2 + c;
                    if (!p.owns(n) || token >= count) continue;
                    const float v = p.acc[m][n][half * 2 + c] * f + b;
                    if constexpr (STAGED) {
                        *(float*)(dynamic_shared + token * PITCH + local * 4) = v;
                    } else {
                        float* at = to(token) + row;
                        *at = accumulate ? *at + v : v;
                    }
                }
        }
    if constexpr (STAGED) {
        __syncthreads();
        const int local = threadIdx.x % (ROWS / 4) * 4, row = first_tile * 16 + local;
        for (int token = threadIdx.x / (ROWS / 4); token < count; token += Product::THREADS / (ROWS / 4)) store4(to(token), row, rows, *(const float4*)(dynamic_shared + token * PITCH + local * 4), accumulate);
    }
    __syncthreads();
}
