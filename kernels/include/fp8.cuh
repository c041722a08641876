// MXFP4 weights by MXFP8 activations (e4m3 with an E8M0 scale for 32): the tile product on mma.m16n8k32.
#pragma once
#include "e4m3.cuh"
#include "prefill.cuh"

DEVICE void copy4(u32 to, const void* from, bool valid) {
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// d = a * b for e4m3 operands. Emulated by two f16 products on sm_90.
DEVICE void mma_e4m3(float (&d)[4], const u32 (&a)[4], uint2 b) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "f"(0.0f));
}

#if HAS_BLOCK_SCALED
// d += a * b, a e2m1 in bits 5..2 of its bytes, b e4m3. Lanes 4g and 4g + 1 give the scales of rows g and g + 8 (byte
// A_BYTE of scale_a), lane 4n that of column n (byte B_BYTE of scale_b); what other lanes give is not looked at.
// kernels/README.md says where that is written.
template <int A_BYTE, int B_BYTE>
#if __CUDA_ARCH__ >= 1200
DEVICE void mma_scaled(float (&d)[4], const u32 (&a)[4], uint2 b, u32 scale_a, u32 scale_b) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e2m1.e4m3.f32.ue8m0 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {%11, 0}, {%12}, {%13, 0};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(scale_a), "n"(A_BYTE), "r"(scale_b), "n"(B_BYTE));
}
#else
// Its twin, for chips without the instruction: the same operands in the same lanes. In double, as the instruction's scales do
// not overflow on the way.
DEVICE void mma_scaled(float (&d)[4], const u32 (&a)[4], uint2 b, u32 scale_a, u32 scale_b) {
    const int lane = threadIdx.x % 32, quad = lane / 4 * 4, column = lane % 4 * 2;
    u32 wide[4];
#pragma unroll
    for (int i = 0; i < 4; i++) wide[i] = (a[i] & 0x20202020u) << 2 | (a[i] & 0x1c1c1c1cu); // e4m3 times 2^-6
    float sum[4];
    mma_e4m3(sum, wide, b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 of_row = __shfl_sync(0xffffffffu, scale_a, quad + i / 2) >> (8 * A_BYTE) & 0xff;
        const u32 of_column = __shfl_sync(0xffffffffu, scale_b, (column + i % 2) * 4) >> (8 * B_BYTE) & 0xff;
        d[i] += (float)(64.0 * sum[i] * e8m0(of_row) * e8m0(of_column));
    }
}
#endif

// What a lane gives for the scales of its rows: `bytes` are those of row g in two groups, then of row g + 8.
DEVICE u32 row_scales(u32 bytes, int t) { return bytes >> (t & 1) * 16; }
#endif

// The A operand of one product of 32 columns, of a lane's two words of codes: e2m1 in its container, or e4m3 times 2^-6.
template <bool SCALED>
DEVICE void mxfp4_operand(u32 (&a)[4], uint2 words) {
#if AS_ON_GB10
    if constexpr (SCALED) {
        a[0] = mxfp4_upper_e2m1(words.x), a[1] = mxfp4_lower_e2m1(words.x);
        a[2] = mxfp4_upper_e2m1(words.y), a[3] = mxfp4_lower_e2m1(words.y);
        return;
    }
#endif
    a[0] = mxfp4_upper_e4m3(words.x), a[1] = mxfp4_lower_e4m3(words.x);
    a[2] = mxfp4_upper_e4m3(words.y), a[3] = mxfp4_lower_e4m3(words.y);
}

// Four elements (k, k + 1, k + 2, k + 3), k a multiple of 4, as a word of activations holds them: bytes k + 2, k, k + 3,
// k + 1, the order in which a word of weight nibbles yields them.
DEVICE u32 pack_e4m3(float k0, float k1, float k2, float k3) {
    return to_e4m3(k2, k0) | (u32)to_e4m3(k3, k1) << 16;
}

// The smallest E8M0 scale that brings `largest` to at most 448, e4m3's largest; and the factor 1 / scale.
DEVICE u32 e8m0_for(float largest) { return max(1u, (__float_as_uint(largest * (1.0f / 448.0f)) + 0x7fffffu) >> 23); }
DEVICE float e8m0_inverse(u32 byte) { return __uint_as_float((254 - byte) << 23); }

// x e4m3 [rows, cols]; scales E8M0 [rows, scale_columns(cols)], one for 32, padded with zeros.
struct Fp8Input {
    const u8 *x, *scales;
};
DEVICE int scale_columns(int cols) { return (cols + 127) / 128 * 4; }

// One block's product of 128 weight rows with up to NT activation rows by four warps of two row tiles, 128 columns a
// stage. Groups of 32 columns are one instruction. SCALED: the tensor cores apply both scales. Otherwise weights become
// e4m3 (2^-6 times the value: `factor` undoes it) and each group's sum is scaled in f32: eight operations for 4,096
// products. Activations are read as eight neighbouring bytes, pieces swizzled by row % 4.
template <int NT_, int STAGES, bool SCALED>
struct Fp8Product {
    static constexpr int THREADS = 128, NT = NT_, MT = 2, ROW_TILES = 8;
    static constexpr int WEIGHT_BYTES = ROW_TILES * 1024, SCALE_BYTES = ROW_TILES * 64;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + SCALE_BYTES + NT * 128 + NT * 4, SHARED_BYTES = STAGES * STAGE_BYTES;
    static constexpr int PIECES = NT / 16;
    typedef Fp8Input Input;
    static DEVICE float factor(const void*, u64) { return SCALED ? 1.0f : 64.0f; }

    float acc[MT][NT / 8][4];
    u32 source[PIECES];
    int warp, lane, g, t;

    DEVICE Fp8Product() {
        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        g = lane / 4, t = lane % 4;
    }

    DEVICE int row_tile(int m) const { return warp * MT + m; }
    DEVICE bool owns(int) const { return true; }

    template <class SourceRow>
    DEVICE void run(const u8* weights, const u8* scales, const void*, Fp8Input input, int first_tile, int row_tiles, int cols, int count, SourceRow source_row) {
        const u32 stride = Tile<MXFP4>::stride(cols), scale_stride = Tile<MXFP4>::scale_stride(cols);
        const u8 *from[MT], *scales_from = scales;
        u32 left[MT], scales_left = 0;
#pragma unroll
        for (int m = 0; m < MT; m++) {
            const int tile = first_tile + row_tile(m);
            left[m] = tile < row_tiles ? stride : 0;
            from[m] = weights + (left[m] ? (u64)tile * stride : 0) + lane * 16;
#pragma unroll
            for (int n = 0; n < NT / 8; n++) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0.0f;
        }
        if (lane < MT * 4) {
            const int tile = first_tile + row_tile(lane / 4);
            const u32 skip = lane % 4 * 16;
            scales_left = tile < row_tiles && skip < scale_stride ? scale_stride - skip : 0;
            scales_from = scales + (scales_left ? (u64)tile * scale_stride + skip : 0);
        }
        const int piece_row = threadIdx.x / 8, piece = threadIdx.x % 8;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            const int token = piece_row + i * 16;
            source[i] = token < count ? (u32)source_row(token) * (u32)cols : 0xffffffffu;
        }
        const bool has_scales = threadIdx.x < NT && threadIdx.x < count;
        const u8* x_scales = input.scales + (has_scales ? (u64)source_row(threadIdx.x) * scale_columns(cols) : 0);
        const u32 shared = shared_address(dynamic_shared);
        const u32 to_weights = shared + warp * MT * 1024 + lane * 16, to_scales = shared + WEIGHT_BYTES + warp * MT * 64 + lane * 16;
        const u32 to_x = shared + WEIGHT_BYTES + SCALE_BYTES + piece_row * 128 + ((piece ^ (piece_row & 3) << 1) * 16);
        const u32 to_x_scales = shared + WEIGHT_BYTES + SCALE_BYTES + NT * 128 + threadIdx.x * 4;
        int column = piece * 16;
        auto load = [&](u32 stage) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
                copy16(to_weights + stage + m * 1024, from[m], left[m] > 0);
                copy16(to_weights + stage + m * 1024 + 512, from[m] + (left[m] > 512 ? 512 : 0), left[m] > 512);
                from[m] += left[m] > 1024 ? 1024 : 0;
                left[m] -= min(left[m], 1024u);
            }
            if (lane < MT * 4) {
                copy16(to_scales + stage, scales_from, scales_left > 0);
                scales_from += scales_left > 64 ? 64 : 0;
                scales_left -= min(scales_left, 64u);
            }
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                const bool inside = source[i] != 0xffffffffu && column < cols;
                copy16(to_x + stage + i * 2048, input.x + (inside ? source[i] + column : 0), inside);
            }
            if (threadIdx.x < NT) copy4(to_x_scales + stage, x_scales, has_scales);
            x_scales += has_scales ? 4 : 0;
            column += 128;
        };
        const int steps = (cols + 127) / 128;
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; s++) {
            if (s < steps) load(s * STAGE_BYTES);
            copies_commit();
        }
        u32 read = 0, write = (STAGES - 1) * STAGE_BYTES;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            if (step + STAGES - 1 < steps) load(write);
            copies_commit();
            group<0>(shared + read, count);
            group<1>(shared + read, count);
            group<2>(shared + read, count);
            group<3>(shared + read, count);
            read = read + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : read + STAGE_BYTES;
            write = write + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : write + STAGE_BYTES;
        }
        copies_wait<0>();
        __syncthreads();
    }

    // Columns Q * 32 .. of the stage: tile Q / 2, group Q % 2.
    template <int Q>
    DEVICE void group(u32 stage, int count) {
        u32 a[MT][4], scale[MT];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            mxfp4_operand<SCALED>(a[m], load_shared8(stage + row_tile(m) * 1024 + Q / 2 * 512 + lane * 16 + Q % 2 * 8));
            scale[m] = load_shared4(stage + WEIGHT_BYTES + row_tile(m) * 64 + Q / 2 * 32 + g * 4);
        }
        const u32 b = stage + WEIGHT_BYTES + SCALE_BYTES + g * 128 + ((Q ^ (g & 3)) * 2 + t / 2) * 16 + t % 2 * 8;
        const u32 x_scales = stage + WEIGHT_BYTES + SCALE_BYTES + NT * 128;
#pragma unroll
        for (int n = 0; n < NT / 8; n++) {
            if (n % 4 == 0 && n > 0 && n * 8 >= count) break;
            const uint2 v = load_shared8(b + n * 1024);
#if HAS_BLOCK_SCALED
            if constexpr (SCALED) {
                const u32 column_scales = load_shared4(x_scales + (n * 8 + g) * 4);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_scaled<Q % 2, Q>(acc[m][n], a[m], v, row_scales(scale[m], t), column_scales);
                continue;
            }
#endif
            const float x0 = scale_of(load_shared4(x_scales + (n * 8 + t * 2) * 4), Q), x1 = scale_of(load_shared4(x_scales + (n * 8 + t * 2 + 1) * 4), Q);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                const float low = scale_of(scale[m], Q % 2), high = scale_of(scale[m], 2 + Q % 2);
                float d[4];
                mma_e4m3(d, a[m], v);
                acc[m][n][0] += d[0] * (low * x0), acc[m][n][1] += d[1] * (low * x1);
                acc[m][n][2] += d[2] * (high * x0), acc[m][n][3] += d[3] * (high * x1);
            }
        }
    }

    // The scale in byte `index`.
    static DEVICE float scale_of(u32 bytes, int index) { return e8m0(bytes >> (8 * index) & 0xff); }
};
