// Partial sums of several ranks, added up through host memory that both the device and the peers (or their network
// adapter) see, in one launch, so that a step with all its exchanges is one recorded graph. The protocol is crates/link's: message
// number `seq` goes through slot `seq & 1`. A device sends no message before it has taken all of its peers' one before, so two
// slots suffice.
#include "tandem.cuh"

constexpr int WORLD_MAX = 4;
constexpr int THREADS = 512;

struct Group {
    int rank, world;
    u32* abort;       // not 0: nobody waits any more
    const u64* first; // number of the step's first message, in device memory
    u64 limit;        // longest wait, ns
};

DEVICE u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

/// For how long somebody has waited. Costs a trip to host memory or the timer only once in so many looks, each a trip itself.
struct Patience {
    u32 looks = 0;
    u64 since = 0;

    /// After another look in vain: whether to go on. Not when the abort word is set, nor when the time is up, which sets it.
    DEVICE bool left(const Group& group) {
        if (++looks % 64) return true;
        if (*(volatile u32*)group.abort) return false;
        u64 now = nanoseconds();
        if (!since) since = now;
        if (now - since <= group.limit) return true;
        *(volatile u32*)group.abort = 1;
        return false;
    }
};

// ---- memory that all ranks see ----

// A packet: two values, each followed by the message's number. Eight aligned bytes are written and read as one, so where the
// number is, the value is: no flag, no fence before it, no second trip after it.
struct Packets {
    Group group;
    uint4* sent[2];
    const uint4* received[WORLD_MAX][2]; // by rank; this rank's own are unused
};

// A payload in pieces, one for every message and block, each of `base` pairs of values, the first `extra` of one more. Block b's
// piece of any message begins `b * stride` packets into the slot: what lies there concerns that block alone.
struct Pieces {
    u32 messages, base, extra, stride;
};

constexpr u32 NUMBERED = 1u << 31; // memory never written to holds no number

DEVICE void send(uint4* to, float2 pair, u32 number) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(__float_as_uint(pair.x)), "r"(number),
                 "r"(__float_as_uint(pair.y))
                 : "memory");
}

DEVICE uint4 look(const uint4* at) {
    uint4 packet;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(packet.x), "=r"(packet.y), "=r"(packet.z), "=r"(packet.w)
                 : "l"(at)
                 : "memory");
    return packet;
}

/// The sum of all ranks' pairs in their order, once packet `at` of every peer is there. False: it did not come.
DEVICE bool sum_pairs(const Packets& ranks, int slot, u64 at, u32 number, float2 mine, float2& sum) {
    const int rank = ranks.group.rank, world = ranks.group.world;
    uint4 packets[WORLD_MAX];
    Patience patience;
    for (bool here = false; !here;) {
        // All peers' at the same time: a look is a trip over the bus.
#pragma unroll
        for (int peer = 0; peer < WORLD_MAX; peer++)
            if (peer < world && peer != rank) packets[peer] = look(ranks.received[peer][slot] + at);
        here = true;
#pragma unroll
        for (int peer = 0; peer < WORLD_MAX; peer++)
            if (peer < world && peer != rank) here = here && packets[peer].y == number && packets[peer].w == number;
        if (!here && !patience.left(ranks.group)) return false;
    }
#pragma unroll
    for (int peer = 0; peer < WORLD_MAX; peer++) {
        if (peer >= world) break;
        float2 its = make_float2(from_bits(packets[peer].x), from_bits(packets[peer].z));
        if (peer == rank) its = mine;
        sum = peer == 0 ? its : make_float2(sum.x + its.x, sum.y + its.y);
    }
    return true;
}

// into += the sum over ranks, in their order, of part; pairs of f32 values. The step's messages from `index` on.
//
// Launch: (blocks, 1, 1), 512 threads, the same on every rank. Blocks of different ranks wait for each other, those of one do not.
extern "C" __global__ void __launch_bounds__(THREADS)
    exchange_packets(const __grid_constant__ Packets ranks, int index, Pieces pieces, const float2* part, float2* into) {
    // Written before the step.
    u64 seq = __ldcg(ranks.group.first) + index;
    wait_for_predecessor();
    for (u32 message = 0; message < pieces.messages; message++, seq++) {
        const u32 piece = message * gridDim.x + blockIdx.x, number = u32(seq) | NUMBERED;
        const u32 begin = piece * pieces.base + min(piece, pieces.extra), count = pieces.base + (piece < pieces.extra);
        const int slot = seq & 1;
        const u64 place = u64(blockIdx.x) * pieces.stride;
        for (u32 i = threadIdx.x; i < count; i += THREADS) send(ranks.sent[slot] + place + i, part[begin + i], number);
        if (message + 1 == pieces.messages) let_successor_start();
        bool failed = false;
        for (u32 i = threadIdx.x; i < count && !failed; i += THREADS) {
            float2 to = into[begin + i], sum;
            failed = !sum_pairs(ranks, slot, place + i, number, part[begin + i], sum);
            if (!failed) into[begin + i] = make_float2(to.x + sum.x, to.y + sum.y);
        }
        // Before the block sends again it has taken all of its peers' pieces, and any packet of the next piece says so of them.
        if (message + 1 < pieces.messages && __syncthreads_or(failed)) return;
    }
}

// ---- through a relay ----

// A message is staged, then announced to the relay by the word `seq * step + bytes`; each receiver waits for its words to equal that.
struct Relayed {
    Group group;
    float* staged[2];
    u64* tell[2];
    u64 step;                            // factor of a number in its announcement
    u64 stripe_above;                    // longest message that one word announces, bytes; a longer one has `stripes`
    u32 stripes;
    const float* received[WORLD_MAX][2]; // by rank; this rank's own are unused
    const u64* flag[WORLD_MAX][2];
};

DEVICE u64 load_acquire(const u64* word) {
    u64 value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

DEVICE void await_word(const Group& group, const u64* word, u64 wanted) {
    Patience patience;
    while (load_acquire(word) != wanted)
        if (!patience.left(group)) return;
}

// into += the sum over ranks, in their order, of part; `len` f32 values, a multiple of 4, one message: the step's number `index`.
//
// Launch: (few blocks, all resident at once, since they wait for each other), 512 threads. `arrived` is 0 and is left 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    exchange_relayed(const __grid_constant__ Relayed ranks, int index, const float* part, u64 len, float* into, u32* arrived) {
    const Group& group = ranks.group;
    wait_for_predecessor();
    u64 seq = __ldcg(group.first) + index, bytes = len * sizeof(float), wanted = seq * ranks.step + bytes;
    int slot = seq & 1;
    u64 begin = blockIdx.x * (u64)blockDim.x + threadIdx.x, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = begin; i < len / 4; i += stride) ((float4*)ranks.staged[slot])[i] = ((const float4*)part)[i];
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
            *(volatile u64*)ranks.tell[slot] = wanted;
        }
    }
    const u32 words = bytes > ranks.stripe_above ? ranks.stripes : 1;
    const int peer = threadIdx.x / words;
    if (peer < group.world && peer != group.rank) await_word(group, ranks.flag[peer][slot] + threadIdx.x % words, wanted);
    __syncthreads();
    let_successor_start();
    for (u64 i = begin; i < len / 4; i += stride) {
        float4 sum = make_float4(0, 0, 0, 0), to = ((float4*)into)[i];
        for (int rank = 0; rank < group.world; rank++) {
            const float4* from = (const float4*)(rank == group.rank ? part : ranks.received[rank][slot]);
            float4 its = rank == group.rank ? from[i] : __ldcv(from + i);
            sum = rank == 0 ? its : make_float4(sum.x + its.x, sum.y + its.y, sum.z + its.z, sum.w + its.w);
        }
        ((float4*)into)[i] = make_float4(to.x + sum.x, to.y + sum.y, to.z + sum.z, to.w + sum.w);
    }
}
