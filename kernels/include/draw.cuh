// What every draw of tokens stands on.
#pragma once
#include "tandem.cuh"

constexpr int THREADS = 256;
constexpr int ROWS_MAX = 64;
constexpr int CHUNKS = 64; // of a row: the width of the grid

DEVICE bool allowed(const u32* mask, int token) { return !mask || mask[token / 32] >> token % 32 & 1; }

/// The largest logit allowed of `first .. end`, lowest token on a tie; all threads get it. Bit `token + shift` of the mask is a
/// token's.
DEVICE void block_largest(const float* logits, const u32* mask, int shift, int first, int end, float& value, int& token) {
    __shared__ float values[THREADS / WARP];
    __shared__ int tokens[THREADS / WARP];
    value = -INFINITY, token = first;
    for (int i = first + threadIdx.x; i < end; i += THREADS)
        if (allowed(mask, i + shift) && logits[i] > value) value = logits[i], token = i;
    for (int d = 16; d; d >>= 1) {
        float v = __shfl_xor_sync(ALL_LANES, value, d);
        int t = __shfl_xor_sync(ALL_LANES, token, d);
        if (v > value || (v == value && t < token)) value = v, token = t;
    }
    if (threadIdx.x % WARP == 0) values[threadIdx.x / WARP] = value, tokens[threadIdx.x / WARP] = token;
    __syncthreads();
    for (int i = 0; i < THREADS / WARP; i++)
        if (values[i] > value || (values[i] == value && tokens[i] < token)) value = values[i], token = tokens[i];
}
