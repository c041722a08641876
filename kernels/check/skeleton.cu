// A launch of decoding without its arithmetic, for skeleton.py: reads what the real kernel reads, in blocks as many and as
// large, after the kernel before it, and leaves sums that the next one needs.
//
// Who reads what: a block takes pieces of the weights with the stride of the grid, all threads 16 bytes each, AHEAD loads
// under way. Where experts are chosen, their ids and number are read from memory, as the real kernels read them.
//
// Launch: any grid, 256 threads, any shared memory.
#include "tandem.cuh"

constexpr int THREADS = 256, AHEAD = 6;
constexpr u32 ROUND = THREADS * 16;

/// The pieces of one block, load by load.
struct Pieces {
    const u8* weights;
    const int* ids; // null: there are no experts
    u64 expert_bytes;
    u32 piece_bytes; // a multiple of 16
    int each, all, piece, stride;
    u32 at;
    const u8* from;

    DEVICE void place() {
        if (piece < all) from = weights + (ids ? (u64)__ldcg(ids + piece / each) * expert_bytes : 0) + (u64)(piece % each) * piece_bytes;
    }

    DEVICE void begin() {
        at = threadIdx.x * 16;
        place();
    }

    DEVICE uint4 next() {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (piece >= all) return v;
        if (at < piece_bytes) v = load_weights(from + at);
        at += ROUND;
        if (at - threadIdx.x * 16 >= piece_bytes) {
            piece += stride;
            begin();
        }
        return v;
    }
};

DEVICE u32 fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

/// `x` [x_words x 16 bytes] is what the kernel before left. `early`: where the weights lie does not depend on it, so that
/// the first loads are under way before it has ended. `out` [out_words].
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    skeleton(const u8* weights, u64 expert_bytes, int piece_bytes, int each, const int* ids, const int* count, int early,
             const uint4* x, int x_words, u32* out, int out_words) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z), blocks = gridDim.x * gridDim.y * gridDim.z;
    if (!early) wait_for_predecessor();
    int all = ids ? each * __ldcg(count) : each;
    Pieces pieces = {weights, ids, expert_bytes, (u32)piece_bytes, each, all, block, blocks};
    pieces.begin();
    uint4 held[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) held[i] = pieces.next();
    if (early) wait_for_predecessor();
    u32 sum = 0;
    for (int i = threadIdx.x; i < x_words; i += THREADS) sum ^= fold(__ldcg(x + i));
    let_successor_start();
    int mine = block < all ? (all - block + blocks - 1) / blocks : 0;
    for (int left = mine * ((piece_bytes + ROUND - 1) / ROUND); left > 0; left -= AHEAD)
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            sum ^= fold(held[i]);
            held[i] = pieces.next();
        }
    for (int d = 16; d; d >>= 1) sum ^= __shfl_xor_sync(ALL_LANES, sum, d);
    if (threadIdx.x % WARP == 0) out[(block * (THREADS / WARP) + threadIdx.x / WARP) % out_words] = sum;
}
