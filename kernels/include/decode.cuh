// What the kernels for one to eight tokens share: activations staged in shared memory, and the loop over weight tiles.
#pragma once
#include "tandem.cuh"

constexpr int DECODE_THREADS = 256;
constexpr int DECODE_WARPS = DECODE_THREADS / WARP;
/// Tokens of one launch: the N of the tensor-core product.
constexpr int TOKENS = 8;
/// sm_121a needs a few registers more for the same work, and three blocks are to fit there too.
constexpr bool ROOMY = !AS_ON_GB10;

enum Format { BF16 = 0, Q8 = 1, MXFP4 = 2 };

/// One lane's share of a tile, as loaded. AHEAD is how many a warp has under way: about all that it has of one row tile, so
/// that everything is on its way while activations are staged. 8 warps x 6 x 512 B x 2 blocks are 48 KB a multiprocessor;
/// 4.6 TB/s at 0.8 us need 28 KB.
template <int FORMAT> struct Share;

template <> struct Share<BF16> {
    static constexpr int K = 32, AHEAD = 5, BYTES = 1024, LANE_SCALES = 0;
    uint4 w[2];
    DEVICE void load(const u8* tile, const u8*) {
        w[0] = load_weights(tile);
        w[1] = load_weights(tile + 512);
    }
};

template <> struct Share<Q8> {
    static constexpr int K = 32, AHEAD = ROOMY ? 6 : 5, BYTES = 512, LANE_SCALES = 2;
    uint4 w;
    u16 low, high; // scales of rows g and g + 8
    DEVICE void load(const u8* tile, const u8* scale) {
        w = load_weights(tile);
        low = __ldg((const u16*)scale);
        high = __ldg((const u16*)scale + 8);
    }
};

template <> struct Share<MXFP4> {
    static constexpr int K = 64, AHEAD = 6, BYTES = 512, LANE_SCALES = 4;
    uint4 w;
    u32 s; // bytes: row g group 0, group 1, row g + 8 group 0, group 1
    DEVICE void load(const u8* tile, const u8* scale) {
        w = load_weights(tile);
        s = load_u32_once(scale);
    }
};

/// Activations of up to eight tokens in shared memory. F16 times `1 / factor` of the token, a power of two that brings any
/// finite row to at most 1 (for MXFP4 weights to at most 2^14); for BF16 weights a high and a low BF16 part instead, so that nothing is lost to rounding.
struct Staged {
    const u8* values; // [tokens][stride]
    u32 stride;       // bytes; 64 beyond a multiple of 128, so that the lanes of a load fall on different banks
    u32 low_part;     // bytes from the high to the low part (BF16)
};

DEVICE u32 staged_stride(int padded_k) {
    u32 bytes = padded_k * 2;
    return bytes % 128 == 64 ? bytes : bytes + 64;
}

/// B operand of one group: the lane's eight values of token g. Columns without a token repeat the last one; nobody reads
/// what becomes of them.
DEVICE uint4 fragment(const Staged& x, int k, int lane, int n) {
    return *(const uint4*)(x.values + min(lane >> 2, n - 1) * x.stride + (lane & 3) * 16 + k * 2);
}

/// sum[c] += the tile's product with the activations at k, scaled. `weigh` scales further: by token column.
DEVICE void multiply(float (&sum)[4], const Share<BF16>& share, const Staged& x, int k, int lane, int n) {
    uint4 high = fragment(x, k, lane, n);
    Staged below = x;
    below.values += x.low_part;
    uint4 low = fragment(below, k, lane, n);
    u32 a[4] = {share.w[0].x, share.w[0].y, share.w[0].z, share.w[0].w};
    mma_bf16(sum, a, high.x, high.y);
    mma_bf16(sum, a, low.x, low.y);
    u32 b[4] = {share.w[1].x, share.w[1].y, share.w[1].z, share.w[1].w};
    mma_bf16(sum, b, high.z, high.w);
    mma_bf16(sum, b, low.z, low.w);
}

DEVICE void multiply_q8(float (&sum)[4], const Share<Q8>& share, uint4 b) {
    float part[4] = {0, 0, 0, 0};
    u32 a[4];
    q8_fragment(share.w.x, share.w.y, a);
    mma_f16(part, a, b.x, b.y);
    q8_fragment(share.w.z, share.w.w, a);
    mma_f16(part, a, b.z, b.w);
    float low = from_bf16(share.low), high = from_bf16(share.high);
    sum[0] += part[0] * low;
    sum[1] += part[1] * low;
    sum[2] += part[2] * high;
    sum[3] += part[3] * high;
}

DEVICE void multiply(float (&sum)[4], const Share<Q8>& share, const Staged& x, int k, int lane, int n) {
    multiply_q8(sum, share, fragment(x, k, lane, n));
}

/// Both groups of an MXFP4 tile.
DEVICE void multiply_mxfp4(float (&sum)[4], const Share<MXFP4>& share, const uint4 (&b)[2]) {
#pragma unroll
    for (int group = 0; group < 2; group++) {
        float part[4] = {0, 0, 0, 0};
        u32 a[4];
        mxfp4_fragment(group ? share.w.z : share.w.x, a);
        mma_f16(part, a, b[group].x, b[group].y);
        mxfp4_fragment(group ? share.w.w : share.w.y, a);
        mma_f16(part, a, b[group].z, b[group].w);
        float low = from_e8m0(share.s, group), high = from_e8m0(share.s, 2 + group);
        sum[0] += part[0] * low;
        sum[1] += part[1] * low;
        sum[2] += part[2] * high;
        sum[3] += part[3] * high;
    }
}

DEVICE void multiply(float (&sum)[4], const Share<MXFP4>& share, const Staged& x, int k, int lane, int n) {
    uint4 b[2] = {fragment(x, k, lane, n), fragment(x, k + 32, lane, n)};
    multiply_mxfp4(sum, share, b);
}

/// One warp's products of a row tile with the staged activations, over k tiles first, first + STEP, ... Addresses are kept
/// as two pointers; everything else is an offset known at compile time.
template <int FORMAT, int STEP> struct Walk {
    using One = Share<FORMAT>;
    static constexpr int AHEAD = One::AHEAD, TILE = STEP * One::BYTES, SCALE = STEP * 32;
    One shares[AHEAD];
    const u8 *tile, *scale; // of the lane, AHEAD tiles after what is multiplied next
    int left;               // tiles not multiplied yet

    /// Starts the first loads; needs no activations yet. `tile0` is the row tile's first.
    DEVICE void begin(const u8* tiles, const u8* scales, u64 tile0, int first, int end, int lane) {
        tile = tiles + (tile0 + first) * One::BYTES + lane * 16;
        scale = scales + (tile0 + first) * 32 + (lane >> 2) * One::LANE_SCALES;
        left = (end - first + STEP - 1) / STEP;
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (i < left) shares[i].load(tile + i * TILE, scale + i * SCALE);
        tile += AHEAD * TILE, scale += AHEAD * SCALE;
    }

    DEVICE void finish(float (&sum)[4], int first, int lane, const Staged& x, int n) {
        for (int k = first * One::K; left > 0; left -= AHEAD, k += AHEAD * STEP * One::K) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (i < left) multiply(sum, shares[i], x, k + i * STEP * One::K, lane, n);
                if (i + AHEAD < left) shares[i].load(tile + i * TILE, scale + i * SCALE);
            }
            tile += AHEAD * TILE, scale += AHEAD * SCALE;
        }
    }
};

/// Four values to shared memory, as FORMAT wants them.
template <int FORMAT> DEVICE void put_staged(u8* to, u32 low_part, float4 v, float inverse) {
    if (FORMAT == BF16) {
        uint2 high = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
        v.x -= from_bits(high.x << 16), v.y -= from_bits(high.x & 0xffff0000u);
        v.z -= from_bits(high.y << 16), v.w -= from_bits(high.y & 0xffff0000u);
        *(uint2*)to = high;
        *(uint2*)(to + low_part) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    } else {
        float extra = FORMAT == MXFP4 ? MXFP4_FACTOR : 1.0f; // its product with `inverse` may exceed f32
        *(uint2*)to = make_uint2(pack_f16(v.x * inverse * extra, v.y * inverse * extra),
                                 pack_f16(v.z * inverse * extra, v.w * inverse * extra));
    }
}

DEVICE float4 weigh(float4 v, float4 m) { return make_float4(v.x * m.x, v.y * m.y, v.z * m.z, v.w * m.w); }

DEVICE float largest_of(float4 v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); }

/// What `stage` does for one row of at most ROW_MOST values: each thread keeps its share in registers, all loads at once.
constexpr int ROW_PARTS = 4, ROW_MOST = ROW_PARTS * DECODE_THREADS * 4;

template <int FORMAT>
DEVICE void stage_one(const float* x, int k, int padded_k, const float* norm, float eps, u8* values, u32 low_part,
                      float* factors, float* partial, float* copy) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float4 v[ROW_PARTS];
    // The norm's weights are read again below, from L1: registers are what there is least of.
    auto weight = [&](int at) { return norm ? __ldg((const float4*)norm + at) : make_float4(1, 1, 1, 1); };
#pragma unroll
    for (int i = 0; i < ROW_PARTS; i++) {
        int at = threadIdx.x + i * DECODE_THREADS;
        v[i] = at < k / 4 ? ((const float4*)x)[at] : make_float4(0, 0, 0, 0);
    }
    float squares = 0, largest = 0;
#pragma unroll
    for (int i = 0; i < ROW_PARTS; i++) {
        int at = threadIdx.x + i * DECODE_THREADS;
        squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
        if (at < k / 4) largest = fmaxf(largest, largest_of(weigh(v[i], weight(at))));
    }
    squares = warp_sum(squares), largest = warp_max(largest);
    if (lane == 0) partial[warp] = squares, partial[DECODE_WARPS + warp] = largest;
    __syncthreads();
    squares = 0, largest = 0;
#pragma unroll
    for (int i = 0; i < DECODE_WARPS; i++) squares += partial[i], largest = fmaxf(largest, partial[DECODE_WARPS + i]);
    float scale = norm ? rsqrtf(squares / k + eps) : 1.0f;
    float factor = FORMAT == BF16 ? 1.0f : power_above(largest * scale);
    if (threadIdx.x == 0) factors[0] = factor;
    float inverse = 1.0f / factor;
#pragma unroll
    for (int i = 0; i < ROW_PARTS; i++) {
        int at = threadIdx.x + i * DECODE_THREADS;
        if (at >= padded_k / 4) break;
        float4 y = make_float4(v[i].x * scale, v[i].y * scale, v[i].z * scale, v[i].w * scale);
        if (at < k / 4) y = weigh(y, weight(at));
        if (copy && at < k / 4) ((float4*)copy)[at] = y;
        put_staged<FORMAT>(values + at * 8, low_part, y, inverse);
    }
    __syncthreads();
}

/// Stages rows of x, normalised where `norm` is given: x * rsqrt(mean(x^2) + eps) * norm. All threads take part; ends with
/// a barrier. `factors` [TOKENS] receives what products are to be multiplied with. `copy`, if given, receives the
/// normalised rows in f32.
template <int FORMAT>
DEVICE void stage(const float* x, int x_stride, int n, int k, int padded_k, const float* norm, float eps, u8* values,
                  u32 stride, u32 low_part, float* factors, float* partial /* [2][DECODE_WARPS] */, float* copy) {
    if (n == 1 && k <= ROW_MOST) {
        stage_one<FORMAT>(x, k, padded_k, norm, eps, values, low_part, factors, partial, copy);
        return;
    }
    int rows = n > 4 ? 8 : n > 2 ? 4 : n > 1 ? 2 : 1; // warps of a row: 8 / rows
    int warps = DECODE_WARPS / rows;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int row = warp / warps, from = (warp % warps) * WARP + lane, step = warps * WARP;
    const float4* in = (const float4*)(x + (u64)row * x_stride);
    const float4* w = (const float4*)norm;
    float squares = 0, largest = 0;
    if (row < n)
        for (int i = from; i < k / 4; i += step) {
            float4 v = in[i];
            squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            if (norm) {
                float4 m = __ldg(w + i);
                v.x *= m.x, v.y *= m.y, v.z *= m.z, v.w *= m.w;
            }
            largest = fmaxf(fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
    squares = warp_sum(squares);
    largest = warp_max(largest);
    if (lane == 0) partial[warp] = squares, partial[DECODE_WARPS + warp] = largest;
    __syncthreads();
    squares = 0, largest = 0;
    for (int i = row * warps; i < (row + 1) * warps; i++) {
        squares += partial[i];
        largest = fmaxf(largest, partial[DECODE_WARPS + i]);
    }
    float scale = norm ? rsqrtf(squares / k + eps) : 1.0f;
    float factor = FORMAT == BF16 ? 1.0f : power_above(largest * scale);
    if (row < n) {
        if (from == 0) factors[row] = factor;
        float inverse = 1.0f / factor;
        u8* to = values + row * stride;
        for (int i = from; i < padded_k / 4; i += step) {
            float4 v = make_float4(0, 0, 0, 0);
            if (i < k / 4) {
                v = in[i];
                if (norm) {
                    float4 m = __ldg(w + i);
                    v.x = v.x * scale * m.x, v.y = v.y * scale * m.y, v.z = v.z * scale * m.z, v.w = v.w * scale * m.w;
                }
                if (copy) ((float4*)(copy + (u64)row * k))[i] = v;
            }
            put_staged<FORMAT>(to + i * 8, low_part, v, inverse);
        }
    }
    __syncthreads();
}

/// What a kernel of its own staged before: rows [all][stride], behind them the low parts likewise (BF16), and factors.
/// Worth its launch from a few tokens on, since otherwise every block stages them all.
struct Prestaged {
    const u8* values; // null: nothing was
    const float* factors;
    int all;
};

DEVICE void copy_async(void* shared, const void* global) {
    u32 to = u32(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

/// Brings rows first .. first + n of it to shared memory. All threads; ends with a barrier.
template <int FORMAT>
DEVICE void fetch_staged(const Prestaged& from, int first, int n, u8* values, u32 stride, float* factors) {
    u32 bytes = n * stride;
    for (u32 at = threadIdx.x * 16; at < bytes; at += DECODE_THREADS * 16) {
        copy_async(values + at, from.values + (u64)first * stride + at);
        if (FORMAT == BF16) copy_async(values + bytes + at, from.values + (u64)(from.all + first) * stride + at);
    }
    if (threadIdx.x < n) factors[threadIdx.x] = __ldcg(from.factors + first + threadIdx.x);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

/// Sums [warps][16 rows][8 tokens] of a block in shared memory.
DEVICE void put_sums(float* sums, const float (&c)[4], int warp, int lane) {
    float* to = sums + warp * 128 + (lane >> 2) * TOKENS + (lane & 3) * 2;
    *(float2*)to = make_float2(c[0], c[1]);
    *(float2*)(to + 8 * TOKENS) = make_float2(c[2], c[3]);
}

/// The sum of `count` warps from `first` on for one row and token, in the order of warps.
DEVICE float take_some(const float* sums, int first, int count, int row, int token) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < count; warp++) sum += sums[(first + warp) * 128 + row * TOKENS + token];
    return sum;
}

DEVICE float take_sum(const float* sums, int row, int token) { return take_some(sums, 0, DECODE_WARPS, row, token); }
