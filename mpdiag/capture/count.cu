// Exponent counts of up to MAX_SEGMENTS tensors in one pass over memory: counts by binade, zeros, infinities, NaNs,
// largest and smallest non-zero finite magnitude, each tensor into its own row of the table.
//
// Every thread owns a private column of byte counters in shared memory, so the hot path has no atomics and no bank
// conflicts: the four bins of one word belong to one thread, and neighbouring threads use neighbouring banks. Bytes
// are summed into 64-bit block totals before any can overflow. Magnitudes outside 2^-103..2^24, infinities and NaNs
// are rare: the former go to the table directly, the others are counted in registers.

#define THREADS 256
#define BINS 128           // private bins: exponent fields FIRST_FIELD .. FIRST_FIELD + 127
#define FIRST_FIELD 24     // 2^-103; a multiple of 4, so that a bin's word and byte are bits of the number itself
#define UNIT 2048          // elements the block takes at a time, 8 a thread: the grain in which blocks share the work
#define UNITS_A_SUM 31     // a byte holds 255: 31 units of 8, and up to 7 of a tensor's end
#define MAX_SEGMENTS 96

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct Segment {
    const void *values;
    i64 count;
    i64 first_unit;
    int row;
    int type;  // 0 float32, 1 float16, 2 bfloat16
};

struct Segments {
    Segment of[MAX_SEGMENTS];
};

struct Seen {
    u32 largest, smallest, zeros, infs, nans;
};

__device__ __forceinline__ u32 from_half(u32 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
    return __float_as_uint(value);
}

__device__ __noinline__ void far_out(u32 bits, u64 *row) {
    int code = bits >= 0x00800000u ? (int)(bits >> 23) + 22 : 31 - __clz(bits);  // a subnormal is bits * 2^-149
    atomicAdd(row + code, 1ull);
}

// what lies outside the private bins and is not zero; bits without their sign
__device__ __forceinline__ void take_rare(u32 bits, Seen &seen, u64 *row) {
    if (bits < 0x7f800000u) {
        far_out(bits, row);
        seen.largest = max(seen.largest, bits);
        seen.smallest = min(seen.smallest, bits);
    } else if (bits == 0x7f800000u) {
        seen.infs += 1;
    } else {
        seen.nans += 1;
    }
}

// `column` is shifted by FIRST_FIELD, so that the exponent field itself is the index
__device__ __forceinline__ void take(u32 bits, unsigned char *column, Seen &seen, u64 *row) {
    bits &= 0x7fffffffu;
    if (bits - ((u32)FIRST_FIELD << 23) < ((u32)BINS << 23)) {
        column[((bits >> 15) & ~1023u) | ((bits >> 23) & 3)] += 1;
        seen.largest = max(seen.largest, bits);
        seen.smallest = min(seen.smallest, bits);
    } else if (bits == 0) {
        seen.zeros += 1;
    } else {
        take_rare(bits, seen, row);
    }
}

// float16: exponent field 1..30 is float32's 113..142; the extremes are kept as 16-bit patterns, which order alike
__device__ __forceinline__ void take_half(u32 bits, unsigned char *column, Seen &seen, Seen &narrow, u64 *row) {
    if (bits - 0x0400u < 0x7800u) {
        column[28 * 1024 + (((bits >> 2) & ~1023u) | ((bits >> 10) & 3))] += 1;
        narrow.largest = max(narrow.largest, bits);
        narrow.smallest = min(narrow.smallest, bits);
    } else if (bits == 0) {
        seen.zeros += 1;
    } else {
        take(from_half(bits), column, seen, row);
    }
}

__device__ __forceinline__ void take_brain(u32 bits, unsigned char *column, Seen &seen, Seen &narrow, u64 *row) {
    if (bits - ((u32)FIRST_FIELD << 7) < ((u32)BINS << 7)) {
        column[((bits << 1) & ~1023u) | ((bits >> 7) & 3)] += 1;
        narrow.largest = max(narrow.largest, bits);
        narrow.smallest = min(narrow.smallest, bits);
    } else if (bits == 0) {
        seen.zeros += 1;
    } else {
        take_rare(bits << 16, seen, row);
    }
}

template <int TYPE>
__device__ __forceinline__ void take_word(u32 word, unsigned char *column, Seen &seen, Seen &narrow, u64 *row) {
    if (TYPE == 0) {
        take(word, column, seen, row);
    } else if (TYPE == 1) {
        take_half(word & 0x7fffu, column, seen, narrow, row);
        take_half((word >> 16) & 0x7fffu, column, seen, narrow, row);
    } else {
        take_brain(word & 0x7fffu, column, seen, narrow, row);
        take_brain((word >> 16) & 0x7fffu, column, seen, narrow, row);
    }
}

template <int TYPE>
__device__ __forceinline__ void take_vector(uint4 four, unsigned char *column, Seen &seen, Seen &narrow, u64 *row) {
    take_word<TYPE>(four.x, column, seen, narrow, row);
    take_word<TYPE>(four.y, column, seen, narrow, row);
    take_word<TYPE>(four.z, column, seen, narrow, row);
    take_word<TYPE>(four.w, column, seen, narrow, row);
}

// byte counters -> block totals; a warp sums one word of all threads at a time
__device__ __forceinline__ void sum_bytes(u32 (*counters)[THREADS], u64 *totals) {
    __syncthreads();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int word = warp; word < BINS / 4; word += THREADS / 32) {
        u32 even = 0, odd = 0;  // two 16-bit sums each: at most 256 * 255
        for (int t = lane; t < THREADS; t += 32) {
            u32 four = counters[word][t];
            counters[word][t] = 0;
            even += four & 0x00ff00ffu;
            odd += (four >> 8) & 0x00ff00ffu;
        }
        if (!__any_sync(0xffffffffu, even | odd)) continue;  // most binades of a tensor are empty
        for (int step = 16; step; step >>= 1) {
            even += __shfl_xor_sync(0xffffffffu, even, step);
            odd += __shfl_xor_sync(0xffffffffu, odd, step);
        }
        if (lane == 0) {
            totals[4 * word] += even & 0xffff;
            totals[4 * word + 1] += odd & 0xffff;
            totals[4 * word + 2] += even >> 16;
            totals[4 * word + 3] += odd >> 16;
        }
    }
    __syncthreads();
}

// units [unit, last) of one tensor whose first element is 16-byte aligned
template <int TYPE>
__device__ __forceinline__ void take_units(const Segment &segment, i64 unit, i64 last, unsigned char *column, Seen &seen,
                                           u64 *row, u32 (*counters)[THREADS], u64 *totals) {
    const int vectors = TYPE == 0 ? 2 : 1;  // 16-byte loads a thread makes for a unit
    Seen narrow = {0, 0xffffffffu, 0, 0, 0};
    const uint4 *source = (const uint4 *)segment.values + threadIdx.x;
    i64 whole = min(last, segment.count / UNIT);
    while (unit < whole) {
        i64 stop = min(whole, unit + UNITS_A_SUM);
        #pragma unroll 2
        for (; unit < stop; ++unit) {
            uint4 loaded[vectors];
            #pragma unroll
            for (int v = 0; v < vectors; ++v) loaded[v] = __ldg(source + (unit * vectors + v) * THREADS);
            #pragma unroll
            for (int v = 0; v < vectors; ++v) take_vector<TYPE>(loaded[v], column, seen, narrow, row);
        }
        sum_bytes(counters, totals);
    }
    if (unit < last) {  // the tensor's end, less than a unit
        for (i64 i = unit * UNIT + threadIdx.x; i < segment.count; i += THREADS) {
            if (TYPE == 0) take(((const u32 *)segment.values)[i], column, seen, row);
            if (TYPE == 1) take_half(((const unsigned short *)segment.values)[i] & 0x7fffu, column, seen, narrow, row);
            if (TYPE == 2) take_brain(((const unsigned short *)segment.values)[i] & 0x7fffu, column, seen, narrow, row);
        }
        sum_bytes(counters, totals);
    }
    if (TYPE != 0 && narrow.largest) {
        seen.largest = max(seen.largest, TYPE == 1 ? from_half(narrow.largest) : narrow.largest << 16);
        seen.smallest = min(seen.smallest, TYPE == 1 ? from_half(narrow.smallest) : narrow.smallest << 16);
    }
}

__device__ void to_table(u64 *totals, Seen &seen, u64 *row) {
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
        if (totals[bin]) atomicAdd(row + FIRST_FIELD + 22 + bin, totals[bin]);
        totals[bin] = 0;
    }
    u32 zeros = __reduce_add_sync(0xffffffffu, seen.zeros);
    u32 infs = __reduce_add_sync(0xffffffffu, seen.infs);
    u32 nans = __reduce_add_sync(0xffffffffu, seen.nans);
    u32 largest = __reduce_max_sync(0xffffffffu, seen.largest);
    u32 smallest = __reduce_min_sync(0xffffffffu, seen.smallest);
    if ((threadIdx.x & 31) == 0) {
        if (zeros) atomicAdd(row + CODE_ZEROS, (u64)zeros);
        if (infs) atomicAdd(row + CODE_INFS, (u64)infs);
        if (nans) atomicAdd(row + CODE_NANS, (u64)nans);
        if (largest) atomicMax(row + COLUMN_ABS_MAX, (u64)largest);
        if (smallest != 0xffffffffu) atomicMin(row + COLUMN_ABS_MIN, (u64)smallest);
    }
    seen.zeros = seen.infs = seen.nans = 0;
    seen.largest = 0;
    seen.smallest = 0xffffffffu;
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
count_exponents(const __grid_constant__ Segments segments, int segment_count, i64 units, u64 *table) {
    __shared__ u32 counters[BINS / 4][THREADS];
    __shared__ u64 totals[BINS];
    for (int word = 0; word < BINS / 4; ++word) counters[word][threadIdx.x] = 0;
    if (threadIdx.x < BINS) totals[threadIdx.x] = 0;
    __syncthreads();
    unsigned char *column = (unsigned char *)&counters[0][threadIdx.x] - FIRST_FIELD / 4 * 1024;
    Seen seen = {0, 0xffffffffu, 0, 0, 0};
    // each block takes a run of neighbouring units, so it changes rows seldom
    i64 unit = units * blockIdx.x / gridDim.x, end = units * (blockIdx.x + 1) / gridDim.x;
    for (int s = 0; s < segment_count && unit < end; ++s) {
        const Segment &segment = segments.of[s];
        i64 next = s + 1 < segment_count ? segments.of[s + 1].first_unit : units;
        if (next <= unit) continue;
        u64 *row = table + (i64)segment.row * TABLE_WIDTH;
        i64 first = unit - segment.first_unit, last = min(end, next) - segment.first_unit;
        if (segment.type == 0) take_units<0>(segment, first, last, column, seen, row, counters, totals);
        else if (segment.type == 1) take_units<1>(segment, first, last, column, seen, row, counters, totals);
        else take_units<2>(segment, first, last, column, seen, row, counters, totals);
        to_table(totals, seen, row);
        unit = segment.first_unit + last;
    }
}
