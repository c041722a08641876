// What every kernel stands on: integer types, conversions, loads, warp sums and the tensor-core product, as inline PTX.
// There are no CUDA headers here: a machine needs NVRTC and a driver, no toolkit.
//
// Weights lie in the order in which mma.m16n8k16 wants its A operand (16 weight rows by 16 k), activations are B (k by
// 8 tokens). Lane `4 * g + t` holds rows g and g + 8. The order of k inside a group of 32 is free as long as A and B
// agree; here fragment position (j, r, h) of lane t stands for k = group * 32 + t * 8 + j * 4 + r * 2 + h, so that a
// lane's share of a token's activations is 8 values in a row, one 16-byte load:
//
//     j: which of the group's two products     r: first or second register pair     h: half of the register
//
// Formats (kernels/README.md has the byte layouts):
//     MXFP4  tile 16 x 64, 512 B of codes, 32 B of E8M0 scales
//     Q8     tile 16 x 32, 512 B of bytes q + 128, 32 B of BF16 scales
//     BF16   tile 16 x 32, 1024 B
#pragma once
#include "mxfp4.cuh"

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
#define INFINITY __int_as_float(0x7f800000)

// ---- numbers ----

DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }

DEVICE float from_bf16(u16 bits) { return __uint_as_float(u32(bits) << 16); }

/// Two floats to packed BF16, `low` in the low half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

DEVICE u16 to_bf16(float value) { return u16(pack_bf16(value, 0.0f)); }

/// Two floats to packed F16, `low` in the low half.
DEVICE u32 pack_f16(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

/// 2^(byte - 127) of byte number `index` of a word. Byte 0 is 2^-127, a subnormal with the bits 0x00400000, which is less
/// than what any other byte gives; byte 255 never gets here.
DEVICE float from_e8m0(u32 word, int index) {
    u32 shifted = index == 3 ? word >> 1 : word << (23 - 8 * index);
    return from_bits(max(shifted & 0x7f800000u, 0x00400000u));
}

/// The least power of two that is at least `x`, for finite x > 0; 1 for x = 0.
DEVICE float power_above(float x) {
    if (x == 0.0f) return 1.0f;
    u32 bits = __float_as_uint(x);
    u32 exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0);
    // 2^127 is the largest there is; below 2^-126 everything counts as 2^-126.
    exponent = exponent > 254 ? 254 : exponent < 1 ? 1 : exponent;
    return from_bits(exponent << 23);
}

// ---- memory ----

/// Weights are read once: keep them out of L1, and let L2 drop them first.
DEVICE uint4 load_weights(const void* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

DEVICE u32 load_u32_once(const void* address) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

// ---- warps ----

DEVICE float warp_sum(float x) {
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(ALL_LANES, x, d);
    return x;
}

DEVICE float warp_max(float x) {
    for (int d = 16; d; d >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, d));
    return x;
}

// ---- dependent launches ----

/// Waits until the kernels before this one have finished and their writes are visible. What was launched without the
/// attribute for it passes at once.
DEVICE void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/// Lets the next kernel start its prologue as soon as multiprocessors have room.
DEVICE void let_successor_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- the tensor-core product ----

/// c += a b, F16 operands, f32 sums. c0, c1: row g, tokens 2t and 2t + 1; c2, c3: row g + 8.
DEVICE void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same with BF16 operands.
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- weights in registers ----

/// Activations that meet MXFP4 fragments are staged times 2^14: as they are at most 1 before, F16 holds them.
constexpr float MXFP4_FACTOR = 16384.0f;

/// Eight bytes q + 128 to F16: 0x6400 | byte is 1024 + byte.
DEVICE void q8_fragment(u32 first, u32 second, u32 (&a)[4]) {
    a[0] = __byte_perm(first, 0x64646464u, 0x4140);
    a[1] = __byte_perm(first, 0x64646464u, 0x4342);
    a[2] = __byte_perm(second, 0x64646464u, 0x4140);
    a[3] = __byte_perm(second, 0x64646464u, 0x4342);
#pragma unroll
    for (int i = 0; i < 4; i++) asm("sub.f16x2 %0, %0, %1;" : "+r"(a[i]) : "r"(0x64806480u)); // 1152 twice
}
