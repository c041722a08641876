// Weights as read from a checkpoint to the order in which the kernels read them; once, at load. `rows` is what lies in the
// staging buffer, the first of them at row tile 0 of the output given.
#include "tandem.cuh"

// BF16 [rows, cols] to BF16 tiles. Launch: (cols / 32, row tiles), 32 threads.
extern "C" __global__ void pack_bf16_tiles(const u16* raw, int rows, int cols, u8* tiles) {
    int group = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x, g = lane / 4, t = lane % 4;
    u8* to = tiles + ((u64)tile * gridDim.x + group) * 1024 + lane * 16;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = tile * 16 + g + 8 * (i % 2), k = group * 32 + t * 8 + j * 4 + i / 2 * 2;
            a[i] = row < rows ? *(const u32*)(raw + (u64)row * cols + k) : 0;
        }
        *(uint4*)(to + j * 512) = make_uint4(a[0], a[1], a[2], a[3]);
    }
}

/// The eight values from `at` on, BF16, or zeroes.
DEVICE void eight_values(const u16* at, bool inside, float (&v)[8]) {
    uint4 four = inside ? *(const uint4*)at : make_uint4(0, 0, 0, 0);
    u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = from_bits(words[i] << 16), v[2 * i + 1] = from_bits(words[i] & 0xffff0000u);
}

/// One row's share of a group of 32: eight values of each of four lanes; the group's scale, BF16 and rounded up so that no
/// magnitude passes 127.
DEVICE u16 q8_scale(const float (&v)[8], float& inverse) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    float ideal = __fdiv_rn(largest, 127.0f);
    u16 scale = to_bf16(ideal);
    if (from_bf16(scale) < ideal) scale++;
    inverse = largest < 1e-35f ? 0.0f : __fdiv_rn(1.0f, from_bf16(scale));
    return scale;
}

DEVICE u32 q8_byte(float value, float inverse) {
    return u32(min(max(__float2int_rn(value * inverse), -127), 127) + 128);
}

// BF16 [rows, cols] to Q8 tiles and scales. Launch: (cols / 32, row tiles), 32 threads.
extern "C" __global__ void pack_q8_tiles(const u16* raw, int rows, int cols, u8* tiles, u16* scales) {
    int group = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x, g = lane / 4, t = lane % 4;
    u64 at = (u64)tile * gridDim.x + group;
    float v[2][8], inverse[2];
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
        int row = tile * 16 + g + 8 * upper;
        eight_values(raw + (u64)row * cols + group * 32 + t * 8, row < rows, v[upper]);
        u16 scale = q8_scale(v[upper], inverse[upper]);
        if (t == 0) scales[at * 16 + g + 8 * upper] = scale;
    }
    u32 words[4];
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int i = j * 4 + r * 2;
            words[2 * j + r] = q8_byte(v[0][i], inverse[0]) | q8_byte(v[0][i + 1], inverse[0]) << 8 |
                               q8_byte(v[1][i], inverse[1]) << 16 | q8_byte(v[1][i + 1], inverse[1]) << 24;
        }
    *(uint4*)(tiles + at * 512 + lane * 16) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The power of two at or above each row's largest scale. Launch: (padded rows / 256 rounded up), 256 threads.
extern "C" __global__ void q8_row_base(const u16* scales, int padded_rows, int groups, float* base) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= padded_rows) return;
    float largest = 0;
    for (int group = 0; group < groups; group++)
        largest = fmaxf(largest, from_bf16(scales[((u64)(row / 16) * groups + group) * 16 + row % 16]));
    base[row] = power_above(largest);
}

/// The nearest MXFP4 magnitude's code, ties to the even one, and what it stands for.
DEVICE u32 nearest_mxfp4(float x, float& value) {
    u32 code = u32(x > 0.25f) + u32(x >= 0.75f) + u32(x > 1.25f) + u32(x >= 1.75f) + u32(x > 2.5f) + u32(x >= 3.5f) + u32(x > 5.0f);
    value = code < 5 ? 0.5f * code : code == 5 ? 3.0f : code == 6 ? 4.0f : 6.0f;
    return code;
}

/// One row's share of a group at a scale of 2^(exponent - 127), at most 2^126: eight codes, the first in the lowest four
/// bits, and the group's squared error in units of the scale's square. A BF16 value's distance from a code has at most eight bits,
/// so every square is exact; the order of the sums is the one of `crates/backend/src/cpu/mxfp4.rs`, and so are the bits.
DEVICE u32 mxfp4_codes(const float (&v)[8], u32 exponent, float& error) {
    float inverse = from_bits((254 - exponent) << 23);
    u32 codes = 0;
    error = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float scaled = fabsf(v[i]) * inverse, value;
        codes |= (nearest_mxfp4(scaled, value) | (__float_as_uint(v[i]) >> 31) << 3) << (4 * i);
        error += (scaled - value) * (scaled - value);
    }
    error += __shfl_xor_sync(ALL_LANES, error, 1);
    error += __shfl_xor_sync(ALL_LANES, error, 2);
    return codes;
}

/// The same at the better one of two scales: with the largest magnitude in [4, 8), or in [2, 4).
DEVICE u32 quantise_mxfp4(const float (&v)[8], u32& exponent) {
    float largest = 0, fine_error, coarse_error;
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    exponent = max(__float_as_uint(largest) >> 23, 2u) - 2;
    u32 fine = mxfp4_codes(v, exponent, fine_error), coarse = mxfp4_codes(v, exponent + 1, coarse_error);
    // Each error is in units of its own scale squared.
    if (4.0f * coarse_error < fine_error) exponent++, fine = coarse;
    return fine;
}

// BF16 [rows, cols] to MXFP4 tiles and scales. Launch: (k tiles, row tiles), 32 threads.
extern "C" __global__ void pack_bf16_to_mxfp4(const u16* raw, int rows, int cols, u8* tiles, u8* scales) {
    int k_tile = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x, g = lane / 4, t = lane % 4;
    u64 at = (u64)tile * gridDim.x + k_tile;
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int upper = 0; upper < 2; upper++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * 16 + g + 8 * upper, group = k_tile * 2 + half;
            bool inside = row < rows && group * 32 < cols;
            float v[8];
            u32 exponent;
            eight_values(raw + (u64)row * cols + group * 32 + t * 8, inside, v);
            u32 codes = quantise_mxfp4(v, exponent);
            if (t == 0) scales[at * 32 + g * 4 + upper * 2 + half] = u8(exponent);
#pragma unroll
            for (int i = 0; i < 8; i++) // k = t * 8 + j * 4 + r * 2 + h
                words[half * 2 + i / 4] |= place_mxfp4(codes >> (4 * i) & 15, upper + i / 2 % 2 * 2) << i % 2 * 16;
        }
    *(uint4*)(tiles + at * 512 + lane * 16) = make_uint4(words[0], words[1], words[2], words[3]);
}

/// The row of the checkpoint in place `place` of row tile `tile`: with `paired`, gates (even rows) come before ups (odd).
DEVICE int source_row(int tile, int place, int paired) {
    return tile * 16 + (paired ? (place < 8 ? 2 * place : 2 * (place - 8) + 1) : place);
}

// MXFP4 blocks [matrices * rows, cols / 2 bytes] to tiles. Launch: (k tiles, row tiles, matrices), 32 threads.
extern "C" __global__ void pack_mxfp4_tiles(const u8* blocks, int rows, int cols, int paired, u8* tiles) {
    int k_tile = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const u8* matrix = blocks + (u64)blockIdx.z * rows * (cols / 2);
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = source_row(tile, g + 8 * (i % 2), paired);
        if (row >= rows) continue;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            int group = k_tile * 2 + w / 2;
            if (group * 32 >= cols) continue;
            // A byte holds k (low nibble) and k + 1, with k = group * 32 + t * 8 + j * 4 + r * 2.
            u32 two = matrix[(u64)row * (cols / 2) + group * 16 + t * 4 + w % 2 * 2 + i / 2];
            words[w] |= place_mxfp4(two & 15, i) | place_mxfp4(two >> 4, i) << 16;
        }
    }
    u64 at = ((u64)blockIdx.z * gridDim.y + tile) * gridDim.x + k_tile;
    *(uint4*)(tiles + at * 512 + lane * 16) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Their scales [matrices * rows, cols / 32]; `refused` is set where one is 255. Launch: (k tiles, row tiles, matrices), 32 threads.
extern "C" __global__ void pack_mxfp4_scales(const u8* raw, int rows, int cols, int paired, u8* scales, u32* refused) {
    int k_tile = blockIdx.x, tile = blockIdx.y, i = threadIdx.x;
    // Bytes of a tile: for g in 0..8 row g group 0, group 1, row g + 8 group 0, group 1.
    int row = source_row(tile, i / 4 + i % 4 / 2 * 8, paired), group = k_tile * 2 + i % 2;
    u8 scale = 127;
    if (row < rows && group * 32 < cols) scale = raw[((u64)blockIdx.z * rows + row) * (cols / 32) + group];
    if (scale == 255) atomicOr(refused, 1);
    scales[(((u64)blockIdx.z * gridDim.y + tile) * gridDim.x + k_tile) * 32 + i] = scale;
}

// The largest scale byte of each row. Launch: (all padded rows / 256 rounded up), 256 threads.
extern "C" __global__ void mxfp4_row_base(const u8* scales, int padded_rows, int k_tiles, u8* base) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= padded_rows) return;
    u8 largest = 0;
    for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
        const u8* two = scales + ((u64)(row / 16) * k_tiles + k_tile) * 32 + row % 8 * 4 + row % 16 / 8 * 2;
        largest = max(largest, max(two[0], two[1]));
    }
    base[row] = largest;
}

// BF16 values to f32. Launch: any grid, 256 threads.
extern "C" __global__ void widen(const u16* raw, u64 len, float* out) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < len; i += (u64)gridDim.x * blockDim.x)
        out[i] = from_bf16(raw[i]);
}
