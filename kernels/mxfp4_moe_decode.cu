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

/// The distinct experts among those held, `experts` of `total` from `first_held` on, by their place among these; `chosen` has -1
/// for others. In ascending order but for one token's where all are held, which are distinct as they come. All threads; ends
/// with a barrier.
DEVICE int list_experts(const int* ids, int n, int top_k, int first_held, int experts, int total, int* chosen, int* list, int* count) {
    int choices = n * top_k;
    if (threadIdx.x < choices) {
        int place = __ldcg(ids + threadIdx.x) - first_held;
        chosen[threadIdx.x] = list[threadIdx.x] = place >= 0 && place < experts ? place : -1;
    }
    __syncthreads();
    if (n == 1 && experts == total) return choices;
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
// A row tile holds eight units: gates in rows 0-7, ups in rows 8-15. Four warps share the k tiles of an (expert, row tile),
// so a block has two at a time; blocks go through them with the stride of the grid.
// Launch: (grid, 256 threads, shared = n * stride + 8 KB).
extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 3)
    moe_gate_up_decode(const float* x, int n, int k, int units, int first_held, int experts, int total, int top_k, const int* ids,
                       const float* weights, const u8* tiles, const u8* scales, const float* bias, float limit,
                       float alpha, u16* z, const u8* staged_before, const float* staged_factors) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ float factors[TOKENS];
    __shared__ float partial[2 * DECODE_WARPS];
    __shared__ int chosen[CHOICES], list[CHOICES], count;
    constexpr int SPLIT = 4, AT_ONCE = DECODE_WARPS / SPLIT;
    float* sums = (float*)shared;
    u8* values = shared + 2 * DECODE_WARPS * 128 * sizeof(float);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int k_tiles = (k + 63) / 64, row_tiles = (units + 7) / 8;
    u32 stride = staged_stride(k_tiles * 64);
    Staged staged = {values, stride, 0};
    wait_for_predecessor();
    int works = list_experts(ids, n, top_k, first_held, experts, total, chosen, list, &count) * row_tiles;
    Walk<MXFP4, SPLIT> walk;
    int first = warp % SPLIT, own = warp / SPLIT, work = blockIdx.x * AT_ONCE + own;
    auto begin = [&] {
        u64 tile = (u64)list[work / row_tiles] * row_tiles + work % row_tiles;
        if (work < works) walk.begin(tiles, scales, tile * k_tiles, first, k_tiles, lane);
    };
    if (work < works) begin();
    if (staged_before) fetch_staged<MXFP4>({staged_before, staged_factors, n}, 0, n, values, stride, factors);
    else stage<MXFP4>(x, k, n, k, k_tiles * 64, nullptr, 0, values, stride, 0, factors, partial, nullptr);
    let_successor_start();
    // A thread finishes one (unit, token) of the block's two row tiles.
    int which = threadIdx.x / (8 * TOKENS) % AT_ONCE, row = threadIdx.x / TOKENS % 8, token = threadIdx.x % TOKENS;
    bool finishes = threadIdx.x < AT_ONCE * 8 * TOKENS && token < n;
    for (int set = 0; work - own < works; set ^= 1) {
        int its = work - own + which, expert = its < works ? list[its / row_tiles] : -1;
        int unit = its % row_tiles * 8 + row, slot = -1;
        float gate = 0, up = 0, weight = 0;
        if (finishes && expert >= 0 && unit < units)
            for (int s = 0; s < top_k; s++)
                if (chosen[token * top_k + s] == expert) slot = token * top_k + s;
        if (slot >= 0) { // on its way meanwhile
            const float* b = bias + ((u64)expert * units + unit) * 2;
            gate = __ldg(b), up = __ldg(b + 1), weight = __ldcg(weights + slot);
        }
        float c[4] = {0, 0, 0, 0};
        if (work < works) walk.finish(c, first, lane, staged, n);
        work += gridDim.x * AT_ONCE;
        if (work < works) begin();
        float* here = sums + set * DECODE_WARPS * 128;
        put_sums(here, c, warp, lane);
        __syncthreads();
        if (slot >= 0) {
            gate += take_some(here, which * SPLIT, SPLIT, row, token) * factors[token];
            up += take_some(here, which * SPLIT, SPLIT, row + 8, token) * factors[token];
            gate = fminf(gate, limit);
            up = fminf(fmaxf(up, -limit), limit);
            float value = gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f) * weight * Z_FACTOR;
            z[(u64)slot * units + unit] = u16(pack_f16(value, 0.0f));
        }
    }
}

// out[token] += sum over slots of down_e · z[token, slot] + weight * bias_e.
//
// Blocks (tile, 0), (tile, 1), ... share one row tile of the output; their warps take turns with quarters of the distinct
// experts' k: for one token, four experts and two blocks one each. The block that comes last adds up in their order.
// Launch: (hidden / 16 rounded up, blocks of a tile), 256 threads. `partial` [blocks of a tile][tiles][128]; `arrived`
// [tiles] is 0 and is left 0.
extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 3)
    moe_down_decode(const u16* z, int n, int units, int hidden, int first_held, int experts, int total, int top_k, const int* ids,
                    const float* weights, const u8* tiles, const u8* scales, const float* bias, float* out, int add,
                    float* partial, u32* arrived) {
    constexpr int AHEAD = ROOMY ? 4 : 3, PARTS = 4, BYTES = Share<MXFP4>::BYTES;
    __shared__ bool last;
    __shared__ __align__(16) float sums[DECODE_WARPS * 128];
    __shared__ int chosen[CHOICES], list[CHOICES], count;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, tile = blockIdx.x;
    int k_tiles = (units + 63) / 64, row_tiles = gridDim.x;
    // The router is done: gate_up, which launched this kernel, had waited for it. Only z is not there yet.
    int items = list_experts(ids, n, top_k, first_held, experts, total, chosen, list, &count) * PARTS;
    let_successor_start();
    int row = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS, feature = tile * 16 + row;
    bool counts = row < 16 && token < n && feature < hidden, mine = counts && blockIdx.y == 0;
    float* to = out + (u64)token * hidden + feature;
    float start = mine && add ? __ldcg(to) : 0.0f; // with the biases, on its way meanwhile
    if (mine)
        for (int slot = token * top_k; slot < (token + 1) * top_k; slot++)
            if (chosen[slot] >= 0) start += __ldcg(weights + slot) * __ldg(bias + (u64)chosen[slot] * hidden + feature);

    float c[4] = {0, 0, 0, 0};
    Share<MXFP4> held[AHEAD];
    uint4 b[AHEAD][2];
    bool waited = false;
    for (int item = blockIdx.y * DECODE_WARPS + warp; item < items; item += gridDim.y * DECODE_WARPS) {
        int expert = list[item / PARTS], part = item % PARTS;
        int first = k_tiles * part / PARTS, end = k_tiles * (part + 1) / PARTS, left = end - first;
        u64 at = ((u64)expert * row_tiles + tile) * k_tiles + first;
        const u8 *its_tile = tiles + at * BYTES + lane * 16, *its_scale = scales + at * 32 + (lane >> 2) * 4;
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (i < left) held[i].load(its_tile + i * BYTES, its_scale + i * 32);
        if (!waited) wait_for_predecessor();
        waited = true;
        // The lane's token, if it chose this expert.
        int slot = -1, column = lane >> 2;
        if (column < n)
            for (int s = column * top_k; s < (column + 1) * top_k; s++)
                if (chosen[s] == expert) slot = s;
        const uint4* from = (const uint4*)(z + (u64)max(slot, 0) * units + first * 64 + (lane & 3) * 8);
        // Groups of 32 that there are: the last tile may be half.
        int groups = slot < 0 ? 0 : units / 32 - first * 2;
        auto load_input = [&](int i, int ahead) {
            b[i][0] = ahead * 2 < groups ? __ldcg(from + ahead * 8) : make_uint4(0, 0, 0, 0);
            b[i][1] = ahead * 2 + 1 < groups ? __ldcg(from + ahead * 8 + 4) : make_uint4(0, 0, 0, 0);
        };
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (i < left) load_input(i, i);
        for (; left > 0; left -= AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (i < left) multiply_mxfp4(c, held[i], b[i]);
                if (i + AHEAD < left) {
                    held[i].load(its_tile + (i + AHEAD) * BYTES, its_scale + (i + AHEAD) * 32);
                    load_input(i, i + AHEAD);
                }
            }
            its_tile += AHEAD * BYTES, its_scale += AHEAD * 32, from += AHEAD * 8, groups -= AHEAD * 2;
        }
    }
    if (!waited) wait_for_predecessor(); // whoever writes has waited
    put_sums(sums, c, warp, lane);
    __syncthreads();
    u32 stride = gridDim.x * 128;
    partial += tile * 128 + threadIdx.x;
    if (counts) __stcg(partial + blockIdx.y * stride, start + take_sum(sums, row, token) * (MXFP4_FACTOR / Z_FACTOR));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived + tile, 1) == gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    float sum = 0;
    if (counts)
        for (int block = 0; block < gridDim.y; block++) sum += __ldcg(partial + block * stride);
    if (counts) *to = sum;
    if (threadIdx.x == 0) arrived[tile] = 0;
}
