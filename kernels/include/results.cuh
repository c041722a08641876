// How a tile product's sums leave for f32 rows.
#pragma once
#include "prefill.cuh"

// to(token)[row] = sum * factor(row) + bias(row), or added to it, for the block's rows and tokens < count. Through shared
// memory to 16-byte stores where the tile fits; otherwise eight lanes store 32 neighbouring bytes.
template <class Product, class Factor, class Bias, class To>
DEVICE void store_rows(const Product& p, int first_tile, int rows, int count, Factor factor, Bias bias, To to, bool accumulate) {
    constexpr int ROWS = Product::ROW_TILES * 16, PITCH = ROWS * 4 + 16;
    constexpr bool STAGED = Product::NT * PITCH <= Product::SHARED_BYTES;
    const bool staged = STAGED && rows % 4 == 0;
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
                    if (staged) {
                        *(float*)(dynamic_shared + token * PITCH + local * 4) = v;
                    } else {
                        float* at = to(token) + row;
                        *at = accumulate ? *at + v : v;
                    }
                }
        }
    if (staged) {
        __syncthreads();
        const int row = first_tile * 16 + threadIdx.x % (ROWS / 4) * 4;
        for (int token = threadIdx.x / (ROWS / 4); token < count && row < rows; token += Product::THREADS / (ROWS / 4)) {
            float4 v = *(const float4*)(dynamic_shared + token * PITCH + threadIdx.x % (ROWS / 4) * 16);
            float4* at = (float4*)(to(token) + row);
            if (accumulate) {
                const float4 old = *at;
                v.x += old.x, v.y += old.y, v.z += old.z, v.w += old.w;
            }
            *at = v;
        }
    }
    __syncthreads();
}
