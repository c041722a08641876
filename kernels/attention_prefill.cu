// Attention of many rows over the paged keys and values, BF16 or FP8, with sinks and an optional window, context to 131,072.
#include "e4m3.cuh"
#include "prefill.cuh"

constexpr int DIM = 64, BLOCK_TOKENS = 16, KEYS = 64, ROWS = 128, STAGES = 3;
// Unrolled, the copies' addresses cost registers that sm_121a's schedule does not have.
constexpr int COPIES_AT_ONCE = SMALL_SHARED ? 1 : 4;
constexpr int TILE_BYTES = 2 * KEYS * DIM * 2; // keys and values as operands
constexpr float LOG2_E = 1.4426950408889634f;

struct RowRange { int sequence, first, count; };

// The index-th run of at most `length` rows of one sequence, or sequence -1. Called by one whole warp.
DEVICE RowRange find_rows(const int* sequence_rows, int sequences, int length, int index) {
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < sequences; base += 32) {
        int s = base + lane, begin = 0, end = 0;
        if (s < sequences) begin = sequence_rows[s], end = sequence_rows[s + 1];
        int mine = (end - begin + length - 1) / length, sum = mine;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int other = __shfl_up_sync(0xffffffffu, sum, d);
            if (lane >= d) sum += other;
        }
        u32 past = __ballot_sync(0xffffffffu, index < sum);
        if (past) {
            int winner = __ffs(past) - 1;
            int run = index - __shfl_sync(0xffffffffu, sum - mine, winner);
            begin = __shfl_sync(0xffffffffu, begin, winner), end = __shfl_sync(0xffffffffu, end, winner);
            return {base + winner, begin + run * length, min(length, end - begin - run * length)};
        }
        index -= __shfl_sync(0xffffffffu, sum, 31);
    }
    return {-1, 0, 0};
}

DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// How values of type T in the pool are worked with: BF16 as they are, E4M3 as F16.
template <class T> struct Operand;

template <> struct Operand<u16> {
    static DEVICE u32 pack(float low, float high) { return pack_bf16(low, high); }
    static DEVICE u32 query(const void* q, u64 at, int q_f32) {
        if (!q_f32) return *(const u32*)((const u16*)q + at);
        float2 v = *(const float2*)((const float*)q + at);
        return pack_bf16(v.x, v.y);
    }
    static DEVICE void product(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_bf16(c, a, b0, b1); }
};

template <> struct Operand<u8> {
    static DEVICE u32 pack(float low, float high) { return pack_f16(low, high); }
    static DEVICE float bounded(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }
    static DEVICE u32 query(const void* q, u64 at, int) { // f32 only
        float2 v = *(const float2*)((const float*)q + at);
        return pack_f16(bounded(v.x), bounded(v.y));
    }
    static DEVICE void product(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16(c, a, b0, b1); }
};

DEVICE void copy8(u32 to, const void* from, bool valid) {
    int bytes = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/// Eight E4M3 values of shared memory to eight F16 values.
DEVICE void widen8(u32 to, u32 from) {
    uint2 eight;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(eight.x), "=r"(eight.y) : "r"(from) : "memory");
    uint4 wide = from_e4m3(eight);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(wide.x), "r"(wide.y), "r"(wide.z), "r"(wide.w) : "memory");
}

// Grid: (runs, kv_heads); block 128 threads; dynamic shared memory 49,152 bytes, three tiles of 64
// keys and values; FP8 keeps one, and three as they lie in the pool. A run is up to
// 128 / (heads / kv_heads) rows of one sequence; runs = sum over sequences of the rounded-up quotient, more is harmless.
// heads / kv_heads divides 128. Every row's own key is in the pool already (rope_store).
//
// A block packs the query heads of one key head: 128 (row, head) queries, 32 a warp, so that 64 keys and values in shared
// memory serve all of them; online softmax in base 2, f32, P rounded to bf16. A sink counts once, at the end: before
// that a large one would leave P below what F16 holds. Blocks of late rows start first: they have the most keys. Keys outside the run's window are not read.
// Flops 4 * 64 * heads a (row, key); bytes 256 a key and run from L2, or 128. FP8 costs a second barrier a tile: threads widen
// what they copied themselves once all warps are done with the tile before.
//
// q            f32 (q_f32 = 1) or bf16, rotated; row r, head h at r * q_stride + h * 64
// pool         bf16, or e4m3 (attention_prefill_fp8; q is f32 then), [block][layers][kv_heads][K, V][16][64]
// tables       [sequences][table_stride], by position / 16
// sequence_rows [sequences + 1], first_position [sequences]
// sinks        f32 [heads], natural-log units, or null
// out          [n, heads * 64] f16 (out_format 0), bf16 (1) or f32 (2); permuted = 1: in the wide product's order
// window       keys a row sees, its own included; 0 is all
template <class T>
DEVICE void attention(const void* __restrict__ q, int q_f32, int q_stride, const T* __restrict__ pool, int layers, int layer, int kv_heads, int heads, const int* __restrict__ tables, int table_stride, const int* __restrict__ sequence_rows, const int* __restrict__ first_position, int sequences, const float* __restrict__ sinks, void* __restrict__ out, int out_format, int permuted, int window, float scale) {
    constexpr bool WIDEN = sizeof(T) == 1;
    // Of a value in a stage; a stage; where stages begin.
    constexpr int BYTES = sizeof(T), STAGE_BYTES = 2 * KEYS * DIM * BYTES, FIRST_STAGE = WIDEN ? TILE_BYTES : 0;
    const int group = heads / kv_heads, shift = 31 - __clz(group), length = ROWS >> shift, kv_head = blockIdx.y;
    const RowRange run = find_rows(sequence_rows, sequences, length, gridDim.x - 1 - blockIdx.x);
    if (run.sequence < 0) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int start = first_position[run.sequence] + run.first - sequence_rows[run.sequence];
    const int last_key = start + run.count - 1, first_key = window > 0 ? max(0, start - window + 1) : 0;
    const int warp_first = start + (warp * 32 >> shift), warp_last = min(start + (warp * 32 + 31 >> shift), last_key);
    const bool warp_works = warp * 32 >> shift < run.count;

    __shared__ float its_sinks[8]; // of the group's heads; there are barriers before they are read
    if (threadIdx.x < group) its_sinks[threadIdx.x] = sinks ? sinks[kv_head * group + threadIdx.x] * LOG2_E : -1e30f;
    u32 query[2][4][4];
    float maximum[2][2], sum[2][2], o[2][8][4];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int packed = warp * 32 + m * 16 + half * 8 + g, row = packed >> shift, head = kv_head * group + (packed & group - 1);
            const u64 at = (u64)(run.first + min(row, run.count - 1)) * q_stride + head * DIM + t * 2;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                query[m][k][half] = Operand<T>::query(q, at + k * 16, q_f32);
                query[m][k][half + 2] = Operand<T>::query(q, at + k * 16 + 8, q_f32);
            }
            maximum[m][half] = -1e20f, sum[m][half] = 0.0f; // far above what masked keys have
        }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 8; n++) o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0.0f;

    const u32 shared = shared_address(dynamic_shared);
    const int* table = tables + (u64)run.sequence * table_stride;
    const int piece = threadIdx.x % 8, slot = threadIdx.x / 8;
    const u32 wide = shared + slot * 128 + ((piece ^ (slot & 7)) * 16);
    const u32 to = WIDEN ? shared + FIRST_STAGE + slot * DIM + piece * 8 : wide;
    auto load = [&](int tile, u32 stage) {
#pragma unroll(COPIES_AT_ONCE)
        for (int i = 0; i < KEYS / BLOCK_TOKENS; i++) {
            const int key = tile * KEYS + i * BLOCK_TOKENS + slot;
            const bool inside = key >= first_key && key <= last_key;
            const int block = inside ? table[key / BLOCK_TOKENS] : 0;
            const T* from = pool + (((u64)block * layers + layer) * kv_heads + kv_head) * (2 * BLOCK_TOKENS * DIM) + slot * DIM + piece * 8;
            const u32 key_to = to + stage + i * (BLOCK_TOKENS * DIM * BYTES), value_to = key_to + KEYS * DIM * BYTES;
            if (WIDEN) copy8(key_to, from, inside), copy8(value_to, from + BLOCK_TOKENS * DIM, inside);
            else copy16(key_to, from, inside), copy16(value_to, from + BLOCK_TOKENS * DIM, inside);
        }
    };
    const int first_tile = first_key / KEYS, tiles = last_key / KEYS - first_tile + 1;
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < tiles) load(first_tile + s, s * STAGE_BYTES);
        copies_commit();
    }
    const float scale_log2 = scale * LOG2_E;
    u32 read = 0, write = (STAGES - 1) * STAGE_BYTES;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (WIDEN) {
#pragma unroll
            for (int i = 0; i < 2 * KEYS / BLOCK_TOKENS; i++) widen8(wide + i * (BLOCK_TOKENS * 128), to + read + i * (BLOCK_TOKENS * DIM));
        }
        if (tile + STAGES - 1 < tiles) load(first_tile + tile + STAGES - 1, write);
        copies_commit();
        if (WIDEN) __syncthreads();
        const u32 keys = shared + (WIDEN ? 0 : read), values = keys + KEYS * 128;
        read = read + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : read + STAGE_BYTES;
        write = write + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : write + STAGE_BYTES;
        const int begin = (first_tile + tile) * KEYS;
        if (!warp_works || begin > warp_last || (window > 0 && begin + KEYS - 1 <= warp_first - window)) continue;

        float s[2][8][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < 8; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int n = 0; n < 8; n++) {
                uint4 b = load_matrices(keys + (n * 8 + lane % 8) * 128 + (((k * 4 + lane / 8) ^ (lane % 8)) * 16));
                Operand<T>::product(s[0][n], query[0][k * 2], b.x, b.y);
                Operand<T>::product(s[1][n], query[1][k * 2], b.x, b.y);
                Operand<T>::product(s[0][n], query[0][k * 2 + 1], b.z, b.w);
                Operand<T>::product(s[1][n], query[1][k * 2 + 1], b.z, b.w);
            }
        if (begin + KEYS - 1 > warp_first || (window > 0 && begin <= warp_last - window)) {
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        const int key = begin + n * 8 + t * 2 + (c & 1), at = start + (warp * 32 + m * 16 + c / 2 * 8 + g >> shift);
                        if (key > at || (window > 0 && key <= at - window)) s[m][n][c] = -1e30f;
                    }
        }
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = -1e30f;
#pragma unroll
                for (int n = 0; n < 8; n++) top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                const float next = fmaxf(maximum[m][half], top * scale_log2), shrink = exp2_approx(maximum[m][half] - next);
                maximum[m][half] = next;
                float add = 0.0f;
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float p = exp2_approx(s[m][n][half * 2 + c] * scale_log2 - next);
                        s[m][n][half * 2 + c] = p;
                        add += p;
                    }
                sum[m][half] = sum[m][half] * shrink + add;
#pragma unroll
                for (int n = 0; n < 8; n++) o[m][n][half * 2] *= shrink, o[m][n][half * 2 + 1] *= shrink;
            }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 p[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) p[m][i] = Operand<T>::pack(s[m][k * 2 + i / 2][i % 2 * 2], s[m][k * 2 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                uint4 b = load_matrices_transposed(values + (k * 16 + lane % 16) * 128 + (((n * 2 + lane / 16) ^ (lane % 8)) * 16));
                Operand<T>::product(o[0][n * 2], p[0], b.x, b.y);
                Operand<T>::product(o[1][n * 2], p[1], b.x, b.y);
                Operand<T>::product(o[0][n * 2 + 1], p[0], b.z, b.w);
                Operand<T>::product(o[1][n * 2 + 1], p[1], b.z, b.w);
            }
        }
    }
    copies_wait<0>();
    if (!warp_works) return;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const int packed = warp * 32 + m * 16 + half * 8 + g, row = packed >> shift;
            if (row >= run.count) continue;
            const float sink = its_sinks[packed & group - 1], top = fmaxf(maximum[m][half], sink);
            const float share = exp2_approx(maximum[m][half] - top), inverse = share / (total * share + exp2_approx(sink - top));
            const u64 at = ((u64)(run.first + row) * heads + kv_head * group + (packed & group - 1)) * DIM;
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const int d = permuted ? permuted_pair(n * 8 + t * 2) : n * 8 + t * 2;
                const float low = o[m][n][half * 2] * inverse, high = o[m][n][half * 2 + 1] * inverse;
                if (out_format == 0) *(u32*)((u16*)out + at + d) = pack_f16(low, high);
                else if (out_format == 1) *(u32*)((u16*)out + at + d) = pack_bf16(low, high);
                else *(float2*)((float*)out + at + d) = make_float2(low, high);
            }
        }
}

#define ATTENTION(NAME, T)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(128, 2) NAME(                                                                         \
        const void* __restrict__ q, int q_f32, int q_stride, const T* __restrict__ pool, int layers, int layer, int kv_heads, int heads, \
        const int* __restrict__ tables, int table_stride, const int* __restrict__ sequence_rows, const int* __restrict__ first_position, \
        int sequences, const float* __restrict__ sinks, void* __restrict__ out, int out_format, int permuted, int window, float scale) { \
        attention<T>(q, q_f32, q_stride, pool, layers, layer, kv_heads, heads, tables, table_stride, sequence_rows, first_position,     \
                     sequences, sinks, out, out_format, permuted, window, scale);                                                      \
    }
ATTENTION(attention_prefill, u16)
ATTENTION(attention_prefill_fp8, u8)
