// Router: norm, logits in f32, the top_k largest (lowest index on a tie), softmax over those. Tokens go in groups of at
// most eight.
//
// Who computes what: block (tile, part, group) has 16 experts, a part of k and a group of tokens; its eight warps share
// that part's k tiles. Partial logits go to `logits` [groups][parts][each][experts]; the block of a group that comes last
// adds them in order, and one warp a token chooses. Activations are BF16 in two parts, so a choice is as good as f32. A
// group's first block also writes the normalised rows, which the experts read next; where they were staged before, that
// kernel did.
//
// Launch: (experts / 16 rounded up, parts, all / each rounded up), 256 threads, shared = 2 each stride + 8 KB. `arrived`
// [groups] is 0 and is left 0.
#include "decode.cuh"

/// The best of a warp's (value, index) pairs: largest value, lowest index.
DEVICE void warp_best(float& value, int& index) {
    for (int d = 16; d; d >>= 1) {
        float v = __shfl_xor_sync(ALL_LANES, value, d);
        int i = __shfl_xor_sync(ALL_LANES, index, d);
        if (v > value || (v == value && i < index)) value = v, index = i;
    }
}

/// One warp chooses for one token.
DEVICE void choose(const float* logits, int parts, int part_stride, const float* bias, int experts, int top_k, int* ids,
                   float* weights, int lane) {
    constexpr int MOST = 8; // experts a lane: 256 in all
    float mine[MOST];
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int e = lane + i * WARP;
        mine[i] = -INFINITY;
        if (e < experts) {
            float sum = 0;
            for (int p = 0; p < parts; p++) sum += __ldcg(logits + p * part_stride + e);
            mine[i] = sum + bias[e];
        }
    }
    float first = 0, total = 0, kept = 0;
    for (int rank = 0; rank < top_k; rank++) {
        float value = -INFINITY;
        int index = 0x7fffffff;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int e = lane + i * WARP;
            if (e < experts && (mine[i] > value || index == 0x7fffffff)) value = mine[i], index = e;
        }
        warp_best(value, index);
#pragma unroll
        for (int i = 0; i < MOST; i++)
            if (lane + i * WARP == index) mine[i] = -INFINITY;
        if (rank == 0) first = value;
        float weight = expf(value - first);
        total += weight;
        if (lane == rank) kept = weight, ids[rank] = index;
    }
    if (lane < top_k) weights[lane] = kept / total;
}

extern "C" __global__ void __launch_bounds__(DECODE_THREADS)
    route_decode(const float* x, int all, int each, int k, int experts, const u8* tiles, const float* bias, const float* norm,
                 float eps, float* normed, float* logits, u32* arrived, int top_k, int* ids, float* weights,
                 const u8* staged_before, const float* staged_factors) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ float factors[TOKENS];
    __shared__ float partial[2 * DECODE_WARPS];
    __shared__ bool last;
    float* sums = (float*)shared;
    u8* values = shared + DECODE_WARPS * 128 * sizeof(float);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int group = blockIdx.z, n = min(each, all - group * each);
    x += (u64)group * each * k, ids += group * each * top_k, weights += group * each * top_k;
    logits += group * gridDim.y * each * experts, arrived += group;
    if (normed) normed += (u64)group * each * k;
    int k_tiles = k / 32, parts = gridDim.y, part = blockIdx.y, tile = blockIdx.x;
    int begin = k_tiles * part / parts + warp, end = k_tiles * (part + 1) / parts;
    u32 stride = staged_stride(k);
    Staged staged = {values, stride, n * stride};
    Walk<BF16, DECODE_WARPS> walk;
    walk.begin(tiles, tiles, (u64)tile * k_tiles, begin, end, lane);
    wait_for_predecessor();
    bool copies = tile == 0 && part == 0;
    Prestaged before = {staged_before, staged_factors, all};
    if (before.values) fetch_staged<BF16>(before, group * each, n, values, stride, factors);
    else stage<BF16>(x, k, n, k, k, norm, eps, values, stride, staged.low_part, factors, partial, copies ? normed : nullptr);
    let_successor_start();
    float c[4] = {0, 0, 0, 0};
    walk.finish(c, begin, lane, staged, n);
    put_sums(sums, c, warp, lane);
    __syncthreads();
    int row = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS, expert = tile * 16 + row;
    if (row < 16 && token < n && expert < experts)
        logits[(part * n + token) * experts + expert] = take_sum(sums, row, token);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == gridDim.x * gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (warp < n)
        choose(logits + warp * experts, parts, n * experts, bias, experts, top_k, ids + warp * top_k,
               weights + warp * top_k, lane);
    if (threadIdx.x == 0) *arrived = 0;
}

// The choice alone, for many rows whose logits (without bias) are there. Launch: (rows / 8 rounded up), 256 threads.
extern "C" __global__ void __launch_bounds__(DECODE_THREADS)
    choose_experts(const float* logits, int n, const float* bias, int experts, int top_k, int* ids, float* weights) {
    wait_for_predecessor();
    int row = blockIdx.x * DECODE_WARPS + threadIdx.x / WARP;
    if (row < n)
        choose(logits + (u64)row * experts, 1, 0, bias, experts, top_k, ids + row * top_k, weights + row * top_k,
               threadIdx.x % WARP);
}
