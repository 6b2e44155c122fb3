// Vec, a vector of 16 floats that has the same bits in every set of instructions. Each set's header gives
//   load, store, splat, zero, + - *,
//   fma(x, y, z) = x*y + z and fnma(x, y, z) = z - x*y, rounded once,
//   relu(x) = x <= 0 ? +0 : x (so -0 gives +0, NaN stays), keep_where_positive(s, x) = s > 0 ? x : +0,
// all lane by lane: nothing goes across lanes, nothing is approximated. It also gives the sizes of register blocks,
// which decide the order in which values are computed but never the order of a sum:
//   kAccumulators      vectors that a block of a product keeps in registers
//   kBlockVectors      vectors of output channels a block, in direct convolutions
//   kStepsPerPrefetch  steps of a product for each prefetch
//   kDirectUnroll      steps of a direct convolution that are unrolled
//   kStemKernelRows    rows of the stem's 3x3 kernel whose gradient is summed at once
//
// Vec differs from set to set, so all code stands in unnamed namespaces: no two sets may share a function.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fast math makes the bits depend on the compiler"
#endif
static_assert(FLT_EVAL_METHOD == 0, "float and double must be computed in their own precision");

#define RC_PRAGMA(text) _Pragma(#text)
#if defined(RC_SET_PLAIN)
#define RC_INLINE inline
#define RC_INLINE_LAMBDA
#define RC_UNROLL(count)
#elif defined(__clang__)
#define RC_INLINE inline __attribute__((always_inline))
#define RC_INLINE_LAMBDA __attribute__((always_inline))
#define RC_UNROLL(count)  // it unrolls these loops by itself
#else
#define RC_INLINE inline __attribute__((always_inline))
#define RC_INLINE_LAMBDA __attribute__((always_inline))
#define RC_UNROLL(count) RC_PRAGMA(GCC unroll count)
#endif

#if defined(RC_SET_AVX512)
#include "simd/avx512.h"
#elif defined(RC_SET_AVX2)
#include "simd/avx2.h"
#elif defined(RC_SET_NEON)
#include "simd/neon.h"
#elif defined(RC_SET_PLAIN)
#include "simd/plain.h"
#else
#error "define RC_SET_AVX512, RC_SET_AVX2, RC_SET_NEON or RC_SET_PLAIN"
#endif
