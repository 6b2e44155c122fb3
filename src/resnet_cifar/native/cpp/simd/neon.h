// NEON of AArch64, which every such processor has: a vector is four registers.
#pragma once
#ifndef __aarch64__
#error "the set neon needs AArch64"
#endif
#include <arm_neon.h>

namespace {
constexpr char kSetName[] = "neon";
// 32 registers: blocks of 4 accumulators of four registers each
constexpr int kAccumulators = 4;
constexpr int kBlockVectors = 1;
constexpr int kStepsPerPrefetch = 4;
constexpr int kDirectUnroll = 4;
constexpr int kStemKernelRows = 1;

struct Vec {
  float32x4_t a, b, c, d;
};
RC_INLINE Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
RC_INLINE void store(float* p, Vec x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
RC_INLINE Vec splat(float x) {
  const float32x4_t quarter = vdupq_n_f32(x);
  return {quarter, quarter, quarter, quarter};
}
RC_INLINE Vec zero() { return splat(0.f); }
RC_INLINE Vec operator+(Vec x, Vec y) {
  return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
RC_INLINE Vec operator-(Vec x, Vec y) {
  return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
RC_INLINE Vec operator*(Vec x, Vec y) {
  return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
RC_INLINE Vec fma(Vec x, Vec y, Vec z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
RC_INLINE Vec fnma(Vec x, Vec y, Vec z) {
  return {vfmsq_f32(z.a, x.a, y.a), vfmsq_f32(z.b, x.b, y.b), vfmsq_f32(z.c, x.c, y.c), vfmsq_f32(z.d, x.d, y.d)};
}
// Here the maximum with 0 is right: of -0 and +0 it gives +0, and it keeps NaN.
RC_INLINE Vec relu(Vec x) {
  const float32x4_t o = vdupq_n_f32(0.f);
  return {vmaxq_f32(x.a, o), vmaxq_f32(x.b, o), vmaxq_f32(x.c, o), vmaxq_f32(x.d, o)};
}
RC_INLINE float32x4_t keep_where_positive(float32x4_t sign, float32x4_t x) {
  const uint32x4_t positive = vcgtq_f32(sign, vdupq_n_f32(0.f));
  return vreinterpretq_f32_u32(vandq_u32(positive, vreinterpretq_u32_f32(x)));
}
RC_INLINE Vec keep_where_positive(Vec sign, Vec x) {
  return {keep_where_positive(sign.a, x.a), keep_where_positive(sign.b, x.b), keep_where_positive(sign.c, x.c),
          keep_where_positive(sign.d, x.d)};
}
}  // namespace
