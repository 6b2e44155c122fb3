// AVX2 with FMA: a vector is two registers.
#pragma once
#if !defined(__AVX2__) || !defined(__FMA__)
#error "the set avx2 needs -mavx2 -mfma"
#endif
#include <immintrin.h>

namespace {
constexpr char kSetName[] = "avx2";
// 16 registers: blocks of 4 accumulators of two registers each
constexpr int kAccumulators = 4;
constexpr int kBlockVectors = 1;
constexpr int kStepsPerPrefetch = 4;
constexpr int kDirectUnroll = 4;
constexpr int kStemKernelRows = 1;

struct Vec {
  __m256 a, b;
};
RC_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
RC_INLINE void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
RC_INLINE Vec splat(float x) {
  const __m256 half = _mm256_set1_ps(x);
  return {half, half};
}
RC_INLINE Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
RC_INLINE Vec operator+(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
RC_INLINE Vec operator-(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
RC_INLINE Vec operator*(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
RC_INLINE Vec fma(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
RC_INLINE Vec fnma(Vec x, Vec y, Vec z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
// Not the maximum with 0: of -0 and NaN that gives something else on each processor.
RC_INLINE Vec relu(Vec x) {
  const __m256 o = _mm256_setzero_ps();
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, o, _CMP_NLE_UQ), x.a),
          _mm256_and_ps(_mm256_cmp_ps(x.b, o, _CMP_NLE_UQ), x.b)};
}
RC_INLINE Vec keep_where_positive(Vec sign, Vec x) {
  const __m256 o = _mm256_setzero_ps();
  return {_mm256_and_ps(_mm256_cmp_ps(sign.a, o, _CMP_GT_OQ), x.a),
          _mm256_and_ps(_mm256_cmp_ps(sign.b, o, _CMP_GT_OQ), x.b)};
}
}  // namespace
