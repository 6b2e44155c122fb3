// SGD with momentum and weight decay (He et al. 2015, section 4.2), as torch has it:
//   velocity = momentum velocity + (decay weight + gradient),  weight = weight - lr velocity
// All or nothing: one pass only asks whether every new value is finite, a second one writes.
#pragma once
#include <cstddef>

#include "simd.h"

namespace {
struct Sgd {
  float lr, momentum, decay;
};
struct SgdArrays {
  float *weights, *velocity;
  const float* gradient;
};
struct SgdStep {
  Vec lr, momentum, decay;
  explicit SgdStep(const Sgd& sgd) : lr(splat(sgd.lr)), momentum(splat(sgd.momentum)), decay(splat(sgd.decay)) {}
  RC_INLINE Vec velocity(const SgdArrays& a, size_t i) const {
    return fma(momentum, load(a.velocity + i), fma(decay, load(a.weights + i), load(a.gradient + i)));
  }
  RC_INLINE Vec weight(const SgdArrays& a, size_t i, Vec velocity) const {
    return fnma(lr, velocity, load(a.weights + i));
  }
};
constexpr size_t kSgdPiece = 16384;  // weights an item of work
inline int sgd_pieces(size_t weights) { return (int)((weights + kSgdPiece - 1) / kSgdPiece); }

bool sgd_is_finite(const SgdArrays& arrays, const Sgd& sgd, size_t first, size_t end) {
  const SgdStep step(sgd);
  Vec zero_if_finite = zero();
  for (size_t i = first; i < end; i += 16) {
    const Vec v = step.velocity(arrays, i);
    zero_if_finite = fma(step.weight(arrays, i, v), zero(), fma(v, zero(), zero_if_finite));
  }
  alignas(64) float lanes[16];
  store(lanes, zero_if_finite);
  bool finite = true;
  for (int i = 0; i < 16; i++) finite = finite && lanes[i] == 0;
  return finite;
}
void sgd_write(const SgdArrays& arrays, const Sgd& sgd, size_t first, size_t end) {
  const SgdStep step(sgd);
  for (size_t i = first; i < end; i += 16) {
    const Vec v = step.velocity(arrays, i);
    store(arrays.weights + i, step.weight(arrays, i, v));
    store(arrays.velocity + i, v);
  }
}
}  // namespace
