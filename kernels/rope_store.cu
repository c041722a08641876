// Rotates the queries and keys of many rows and puts keys and values in their blocks.
#include "e4m3.cuh"
#include "prefill.cuh"

DEVICE void put_pair(u16* to, float2 v) { *(u32*)to = pack_bf16(v.x, v.y); }

DEVICE void put_pair(u8* to, float2 v) { *(u16*)to = to_e4m3(v.x, v.y); }

// Grid: one block of 256 threads a row. Half-split rotation: element j with j + 32. The angle is fp32(position) *
// fp32(inverse frequency), as in the reference; sine and cosine reduce the full range. `concentration` multiplies both.
// Reads 4 and writes 2 bytes an element, or 1.
//
// qkv          f32 [n, (heads + 2 * kv_heads) * 64], biases added
// q            bf16 [n, heads * 64], rotated; or null: then the queries are rotated in qkv, in place
// pool         bf16, or e4m3 (rope_store_fp8), [block][layers][kv_heads][K, V][16][64]
// tables       [sequences][table_stride], by position / 16
// sequence_rows [sequences + 1], first_position [sequences]
template <class T>
DEVICE void rotate_and_store(float* __restrict__ qkv, u16* __restrict__ q, T* __restrict__ pool, int layers, int layer, int kv_heads, int heads, const int* __restrict__ tables, int table_stride, const int* __restrict__ sequence_rows, const int* __restrict__ first_position, int sequences, const float* __restrict__ inverse_frequency, float concentration) {
    __shared__ float cosine[32], sine[32];
    __shared__ int row_position, row_block;
    const int row = blockIdx.x;
    if (threadIdx.x < 32) {
        int low = 0, high = sequences - 1;
        while (low < high) {
            int middle = (low + high + 1) / 2;
            if (sequence_rows[middle] <= row) low = middle;
            else high = middle - 1;
        }
        const int position = first_position[low] + row - sequence_rows[low];
        const float angle = __fmul_rn((float)position, inverse_frequency[threadIdx.x]);
        float s, c;
        sincosf(angle, &s, &c);
        cosine[threadIdx.x] = c * concentration;
        sine[threadIdx.x] = s * concentration;
        if (threadIdx.x == 0) row_position = position, row_block = tables[(u64)low * table_stride + position / 16];
    }
    __syncthreads();
    float* from = qkv + (u64)row * (heads + 2 * kv_heads) * 64;
    u16* to_q = q ? q + (u64)row * heads * 64 : nullptr;
    T* slot = pool + ((u64)row_block * layers + layer) * kv_heads * 2048 + row_position % 16 * 64;
    // Two neighbouring j a thread.
    for (int i = threadIdx.x; i < (heads + kv_heads) * 16; i += 256) {
        const int head = i / 16, j = i % 16 * 2;
        const float2 a = *(float2*)(from + head * 64 + j), b = *(float2*)(from + head * 64 + j + 32);
        const float2 c = *(float2*)(cosine + j), s = *(float2*)(sine + j);
        const float2 low = make_float2(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y);
        const float2 high = make_float2(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y);
        if (head < heads && !q) {
            *(float2*)(from + head * 64 + j) = low;
            *(float2*)(from + head * 64 + j + 32) = high;
        } else if (head < heads) {
            put_pair(to_q + head * 64 + j, low);
            put_pair(to_q + head * 64 + j + 32, high);
        } else {
            put_pair(slot + (head - heads) * 2048 + j, low);
            put_pair(slot + (head - heads) * 2048 + j + 32, high);
        }
    }
    const float* values = from + (heads + kv_heads) * 64;
    for (int i = threadIdx.x; i < kv_heads * 32; i += 256) {
        put_pair(slot + i / 32 * 2048 + 1024 + i % 32 * 2, *(const float2*)(values + i * 2));
    }
}

#define ROPE_STORE(NAME, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) NAME(                                                                            \
        float* __restrict__ qkv, u16* __restrict__ q, T* __restrict__ pool, int layers, int layer, int kv_heads, int heads,           \
        const int* __restrict__ tables, int table_stride, const int* __restrict__ sequence_rows, const int* __restrict__ first_position, \
        int sequences, const float* __restrict__ inverse_frequency, float concentration) {                                            \
        rotate_and_store<T>(qkv, q, pool, layers, layer, kv_heads, heads, tables, table_stride, sequence_rows, first_position,         \
                            sequences, inverse_frequency, concentration);                                                            \
    }
ROPE_STORE(rope_store, u16)
ROPE_STORE(rope_store_fp8, u8)
