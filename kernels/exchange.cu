// Partial sums of several ranks, added up through host memory that both the device and the peers (or their network
// adapter) see: stage, publish, wait, add, in one launch, so that a step with all its exchanges is one recorded graph.
// The protocol is crates/link's: message number `seq` goes through slot `seq & 1` and is announced by the word
// `seq * step + bytes`, which each receiver waits to equal. Nothing is staged before the exchange before it has ended, so
// two slots suffice.
//
// Launch: (few blocks, all resident at once, since they wait for each other), 512 threads. `arrived` is 0 and is left 0.
#include "tandem.cuh"

constexpr int WORLD_MAX = 4;

struct Lanes {
    int rank, world;
    float* staged[2];
    u32* abort;                      // not 0: nobody waits any more
    const u64* first;                // number of the step's first message, in device memory
    u64 step;                        // factor of a number in its announcement
    u64 limit;                       // longest wait, ns
    const float* received[WORLD_MAX][2]; // by rank; this rank's own entries are unused
    const u64* flag[WORLD_MAX][2];
    u64* tell[WORLD_MAX][2];         // where the announcement goes; one word for all peers where a relay passes it on
};

DEVICE u64 load_acquire(const u64* word) {
    u64 value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

DEVICE u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

/// Until the word is `wanted`, the abort word is set, or the time is up, which sets it.
DEVICE void await_word(const Lanes& lanes, const u64* word, u64 wanted) {
    u64 start = nanoseconds();
    for (u32 looks = 1; load_acquire(word) != wanted; looks++) {
        if (looks % 64) continue;
        if (*(volatile u32*)lanes.abort) return;
        if (nanoseconds() - start > lanes.limit) *(volatile u32*)lanes.abort = 1;
    }
}

// into += the sum over ranks, in their order, of part; `len` f32 values, a multiple of 4. The step's message `index`.
extern "C" __global__ void __launch_bounds__(512)
    exchange_add(Lanes lanes, int index, const float* part, u64 len, float* into, u32* arrived) {
    wait_for_predecessor();
    u64 seq = __ldcg(lanes.first) + index, wanted = seq * lanes.step + len * sizeof(float);
    int slot = seq & 1;
    u64 begin = blockIdx.x * (u64)blockDim.x + threadIdx.x, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = begin; i < len / 4; i += stride) ((float4*)lanes.staged[slot])[i] = ((const float4*)part)[i];
    __syncthreads();
    // One thread's fence is enough: what the others wrote before the barrier counts as its own.
    if (threadIdx.x == 0) {
        bool last = true;
        if (gridDim.x > 1) {
            __threadfence();
            last = atomicAdd(arrived, 1) == gridDim.x - 1;
        }
        if (last) {
            if (gridDim.x > 1) *arrived = 0;
            __threadfence_system();
            for (int peer = 0; peer < lanes.world; peer++)
                if (peer != lanes.rank) *(volatile u64*)lanes.tell[peer][slot] = wanted;
        }
    }
    int peer = threadIdx.x;
    if (peer < lanes.world && peer != lanes.rank) await_word(lanes, lanes.flag[peer][slot], wanted);
    __syncthreads();
    let_successor_start();
    for (u64 i = begin; i < len / 4; i += stride) {
        float4 sum = make_float4(0, 0, 0, 0), to = ((float4*)into)[i];
        for (int rank = 0; rank < lanes.world; rank++) {
            const float4* from = (const float4*)(rank == lanes.rank ? part : lanes.received[rank][slot]);
            float4 its = rank == lanes.rank ? from[i] : __ldcv(from + i);
            sum = rank == 0 ? its : make_float4(sum.x + its.x, sum.y + its.y, sum.z + its.z, sum.w + its.w);
        }
        ((float4*)into)[i] = make_float4(to.x + sum.x, to.y + sum.y, to.z + sum.z, to.w + sum.w);
    }
}
