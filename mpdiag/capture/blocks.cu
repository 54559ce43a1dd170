// Exponent counts of one tensor, and the counts inside its blocks of 32 and 16 elements, in one pass over memory.
//
// A warp reads a block of 32. Each lane has its own counters in shared memory, in its own bank, so that only warps meet
// at one. Runs in one step of a capture; the others are left to count.cu.

#define WARPS (THREADS / 32)
#define UNROLL 4                  // blocks a warp asks for before it counts them
#define BINS_A_LANE (CODES + RATIO_END)
#define LEAST_BINADE (-149)
#define MAX_DIMS 6
#define ALL 0xffffffffu
#define INFINITE 0x7f800000u
#define FRACTION 0x007fffffu
#define LEADING 0x00800000u
#define ABOVE_QUARTERS 0x001fffff  // added to bits, it carries into the exponent where the fraction is above 1.75's

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum { FLOAT32, FLOAT16, BFLOAT16 };

struct Blocked {
    const void *values;
    i64 rows, length;                        // of a row; its last block may be shorter
    i64 sizes[MAX_DIMS], strides[MAX_DIMS];  // outermost first
    int dims, row, type;                     // row: of the tables
};

extern __shared__ __align__(16) u32 shared_words[];

// bits of |x| as float32
template <int TYPE>
__device__ __forceinline__ u32 load(const void *values, i64 i) {
    if (TYPE == FLOAT32) return __ldg((const u32 *)values + i) & 0x7fffffffu;
    u32 bits = __ldg((const u16 *)values + i) & 0x7fffu;
    if (TYPE == BFLOAT16) return bits << 16;
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
    return __float_as_uint(value);
}

__device__ __forceinline__ int code_of(u32 bits) {  // the ordinary table's
    if (bits == 0) return CODE_ZEROS;
    if (bits >= INFINITE) return bits == INFINITE ? CODE_INFS : CODE_NANS;
    return bits >= LEADING ? (int)(bits >> 23) + 22 : 31 - __clz(bits);
}

// bits as if the exponent field went on below zero, so that subnormals have a leading one like the others
__device__ __forceinline__ int wide(u32 bits) {
    return bits >= LEADING ? (int)bits : (int)__float_as_uint(__uint2float_rn(bits)) - (149 << 23);
}

// -floor(log2(1.5|x| / largest)), of significands as integers
__device__ __forceinline__ int ratio_of(int value, int largest) {
    u32 three = 3 * (((u32)value & FRACTION) + LEADING), two = 2 * (((u32)largest & FRACTION) + LEADING);
    return (largest >> 23) - (value >> 23) + 1 - (three >= two) - (three >= 2 * two);
}

__device__ __forceinline__ void add_to(u64 *cell, u64 amount) {
    if (amount) atomicAdd(cell, amount);
}

struct Extremes {
    u32 largest, least;  // bits of the largest; bits - 1 of the smallest
};

// one element of a lane; all lanes of a warp call this together. absent: beyond the end of a row
__device__ __forceinline__ void take(u32 bits, bool absent, u32 lane, u32 *binades, Extremes &seen) {
    u32 finite = bits < INFINITE && !absent ? bits : 0;
    u32 of16 = finite;
    #pragma unroll
    for (int step = 8; step; step >>= 1) of16 = max(of16, __shfl_xor_sync(ALL, of16, step));
    u32 of32 = max(of16, __shfl_xor_sync(ALL, of16, 16));
    if (!absent) atomicAdd(shared_words + code_of(bits) * 32 + lane, 1u);
    int ratio = 0;
    if (finite) {
        int value = wide(finite), largest = wide(of32);
        int distance = min(((largest + ABOVE_QUARTERS) >> 23) - (value >> 23), DISTANCES - 1);
        ratio = ratio_of(value, wide(of16));
        atomicAdd(shared_words + (CODES + distance) * 32 + lane, 1u);
        atomicAdd(shared_words + (CODES + DISTANCES + min(ratio, RATIOS - 1)) * 32 + lane, 1u);
        seen.largest = max(seen.largest, finite);
        seen.least = min(seen.least, finite - 1);
    }
    u32 half = 0xffffu << (lane & 16u);
    u32 nonzero = __ballot_sync(ALL, finite != 0) & half;
    u32 flushed = __ballot_sync(ALL, ratio >= LOST_RATIO) & half;
    if ((lane & 15u) == 0 && nonzero) {
        int binade = (wide(of16) >> 23) - 127 - LEAST_BINADE;
        atomicAdd(binades + binade, (u32)__popc(nonzero));
        if (flushed) atomicAdd(binades + BINADES + binade, (u32)__popc(flushed));
    }
}

template <int TYPE>
__device__ __forceinline__ u32 element(const Blocked &tensor, i64 i) {
    if (tensor.dims == 1) return load<TYPE>(tensor.values, i * tensor.strides[0]);
    i64 offset = 0;
    for (int dim = tensor.dims - 1; dim >= 0; --dim) {
        i64 outer = i / tensor.sizes[dim];
        offset += (i - outer * tensor.sizes[dim]) * tensor.strides[dim];
        i = outer;
    }
    return load<TYPE>(tensor.values, offset);
}

template <int TYPE>
__device__ __forceinline__ void take_all(const Blocked &tensor, u32 *binades, Extremes &seen) {
    const u32 lane = threadIdx.x & 31;
    const i64 a_row = (tensor.length + 31) / 32, blocks = tensor.rows * a_row;
    const i64 warps = (i64)gridDim.x * WARPS;
    for (i64 first = (i64)blockIdx.x * WARPS + threadIdx.x / 32; first < blocks; first += warps * UNROLL) {
        u32 bits[UNROLL];
        bool absent[UNROLL];
        #pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            i64 block = first + u * warps;
            i64 row = tensor.rows == 1 ? 0 : block / a_row;
            i64 column = (block - row * a_row) * 32 + lane;
            absent[u] = block >= blocks || column >= tensor.length;
            bits[u] = absent[u] ? 0 : element<TYPE>(tensor, row * tensor.length + column);
        }
        #pragma unroll
        for (int u = 0; u < UNROLL; ++u) take(bits[u], absent[u], lane, binades, seen);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
count_blocks(const __grid_constant__ Blocked tensor, u64 *table, u64 *block_table) {
    u32 *binades = shared_words + BINS_A_LANE * 32;
    for (int i = threadIdx.x; i < BINS_A_LANE * 32 + 2 * BINADES; i += THREADS) shared_words[i] = 0;
    __syncthreads();
    Extremes seen = {0, ALL};
    if (tensor.type == FLOAT32) take_all<FLOAT32>(tensor, binades, seen);
    else if (tensor.type == FLOAT16) take_all<FLOAT16>(tensor, binades, seen);
    else take_all<BFLOAT16>(tensor, binades, seen);
    __syncthreads();

    u64 *row = table + (i64)tensor.row * TABLE_WIDTH, *block_row = block_table + (i64)tensor.row * BLOCK_WIDTH;
    const u32 lane = threadIdx.x & 31;
    for (int bin = threadIdx.x / 32; bin < BINS_A_LANE; bin += WARPS) {
        u64 sum = shared_words[bin * 32 + lane];
        #pragma unroll
        for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(ALL, sum, step);
        if (lane == 0) add_to(bin < CODES ? row + bin : block_row + (bin - CODES), sum);
    }
    for (int i = threadIdx.x; i < 2 * BINADES; i += THREADS) add_to(block_row + RATIO_END + i, binades[i]);
    #pragma unroll
    for (int step = 16; step; step >>= 1) {
        seen.largest = max(seen.largest, __shfl_xor_sync(ALL, seen.largest, step));
        seen.least = min(seen.least, __shfl_xor_sync(ALL, seen.least, step));
    }
    if (lane == 0 && seen.largest) {
        atomicMax(row + COLUMN_ABS_MAX, (u64)seen.largest);
        atomicMin(row + COLUMN_ABS_MIN, (u64)seen.least + 1);
        atomicMax(block_row + COLUMN_LARGEST, (u64)seen.largest);
    }
}
