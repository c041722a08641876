// Chooses one token for each draw from a row of logits: the likeliest (lowest id on a tie), or one drawn from the softmax at a
// temperature, by the inverse of the cumulative distribution in order of token id. The random number comes from the host.
// A draw may have a mask: a bit for each token that may be chosen, lowest first. Where the largest of these is not finite,
// NO_TOKEN is given.
//
// Who computes what: block (chunk, draw) finds its chunk's maximum and sum of weights; whichever block of a draw comes last
// adds up the chunks in order, finds the chunk that the target falls into, and walks it. Sums have a fixed order.
//
// Launch: (at most 64 chunks, draws), 256 threads. `arrived` [draws] is 0 and is left 0.
#include "draw.cuh"

constexpr u32 NO_TOKEN = 0xffffffff;

struct Draws {
    double uniform[DRAWS_MAX];             // in [0, 1)
    float inverse_temperature[DRAWS_MAX];  // 0: take the likeliest
    int mask[DRAWS_MAX];                   // which mask; -1: all tokens may be chosen
    int row[DRAWS_MAX];                    // of the logits
};

struct Chunk {
    float largest;
    int token; // of the largest
    float total; // of exp((logit - largest) * inverse_temperature)
};

DEVICE float block_total(float x, float* sums) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    float all = 0;
    for (int i = 0; i < THREADS / WARP; i++) all += sums[i];
    return all;
}

/// The token in `first .. end` at which the running sum of weights passes `target`; the last with any weight where rounding
/// leaves the sum short of it.
DEVICE int find(const float* logits, const u32* mask, int first, int end, float largest, float inverse, double target) {
    __shared__ double sums[THREADS];
    __shared__ int found;
    int each = (end - first + THREADS - 1) / THREADS, begin = min(end, first + int(threadIdx.x) * each);
    int stop = min(end, begin + each);
    auto weigh = [&](int i) { return allowed(logits, mask, 0, i) ? expf((logits[i] - largest) * inverse) : 0.0f; };
    double mine = 0;
    for (int i = begin; i < stop; i++) mine += weigh(i);
    sums[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        int owner = 0;
        for (int i = 0; i < THREADS; i++) {
            if (sums[i] > 0) owner = i;
            if (sum + sums[i] > target) break;
            if (i < THREADS - 1) sum += sums[i];
        }
        sum = 0;
        for (int i = 0; i < owner; i++) sum += sums[i];
        int at = min(end, first + owner * each), last = at;
        for (int i = at; i < min(end, at + each); i++) {
            float weight = weigh(i);
            if (weight > 0) last = i;
            sum += weight;
            if (weight > 0 && sum > target) break;
        }
        found = last;
    }
    __syncthreads();
    return found;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    draw_tokens(const float* all_logits, int vocab, Draws draws, const u32* masks, Chunk* all_chunks, u32* arrived, u32* tokens) {
    __shared__ float sums[THREADS / WARP];
    __shared__ bool last;
    __shared__ double target;
    __shared__ int chosen;
    __shared__ Chunk all[CHUNKS];
    __shared__ double shares[CHUNKS];
    wait_for_predecessor();
    int draw = blockIdx.y, count = gridDim.x, each = (vocab + count - 1) / count;
    const float* logits = all_logits + (u64)draws.row[draw] * vocab;
    Chunk* chunks = all_chunks + draw * count;
    float inverse = draws.inverse_temperature[draw];
    const u32* mask = draws.mask[draw] < 0 ? nullptr : masks + (u64)draws.mask[draw] * ((vocab + 31) / 32);
    int first = blockIdx.x * each, end = min(vocab, first + each);
    Chunk mine;
    block_largest(logits, mask, 0, first, end, mine.largest, mine.token);
    float total = 0;
    if (inverse > 0)
        for (int i = first + threadIdx.x; i < end; i += THREADS)
            if (allowed(logits, mask, 0, i)) total += expf((logits[i] - mine.largest) * inverse);
    mine.total = mine.largest == -INFINITY ? 0.0f : block_total(total, sums);
    if (threadIdx.x == 0) {
        __stcg(&chunks[blockIdx.x].largest, mine.largest);
        __stcg(&chunks[blockIdx.x].token, mine.token);
        __stcg(&chunks[blockIdx.x].total, mine.total);
        __threadfence();
        last = atomicAdd(arrived + draw, 1) == count - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x < count) {
        Chunk& its = all[threadIdx.x];
        its = {__ldcg(&chunks[threadIdx.x].largest), __ldcg(&chunks[threadIdx.x].token), __ldcg(&chunks[threadIdx.x].total)};
    }
    __syncthreads();
    float largest = -INFINITY;
    for (int i = 0; i < count; i++) largest = fmaxf(largest, all[i].largest);
    if (threadIdx.x < count) {
        float its = all[threadIdx.x].largest;
        shares[threadIdx.x] = its == -INFINITY ? 0.0 : double(all[threadIdx.x].total) * expf((its - largest) * inverse);
    }
    __syncthreads();
    if (threadIdx.x == 0) arrived[draw] = 0;
    if (largest == -INFINITY || largest == INFINITY) {
        if (threadIdx.x == 0) tokens[draw] = NO_TOKEN;
        return;
    }
    if (threadIdx.x == 0) {
        chosen = 0;
        if (inverse > 0) {
            double total = 0;
            for (int i = 0; i < count; i++) total += shares[i];
            double wanted = draws.uniform[draw] * total, sum = 0;
            for (int i = 0; i < count; i++) {
                if (shares[i] > 0) chosen = i, target = wanted - sum;
                if (sum + shares[i] > wanted) break;
                sum += shares[i];
            }
            // In units of the chunk's own largest.
            target /= expf((all[chosen].largest - largest) * inverse);
        } else {
            while (all[chosen].largest != largest) chosen++;
        }
    }
    __syncthreads();
    if (inverse > 0) {
        int from = chosen * each;
        int token = find(logits, mask, from, min(vocab, from + each), all[chosen].largest, inverse, target);
        if (threadIdx.x == 0) tokens[draw] = token;
    } else if (threadIdx.x == 0) {
        tokens[draw] = all[chosen].token;
    }
}
