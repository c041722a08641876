// Shared device code of the kernels for many rows: copies, conversions, tensor instructions and the tile product that the
// expert and dense kernels are made of. Header-free; included by name through NVRTC.
#pragma once
#include "mxfp4.cuh"

// A Spark's multiprocessor has 100 KB of shared memory where Hopper's has 228: tiles keep fewer stages there, so that two
// blocks still fit.
constexpr bool SMALL_SHARED = AS_ON_GB10;

// Tensor instructions that only the `a` targets have: block-scaled products (sm_121a) and warpgroup products (sm_90a).
#if defined(AS_GB10) || (defined(__CUDA_ARCH_SPECIFIC__) && __CUDA_ARCH__ >= 1200)
#define HAS_BLOCK_SCALED 1
#else
#define HAS_BLOCK_SCALED 0
#endif
#if !defined(AS_GB10) && defined(__CUDA_ARCH_SPECIFIC__) && __CUDA_ARCH__ == 900
#define HAS_WARPGROUP 1
#else
#define HAS_WARPGROUP 0
#endif

extern __shared__ __align__(1024) u8 dynamic_shared[];

// ---- copies -------------------------------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory without passing registers, or writes zeros where `valid` is false.
DEVICE void copy16(u32 to, const void* from, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE uint4 load_shared16(u32 from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}

DEVICE uint2 load_shared8(u32 from) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
    return v;
}

DEVICE u32 load_shared4(u32 from) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
    return v;
}

DEVICE u32 load_shared2(u32 from) {
    u16 v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(from) : "memory");
    return v;
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE uint4 load_matrices(u32 row) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(row) : "memory");
    return v;
}

DEVICE uint4 load_matrices_transposed(u32 row) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(row) : "memory");
    return v;
}

// ---- conversions --------------------------------------------------------------------------------------------------------

DEVICE u32 pack_f16(float low, float high) {
    u32 v;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

DEVICE u32 pack_bf16(float low, float high) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

DEVICE float bf16_low(u32 v) { return __uint_as_float(v << 16); }
DEVICE float bf16_high(u32 v) { return __uint_as_float(v & 0xffff0000u); }

DEVICE float f16_low(u32 v) {
    float f;
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(f) : "r"(v));
    return f;
}

DEVICE float f16_high(u32 v) { return f16_low(v >> 16); }

DEVICE u32 multiply_f16(u32 a, u32 b) {
    u32 v;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

DEVICE u32 add_f16(u32 a, u32 b) {
    u32 v;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

// 2^(byte - 127), the value of an E8M0 scale byte.
DEVICE float e8m0(u32 byte) { return __uint_as_float(byte == 0 ? 0x00400000u : byte << 23); }

// ---- tensor instructions ------------------------------------------------------------------------------------------------

DEVICE void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- order of activations -----------------------------------------------------------------------------------------------

// The wide product (wide.cuh) reads activations whose order within each 32 is the fragments': place j * 16 + r * 8 + t * 2
// + h holds element t * 8 + j * 4 + r * 2 + h. Where the pair of elements (k, k + 1), k even, lies.
DEVICE int permuted_pair(int k) { return (k & ~31) + (k >> 2 & 1) * 16 + (k >> 1 & 1) * 8 + (k >> 3 & 3) * 2; }

// ---- weights to fragments -----------------------------------------------------------------------------------------------

enum Format { MXFP4, Q8, BF16 };

// One 16-row tile's share of 64 columns as it lies in memory, for each format.
template <Format F>
struct Tile {
    static constexpr int BYTES = F == MXFP4 ? 512 : F == Q8 ? 1024 : 2048;
    static constexpr int SCALE_BYTES = F == MXFP4 ? 32 : F == Q8 ? 64 : 0;
    // Columns are padded to 64 (MXFP4) or 32; bytes of a whole row tile and of its scales.
    static DEVICE u32 stride(int cols) { return F == MXFP4 ? (u32)((cols + 63) / 64) * 512 : (u32)((cols + 31) / 32) * (BYTES / 2); }
    static DEVICE u32 scale_stride(int cols) { return F == MXFP4 ? (u32)((cols + 63) / 64) * 32 : (u32)((cols + 31) / 32) * 32; }
};

// What a lane has to know of its rows g and g + 8 to scale their weights, and the factor that their sums lack afterwards.
// MXFP4: `scale` is 29 - base, so that byte + scale is the f16 exponent of 2^(byte - base + 14); 14 undoes the expansion.
// Q8: `scale` holds the bits of 1 / base, so that f16 holds scale / base <= 1.
template <Format F>
struct RowScale {
    int low, high;
    DEVICE void load(const void* bases, u64 row, bool valid) {
        low = high = 0;
        if (!valid) return;
        if (F == MXFP4) {
            low = 29 - (int)((const u8*)bases)[row];
            high = 29 - (int)((const u8*)bases)[row + 8];
        }
        if (F == Q8) {
            low = __float_as_int(reciprocal(((const float*)bases)[row]));
            high = __float_as_int(reciprocal(((const float*)bases)[row + 8]));
        }
    }
    static DEVICE float reciprocal(float base) { return base > 0.0f ? 1.0f / base : 0.0f; }
    static DEVICE float factor(const void* bases, u64 row) {
        if (F == MXFP4) return e8m0(((const u8*)bases)[row]);
        if (F == Q8) return ((const float*)bases)[row];
        return 1.0f;
    }
};

// f16 2^(byte - base + 14), twice. Below f16's range the weight itself is below 2^-24 of the row's largest: zero. The
// upper bound only concerns padding, whose scale byte may exceed the base.
DEVICE u32 mxfp4_scale(u32 byte, int scale) { return (u32)min(max((int)byte + scale, 0), 29) * 0x04000400u; }

DEVICE void mxfp4_fragment(u32 (&a)[4], u32 word, u32 scale_low, u32 scale_high) {
    mxfp4_fragment(word, a);
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = multiply_f16(a[i], i & 1 ? scale_high : scale_low);
}

// Bytes are value + 128; 0x64 above a byte makes the f16 1024 + byte.
DEVICE void q8_fragment(u32 (&a)[4], u32 first, u32 second, u32 scale_low, u32 scale_high) {
    const u32 minus_1152 = 0xe480e480u;
    a[0] = multiply_f16(add_f16(__byte_perm(first, 0x64646464u, 0x4140), minus_1152), scale_low);
    a[1] = multiply_f16(add_f16(__byte_perm(first, 0x64646464u, 0x4342), minus_1152), scale_high);
    a[2] = multiply_f16(add_f16(__byte_perm(second, 0x64646464u, 0x4140), minus_1152), scale_low);
    a[3] = multiply_f16(add_f16(__byte_perm(second, 0x64646464u, 0x4342), minus_1152), scale_high);
}

DEVICE u32 q8_scale(u32 bf16, int inverse) {
    float s = __uint_as_float(bf16 << 16) * __int_as_float(inverse);
    return pack_f16(s, s);
}

// A fragments of both k16 steps of 32-column group `group` (0, 1) of the 64 columns at shared address `tile` (the lane's
// own 16 bytes) with scales at `scales`; g is lane / 4.
template <Format F>
DEVICE void fragments(u32 (&a)[2][4], u32 tile, u32 scales, int group, int g, const RowScale<F>& rows) {
    if (F == MXFP4) {
        u32 bytes = load_shared4(scales + g * 4);
        u32 low = mxfp4_scale((bytes >> (8 * group)) & 0xff, rows.low);
        u32 high = mxfp4_scale((bytes >> (16 + 8 * group)) & 0xff, rows.high);
        const uint2 words = load_shared8(tile + group * 8);
        mxfp4_fragment(a[0], words.x, low, high);
        mxfp4_fragment(a[1], words.y, low, high);
    } else if (F == Q8) {
        u32 low = q8_scale(load_shared2(scales + group * 32 + g * 2), rows.low);
        u32 high = q8_scale(load_shared2(scales + group * 32 + g * 2 + 16), rows.high);
        uint4 w = load_shared16(tile + group * 512);
        q8_fragment(a[0], w.x, w.y, low, high);
        q8_fragment(a[1], w.z, w.w, low, high);
    } else {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 w = load_shared16(tile + group * 1024 + j * 512);
            a[j][0] = w.x, a[j][1] = w.y, a[j][2] = w.z, a[j][3] = w.w;
        }
    }
}

// ---- the tile product ---------------------------------------------------------------------------------------------------

// One block's product of 16 * MT * WM weight rows with up to NT activation rows, by four warps: WM side by side over the
// rows and WK over the columns, 64 columns a warp and stage. Weights are the tensor cores' A operand, straight from
// fragment order; activations are B: a lane's values for 32 columns are eight neighbours, one 16-byte read.
// A stage in shared memory: the warps' weight tiles, their scales, then WK slices [NT][64] of 16-bit activations whose
// 16-byte pieces are swapped between halves on odd rows (piece ^ 4), which makes the fragment reads conflict-free.
// Per stage a block copies 4 * MT * (BYTES + SCALE_BYTES) weight and WK * NT * 128 activation bytes for 2 * 16 * MT * WM *
// NT * 64 * WK flops; only rows < count are read.
template <Format F, int NT_, int MT_, int WM, int WK, int STAGES>
struct TileProduct {
    static constexpr int NT = NT_, MT = MT_;
    static constexpr int THREADS = 128;
    static constexpr bool PERMUTED = false;
    typedef const u16* Input;
    static DEVICE float factor(const void* bases, u64 row) { return RowScale<F>::factor(bases, row); }
    static constexpr int ROW_TILES = WM * MT;
    static constexpr int WEIGHT_BYTES = 4 * MT * Tile<F>::BYTES;
    static constexpr int SCALE_BYTES = 4 * MT * Tile<F>::SCALE_BYTES;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + SCALE_BYTES + WK * NT * 128, SHARED_BYTES = STAGES * STAGE_BYTES;
    static constexpr int PIECES = NT * WK / 16;
    static constexpr int SCALE_PIECES = Tile<F>::SCALE_BYTES / 16, SCALE_LANES = SCALE_PIECES > 0 ? SCALE_PIECES : 1;
    static constexpr int CHUNK = NT < 32 ? NT : 32;
    static_assert(WM * WK == 4, "four warps");

    float acc[MT][NT / 8][4];
    RowScale<F> row_scale[MT];
    u32 source[PIECES];
    int warp, lane, g, t, wm, wk;
    u32 owned;

    DEVICE TileProduct() {
        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        g = lane / 4, t = lane % 4;
        wm = warp % WM, wk = warp / WM;
        owned = (WK == 4 ? 0x11111111u : 0x55555555u) << wk;
    }

    // Row tile of the warp's m-th fragment within the block's.
    DEVICE int row_tile(int m) const { return wm * MT + m; }

    // Fills acc. `weights`, `scales`, `bases` start at this expert's; source_row(i) is the row of x for token i < count.
    template <class SourceRow>
    DEVICE void run(const u8* weights, const u8* scales, const void* bases, const u16* x, int first_tile, int row_tiles, int cols, int count, SourceRow source_row) {
        const u32 stride = Tile<F>::stride(cols), scale_stride = Tile<F>::scale_stride(cols);
#pragma unroll
        for (int m = 0; m < MT; m++) {
            int tile = first_tile + row_tile(m);
            row_scale[m].load(bases, (u64)tile * 16 + g, tile < row_tiles);
#pragma unroll
            for (int n = 0; n < NT / 8; n++) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0.0f;
        }
        const int piece_row = threadIdx.x / (8 * WK), piece = threadIdx.x % (8 * WK);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            int token = piece_row + i * (16 / WK);
            source[i] = token < count ? (u32)source_row(token) * (u32)cols : 0xffffffffu;
        }
        // Where this lane's copies come from: the start of its row tiles. A tile past the end is zeros.
        const u8 *from[MT], *scales_from = scales + lane % SCALE_LANES * 16;
#pragma unroll
        for (int m = 0; m < MT; m++) from[m] = weights + (u64)min(first_tile + row_tile(m), row_tiles - 1) * stride + lane * 16;
        bool has_scales = false;
        if (SCALE_PIECES > 0 && lane < MT * SCALE_PIECES) {
            const int tile = first_tile + row_tile(lane / SCALE_LANES);
            has_scales = tile < row_tiles;
            scales_from += (u64)min(tile, row_tiles - 1) * scale_stride;
        }
        const u32 shared = shared_address(dynamic_shared);
        const u32 to_weights = shared + warp * MT * Tile<F>::BYTES + lane * 16;
        const u32 to_scales = shared + WEIGHT_BYTES + warp * MT * Tile<F>::SCALE_BYTES + lane * 16;
        const u32 to_x = shared + WEIGHT_BYTES + SCALE_BYTES + (piece / 8) * (NT * 128) + piece_row * 128 + (((piece % 8) ^ ((piece_row & 1) << 2)) * 16);
        auto load = [&](u32 stage, int step) {
            const u32 offset = (step * WK + wk) * Tile<F>::BYTES;
            const int column = step * (64 * WK) + piece * 8;
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int i = 0; i < Tile<F>::BYTES / 512; i++) {
                    const bool inside = first_tile + row_tile(m) < row_tiles && offset + i * 512 < stride;
                    copy16(to_weights + stage + m * Tile<F>::BYTES + i * 512, from[m] + (inside ? offset + i * 512 : 0), inside);
                }
            }
            if (SCALE_PIECES > 0 && lane < MT * SCALE_PIECES) {
                const bool inside = has_scales && offset / 16 + lane % SCALE_LANES * 16 < scale_stride;
                copy16(to_scales + stage, scales_from + (inside ? offset / 16 : 0), inside);
            }
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                bool inside = source[i] != 0xffffffffu && column < cols;
                copy16(to_x + stage + i * (16 / WK) * 128, x + (inside ? source[i] + column : 0), inside);
            }
        };
        const int steps = (cols + 64 * WK - 1) / (64 * WK);
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; s++) {
            if (s < steps) load(s * STAGE_BYTES, s);
            copies_commit();
        }
        u32 read = 0;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            // The stage read last is the next to fill.
            if (step + STAGES - 1 < steps) load(read == 0 ? SHARED_BYTES - STAGE_BYTES : read - STAGE_BYTES, step + STAGES - 1);
            copies_commit();
            multiply(shared + read, count);
            read = read + STAGE_BYTES == SHARED_BYTES ? 0 : read + STAGE_BYTES;
        }
        copies_wait<0>();
        __syncthreads();
        if (WK > 1) sum_slices();
    }

    DEVICE void multiply(u32 stage, int count) {
        const u32 tile = stage + warp * MT * Tile<F>::BYTES + lane * 16;
        const u32 scale = stage + WEIGHT_BYTES + warp * MT * Tile<F>::SCALE_BYTES;
        const u32 b = stage + WEIGHT_BYTES + SCALE_BYTES + wk * (NT * 128) + g * 128;
#pragma unroll
        for (int group = 0; group < 2; group++) {
            u32 a[MT][2][4];
#pragma unroll
            for (int m = 0; m < MT; m++) {
                // A lane's MXFP4 bytes of both groups are neighbours; other formats keep groups apart.
                fragments<F>(a[m], tile + m * Tile<F>::BYTES, scale + m * Tile<F>::SCALE_BYTES, group, g, row_scale[m]);
            }
            const u32 from = b + (((group * 4 + t) ^ ((g & 1) << 2)) * 16);
#pragma unroll
            for (int chunk = 0; chunk < NT / CHUNK; chunk++) {
                if (chunk > 0 && chunk * CHUNK >= count) break;
                uint4 v[CHUNK / 8];
#pragma unroll
                for (int n = 0; n < CHUNK / 8; n++) v[n] = load_shared16(from + (chunk * CHUNK + n * 8) * 128);
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
                        for (int m = 0; m < MT; m++) {
                            float(&c)[4] = acc[m][chunk * (CHUNK / 8) + n];
                            if (F == BF16) mma_bf16(c, a[m][j], j ? v[n].z : v[n].x, j ? v[n].w : v[n].y);
                            else mma_f16(c, a[m][j], j ? v[n].z : v[n].x, j ? v[n].w : v[n].y);
                        }
            }
        }
    }

    // Adds the WK warps' sums in a fixed order. Afterwards warp wk holds the whole sums of blocks n with n % WK == wk.
    DEVICE void sum_slices() {
        float* sums = (float*)dynamic_shared;
        constexpr int SIZE = MT * (NT / 8) * 4 * 32;
        static_assert(WK == 1 || 4 * SIZE * 4 <= STAGES * STAGE_BYTES, "partial sums fit the stages");
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) sums[warp * SIZE + ((m * (NT / 8) + n) * 4 + c) * 32 + lane] = acc[m][n][c];
        __syncthreads();
#pragma unroll
        for (int n = 0; n < NT / 8; n++) {
            if (!owns(n)) continue;
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    float sum = 0.0f;
#pragma unroll
                    for (int k = 0; k < WK; k++) sum += sums[(k * WM + wm) * SIZE + ((m * (NT / 8) + n) * 4 + c) * 32 + lane];
                    acc[m][n][c] = sum;
                }
        }
        __syncthreads();
    }

    DEVICE bool owns(int n) const { return WK == 1 || (owned >> n & 1); }
};
