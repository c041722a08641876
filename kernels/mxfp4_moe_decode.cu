// Experts of one to eight tokens, MXFP4 weights, F16 activations: each distinct expert is read once, whatever the number
// of tokens that chose it. Two launches.
//
// Tokens are the columns of the products. gate_up computes all columns for every expert (they cost nothing) and keeps
// those whose token chose it; down feeds zeros for the others. Nothing is sorted: the distinct experts, at most 64, are
// found by every block from the router's indices.
#include "decode.cuh"

constexpr int CHOICES = TOKENS * 8; // most of tokens * top_k

/// Makes use of F16's range; what MXFP4_FACTOR has beyond it is left to the end of down.
constexpr float Z_FACTOR = 256.0f;

/// The distinct experts in ascending order. All threads; ends with a barrier.
DEVICE int list_experts(const int* ids, int choices, int experts, int* chosen, int* list, int* count) {
    if (threadIdx.x < choices) chosen[threadIdx.x] = __ldcg(ids + threadIdx.x);
    __syncthreads();
    if (threadIdx.x < WARP) {
        int found = 0;
        for (int base = 0; base < experts; base += WARP) {
            int expert = base + threadIdx.x;
            bool present = false;
            for (int i = 0; i < choices; i++) present |= chosen[i] == expert;
            u32 mask = __ballot_sync(ALL_LANES, present);
            if (present) list[found + __popc(mask & ((1u << threadIdx.x) - 1))] = expert;
            found += __popc(mask);
        }
        if (threadIdx.x == 0) *count = found;
    }
    __syncthreads();
    return *count;
}

// z[token, slot] = weight * swiglu(gate_up_e · x[token] + bias_e) * Z_FACTOR, F16 [n * top_k, units]: with the router's
// weight already in it, down is one sum over experts and units. |swiglu| <= limit * (limit + 1), 56 for gpt-oss.
//
// A row tile holds eight units: gates in rows 0-7, ups in rows 8-15. A block's warps share the k tiles of one (expert,
// row tile); blocks go through these with the stride of the grid.
// Launch: (grid, 256 threads, shared = n * stride + 8 KB).
extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 3)
    moe_gate_up_decode(const float* x, int n, int k, int units, int experts, int top_k, const int* ids,
                       const float* weights, const u8* tiles, const u8* scales, const float* bias, float limit,
                       float alpha, u16* z) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ float factors[TOKENS];
    __shared__ float partial[2 * DECODE_WARPS];
    __shared__ int chosen[CHOICES], list[CHOICES], count;
    float* sums = (float*)shared;
    u8* values = shared + 2 * DECODE_WARPS * 128 * sizeof(float);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int k_tiles = (k + 63) / 64, row_tiles = (units + 7) / 8;
    u32 stride = staged_stride(k_tiles * 64);
    Staged staged = {values, stride, 0};
    wait_for_predecessor();
    int works = list_experts(ids, n * top_k, experts, chosen, list, &count) * row_tiles;
    Walk<MXFP4> walk;
    int work = blockIdx.x;
    auto first_tile = [&](int work) {
        return ((u64)list[work / row_tiles] * row_tiles + work % row_tiles) * k_tiles;
    };
    if (work < works) walk.begin(tiles, scales, first_tile(work), warp, k_tiles, DECODE_WARPS, lane);
    stage<MXFP4>(x, k, n, k, k_tiles * 64, nullptr, 0, values, stride, 0, factors, partial, nullptr);
    let_successor_start();
    for (int set = 0; work < works; set ^= 1) {
        int expert = list[work / row_tiles], tile = work % row_tiles;
        float c[4] = {0, 0, 0, 0};
        walk.finish(c, tiles, scales, first_tile(work), warp, k_tiles, DECODE_WARPS, lane, staged, n);
        work += gridDim.x;
        if (work < works) walk.begin(tiles, scales, first_tile(work), warp, k_tiles, DECODE_WARPS, lane);
        float* mine = sums + set * DECODE_WARPS * 128;
        put_sums(mine, c, warp, lane);
        __syncthreads();
        int row = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS, unit = tile * 8 + row;
        if (row < 8 && token < n && unit < units) {
            for (int slot = 0; slot < top_k; slot++) {
                if (chosen[token * top_k + slot] != expert) continue;
                const float* b = bias + ((u64)expert * units + unit) * 2;
                float gate = take_sum(mine, row, token) * factors[token] + __ldg(b);
                float up = take_sum(mine, row + 8, token) * factors[token] + __ldg(b + 1);
                gate = fminf(gate, limit);
                up = fminf(fmaxf(up, -limit), limit);
                float value = gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f);
                value *= __ldcg(weights + token * top_k + slot) * Z_FACTOR;
                z[(u64)(token * top_k + slot) * units + unit] = u16(pack_f16(value, 0.0f));
            }
        }
    }
}

// out[token] += sum over slots of down_e · z[token, slot] + weight * bias_e.
//
// A block has one row tile of the output; its warps take turns with the (expert, k tile) pairs, so that every warp has
// the same number whatever the number of experts.
// Launch: (hidden / 16 rounded up, 256 threads, shared = 4 KB).
extern "C" __global__ void __launch_bounds__(DECODE_THREADS)
    moe_down_decode(const u16* z, int n, int units, int hidden, int experts, int top_k, const int* ids,
                    const float* weights, const u8* tiles, const u8* scales, const float* bias, float* out, int add) {
    constexpr int AHEAD = Share<MXFP4>::AHEAD;
    __shared__ float sums[DECODE_WARPS * 128];
    __shared__ int chosen[CHOICES], list[CHOICES], count;
    __shared__ int slots[CHOICES * TOKENS]; // [expert in list][token]: row of z, -1 where not chosen
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, tile = blockIdx.x;
    int k_tiles = (units + 63) / 64, row_tiles = gridDim.x;
    wait_for_predecessor();
    int distinct = list_experts(ids, n * top_k, experts, chosen, list, &count);
    for (int i = threadIdx.x; i < distinct * TOKENS; i += DECODE_THREADS) {
        int token = i % TOKENS, expert = list[i / TOKENS];
        slots[i] = -1;
        if (token < n)
            for (int slot = 0; slot < top_k; slot++)
                if (chosen[token * top_k + slot] == expert) slots[i] = token * top_k + slot;
    }
    __syncthreads();
    let_successor_start();
    float c[4] = {0, 0, 0, 0};
    Share<MXFP4> held[AHEAD];
    uint4 b[AHEAD][2];
    // The pair that is loaded next.
    int index = 0, k_tile = warp;
    auto settle = [&] {
        while (k_tile >= k_tiles) k_tile -= k_tiles, index++;
    };
    settle();
    auto load = [&](int i) {
        if (index >= distinct) return;
        held[i].load(tiles, scales, ((u64)list[index] * row_tiles + tile) * k_tiles + k_tile, lane);
        int slot = slots[index * TOKENS + (lane >> 2)], k = k_tile * 64 + (lane & 3) * 8;
        const uint4* from = (const uint4*)(z + (u64)slot * units + k);
        b[i][0] = slot < 0 ? make_uint4(0, 0, 0, 0) : __ldcg(from);
        b[i][1] = slot < 0 || k + 32 >= units ? make_uint4(0, 0, 0, 0) : __ldcg(from + 4);
        k_tile += DECODE_WARPS;
        settle();
    };
    int mine = (distinct * k_tiles - warp + DECODE_WARPS - 1) / DECODE_WARPS;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(i);
    for (int at = 0; at < mine; at += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (at + i < mine) multiply_mxfp4(c, held[i], b[i]);
            load(i);
        }
    }
    put_sums(sums, c, warp, lane);
    __syncthreads();
    int row = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS, feature = tile * 16 + row;
    if (row < 16 && token < n && feature < hidden) {
        float value = take_sum(sums, row, token) * (MXFP4_FACTOR / Z_FACTOR);
        for (int slot = 0; slot < top_k; slot++)
            value += __ldcg(weights + token * top_k + slot) * __ldg(bias + (u64)chosen[token * top_k + slot] * hidden + feature);
        float* to = out + (u64)token * hidden + feature;
        *to = add ? *to + value : value;
    }
}
