// Plain C++: the reference of the other sets, and what is left for a processor that has none of them. It is slow, and
// compiled with less inlining to build quickly.
#pragma once
#ifndef RC_SET_PLAIN
#error "the set plain needs RC_SET_PLAIN"
#endif

namespace {
constexpr char kSetName[] = "plain";
constexpr int kAccumulators = 4;
constexpr int kBlockVectors = 1;
constexpr int kStepsPerPrefetch = 4;
constexpr int kDirectUnroll = 4;
constexpr int kStemKernelRows = 1;

struct Vec {
  float lane[16];
};
RC_INLINE Vec load(const float* p) {
  Vec x;
  for (int i = 0; i < 16; i++) x.lane[i] = p[i];
  return x;
}
RC_INLINE void store(float* p, const Vec& x) {
  for (int i = 0; i < 16; i++) p[i] = x.lane[i];
}
RC_INLINE Vec splat(float value) {
  Vec x;
  for (int i = 0; i < 16; i++) x.lane[i] = value;
  return x;
}
RC_INLINE Vec zero() { return splat(0.f); }
RC_INLINE Vec operator+(Vec x, const Vec& y) {
  for (int i = 0; i < 16; i++) x.lane[i] += y.lane[i];
  return x;
}
RC_INLINE Vec operator-(Vec x, const Vec& y) {
  for (int i = 0; i < 16; i++) x.lane[i] -= y.lane[i];
  return x;
}
RC_INLINE Vec operator*(Vec x, const Vec& y) {
  for (int i = 0; i < 16; i++) x.lane[i] *= y.lane[i];
  return x;
}
// x*y + z rounded once. The product is exact in double. The sum is rounded to odd: if inexact, its last bit is made 1,
// so that the second rounding, to float, meets no tie that was none (Boldo & Melquiond 2008, "Emulation of a FMA and
// correctly rounded sums"). std::fma is as fast where the processor has the instruction, and far slower where it has
// not. Infinity and NaN pass: their error is NaN, neither above nor below 0.
RC_INLINE float fma(float x, float y, float z) {
  const double product = (double)x * y, addend = z;
  const double sum = product + addend, part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);
  int64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  const int64_t towards = (error > 0 ? 1 : 0) - (error < 0 ? 1 : 0), negative = bits < 0 ? -1 : 0;
  bits += bits & 1 ? 0 : (towards ^ negative) - negative;
  double odd;
  memcpy(&odd, &bits, sizeof odd);
  return (float)odd;
}
__attribute__((noinline)) Vec fma(const Vec& x, const Vec& y, const Vec& z) {
  Vec sum;
  for (int i = 0; i < 16; i++) sum.lane[i] = fma(x.lane[i], y.lane[i], z.lane[i]);
  return sum;
}
__attribute__((noinline)) Vec fnma(const Vec& x, const Vec& y, const Vec& z) {
  Vec sum;
  for (int i = 0; i < 16; i++) sum.lane[i] = fma(-x.lane[i], y.lane[i], z.lane[i]);
  return sum;
}
// Not 0 > x ? 0 : x: clang makes a maximum of it, which gives another zero for -0 on each processor.
RC_INLINE Vec relu(Vec x) {
  for (int i = 0; i < 16; i++) x.lane[i] = x.lane[i] <= 0.f ? 0.f : x.lane[i];
  return x;
}
RC_INLINE Vec keep_where_positive(const Vec& sign, Vec x) {
  for (int i = 0; i < 16; i++) x.lane[i] = sign.lane[i] > 0.f ? x.lane[i] : 0.f;
  return x;
}
}  // namespace
