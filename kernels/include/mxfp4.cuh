// Where the eight MXFP4 codes of a word stand.
#pragma once
#include "types.cuh"

// The code of register i, half h stands in half h of a word, so that few operations bring sign | ee | m to F16's sign, low
// exponent and high mantissa bits: as F16 that is the value times 2^-14, subnormal 0.5 included. Where memory is fast those
// operations are what limits a product, and sign and magnitude lie apart, each where a shift that another register needs
// anyway brings it into place. Elsewhere they lie together, code i at bit 12 - 4 i, which 8-bit products can read too.
#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200) || defined(MXFP4_TOGETHER)
DEVICE u32 place_mxfp4(u32 code, int i) { return code << (12 - 4 * i); }

/// The A operand of one product, as F16 times 2^-14.
DEVICE void mxfp4_fragment(u32 word, u32 (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 top = word << (4 * i);
        a[i] = (top & 0x80008000u) | ((top >> 3) & 0x0E000E00u);
    }
}
#else
DEVICE u32 place_mxfp4(u32 code, int i) {
    int sign = i == 0 ? 15 : i == 1 ? 12 : i == 2 ? 14 : 13;
    return (code >> 3) << sign | (code & 7) << (9 - 3 * i);
}

DEVICE void mxfp4_fragment(u32 word, u32 (&a)[4]) {
    a[0] = word & 0x8E008E00u;
    a[1] = (word << 3) & 0x8E008E00u;
    a[2] = ((word << 1) & 0x80008000u) | ((word << 6) & 0x0E000E00u);
    a[3] = ((word << 2) & 0x80008000u) | ((word << 9) & 0x0E000E00u);
}
#endif
