// E4M3: FP8 keys and values, and activations that meet FP4 weights. F16 holds every value.
#pragma once
#include "types.cuh"

/// Two floats to packed E4M3, `low` in the low byte; beyond 448 they saturate.
DEVICE u16 to_e4m3(float low, float high) {
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
}

/// Two packed E4M3 values to packed F16.
DEVICE u32 from_e4m3(u16 two) {
    u32 out;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(two));
    return out;
}

/// Eight of them.
DEVICE uint4 from_e4m3(uint2 eight) {
    return make_uint4(from_e4m3(u16(eight.x)), from_e4m3(u16(eight.x >> 16)), from_e4m3(u16(eight.y)), from_e4m3(u16(eight.y >> 16)));
}

/// The low half of packed F16.
DEVICE float low_f16(u32 two) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(u16(two)));
    return out;
}
