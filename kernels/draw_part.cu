// Draws among ranks, of which each has the logits of some tokens: what a rank has to say of its part. The ranks' hosts put that
// together (model's forward/candidates.rs): the likeliest token, then sums of weights, then the token at which a sum passes a
// target. Weights are exp((logit - largest) / temperature) in whole units of 2^-44, so that a sum is the same in whatever pieces
// it is added up.
//
// `first` is the part's first token; bit `token - first + shift` of a mask is that of a token.
#include "draw.cuh"

constexpr u64 NOWHERE = ~0ull;      // for a target: the token is not in this part
constexpr u32 ELSEWHERE = 0xffffffffu; // for a token: likewise

struct PartDraws {
    u64 target[ROWS_MAX];
    float largest[ROWS_MAX];             // of all ranks
    float inverse_temperature[ROWS_MAX]; // 0: take the likeliest, nothing is weighed
    int mask[ROWS_MAX];                  // which mask; -1: all tokens may be chosen
};

/// A row of one part.
struct Part {
    const float* logits;
    const u32* mask;
    int count, shift;

    DEVICE Part(const float* all, int count, const PartDraws& draws, int row, const u32* masks, int words, int shift)
        : logits(all + (u64)row * count), mask(draws.mask[row] < 0 ? nullptr : masks + (u64)draws.mask[row] * words),
          count(count), shift(shift) {}

    /// Of a weight, which is at most 1. What is not a number counts for nothing. 2^-44 is what the last bit of an f64 between 256 and
    /// 512 stands for.
    DEVICE u64 units(int i, float largest, float inverse) const {
        if (!allowed(mask, i + shift)) return 0;
        float weight = expf((logits[i] - largest) * inverse);
        return weight > 0 ? u64(__double_as_longlong(256.0 + weight) - __double_as_longlong(256.0)) : 0;
    }
};

DEVICE u64 warp_total(u64 x) {
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(ALL_LANES, x, d);
    return x;
}

struct Candidate {
    float logit;
    u32 token;
};

// The largest logit allowed of each row, the lowest token of equals.
//
// Launch: (64 chunks, rows), 256 threads. `arrived` [rows] is 0 and is left 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    part_largest(const float* logits, int count, PartDraws draws, const u32* masks, int words, int shift, int first,
                 Candidate* chunks, u32* arrived, Candidate* best) {
    __shared__ bool last;
    wait_for_predecessor();
    const int row = blockIdx.y, each = (count + CHUNKS - 1) / CHUNKS;
    const Part part(logits, count, draws, row, masks, words, shift);
    const int begin = min(count, int(blockIdx.x) * each), end = min(count, begin + each);
    Candidate* its = chunks + row * CHUNKS;
    float value;
    int place;
    block_largest(part.logits, part.mask, shift, begin, end, value, place);
    if (threadIdx.x == 0) {
        __stcg(&its[blockIdx.x].logit, value);
        __stcg(&its[blockIdx.x].token, u32(first + place));
        __threadfence();
        last = atomicAdd(arrived + row, 1) == CHUNKS - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    __threadfence();
    arrived[row] = 0;
    Candidate found = {__ldcg(&its[0].logit), __ldcg(&its[0].token)};
    for (int i = 1; i < CHUNKS; i++) {
        float logit = __ldcg(&its[i].logit);
        if (logit > found.logit) found = {logit, __ldcg(&its[i].token)};
    }
    best[row] = found;
}

// The sum of each row's weights.
//
// Launch: (64 chunks, rows), 256 threads. `arrived` [rows] is 0 and is left 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    part_weight(const float* logits, int count, PartDraws draws, const u32* masks, int words, int shift, u64* chunks, u32* arrived,
                u64* totals) {
    __shared__ u64 sums[THREADS / WARP];
    __shared__ bool last;
    wait_for_predecessor();
    const int row = blockIdx.y, each = (count + CHUNKS - 1) / CHUNKS;
    const Part part(logits, count, draws, row, masks, words, shift);
    const int begin = min(count, int(blockIdx.x) * each), end = min(count, begin + each);
    const float inverse = draws.inverse_temperature[row];
    u64* its = chunks + row * CHUNKS;
    u64 sum = 0;
    if (inverse > 0)
        for (int i = begin + threadIdx.x; i < end; i += THREADS) sum += part.units(i, draws.largest[row], inverse);
    sum = warp_total(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / WARP; i++) sum += sums[i];
        __stcg(its + blockIdx.x, sum);
        __threadfence();
        last = atomicAdd(arrived + row, 1) == CHUNKS - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    __threadfence();
    arrived[row] = 0;
    u64 total = 0;
    for (int i = 0; i < CHUNKS; i++) total += __ldcg(its + i);
    totals[row] = total;
}

constexpr int FINDERS = 1024;

// The token of each row at which the sum of weights in order of tokens first exceeds the row's target. A row without a target has none.
//
// Who computes what: one block a row. Each warp sums a share of the range; the share that the target falls into is the next range,
// until a thread can walk it.
//
// Launch: (rows), 1024 threads.
extern "C" __global__ void __launch_bounds__(FINDERS)
    part_find(const float* logits, int count, PartDraws draws, const u32* masks, int words, int shift, int first, u32* tokens) {
    constexpr int WARPS = FINDERS / WARP;
    __shared__ u64 sums[WARPS];
    __shared__ u64 target;
    __shared__ int begin;
    wait_for_predecessor();
    const int row = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Part part(logits, count, draws, row, masks, words, shift);
    const float largest = draws.largest[row], inverse = draws.inverse_temperature[row];
    if (threadIdx.x == 0) target = draws.target[row], begin = 0;
    __syncthreads();
    if (target == NOWHERE) {
        if (threadIdx.x == 0) tokens[row] = ELSEWHERE;
        return;
    }
    int length = count;
    while (length > WARPS) {
        const int each = (length + WARPS - 1) / WARPS;
        const int from = begin + warp * each, to = min(count, min(begin + length, from + each));
        u64 sum = 0;
        for (int i = from + lane; i < to; i += WARP) sum += part.units(i, largest, inverse);
        sum = warp_total(sum);
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            int share = 0;
            while (share < WARPS - 1 && sums[share] <= target) target -= sums[share++];
            begin += share * each;
        }
        __syncthreads();
        length = each;
    }
    if (threadIdx.x) return;
    u32 token = ELSEWHERE;
    u64 sum = 0;
    for (int i = begin; i < min(count, begin + length) && token == ELSEWHERE; i++) {
        sum += part.units(i, largest, inverse);
        if (sum > target) token = first + i;
    }
    tokens[row] = token;
}
