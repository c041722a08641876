// Hopper's warpgroup product, 64 rows (fragments in registers) by N columns (shared memory) by k16, and the tile product of
// many rows on it. For sm_90a only.
#pragma once
#include "prefill.cuh"

#if HAS_WARPGROUP

// Orders register accesses before the next product; commits what was issued; waits until at most PENDING groups run.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Makes ordinary and cp.async writes to shared memory visible to the tensor cores, once a barrier follows.
DEVICE void fence_shared_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Descriptor of rows of 128 bytes along k, 128-byte swizzle, eight rows every 1,024 bytes; add 2 for the next k16.
DEVICE u64 swizzled_operand(u32 shared) { return (u64)((shared & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62; }

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D32(i) D16(i), D16(i + 16)

#define WGMMA_64(TYPE)                                                                                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                                                  \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;" \
        : D32(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define WGMMA_128(TYPE)                                                                                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                                                  \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;" \
        : D32(0), D32(32) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define WGMMA_192(TYPE)                                                                                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32." TYPE "." TYPE " {"                                                  \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
        "}, {%96, %97, %98, %99}, %100, 1, 1, 1, 0;" \
        : D32(0), D32(32), D32(64) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define WGMMA_256(TYPE)                                                                                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {"                                                  \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
        "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;" \
        : D32(0), D32(32), D32(64), D32(96) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d += a * b for N columns; d[4 * i ..] are this lane's values of columns 8 * i .., as of mma.m16n8k16.
template <int N, bool BFLOAT>
DEVICE void wgmma(float* d, const u32 (&a)[4], u64 b) {
    if constexpr (N == 64) { if constexpr (BFLOAT) WGMMA_64("bf16"); else WGMMA_64("f16"); }
    if constexpr (N == 128) { if constexpr (BFLOAT) WGMMA_128("bf16"); else WGMMA_128("f16"); }
    if constexpr (N == 192) { if constexpr (BFLOAT) WGMMA_192("bf16"); else WGMMA_192("f16"); }
    if constexpr (N == 256) { if constexpr (BFLOAT) WGMMA_256("bf16"); else WGMMA_256("f16"); }
}

// One block's product of 128 weight rows with up to 256 activation rows by two warpgroups, each warp one row tile.
// Weights go from fragment order through registers (dequantised for step k + 1 while step k multiplies); activations lie
// in shared memory, swizzled, with k permuted within each 32 as the fragments have it. The instruction covers 64, 128, 192
// or 256 columns, whatever `count` needs.
// A stage is 256 * 128 bytes of activations, then the eight warps' tiles and scales; a stage is refilled two steps after
// it was read.
template <Format F, int STAGES>
struct WideProduct {
    static constexpr int THREADS = 256, ROW_TILES = 8, MT = 1, NT = 256, X_BYTES = NT * 128;
    static constexpr int STAGE_BYTES = (X_BYTES + 8 * (Tile<F>::BYTES + Tile<F>::SCALE_BYTES) + 1023) / 1024 * 1024, SHARED_BYTES = STAGES * STAGE_BYTES;
    static constexpr int SCALE_PIECES = Tile<F>::SCALE_BYTES / 16;
    static constexpr bool PERMUTED = true;
    typedef const u16* Input;
    static DEVICE float factor(const void* bases, u64 row) { return RowScale<F>::factor(bases, row); }

    float acc[1][NT / 8][4];
    RowScale<F> row_scale;
    u32 source[8];
    int warp, lane, g, t;
    // Where the lane's copies of the next step come from.
    const u8 *from, *scales_from;
    const u16* x;
    u32 left, scales_left;
    int column, columns;
    int quarters;

    DEVICE WideProduct() {
        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        g = lane / 4, t = lane % 4;
    }

    DEVICE int row_tile(int) const { return warp; }
    DEVICE bool owns(int) const { return true; }

    template <class SourceRow>
    DEVICE void run(const u8* weights, const u8* scales, const void* bases, const u16* activations, int first_tile, int row_tiles, int cols, int count, SourceRow source_row) {
        const int tile = first_tile + warp;
        const bool valid = tile < row_tiles;
        row_scale.load(bases, (u64)tile * 16 + g, valid);
#pragma unroll
        for (int n = 0; n < NT / 8; n++) acc[0][n][0] = acc[0][n][1] = acc[0][n][2] = acc[0][n][3] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int token = threadIdx.x / 8 + i * 32;
            source[i] = token < count ? (u32)source_row(token) * (u32)cols : 0xffffffffu;
        }
        left = valid ? Tile<F>::stride(cols) : 0;
        from = weights + (valid ? (u64)tile * Tile<F>::stride(cols) : 0) + lane * 16;
        scales_left = valid && lane * 16 < Tile<F>::scale_stride(cols) ? Tile<F>::scale_stride(cols) - lane * 16 : 0;
        scales_from = scales + (scales_left ? (u64)tile * Tile<F>::scale_stride(cols) + lane * 16 : 0);
        x = activations, column = threadIdx.x % 8 * 8, columns = cols;
        quarters = (count + 63) / 64;
        steps();
        copies_wait<0>();
        __syncthreads();
    }

    DEVICE void load(u32 stage) {
        const u32 weights = stage + X_BYTES + warp * Tile<F>::BYTES + lane * 16;
#pragma unroll
        for (int i = 0; i < Tile<F>::BYTES / 512; i++) copy16(weights + i * 512, from + (i * 512 < left ? i * 512 : 0), i * 512 < left);
        from += left > Tile<F>::BYTES ? Tile<F>::BYTES : 0;
        left -= min(left, (u32)Tile<F>::BYTES);
        if (SCALE_PIECES > 0 && lane < SCALE_PIECES) {
            copy16(stage + X_BYTES + 8 * Tile<F>::BYTES + warp * Tile<F>::SCALE_BYTES + lane * 16, scales_from, scales_left > 0);
            scales_from += scales_left > Tile<F>::SCALE_BYTES ? Tile<F>::SCALE_BYTES : 0;
            scales_left -= min(scales_left, (u32)Tile<F>::SCALE_BYTES);
        }
        const int slot = threadIdx.x / 8;
        const u32 to = stage + slot * 128 + ((threadIdx.x % 8 ^ (slot & 7)) * 16);
#pragma unroll
        for (int i = 0; i < NT / 32; i++) {
            if (i / 2 >= quarters) break;
            const bool inside = source[i] != 0xffffffffu && column < columns;
            copy16(to + i * 32 * 128, x + (inside ? source[i] + column : 0), inside);
        }
        column += 64;
    }

    DEVICE void steps() {
        const int count = (columns + 63) / 64;
        const u32 shared = shared_address(dynamic_shared);
#pragma unroll 1
        for (int s = 0; s < STAGES - 2; s++) {
            if (s < count) load(shared + s * STAGE_BYTES);
            copies_commit();
        }
        u32 even[2][2][4], odd[2][2][4];
        u32 read = 0, write = (STAGES - 2) * STAGE_BYTES;
        int step = 0;
#pragma unroll 1
        for (; step + 2 <= count; step += 2) {
            one(even, shared, read, write, step + STAGES - 2 < count);
            one(odd, shared, read, write, step + STAGES - 1 < count);
        }
        if (step < count) one(even, shared, read, write, false);
        wgmma_wait<0>();
    }

    template <int N>
    DEVICE void issue(u32 (&a)[2][2][4], u64 b) {
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) wgmma<N, F == BF16>(&acc[0][0][0], a[k / 2][k % 2], b + 2 * k);
        wgmma_commit();
        wgmma_wait<1>();
    }

    // Steps alternate between two sets of fragments: a set is rewritten once the product before the last has ended.
    DEVICE void one(u32 (&a)[2][2][4], u32 shared, u32& read, u32& write, bool more) {
        copies_wait<STAGES - 3>();
        fence_shared_for_wgmma();
        __syncthreads();
        if (more) load(shared + write);
        copies_commit();
        const u32 stage = shared + read;
#pragma unroll
        for (int group = 0; group < 2; group++)
            fragments<F>(a[group], stage + X_BYTES + warp * Tile<F>::BYTES + lane * 16, stage + X_BYTES + 8 * Tile<F>::BYTES + warp * Tile<F>::SCALE_BYTES, group, g, row_scale);
        const u64 b = swizzled_operand(stage);
        if (quarters == 1) issue<64>(a, b);
        else if (quarters == 2) issue<128>(a, b);
        else if (quarters == 3) issue<192>(a, b);
        else issue<256>(a, b);
        read = read + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : read + STAGE_BYTES;
        write = write + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : write + STAGE_BYTES;
    }
};

#endif
