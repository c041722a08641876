// The experts of many rows with MXFP8 activations, as mxfp4_moe_prefill.cu launches them: 128 threads, NAME_shared
// bytes of dynamic shared memory, tile_rows of moe_group as in the name. `scaled` exists on sm_121a only, where the
// tensor cores apply the scales; `plain` is the same product with f32 scaling, and runs on both targets. On sm_121a three
// stages of 128 rows leave a multiprocessor room for one block, and so would two.
#include "experts.cuh"
#include "fp8.cuh"

// Writes a block's results as e4m3 with a scale for 32 units. One thread a token and 32 units.
struct Fp8Results {
    u8 *z, *scales;

    template <int UNITS, int PITCH>
    DEVICE void store(int4 tile, int first_unit, int units) const {
        for (int i = threadIdx.x; i < tile.z * (UNITS / 32); i += 128) {
            const int token = i / (UNITS / 32), group = i % (UNITS / 32), unit = first_unit + group * 32;
            if (unit >= units) continue;
            const u64 place = tile.y + token;
            const uint2* from = (const uint2*)(dynamic_shared + token * PITCH + group * 64);
            float largest = 0.0f;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float4 v = unpack(from[k]);
                largest = fmaxf(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))), largest);
            }
            const u32 scale = e8m0_for(largest);
            const float inverse = e8m0_inverse(scale);
            u32 words[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float4 v = unpack(from[k]);
                words[k] = pack_e4m3(v.x * inverse, v.y * inverse, v.z * inverse, v.w * inverse);
            }
            uint4* to = (uint4*)(z + place * units + unit);
            to[0] = make_uint4(words[0], words[1], words[2], words[3]);
            to[1] = make_uint4(words[4], words[5], words[6], words[7]);
            u8* to_scales = scales + place * scale_columns(units);
            to_scales[unit / 32] = (u8)scale;
            if (unit + 32 == units) {
                for (int i = units / 32; i < scale_columns(units); i++) to_scales[i] = 0;
            }
        }
    }

    static DEVICE float4 unpack(uint2 v) { return make_float4(f16_low(v.x), f16_high(v.x), f16_low(v.y), f16_high(v.y)); }
};

// weights, scales: MXFP4 in fragment order, [expert]...; bases unused; bias f32 in the checkpoint's order or null.
// x, z e4m3 [.., cols] with E8M0 scales [.., scale_columns(cols)]: cols / 32 rounded up to 4; y f32 [pairs, rows].
#define EXPERTS(NAME, NT, STAGES, SCALED)                                                                                              \
    extern "C" {                                                                                                                       \
    __device__ int mxfp4_moe_gate_up_##NAME##_shared = Fp8Product<NT, STAGES, SCALED>::SHARED_BYTES;                                   \
    __device__ int mxfp4_moe_down_##NAME##_shared = Fp8Product<NT, STAGES, SCALED>::SHARED_BYTES;                                      \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 2) mxfp4_moe_gate_up_##NAME(                                                     \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const u8* __restrict__ bases, const float* __restrict__ bias,   \
        const u8* __restrict__ x, const u8* __restrict__ x_scales, u8* __restrict__ z, u8* __restrict__ z_scales,                      \
        const int4* __restrict__ tiles, const int* __restrict__ n_tiles, const int* __restrict__ pairs, int rows, int cols, int top_k, \
        float limit, float alpha) {                                                                                                    \
        gate_up<Fp8Product<NT, STAGES, SCALED>>(weights, scales, bases, bias, Fp8Input{x, x_scales}, Fp8Results{z, z_scales},  \
                                                        tiles, n_tiles, pairs, rows, cols, top_k, limit, alpha);                       \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 2) mxfp4_moe_down_##NAME(                                                        \
        const u8* __restrict__ weights, const u8* __restrict__ scales, const u8* __restrict__ bases, const float* __restrict__ bias,   \
        const u8* __restrict__ z, const u8* __restrict__ z_scales, float* __restrict__ y, const int4* __restrict__ tiles,              \
        const int* __restrict__ n_tiles, const int* __restrict__ pairs, int rows, int cols) {                                          \
        down<Fp8Product<NT, STAGES, SCALED>>(weights, scales, bases, bias, Fp8Input{z, z_scales}, y, tiles, n_tiles, pairs, rows, cols); \
    }

EXPERTS(fp8_plain_64, 64, 3, false)
EXPERTS(fp8_plain_128, 128, SMALL_SHARED ? 3 : 4, false)
#if HAS_BLOCK_SCALED
EXPERTS(fp8_scaled_64, 64, 2, true)
EXPERTS(fp8_scaled_128, 128, 3, true)

// One group of 32 columns of a probe, twice on top of each other: every operand is made as in the products above.
template <int Q>
DEVICE void probe_group(const u8* codes, const u8* scales, const u8* x, const u8* x_scales, float* out) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    u32 a[4];
    mxfp4_operand<true>(a, *(const uint2*)(codes + Q / 2 * 512 + lane * 16 + Q % 2 * 8));
    const u32 rows = row_scales(*(const u32*)(scales + Q / 2 * 32 + g * 4), t), columns = *(const u32*)(x_scales + g * 4);
    const uint2 b = *(const uint2*)(x + g * 128 + Q * 32 + t * 8);
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2; i++) mma_scaled<Q % 2, Q>(sum, a, b, rows, columns);
    float* to = out + Q * 128 + g * 8 + t * 2;
    to[0] = sum[0], to[1] = sum[1], to[64] = sum[2], to[65] = sum[3];
}

// Whether the block-scaled product does what it should (crates/backend-cuda/src/block_scale.rs has the cases). Launch: one
// warp a case. A case is 16 rows of 128 columns, codes [2][512] and scales [2][32] in fragment order, and 8 activation rows,
// e4m3 [8][128] in the order of pack_e4m3 with scales [8][4]; out f32 [4][16][8] is twice the product of each 32 columns.
extern "C" __global__ void __launch_bounds__(32) block_scale_probe(const u8* codes, const u8* scales, const u8* x, const u8* x_scales, float* out) {
    const int i = blockIdx.x;
    codes += i * 1024, scales += i * 64, x += i * 1024, x_scales += i * 32, out += i * 512;
    probe_group<0>(codes, scales, x, x_scales, out);
    probe_group<1>(codes, scales, x, x_scales, out);
    probe_group<2>(codes, scales, x, x_scales, out);
    probe_group<3>(codes, scales, x, x_scales, out);
}
#endif
