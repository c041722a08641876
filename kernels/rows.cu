// Operations on rows of activations, f32 [rows, width], width a multiple of 32.
#include "tandem.cuh"

DEVICE float block_sum(float x) {
    __shared__ float sums[WARP];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    float all = 0;
    for (int i = 0; i < blockDim.x / WARP; i++) all += sums[i];
    return all;
}

// out = x * rsqrt(mean(x^2) + eps) * weight. Launch: (rows), 256 threads.
extern "C" __global__ void rms_norm(const float* x, int width, const float* weight, float eps, float* out) {
    wait_for_predecessor();
    const float* row = x + (u64)blockIdx.x * width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += row[i] * row[i];
    float scale = 1.0f / sqrtf(block_sum(squares) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[(u64)blockIdx.x * width + i] = row[i] * scale * weight[i];
}

// x += y. Launch: any grid, 256 threads.
extern "C" __global__ void add_rows(float* x, const float* y, u64 len) {
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < len; i += (u64)gridDim.x * blockDim.x) x[i] += y[i];
}

constexpr int GATHER_MAX = 128;
struct RowList {
    int rows[GATHER_MAX];
};

// out[i] = x[list[i]]. Launch: (rows of out), 256 threads.
extern "C" __global__ void gather_rows(const float* x, int width, RowList list, float* out) {
    wait_for_predecessor();
    const float4* from = (const float4*)(x + (u64)list.rows[blockIdx.x] * width);
    float4* to = (float4*)(out + (u64)blockIdx.x * width);
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) to[i] = from[i];
}

// out[i] = table[tokens[i]], a BF16 matrix in tiles. Launch: (rows), 256 threads.
extern "C" __global__ void embed(const u8* tiles, int width, const int* tokens, float* out) {
    wait_for_predecessor();
    int token = tokens[blockIdx.x], g = token % 8, upper = token % 16 / 8;
    if (token < 0) token = 0, g = 0, upper = 0; // a row of padding
    const u8* row_tile = tiles + (u64)(token / 16) * (width / 32) * 1024;
    for (int pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
        // k = group * 32 + t * 8 + j * 4 + r * 2, register r * 2 + upper
        int k = pair * 2, group = k / 32, t = k % 32 / 8, j = k % 8 / 4, r = k % 4 / 2;
        u32 two = *(const u32*)(row_tile + group * 1024 + j * 512 + (g * 4 + t) * 16 + (r * 2 + upper) * 4);
        float2* to = (float2*)(out + (u64)blockIdx.x * width + k);
        *to = make_float2(from_bits(two << 16), from_bits(two & 0xffff0000u));
    }
}

// words[change.x] = change.y. Launch: (changes / 256 rounded up), 256 threads.
extern "C" __global__ void set_words(u32* words, const uint2* changes, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) words[changes[i].x] = changes[i].y;
}

// Adds to `tally` how many different experts a layer's rows chose, and one layer. Launch: (1), 256 threads; at most 256 experts.
//
// ids    [pairs]  expert of each (row, choice); others than 0..256 are left out
// tally  [2]      layers, different experts
extern "C" __global__ void __launch_bounds__(256) count_experts(const int* ids, int pairs, u64* tally) {
    __shared__ u32 chosen[8];
    if (threadIdx.x < 8) chosen[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < pairs; i += 256) {
        u32 expert = ids[i];
        if (expert < 256) atomicOr(&chosen[expert / 32], 1u << (expert % 32));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 distinct = 0;
        for (int i = 0; i < 8; i++) distinct += __popc(chosen[i]);
        tally[0] += 1, tally[1] += distinct;
    }
}
