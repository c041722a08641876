// out = norm(x) · weightᵀ + bias, or out += ..., for one to eight tokens: bound by reading the weights once.
//
// Who computes what: with K_SPLIT 8 a block's eight warps share the k tiles of one row tile (16 outputs) and add up
// through shared memory; with K_SPLIT 1, for matrices of very many rows (lm_head), every warp has a row tile to itself.
// Blocks go through row tiles with the stride of the grid. Every block normalises and stages the activations itself,
// which costs a few microseconds of L2 reads and no launch, or fetches what stage_rows prepared; the first weight tiles
// are under way before that.
//
// Launch: (grid, 256 threads, shared = tokens * stride * (BF16 ? 2 : 1) + 8 KB of sums + 128); grid <= row tiles / (8 / K_SPLIT).
#include "decode.cuh"

template <int FORMAT, int K_SPLIT>
DEVICE void linear_decode(const float* x, int x_stride, int n, int k, int rows, const u8* tiles, const u8* scales,
                          const float* bias, const float* norm, float eps, float* out, int out_stride, int add,
                          Prestaged before) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ float factors[TOKENS];
    __shared__ float partial[2 * DECODE_WARPS];
    float* sums = (float*)shared; // two sets
    u8* values = shared + 2 * DECODE_WARPS * 128 * sizeof(float);
    constexpr int TILE_K = Share<FORMAT>::K, AT_ONCE = DECODE_WARPS / K_SPLIT;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int k_tiles = (k + TILE_K - 1) / TILE_K, row_tiles = (rows + 15) / 16;
    int padded_k = k_tiles * TILE_K;
    u32 stride = staged_stride(padded_k);
    Staged staged = {values, stride, n * stride};
    int first = warp % K_SPLIT, own = warp / K_SPLIT;
    Walk<FORMAT, K_SPLIT> walk;
    int tile = blockIdx.x * AT_ONCE + own;
    if (tile < row_tiles) walk.begin(tiles, scales, (u64)tile * k_tiles, first, k_tiles, lane);
    wait_for_predecessor();
    if (before.values) fetch_staged<FORMAT>(before, 0, n, values, stride, factors);
    else stage<FORMAT>(x, x_stride, n, k, padded_k, norm, eps, values, stride, staged.low_part, factors, partial, nullptr);
    let_successor_start();
    int set = 0;
    for (; tile - own < row_tiles; tile += gridDim.x * AT_ONCE) {
        float c[4] = {0, 0, 0, 0};
        // What the sums are added to is on its way meanwhile.
        int row = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS, feature = tile * 16 + row;
        bool mine = K_SPLIT > 1 && row < 16 && token < n && feature < rows;
        float* to = out + (u64)token * out_stride + feature;
        float start = mine && bias ? __ldg(bias + feature) : 0.0f;
        if (mine && add) start += __ldcg(to);
        if (tile < row_tiles) walk.finish(c, first, lane, staged, n);
        int next = tile + gridDim.x * AT_ONCE;
        if (next < row_tiles) walk.begin(tiles, scales, (u64)next * k_tiles, first, k_tiles, lane);
        if (K_SPLIT > 1) {
            float* here = sums + set * DECODE_WARPS * 128;
            set ^= 1;
            put_sums(here, c, warp, lane);
            __syncthreads();
            if (mine) *to = start + take_sum(here, row, token) * factors[token];
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int feature = tile * 16 + (lane >> 2) + (i / 2) * 8, token = (lane & 3) * 2 + i % 2;
                if (feature < rows && token < n) {
                    float value = c[i] * factors[token] + (bias ? __ldg(bias + feature) : 0.0f);
                    float* to = out + (u64)token * out_stride + feature;
                    *to = add ? *to + value : value;
                }
            }
        }
    }
}

// norm(x), or x, as products with weights of a format want it: what `Prestaged` says. `copy`, if given, gets norm(x) in
// f32. Launch: (rows), 256 threads.
extern "C" __global__ void __launch_bounds__(DECODE_THREADS)
    stage_rows(const float* x, int x_stride, int k, int padded_k, const float* norm, float eps, int format, u8* values,
               float* factors, float* copy) {
    __shared__ float partial[2 * DECODE_WARPS];
    u64 row = blockIdx.x;
    u32 stride = staged_stride(padded_k), low_part = gridDim.x * stride;
    x += row * x_stride, values += row * stride, factors += row;
    if (copy) copy += row * k;
    wait_for_predecessor();
    let_successor_start();
    if (format == BF16) stage<BF16>(x, k, 1, k, padded_k, norm, eps, values, stride, low_part, factors, partial, copy);
    if (format == Q8) stage<Q8>(x, k, 1, k, padded_k, norm, eps, values, stride, 0, factors, partial, copy);
    if (format == MXFP4) stage<MXFP4>(x, k, 1, k, padded_k, norm, eps, values, stride, 0, factors, partial, copy);
}

#define LINEAR(NAME, FORMAT, K_SPLIT)                                                                                  \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 3) \
        NAME(const float* x, int x_stride, int n, int k, int rows, const u8* tiles, const u8* scales,                  \
             const float* bias, const float* norm, float eps, float* out, int out_stride, int add,                     \
             const u8* staged, const float* staged_factors) {                                                          \
        linear_decode<FORMAT, K_SPLIT>(x, x_stride, n, k, rows, tiles, scales, bias, norm, eps, out, out_stride, add,  \
                                       {staged, staged_factors, n});                                                   \
    }
LINEAR(linear_decode_bf16, BF16, 8)
LINEAR(linear_decode_q8, Q8, 8)
LINEAR(linear_decode_mxfp4, MXFP4, 8)
LINEAR(linear_decode_bf16_many, BF16, 1)
LINEAR(linear_decode_q8_many, Q8, 1)
LINEAR(linear_decode_mxfp4_many, MXFP4, 1)
