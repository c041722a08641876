// Attention and rotation for any head width up to 128, any block size, F32, BF16 or FP8 caches. Not fast: it serves shapes
// that the other kernels do not, and is what they are compared with.
//
// Who computes what: attention gives a warp each (row, query head), lanes share the dimensions; rope_store_any a block each row.
#include "e4m3.cuh"
#include "tandem.cuh"

constexpr int WIDEST = 4; // dimensions of a lane, 32 apart

/// Values of the cache: `bytes` 4 for f32, 2 for BF16, 1 for E4M3.
DEVICE float read(const void* pool, u64 at, int bytes) {
    if (bytes == 1) return low_f16(from_e4m3(u16(((const u8*)pool)[at])));
    return bytes == 4 ? ((const float*)pool)[at] : from_bf16(((const u16*)pool)[at]);
}

DEVICE void write(void* pool, u64 at, int bytes, float value) {
    if (bytes == 4) ((float*)pool)[at] = value;
    else if (bytes == 1) ((u8*)pool)[at] = u8(to_e4m3(value, 0));
    else ((u16*)pool)[at] = to_bf16(value);
}

/// The pool: [block][layer][kv_head][keys, values][block_tokens][dim].
struct Cache {
    void* pool;
    int bytes, layers, layer, kv_heads, block_tokens, dim;
    DEVICE u64 key(int block, int head, int slot) const {
        return ((((u64)block * layers + layer) * kv_heads + head) * 2 * block_tokens + slot) * dim;
    }
    DEVICE u64 value(int block, int head, int slot) const { return key(block, head, slot + block_tokens); }
};

// Rotates q and k of every row in place, half-split: (j, j + dim / 2); stores k and v. Angles are f32 products.
// Launch: (rows), 256 threads.
extern "C" __global__ void rope_store_any(float* qkv, int heads, const float* inv_freq, float rope_scale, Cache cache,
                                      const int* tables, int table_stride, const int* sequences, const int* positions) {
    wait_for_predecessor();
    int row = blockIdx.x, position = positions[row], half = cache.dim / 2;
    if (position < 0) return;
    float* mine = qkv + (u64)row * (heads + 2 * cache.kv_heads) * cache.dim;
    int block = tables[sequences[row] * table_stride + position / cache.block_tokens], slot = position % cache.block_tokens;
    for (int i = threadIdx.x; i < (heads + cache.kv_heads) * half; i += blockDim.x) {
        int head = i / half, j = i % half;
        float* x = mine + head * cache.dim + j;
        float sine, cosine, a = x[0], b = x[half];
        sincosf(float(position) * inv_freq[j], &sine, &cosine);
        sine *= rope_scale, cosine *= rope_scale;
        x[0] = a * cosine - b * sine;
        x[half] = b * cosine + a * sine;
        if (head >= heads) {
            u64 at = cache.key(block, head - heads, slot);
            write(cache.pool, at + j, cache.bytes, x[0]);
            write(cache.pool, at + j + half, cache.bytes, x[half]);
        }
    }
    const float* v = mine + (heads + cache.kv_heads) * cache.dim;
    for (int i = threadIdx.x; i < cache.kv_heads * cache.dim; i += blockDim.x)
        write(cache.pool, cache.value(block, i / cache.dim, slot) + i % cache.dim, cache.bytes, v[i]);
}

// Launch: (rows, heads / 8 rounded up), 256 threads: a warp a head.
extern "C" __global__ void attention_any(const float* qkv, int heads, const float* sinks, Cache cache, const int* tables,
                                         int table_stride, const int* sequences, const int* positions, int window, float* out) {
    wait_for_predecessor();
    int row = blockIdx.x, lane = threadIdx.x % WARP, head = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
    int position = positions[row], dim = cache.dim;
    if (head >= heads || position < 0) return;
    int kv_head = head / (heads / cache.kv_heads);
    const int* table = tables + sequences[row] * table_stride;
    const float* query = qkv + ((u64)row * (heads + 2 * cache.kv_heads) + head) * dim;
    float q[WIDEST], sums[WIDEST], scale = rsqrtf(float(dim));
#pragma unroll
    for (int i = 0; i < WIDEST; i++) {
        int d = lane + i * WARP;
        q[i] = d < dim ? query[d] * scale : 0.0f;
        sums[i] = 0;
    }
    float largest = sinks[head], total = 1.0f;
    int begin = window && position + 1 > window ? position + 1 - window : 0;
    for (int p = begin; p <= position; p++) {
        int block = table[p / cache.block_tokens], slot = p % cache.block_tokens;
        u64 key = cache.key(block, kv_head, slot), value = cache.value(block, kv_head, slot);
        float score = 0;
#pragma unroll
        for (int i = 0; i < WIDEST; i++) {
            int d = lane + i * WARP;
            if (d < dim) score += q[i] * read(cache.pool, key + d, cache.bytes);
        }
        score = warp_sum(score);
        float now = fmaxf(largest, score), shrink = expf(largest - now), weight = expf(score - now);
        largest = now;
        total = total * shrink + weight;
#pragma unroll
        for (int i = 0; i < WIDEST; i++) {
            int d = lane + i * WARP;
            if (d < dim) sums[i] = sums[i] * shrink + weight * read(cache.pool, value + d, cache.bytes);
        }
    }
#pragma unroll
    for (int i = 0; i < WIDEST; i++) {
        int d = lane + i * WARP;
        if (d < dim) out[((u64)row * heads + head) * dim + d] = sums[i] / total;
    }
}
