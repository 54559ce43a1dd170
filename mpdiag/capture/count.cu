// Exponent counts of many tensors in one pass over memory: counts by binade, zeros, infinities, NaNs, largest and
// smallest non-zero finite magnitude, each tensor into its own row of the table.
//
// Every thread owns a private column of counters in shared memory, 32 words of its own bank, so the hot path has no
// atomics and no bank conflicts. FP32 and BF16 use bytes (128 bins, summed into 64-bit totals before one can
// overflow), FP16 uses words (its 32 exponent fields). Every element is counted without a branch under the low bits of
// its exponent field; the few that do not belong there (beyond the window, infinities, NaNs) are noticed by
// the largest and smallest of a vector of 16 bytes and put right afterwards, and so are zeros.

#define WORDS 32                  // counters of a thread
#define BINS 128                  // bins in bytes: exponent fields FIRST_FIELD .. FIRST_FIELD + 127
#define FIRST_FIELD 24            // 2^-103; the window ends below 2^25
// COLUMN_LOG2: of the bytes from one word of a thread to its next, THREADS * 4
#define GROUP 8                   // vectors; blocks share the work in lines of 128 bytes
#define MAX_SEGMENTS 96
#define MAX_DIMS 6
#define NONE 0xffffffffu

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum { FLOAT32, FLOAT16, BFLOAT16 };

struct Segment {
    const void *values;  // from here on aligned to 16 bytes
    i64 count;           // elements from `values` on
    i64 first_group;
    i64 times;           // how often each element counts (an expanded tensor)
    int row;
    short type;
    short before;        // elements ahead of `values`
};

struct Segments {
    Segment of[MAX_SEGMENTS];
};

struct Strided {
    const void *values;
    i64 count, times;
    i64 sizes[MAX_DIMS], strides[MAX_DIMS];  // outermost first
    int dims, row, type;
};

struct Moved {  // a slice of a parameter, before and after the optimizer's step
    const void *after, *before, *gradient;  // gradient: null for float32
    i64 count;
    int row, type;
};

struct Moves {
    Moved of[MAX_SEGMENTS];
};

struct Seen {
    u32 largest, least;  // bits of the largest; bits - 1 of the smallest
    u32 zeros, infs, nans;
};

struct Block {
    u32 own;         // bytes to this thread's column
    u32 *counters;
    u64 *totals;     // [BINS]
    u32 *far;        // [CODES]: counted in the wrong place, and belong there
    u32 *ends;       // largest, least
};

extern __shared__ __align__(16) u32 shared_words[];

__device__ __forceinline__ Block open_block() {
    Block block;
    block.counters = shared_words;
    block.totals = (u64 *)(shared_words + WORDS * THREADS);
    block.far = (u32 *)(block.totals + BINS);
    block.ends = block.far + CODES;
    block.own = threadIdx.x * 4;
    if (threadIdx.x == 0) {
        block.ends[0] = 0;
        block.ends[1] = NONE;
    }
    for (int word = 0; word < WORDS; ++word) shared_words[word * THREADS + threadIdx.x] = 0;
    for (int i = threadIdx.x; i < BINS; i += THREADS) block.totals[i] = 0;
    for (int i = threadIdx.x; i < CODES; i += THREADS) block.far[i] = 0;
    __syncthreads();
    return block;
}

__device__ __forceinline__ u32 half_to_float(u32 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
    return __float_as_uint(value);
}

__device__ __forceinline__ u32 float_to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float to_brain(float value) {  // rounded to nearest even; not for NaN
    u32 bits = __float_as_uint(value);
    return __uint_as_float((bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u);
}

__device__ __forceinline__ int code_of(u32 bits) {  // of a finite non-zero magnitude; a subnormal is bits * 2^-149
    return bits >= 0x00800000u ? (int)(bits >> 23) + 22 : 31 - __clz(bits);
}

// one non-zero element outside the window, as float32 bits without sign
template <int TYPE>
__device__ __forceinline__ void take_rare(u32 bits, Seen &seen, u32 *far) {
    if (bits < 0x7f800000u) {
        atomicAdd(far + code_of(bits), 1u);
        seen.largest = max(seen.largest, bits);
        seen.least = min(seen.least, bits - 1);
    } else if (bits == 0x7f800000u) {
        seen.infs += 1;
    } else {
        seen.nans += 1;
    }
}

// an element that is no zero, in a vector with a rare one; `bits` without sign, in the tensor's own type
template <int TYPE>
__device__ __forceinline__ void take_with_rare(u32 bits, Seen &seen, u32 *far) {
    const u32 lowest = TYPE == FLOAT16 ? 0x0400u : TYPE == BFLOAT16 ? FIRST_FIELD << 7 : (u32)FIRST_FIELD << 23;
    const u32 beyond = TYPE == FLOAT16 ? 0x7c00u : TYPE == BFLOAT16 ? (FIRST_FIELD + BINS) << 7
                                                                    : (u32)(FIRST_FIELD + BINS) << 23;
    if (bits == 0) return;
    u32 wide = TYPE == FLOAT16 ? half_to_float(bits) : TYPE == BFLOAT16 ? bits << 16 : bits;
    if (bits - lowest < beyond - lowest) {
        seen.largest = max(seen.largest, wide);
        seen.least = min(seen.least, wide - 1);
    } else {
        take_rare<TYPE>(wide, seen, far);
    }
}

// adds one to this thread's counter of an exponent field that begins at bit AT of `word`. Each counter's place is made
// of the field's own bits: in bytes, bits 0 and 1 of the field choose the byte and bits 2 to 6 the word
template <int AT>
__device__ __forceinline__ void tally_byte(u32 word, u32 own) {
    const int shift = AT + 2 - COLUMN_LOG2;
    u32 place = (shift >= 0 ? word >> (shift & 31) : word << (-shift & 31)) & (31u << COLUMN_LOG2);
    ((u8 *)shared_words)[place | own | ((word >> AT) & 3)] += 1;
}

template <int AT>
__device__ __forceinline__ void tally_word(u32 word, u32 own) {
    const int shift = AT - COLUMN_LOG2;
    u32 place = (shift >= 0 ? word >> (shift & 31) : word << (-shift & 31)) & (31u << COLUMN_LOG2);
    *(u32 *)((u8 *)shared_words + (place | own)) += 1;
}

template <int TYPE>
__device__ __forceinline__ void tally(u32 bits, u32 own) {
    if (TYPE == FLOAT32) tally_byte<23>(bits, own);
    if (TYPE == BFLOAT16) tally_byte<7>(bits, own);
    if (TYPE == FLOAT16) tally_word<10>(bits, own);
}

template <int TYPE>
__device__ __forceinline__ void tally_both(u32 pair, u32 own) {
    tally<TYPE>(pair, own);
    if (TYPE == BFLOAT16) tally_byte<23>(pair, own);
    if (TYPE == FLOAT16) tally_word<26>(pair, own);
}

// one element, without its sign
template <int TYPE>
__device__ __forceinline__ void take_one(u32 bits, u32 own, Seen &seen, u32 *far) {
    tally<TYPE>(bits, own);
    if (bits == 0 && TYPE != FLOAT16) seen.zeros += 1;
    take_with_rare<TYPE>(bits, seen, far);
}

__device__ __forceinline__ void take_float32(uint4 four, u32 own, Seen &seen, u32 *far) {
    u32 word[4] = {four.x & 0x7fffffffu, four.y & 0x7fffffffu, four.z & 0x7fffffffu, four.w & 0x7fffffffu};
    u32 largest = 0, least = NONE;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 below = word[i] - 1;  // a zero becomes the largest of all
        seen.zeros += below >> 31;
        largest = max(largest, word[i]);
        least = min(least, below);
        tally<FLOAT32>(word[i], own);
    }
    if (largest >= (u32)(FIRST_FIELD + BINS) << 23 || least < ((u32)FIRST_FIELD << 23) - 1) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) take_with_rare<FLOAT32>(word[i], seen, far);
    } else {
        seen.largest = max(seen.largest, largest);
        seen.least = min(seen.least, least);
    }
}

// two 16-bit elements a word. `largest` and `least` are pairs kept apart for the two halves: `least` holds
// 0x8000 + bits - 1 as signed numbers, in which a zero is the largest of all
template <int TYPE>
__device__ __forceinline__ void take_sixteen(uint4 four, u32 own, Seen &seen, u32 &largest, u32 &least, u32 *far) {
    const u32 beyond = TYPE == FLOAT16 ? 0x7c00u : (FIRST_FIELD + BINS) << 7;
    const u32 lowest = TYPE == FLOAT16 ? 0x0400u : FIRST_FIELD << 7;
    const u32 last = (beyond - 1) * 0x00010001u, first = (0x8000u + lowest - 1) * 0x00010001u;
    u32 word[4] = {four.x, four.y, four.z, four.w};
    u32 above = last, under = first;
    u32 high = 0, low = 0x7fff7fffu;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 below = (word[i] | 0x80008000u) - 0x00010001u;  // no borrow from half to half
        if (TYPE != FLOAT16) seen.zeros += __popc(~below & 0x80008000u);
        high = __vmaxu2(high, word[i] & 0x7fff7fffu);
        low = __vmins2(low, below);
        tally_both<TYPE>(word[i], own);
    }
    above = __vmaxu2(above, high);
    under = __vmins2(under, low);
    if (above != last || under != first) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            take_with_rare<TYPE>(word[i] & 0x7fffu, seen, far);
            take_with_rare<TYPE>((word[i] >> 16) & 0x7fffu, seen, far);
        }
    } else {
        largest = __vmaxu2(largest, high);
        least = __vmins2(least, low);
    }
}

template <int TYPE>
__device__ __forceinline__ u32 widened(u32 bits) {
    return TYPE == FLOAT16 ? half_to_float(bits) : bits << 16;
}

template <int TYPE>
__device__ __forceinline__ void merge_sixteen(u32 largest, u32 least, Seen &seen) {
    u32 most = max(largest & 0xffffu, largest >> 16);
    if (most) seen.largest = max(seen.largest, widened<TYPE>(most));
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        u32 below = (least >> (16 * half)) & 0xffffu;
        if (below & 0x8000u) seen.least = min(seen.least, widened<TYPE>((below & 0x7fffu) + 1) - 1);
    }
}

// counters -> block totals; a warp sums one word of all threads at a time
template <int TYPE>
__device__ __forceinline__ void sum_columns(Block &block) {
    __syncthreads();
    int lane = threadIdx.x & 31;
    for (int word = threadIdx.x >> 5; word < WORDS; word += THREADS / 32) {
        u32 even = 0, odd = 0;  // bytes: two 16-bit sums each, at most 32 * 255 a lane and step, summed below
        u64 all[4] = {0, 0, 0, 0};
        for (int t = lane; t < THREADS; t += 32) {
            u32 four = block.counters[word * THREADS + t];
            block.counters[word * THREADS + t] = 0;
            if (TYPE == FLOAT16) {
                all[0] += four;
            } else {
                even += four & 0x00ff00ffu;
                odd += (four >> 8) & 0x00ff00ffu;
            }
        }
        if (TYPE == FLOAT16) {
            if (!__any_sync(NONE, all[0] != 0)) continue;
            for (int step = 16; step; step >>= 1) all[0] += __shfl_xor_sync(NONE, all[0], step);
            if (lane == 0) block.totals[word] += all[0];
        } else {
            if (!__any_sync(NONE, even | odd)) continue;  // most binades of a tensor are empty
            u32 sums[4] = {even & 0xffffu, odd & 0xffffu, even >> 16, odd >> 16};
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32 sum = __reduce_add_sync(NONE, sums[i]);
                if (lane == 0) block.totals[4 * word + i] += sum;
            }
        }
    }
    __syncthreads();
}

__device__ __forceinline__ void add_to(u64 *cell, u64 amount) {
    if (amount) atomicAdd(cell, amount);
}

// the table's code of a bin of the block's totals
__device__ __forceinline__ int code_of_bin(int bin) {
    return 22 + (bin >= FIRST_FIELD ? bin : bin + BINS);
}

// in which code an element was counted at first that belongs to `code`; -1 for none
template <int TYPE>
__device__ __forceinline__ int misplaced(int code) {
    if (TYPE == FLOAT16) return code < CODE_INFS ? CODE_ZEROS : -1;  // subnormals; field 31 goes to no code
    if (code == CODE_ZEROS) return code_of_bin(0);
    if (code >= CODE_INFS) return code_of_bin(BINS - 1);
    int field = code < 23 ? 0 : code - 22;
    return code_of_bin(field & (BINS - 1));
}

// what the threads have seen -> the block: thousands of warps must not meet at one cell of the table
template <int TYPE>
__device__ __forceinline__ void to_block(Block &block, const Seen &seen) {
    u32 zeros = TYPE == FLOAT16 ? 0 : __reduce_add_sync(NONE, seen.zeros);
    u32 infs = __reduce_add_sync(NONE, seen.infs);
    u32 nans = __reduce_add_sync(NONE, seen.nans);
    u32 largest = __reduce_max_sync(NONE, seen.largest);
    u32 least = __reduce_min_sync(NONE, seen.least);
    if ((threadIdx.x & 31) == 0) {
        if (zeros) atomicAdd(block.far + CODE_ZEROS, zeros);
        if (infs) atomicAdd(block.far + CODE_INFS, infs);
        if (nans) atomicAdd(block.far + CODE_NANS, nans);
        atomicMax(block.ends, largest);
        atomicMin(block.ends + 1, least);
    }
    __syncthreads();
}

// block totals -> table; the block's shared counters start anew
template <int TYPE>
__device__ __forceinline__ void to_table(Block &block, const Seen &seen, u64 *row, u64 times) {
    to_block<TYPE>(block, seen);
    if (TYPE == FLOAT16) {  // fields 1..30 are float32's 113..142; field 0 holds zeros and subnormals, 31 the rest
        for (int bin = threadIdx.x; bin < 31; bin += THREADS) {
            add_to(row + (bin ? bin + 112 + 22 : CODE_ZEROS), block.totals[bin] * times);
        }
    } else {
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) add_to(row + code_of_bin(bin), block.totals[bin] * times);
    }
    for (int code = threadIdx.x; code < CODES; code += THREADS) {
        u64 amount = block.far[code] * times;
        if (!amount) continue;
        block.far[code] = 0;
        atomicAdd(row + code, amount);
        int wrong = misplaced<TYPE>(code);
        if (wrong >= 0) atomicAdd(row + wrong, 0 - amount);
    }
    if (threadIdx.x == 0) {
        if (block.ends[0]) atomicMax(row + COLUMN_ABS_MAX, (u64)block.ends[0]);
        if (block.ends[1] != NONE) atomicMin(row + COLUMN_ABS_MIN, (u64)block.ends[1] + 1);
        block.ends[0] = 0;
        block.ends[1] = NONE;
    }
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) block.totals[bin] = 0;
    __syncthreads();
}

template <int TYPE>
__device__ __forceinline__ u32 element(const void *values, i64 i) {
    if (TYPE == FLOAT32) return __ldg((const u32 *)values + i) & 0x7fffffffu;
    return __ldg((const u16 *)values + i) & 0x7fffu;
}

// vectors [at, last) of a segment, and where it `ends` here, the odd elements at both of its ends
template <int TYPE>
__device__ __forceinline__ void take_segment(const Segment &segment, i64 at, i64 last, bool ends, Block &block, Seen &seen) {
    const int a_vector = TYPE == FLOAT32 ? 4 : 8;
    // a byte holds 255: vectors of 4 or 8, up to 8 odd elements at either end
    const int a_sum = (TYPE == FLOAT32 ? 56 : TYPE == BFLOAT16 ? 28 : 1 << 20) * THREADS;
    u32 largest = 0, least = 0x7fff7fffu;
    const uint4 *source = (const uint4 *)segment.values;
    i64 whole = segment.count / a_vector;
    last = min(last, whole);
    while (at < last) {
        i64 stop = min(last, at + a_sum);
        for (; at + DEPTH * THREADS <= stop; at += DEPTH * THREADS) {
            uint4 loaded[DEPTH];
            #pragma unroll
            for (int d = 0; d < DEPTH; ++d) loaded[d] = __ldg(source + at + d * THREADS + threadIdx.x);
            #pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                if (TYPE == FLOAT32) take_float32(loaded[d], block.own, seen, block.far);
                else take_sixteen<TYPE>(loaded[d], block.own, seen, largest, least, block.far);
            }
        }
        for (; at < stop; at += THREADS) {
            if (at + threadIdx.x >= stop) continue;
            uint4 loaded = __ldg(source + at + threadIdx.x);
            if (TYPE == FLOAT32) take_float32(loaded, block.own, seen, block.far);
            else take_sixteen<TYPE>(loaded, block.own, seen, largest, least, block.far);
        }
        at = stop;
        if (at < last) sum_columns<TYPE>(block);
    }
    if (ends) {
        i64 odd = whole * a_vector + threadIdx.x;
        if (odd < segment.count) take_one<TYPE>(element<TYPE>(segment.values, odd), block.own, seen, block.far);
        if (threadIdx.x < segment.before) {
            u32 bits = element<TYPE>(segment.values, -1 - (i64)threadIdx.x);
            take_one<TYPE>(bits, block.own, seen, block.far);
        }
    }
    sum_columns<TYPE>(block);
    if (TYPE != FLOAT32) merge_sixteen<TYPE>(largest, least, seen);
}

template <int TYPE>
__device__ __forceinline__ void count_segment(const Segment &segment, i64 at, i64 last, bool ends, Block &block,
                                              u64 *row) {
    Seen seen = {0, NONE, 0, 0, 0};
    take_segment<TYPE>(segment, at, last, ends, block, seen);
    to_table<TYPE>(block, seen, row, segment.times);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
count_exponents(const __grid_constant__ Segments segments, int segment_count, i64 groups, u64 *table) {
    Block block = open_block();
    // each block takes a run of neighbouring groups, so it changes rows seldom
    i64 group = groups * blockIdx.x / gridDim.x, end = groups * (blockIdx.x + 1) / gridDim.x;
    for (int s = 0; s < segment_count && group < end; ++s) {
        const Segment &segment = segments.of[s];
        i64 next = s + 1 < segment_count ? segments.of[s + 1].first_group : groups;
        if (next <= group) continue;
        i64 stop = min(end, next);
        i64 at = (group - segment.first_group) * GROUP, last = (stop - segment.first_group) * GROUP;
        u64 *row = table + (i64)segment.row * TABLE_WIDTH;
        if (segment.type == FLOAT32) count_segment<FLOAT32>(segment, at, last, stop == next, block, row);
        else if (segment.type == FLOAT16) count_segment<FLOAT16>(segment, at, last, stop == next, block, row);
        else count_segment<BFLOAT16>(segment, at, last, stop == next, block, row);
        group = stop;
    }
}

template <int TYPE>
__device__ __forceinline__ void count_by_index(const Strided &tensor, Block &block, u64 *row) {
    Seen seen = {0, NONE, 0, 0, 0};
    int taken = 0;
    for (i64 base = (i64)blockIdx.x * THREADS; base < tensor.count; base += (i64)gridDim.x * THREADS) {
        i64 i = base + threadIdx.x;
        if (i < tensor.count) {
            i64 offset = 0;
            for (int dim = tensor.dims - 1; dim >= 0; --dim) {
                i64 outer = i / tensor.sizes[dim];
                offset += (i - outer * tensor.sizes[dim]) * tensor.strides[dim];
                i = outer;
            }
            take_one<TYPE>(element<TYPE>(tensor.values, offset), block.own, seen, block.far);
        }
        if (++taken == 255) {
            sum_columns<TYPE>(block);
            taken = 0;
        }
    }
    sum_columns<TYPE>(block);
    to_table<TYPE>(block, seen, row, tensor.times);
}

// a tensor with gaps or in an order that is no block of memory, element by element
extern "C" __global__ void __launch_bounds__(THREADS)
count_strided(const __grid_constant__ Strided tensor, u64 *table) {
    Block block = open_block();
    u64 *row = table + (i64)tensor.row * TABLE_WIDTH;
    if (tensor.type == FLOAT32) count_by_index<FLOAT32>(tensor, block, row);
    else if (tensor.type == FLOAT16) count_by_index<FLOAT16>(tensor, block, row);
    else count_by_index<BFLOAT16>(tensor, block, row);
}

struct Stagnant {
    u32 half, brain, wanted;
};

__device__ __forceinline__ float float_of(const void *values, i64 i, int type) {
    if (type == FLOAT32) return __ldg((const float *)values + i);
    u32 bits = __ldg((const u16 *)values + i);
    return __uint_as_float(type == FLOAT16 ? half_to_float(bits) : bits << 16);
}

// the update of one weight, and whether a 16-bit weight would have felt it
__device__ __forceinline__ u32 take_update(const Moved &moved, i64 i, Stagnant &stagnant) {
    float before = float_of(moved.before, i, moved.type);
    float update = __fsub_rn(float_of(moved.after, i, moved.type), before);
    if (moved.type == FLOAT32) {
        float half = __uint_as_float(half_to_float(float_to_half(before)));
        float half_after = __uint_as_float(half_to_float(float_to_half(__fadd_rn(half, update))));
        bool wanted = update != 0;
        stagnant.wanted += wanted;
        stagnant.half += wanted && half_after == half;
        float brain = to_brain(before), sum = __fadd_rn(brain, update);
        stagnant.brain += wanted && before == before && sum == sum && to_brain(sum) == brain;
    } else if (moved.gradient) {
        bool wanted = float_of(moved.gradient, i, moved.type) != 0;
        bool lost = wanted && update == 0;
        stagnant.wanted += wanted;
        if (moved.type == FLOAT16) stagnant.half += lost;
        else stagnant.brain += lost;
    }
    return __float_as_uint(update) & 0x7fffffffu;
}

// blocks share each slice; blockIdx.y is the slice
extern "C" __global__ void __launch_bounds__(THREADS)
count_updates(const __grid_constant__ Moves moves, u64 *table) {
    const Moved &moved = moves.of[blockIdx.y];
    if ((i64)blockIdx.x * THREADS >= moved.count) return;
    Block block = open_block();
    Seen seen = {0, NONE, 0, 0, 0};
    Stagnant stagnant = {0, 0, 0};
    int taken = 0;
    for (i64 base = (i64)blockIdx.x * THREADS; base < moved.count; base += (i64)gridDim.x * THREADS) {
        i64 i = base + threadIdx.x;
        if (i < moved.count) take_one<FLOAT32>(take_update(moved, i, stagnant), block.own, seen, block.far);
        if (++taken == 255) {
            sum_columns<FLOAT32>(block);
            taken = 0;
        }
    }
    sum_columns<FLOAT32>(block);
    u64 *row = table + (i64)moved.row * TABLE_WIDTH;
    to_table<FLOAT32>(block, seen, row, 1);
    u32 half = __reduce_add_sync(NONE, stagnant.half);
    u32 brain = __reduce_add_sync(NONE, stagnant.brain);
    u32 wanted = __reduce_add_sync(NONE, stagnant.wanted);
    if ((threadIdx.x & 31) == 0) {
        add_to(row + COLUMN_STAGNANT_FP16, half);
        add_to(row + COLUMN_STAGNANT_BF16, brain);
        add_to(row + COLUMN_WANTED, wanted);
    }
}
