// Attention of single rows over the paged cache, head width 64, blocks of 16 positions, BF16 keys and values, up to eight
// query heads a key head: bound by reading the cache once.
//
// Who computes what: block (split, key head, row) has the row's positions of one split, in units of cache blocks; its
// eight warps take turns with the cache blocks. A warp scores 16 positions at a time (two lanes a position, 32 dimensions
// each) for all query heads of the key head, keeps an online softmax in base 2, and adds up values with two dimensions a
// lane. Warps are merged through shared memory, splits through `partial` by whichever block of a (row, key head) comes
// last, in the order of splits. The sink enters once, at the very end. Splits without positions take no part.
//
// With `rotate`, q and k in `qkv` are not yet rotated: q is rotated on the way in, and the block that has the row's own
// position rotates and stores its key and value first. Only for batches in which every row is a sequence of its own.
//
// Launch: (splits, kv_heads, rows), 256 threads. `arrived` [rows * kv_heads] is 0 and is left 0.
#include "tandem.cuh"

constexpr int DIM = 64;
constexpr int GROUP_HEADS = 8;   // query heads of a key head, at most
constexpr int POSITIONS = 16;    // of a cache block
constexpr int WARPS = 8;
constexpr int BLOCKS_MIN = 9;    // of a split: the 128 positions of a window never need two
constexpr float LOG2E = 1.4426950408889634f;

struct Softmax { // of one head over some positions, base 2
    float largest, total;
};

DEVICE void rotate_own_key(const float* qkv, int heads, int kv_heads, int head, int position, const float* inv_freq,
                           float rope_scale, u16* keys) {
    int lane = threadIdx.x;
    u16* values = keys + POSITIONS * DIM;
    int at = position % POSITIONS * DIM;
    if (lane < WARP) {
        const float* k = qkv + (heads + head) * DIM;
        float sine, cosine;
        sincosf(float(position) * inv_freq[lane], &sine, &cosine);
        sine *= rope_scale, cosine *= rope_scale;
        keys[at + lane] = to_bf16(k[lane] * cosine - k[lane + 32] * sine);
        keys[at + lane + 32] = to_bf16(k[lane + 32] * cosine + k[lane] * sine);
    } else if (lane < WARP + DIM) {
        const float* v = qkv + (heads + kv_heads + head) * DIM;
        values[at + lane - WARP] = to_bf16(v[lane - WARP]);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1)
    attention_decode(const float* qkv, int heads, int kv_heads, const float* inv_freq, float rope_scale, int rotate,
                     const float* sinks, u16* pool, int layers, int layer, const int* tables, int table_stride,
                     const int* sequences, const int* positions, int window, float* partial, u32* arrived, float* out) {
    __shared__ __align__(16) float q[GROUP_HEADS][2][36]; // halves apart, so that they fall on different banks
    __shared__ __align__(16) float weights[WARPS][POSITIONS][GROUP_HEADS];
    __shared__ float merged[WARPS][GROUP_HEADS][DIM];
    __shared__ Softmax states[WARPS][GROUP_HEADS];
    __shared__ bool last;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int split = blockIdx.x, splits = gridDim.x, head = blockIdx.y, row = blockIdx.z;
    int group = heads / kv_heads;
    wait_for_predecessor();
    let_successor_start();
    int position = positions[row];
    if (position < 0) return; // a row of padding
    int begin = window && position + 1 > window ? position + 1 - window : 0;
    int first_block = begin / POSITIONS, blocks = position / POSITIONS + 1 - first_block;
    int chunk = max(BLOCKS_MIN, (blocks + splits - 1) / splits);
    int active = (blocks + chunk - 1) / chunk;
    if (split >= active) return;
    const int* table = tables + sequences[row] * table_stride;
    const float* own = qkv + (u64)row * (heads + 2 * kv_heads) * DIM;
    auto keys = [&](int block) { return pool + (((u64)table[block] * layers + layer) * kv_heads + head) * (2 * POSITIONS * DIM); };
    if (rotate && split == active - 1)
        rotate_own_key(own, heads, kv_heads, head, position, inv_freq, rope_scale, keys(position / POSITIONS));
    { // q of head `warp`: scaled for a softmax in base 2
        float a = 0, b = 0;
        if (warp < group) {
            const float* mine = own + (head * group + warp) * DIM;
            a = mine[lane], b = mine[lane + 32];
            if (rotate) {
                float sine, cosine, x = a;
                sincosf(float(position) * inv_freq[lane], &sine, &cosine);
                sine *= rope_scale, cosine *= rope_scale;
                a = x * cosine - b * sine;
                b = b * cosine + x * sine;
            }
        }
        q[warp][0][lane] = a * (0.125f * LOG2E);
        q[warp][1][lane] = b * (0.125f * LOG2E);
    }
    __syncthreads();

    float largest[GROUP_HEADS], total[GROUP_HEADS], sums[GROUP_HEADS][2];
#pragma unroll
    for (int h = 0; h < GROUP_HEADS; h++) largest[h] = -INFINITY, total[h] = 0, sums[h][0] = sums[h][1] = 0;
    int where = lane / 2, half = lane % 2;
    int end_block = min(first_block + blocks, first_block + (split + 1) * chunk);
    for (int block = first_block + split * chunk + warp; block < end_block; block += WARPS) {
        const u16* k = keys(block);
        const uint4* key = (const uint4*)(k + where * DIM + half * 32);
        uint4 raw[4];
#pragma unroll
        for (int i = 0; i < 4; i++) raw[i] = key[i];
        u32 value[POSITIONS];
        const u32* v = (const u32*)(k + POSITIONS * DIM) + lane;
#pragma unroll
        for (int i = 0; i < POSITIONS; i++) value[i] = v[i * (DIM / 2)];
        float score[GROUP_HEADS];
#pragma unroll
        for (int h = 0; h < GROUP_HEADS; h++) {
            const float4* mine = (const float4*)q[h][half];
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 x = mine[2 * i], y = mine[2 * i + 1];
                sum += x.x * from_bits(raw[i].x << 16) + x.y * from_bits(raw[i].x & 0xffff0000u);
                sum += x.z * from_bits(raw[i].y << 16) + x.w * from_bits(raw[i].y & 0xffff0000u);
                sum += y.x * from_bits(raw[i].z << 16) + y.y * from_bits(raw[i].z & 0xffff0000u);
                sum += y.z * from_bits(raw[i].w << 16) + y.w * from_bits(raw[i].w & 0xffff0000u);
            }
            score[h] = sum + __shfl_xor_sync(ALL_LANES, sum, 1);
        }
        int here = block * POSITIONS + where;
        bool seen = here >= begin && here <= position;
        float shrink[GROUP_HEADS];
#pragma unroll
        for (int h = 0; h < GROUP_HEADS; h++) {
            score[h] = seen ? score[h] : -INFINITY;
            // Every block has a position that is seen, so the maximum is finite.
            float now = fmaxf(largest[h], warp_max(score[h]));
            shrink[h] = exp2f(largest[h] - now);
            largest[h] = now;
            score[h] = exp2f(score[h] - now);
            total[h] = total[h] * shrink[h] + (half ? 0.0f : score[h]);
            sums[h][0] *= shrink[h], sums[h][1] *= shrink[h];
        }
        float4* mine = (float4*)weights[warp][where];
        mine[half] = half ? make_float4(score[4], score[5], score[6], score[7])
                          : make_float4(score[0], score[1], score[2], score[3]);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < POSITIONS; i++) {
            float low = from_bits(value[i] << 16), high = from_bits(value[i] & 0xffff0000u);
            // What was never written may be anything, NaN included.
            if (block * POSITIONS + i > position || block * POSITIONS + i < begin) low = high = 0;
            const float4* w = (const float4*)weights[warp][i];
            float4 x = w[0], y = w[1];
            sums[0][0] += x.x * low, sums[0][1] += x.x * high;
            sums[1][0] += x.y * low, sums[1][1] += x.y * high;
            sums[2][0] += x.z * low, sums[2][1] += x.z * high;
            sums[3][0] += x.w * low, sums[3][1] += x.w * high;
            sums[4][0] += y.x * low, sums[4][1] += y.x * high;
            sums[5][0] += y.y * low, sums[5][1] += y.y * high;
            sums[6][0] += y.z * low, sums[6][1] += y.z * high;
            sums[7][0] += y.w * low, sums[7][1] += y.w * high;
        }
        __syncwarp();
    }
#pragma unroll
    for (int h = 0; h < GROUP_HEADS; h++) {
        float all = warp_sum(total[h]);
        if (lane == 0) states[warp][h] = {largest[h], all};
        *(float2*)&merged[warp][h][lane * 2] = make_float2(sums[h][0], sums[h][1]);
    }
    __syncthreads();

    // Merge the warps: thread (head, pair of dimensions).
    int h = warp, dim = lane * 2;
    float most = -INFINITY;
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, states[w][h].largest);
    float all = 0, x = 0, y = 0;
    for (int w = 0; w < WARPS; w++) {
        float share = states[w][h].largest == -INFINITY ? 0.0f : exp2f(states[w][h].largest - most);
        all += share * states[w][h].total;
        x += share * merged[w][h][dim], y += share * merged[w][h][dim + 1];
    }
    if (active > 1) {
        constexpr int RECORD = DIM + 2;
        float* records = partial + ((u64)(row * kv_heads + head) * splits) * GROUP_HEADS * RECORD;
        float* mine = records + (split * GROUP_HEADS + h) * RECORD;
        *(float2*)(mine + dim) = make_float2(x, y);
        if (lane == 0) *(float2*)(mine + DIM) = make_float2(most, all);
        __threadfence();
        __syncthreads();
        u32* counter = arrived + row * kv_heads + head;
        if (threadIdx.x == 0) last = atomicAdd(counter, 1) == active - 1;
        __syncthreads();
        if (!last) return;
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        most = -INFINITY;
        for (int s = 0; s < active; s++) most = fmaxf(most, __ldcg(records + (s * GROUP_HEADS + h) * RECORD + DIM));
        all = x = y = 0;
        for (int s = 0; s < active; s++) {
            const float* record = records + (s * GROUP_HEADS + h) * RECORD;
            float share = exp2f(__ldcg(record + DIM) - most);
            all += share * __ldcg(record + DIM + 1);
            x += share * __ldcg(record + dim), y += share * __ldcg(record + dim + 1);
        }
    }
    if (h < group) {
        float sink = sinks[head * group + h] * LOG2E;
        float top = fmaxf(most, sink), share = exp2f(most - top);
        float inverse = 1.0f / (share * all + exp2f(sink - top));
        float* to = out + ((u64)row * heads + head * group + h) * DIM + dim;
        *(float2*)to = make_float2(x * share * inverse, y * share * inverse);
    }
}
