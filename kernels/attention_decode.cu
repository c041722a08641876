// Attention of single rows over the paged cache, head width 64, blocks of 16 positions, BF16 or FP8 keys and values, up to eight
// query heads a key head: bound by reading the cache once.
//
// Who computes what: block (split, key head, row) has the row's positions of one split, in units of cache blocks; its
// eight warps take turns with the cache blocks. A warp scores 16 positions at a time for all query heads of the key head,
// keeps an online softmax in base 2, and adds up values. Both products are mma.m16n8k16 with BF16 operands, F16 for FP8: query heads are
// rows 0-7 of A and what rounding them to BF16 left is rows 8-15, so that queries and weights count as if they had 16 bits;
// positions, then dimensions, are the columns. Lane `4 g + t` has head g throughout. Warps are merged through shared
// memory, splits through `partial` by whichever block of a (row, key head) comes last, in the order of splits. The sink
// enters once, at the very end. Splits without positions take no part.
//
// With `rotate`, q and k in `qkv` are not yet rotated: q is rotated on the way in, and the block that has the row's own
// position rotates and stores its key and value first. Only for batches in which every row is a sequence of its own.
//
// Launch: (splits, kv_heads, rows), 256 threads. `arrived` [rows * kv_heads] is 0 and is left 0.
#include "e4m3.cuh"
#include "tandem.cuh"

constexpr int DIM = 64;
constexpr int GROUP_HEADS = 8;   // query heads of a key head, at most
constexpr int POSITIONS = 16;    // of a cache block
constexpr int WARPS = 8;
constexpr int BLOCKS_MIN = 9;    // of a split: the 128 positions of a window never need two
constexpr float LOG2E = 1.4426950408889634f;

/// What a format of the cache means for the products: pairs of queries or weights in a high and a low part (what rounding to
/// the operand's type keeps and what it leaves), and a lane's keys and values as operands.
template <class T> struct Cached;

template <> struct Cached<u16> { // BF16
    using Eight = uint4; // values as they lie in the cache
    static DEVICE void split(float x, float y, u32& high, u32& low) {
        high = pack_bf16(x, y);
        low = pack_bf16(x - from_bits(high << 16), y - from_bits(high & 0xffff0000u));
    }
    static DEVICE uint4 operands(Eight eight) { return eight; }
    static DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_bf16(c, a, b0, b1); }
    static DEVICE u16 store(float x) { return to_bf16(x); }
    /// Where a lane's four dimensions of a step begin, and which of its two loads of a key is which.
    static DEVICE int dimension(int step, int t) { return step / 2 * 32 + t * 8 + step % 2 * 4; }
    static DEVICE void load_key(const u16* key, int t, uint4 (&to)[2]) {
#pragma unroll
        for (int i = 0; i < 2; i++) to[i] = *(const uint4*)(key + i * 32 + t * 8);
    }
};

template <> struct Cached<u8> { // E4M3, exact as F16
    using Eight = uint2;
    static DEVICE void split(float x, float y, u32& high, u32& low) {
        // A query this large would drown everything else; F16 must not make infinities of it.
        x = fminf(fmaxf(x, -65504.0f), 65504.0f), y = fminf(fmaxf(y, -65504.0f), 65504.0f);
        high = pack_f16(x, y);
        low = pack_f16(x - low_f16(high), y - low_f16(high >> 16));
    }
    static DEVICE uint4 operands(Eight eight) { return from_e4m3(eight); }
    static DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16(c, a, b0, b1); }
    static DEVICE u8 store(float x) { return u8(to_e4m3(x, 0)); }
    static DEVICE int dimension(int step, int t) { return t * 16 + step * 4; }
    /// One load: four lanes' are a whole key.
    static DEVICE void load_key(const u8* key, int t, uint4 (&to)[2]) {
        uint4 all = *(const uint4*)(key + t * 16);
        to[0] = from_e4m3(make_uint2(all.x, all.y)), to[1] = from_e4m3(make_uint2(all.z, all.w));
    }
};

/// One warp's walk over cache blocks. A lane's 16 dimensions of a query are 8 t .. 8 t + 7 and the same plus 32: two
/// 16-byte loads of a key, which with its three neighbours' are whole sectors. In FP8 they are 16 t .. 16 t + 15, one load.
template <class T> struct Walk {
    using Format = Cached<T>;
    u32 query[4][4];              // A operand of the scores, by k16 step
    float largest, total;         // of head g; `total` over the lane's positions
    float sums[8][4];             // [i][0]: dimension 16 t + i, [i][1]: 16 t + 8 + i; [i][2], [i][3]: by the weights' low parts

    /// `q`: the head's 64 values, or any where there is no such head.
    DEVICE void begin(const float* q, int t) {
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const float* mine = q + Format::dimension(step, t);
            Format::split(mine[0], mine[1], query[step][0], query[step][1]);
            Format::split(mine[2], mine[3], query[step][2], query[step][3]);
        }
        largest = -INFINITY, total = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
    }

    /// Takes in a cache block, of which positions `from .. to` count, at least one.
    DEVICE void take(const T* block, int from, int to, int g, int t) {
        uint4 key[2][2], value[4]; // [columns 0-7, 8-15][dimensions below 32, above]; positions 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
        for (int i = 0; i < 2; i++) Format::load_key(block + (i * 8 + g) * DIM, t, key[i]);
        const T* values = block + POSITIONS * DIM;
#pragma unroll
        for (int i = 0; i < 4; i++)
            value[i] = Format::operands(*(const typename Format::Eight*)(values + (t * 2 + i / 2 * 8 + i % 2) * DIM + g * 8));
        float weight[4]; // of positions 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float score[4] = {0, 0, 0, 0};
            Format::multiply(score, query[0], key[half][0].x, key[half][0].y);
            Format::multiply(score, query[1], key[half][0].z, key[half][0].w);
            Format::multiply(score, query[2], key[half][1].x, key[half][1].y);
            Format::multiply(score, query[3], key[half][1].z, key[half][1].w);
            weight[half * 2] = score[0] + score[2], weight[half * 2 + 1] = score[1] + score[3];
        }
        if (from > 0 || to < POSITIONS) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int position = t * 2 + i / 2 * 8 + i % 2;
                // What was never written may be anything, NaN included.
                if (position < from || position >= to) weight[i] = -INFINITY, value[i] = make_uint4(0, 0, 0, 0);
            }
        }
        float most = fmaxf(fmaxf(weight[0], weight[1]), fmaxf(weight[2], weight[3]));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        most = fmaxf(most, largest);
        float shrink = exp2f(largest - most);
        largest = most;
#pragma unroll
        for (int i = 0; i < 4; i++) weight[i] = exp2f(weight[i] - most);
        total = total * shrink + ((weight[0] + weight[1]) + (weight[2] + weight[3]));
        u32 a[4];
        Format::split(weight[0], weight[1], a[0], a[1]);
        Format::split(weight[2], weight[3], a[2], a[3]);
        const u32* rows[4] = {&value[0].x, &value[1].x, &value[2].x, &value[3].x};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 pick = i % 2 ? 0x7632 : 0x5410;
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] *= shrink;
            Format::multiply(sums[i], a, __byte_perm(rows[0][i / 2], rows[1][i / 2], pick),
                     __byte_perm(rows[2][i / 2], rows[3][i / 2], pick));
        }
    }
};

struct Softmax { // of one head over some positions, base 2
    float largest, total;
};

template <class T>
DEVICE void rotate_own_key(const float* qkv, int heads, int kv_heads, int head, int position, const float* inv_freq,
                           float rope_scale, T* keys) {
    int lane = threadIdx.x;
    T* values = keys + POSITIONS * DIM;
    int at = position % POSITIONS * DIM;
    if (lane < WARP) {
        const float* k = qkv + (heads + head) * DIM;
        float sine, cosine;
        sincosf(float(position) * inv_freq[lane], &sine, &cosine);
        sine *= rope_scale, cosine *= rope_scale;
        keys[at + lane] = Cached<T>::store(k[lane] * cosine - k[lane + 32] * sine);
        keys[at + lane + 32] = Cached<T>::store(k[lane + 32] * cosine + k[lane] * sine);
    } else if (lane < WARP + DIM) {
        const float* v = qkv + (heads + kv_heads + head) * DIM;
        values[at + lane - WARP] = Cached<T>::store(v[lane - WARP]);
    }
}

template <class T>
DEVICE void attention(const float* qkv, int heads, int kv_heads, const float* inv_freq, float rope_scale, int rotate,
                      const float* sinks, T* pool, int layers, int layer, const int* tables, int table_stride,
                      const int* sequences, const int* positions, int window, float* partial, u32* arrived, float* out) {
    __shared__ float q[GROUP_HEADS][DIM];
    __shared__ __align__(16) float merged[WARPS][GROUP_HEADS][DIM];
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
    auto cached = [&](int entry) { return pool + (((u64)entry * layers + layer) * kv_heads + head) * (2 * POSITIONS * DIM); };
    if (rotate && split == active - 1) {
        T* keys = cached(table[position / POSITIONS]);
        rotate_own_key(own, heads, kv_heads, head, position, inv_freq, rope_scale, keys);
    }
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
        q[warp][lane] = a * (0.125f * LOG2E);
        q[warp][lane + 32] = b * (0.125f * LOG2E);
    }
    __syncthreads();

    int g = lane / 4, t = lane % 4;
    Walk<T> walk;
    walk.begin(q[g], t);
    int end_block = min(first_block + blocks, first_block + (split + 1) * chunk);
    int block = first_block + split * chunk + warp;
    int entry = block < end_block ? table[block] : 0;
    for (; block < end_block; block += WARPS) {
        const T* its = cached(entry);
        if (block + WARPS < end_block) entry = table[block + WARPS]; // on its way meanwhile
        walk.take(its, max(begin - block * POSITIONS, 0), min(position + 1 - block * POSITIONS, POSITIONS), g, t);
    }
    walk.total += __shfl_xor_sync(ALL_LANES, walk.total, 1);
    walk.total += __shfl_xor_sync(ALL_LANES, walk.total, 2);
    if (t == 0) states[warp][g] = {walk.largest, walk.total};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float to[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float(&sum)[4] = walk.sums[i % 2 * 4 + j];
            to[j] = i / 2 ? sum[1] + sum[3] : sum[0] + sum[2];
        }
        *(float4*)&merged[warp][g][t * 16 + i * 4] = make_float4(to[0], to[1], to[2], to[3]);
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

#define ATTENTION_DECODE(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP, 2)                                                          \
        NAME(const float* qkv, int heads, int kv_heads, const float* inv_freq, float rope_scale, int rotate,               \
             const float* sinks, T* pool, int layers, int layer, const int* tables, int table_stride, const int* sequences, \
             const int* positions, int window, float* partial, u32* arrived, float* out) {                                 \
        attention<T>(qkv, heads, kv_heads, inv_freq, rope_scale, rotate, sinks, pool, layers, layer, tables, table_stride,  \
                     sequences, positions, window, partial, arrived, out);                                                 \
    }
ATTENTION_DECODE(attention_decode, u16)
ATTENTION_DECODE(attention_decode_fp8, u8)
