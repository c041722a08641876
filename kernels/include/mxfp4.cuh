// Where the eight MXFP4 codes of a word stand.
#pragma once
#include "types.cuh"

// The code of register i, half h stands in half h of a word, so that few operations bring sign | ee | m to F16's sign, low
// exponent and high mantissa bits: as F16 that is the value times 2^-14, subnormal 0.5 included. Where memory is fast those
// operations are what limits a product, and sign and magnitude lie apart, each where a shift that another register needs
// anyway brings it into place. Elsewhere they lie together, code i at bit 12 - 4 i, where one shift and one mask make operands of
// 8-bit products of four of them.
#if AS_ON_GB10
DEVICE u32 place_mxfp4(u32 code, int i) { return code << (12 - 4 * i); }

/// The A operand of one product, as F16 times 2^-14.
DEVICE void mxfp4_fragment(u32 word, u32 (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 top = word << (4 * i);
        a[i] = (top & 0x80008000u) | ((top >> 3) & 0x0E000E00u);
    }
}

// The four codes of row g, and those of row g + 8, as E4M3 times 2^-6; bytes in the order k + 2, k, k + 3, k + 1 of the
// word's four columns.
DEVICE u32 mxfp4_upper_e4m3(u32 word) { return (word & 0x80808080u) | (word >> 2 & 0x1c1c1c1cu); }
DEVICE u32 mxfp4_lower_e4m3(u32 word) { return (word << 4 & 0x80808080u) | (word << 2 & 0x1c1c1c1cu); }

// The same as E2M1 in bits 5..2 of their bytes, where block-scaled products want it.
DEVICE u32 mxfp4_upper_e2m1(u32 word) { return word >> 2 & 0x3c3c3c3cu; }
DEVICE u32 mxfp4_lower_e2m1(u32 word) { return word << 2 & 0x3c3c3c3cu; }
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

// As above; E2M1 operands are wanted of chips only that place codes together.
DEVICE u32 mxfp4_upper_e4m3(u32 word) {
    return (word & 0x80008000u) | (word >> 7 & 0x00800080u) | (word << 1 & 0x1c001c00u) | (word >> 1 & 0x001c001cu);
}
DEVICE u32 mxfp4_lower_e4m3(u32 word) {
    return (word << 3 & 0x80008000u) | (word >> 6 & 0x00800080u) | (word << 4 & 0x1c001c00u) | (word << 2 & 0x001c001cu);
}
#endif
