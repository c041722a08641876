// Groups the (row, choice) pairs of a step by expert.
#include "prefill.cuh"

// Grid: one block of 256 threads for each expert; dynamic shared memory: 4 * experts bytes. One launch.
// Every block counts all ids (shared-memory adds: the result does not depend on their order), so each knows every expert's
// place; block e then writes expert e's pairs in ascending order, warp by warp with ballots, and its tiles.
// Reads experts * rows * top_k * 8 bytes, nearly all from L2. Others than the `experts` from first_held on are left out.
//
// ids      [rows, top_k]    expert of each pair, counted from first_held; pair = row * top_k + choice
// offsets  [experts + 1]    where an expert's pairs begin in `pairs`
// pairs    [rows * top_k]   pairs by expert
// tiles    [experts + rows * top_k / tile_rows] at most: {expert, first, count, 0}, count <= tile_rows, places in `pairs`
// n_tiles  [1]
extern "C" __global__ void __launch_bounds__(256) moe_group(const int* __restrict__ ids, int* __restrict__ offsets, int* __restrict__ pairs, int4* __restrict__ tiles, int* __restrict__ n_tiles, int n_pairs, int first_held, int experts, int tile_rows) {
    int* counts = (int*)dynamic_shared;
    __shared__ int before[2], warp_counts[8];
    const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int e = threadIdx.x; e < experts; e += 256) counts[e] = 0;
    if (threadIdx.x < 2) before[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n_pairs; i += 256) {
        int e = ids[i] - first_held;
        if (e >= 0 && e < experts) atomicAdd(&counts[e], 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < expert; e += 256) {
        atomicAdd(&before[0], counts[e]);
        atomicAdd(&before[1], (counts[e] + tile_rows - 1) / tile_rows);
    }
    __syncthreads();
    const int count = counts[expert], first = before[0], first_tile = before[1];
    const int own_tiles = (count + tile_rows - 1) / tile_rows;
    for (int i = threadIdx.x; i < own_tiles; i += 256) tiles[first_tile + i] = make_int4(expert, first + i * tile_rows, min(tile_rows, count - i * tile_rows), 0);
    if (threadIdx.x == 0) {
        offsets[expert] = first;
        if (expert == experts - 1) offsets[experts] = first + count, n_tiles[0] = first_tile + own_tiles;
    }
    if (count == 0) return;

    // Each warp owns one run of 32-pair groups: count them, then write.
    const int groups = (n_pairs + 31) / 32, per_warp = (groups + 7) / 8;
    const int begin = warp * per_warp * 32, end = min(begin + per_warp * 32, n_pairs);
    int mine = 0;
    for (int i = begin + lane; i - lane < end; i += 32) mine += __popc(__ballot_sync(0xffffffffu, i < end && ids[i] - first_held == expert));
    if (lane == 0) warp_counts[warp] = mine;
    __syncthreads();
    int place = first;
    for (int w = 0; w < warp; w++) place += warp_counts[w];
    for (int i = begin + lane; i - lane < end; i += 32) {
        bool here = i < end && ids[i] - first_held == expert;
        u32 mask = __ballot_sync(0xffffffffu, here);
        if (here) pairs[place + __popc(mask & ((1u << lane) - 1))] = i;
        place += __popc(mask);
    }
}
