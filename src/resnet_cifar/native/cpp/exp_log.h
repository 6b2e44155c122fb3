// exp and log in double by fixed operations, since the C library's differ from version to version in the last bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {
// e^x for finite x <= 0: x = k ln 2 + r with ln 2 in two parts, then Taylor's series of e^r to the 13th power.
double exp_nonpositive(double x) {
  if (!(x >= -700)) return 0;
  const double k = std::floor(std::fma(x, 1.4426950408889634, 0.5));
  double r = std::fma(-k, 6.93147180369123816490e-01, x);
  r = std::fma(-k, 1.90821492927058770002e-10, r);
  double series = 1;
  for (int i = 13; i >= 1; i--) series = std::fma(series, r / i, 1.0);
  const uint64_t bits = (uint64_t)(1023 + (int64_t)k) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return series * power;
}
// ln x for finite normal x > 0: x = 2^e m with m near 1, then ln m = 2 artanh((m - 1) / (m + 1)).
double log_normal(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = (int)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffULL) | (1023ULL << 52);
  double m;
  memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent++;
  }
  const double t = (m - 1) / (m + 1), t2 = t * t;
  double series = 0;
  for (int i = 25; i >= 1; i -= 2) series = std::fma(series, t2, 1.0 / i);
  return std::fma((double)exponent, 0.69314718055994530942, 2 * t * series);
}
}  // namespace
