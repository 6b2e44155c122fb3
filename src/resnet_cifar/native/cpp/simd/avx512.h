// AVX-512: a vector is one register. Of AVX-512 the foundation (F) alone is used; scalars take FMA, and the flag
// permits AVX2.
#pragma once
#ifndef __AVX512F__
#error "the set avx512 needs -mavx512f"
#endif
#include <immintrin.h>

namespace {
constexpr char kSetName[] = "avx512";
// 32 registers: blocks of 16 accumulators, two vectors wide
constexpr int kAccumulators = 16;
constexpr int kBlockVectors = 2;
constexpr int kStepsPerPrefetch = 1;
constexpr int kDirectUnroll = 2;
constexpr int kStemKernelRows = 3;

struct Vec {
  __m512 v;
};
RC_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
RC_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
RC_INLINE Vec splat(float x) { return {_mm512_set1_ps(x)}; }
RC_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
RC_INLINE Vec operator+(Vec x, Vec y) { return {_mm512_add_ps(x.v, y.v)}; }
RC_INLINE Vec operator-(Vec x, Vec y) { return {_mm512_sub_ps(x.v, y.v)}; }
RC_INLINE Vec operator*(Vec x, Vec y) { return {_mm512_mul_ps(x.v, y.v)}; }
RC_INLINE Vec fma(Vec x, Vec y, Vec z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
RC_INLINE Vec fnma(Vec x, Vec y, Vec z) { return {_mm512_fnmadd_ps(x.v, y.v, z.v)}; }
// Not the maximum with 0: of -0 and NaN that gives something else on each processor.
RC_INLINE Vec relu(Vec x) {
  const __mmask16 positive_or_nan = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_ps(positive_or_nan, x.v)};
}
RC_INLINE Vec keep_where_positive(Vec sign, Vec x) {
  const __mmask16 positive = _mm512_cmp_ps_mask(sign.v, _mm512_setzero_ps(), _CMP_GT_OQ);
  return {_mm512_maskz_mov_ps(positive, x.v)};
}
}  // namespace
