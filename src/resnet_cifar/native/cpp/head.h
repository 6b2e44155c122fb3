// The end of the network (He et al. 2015, section 4.2): global average pooling, a fully connected layer, softmax, and
// the cross-entropy -log softmax(logits)[label], of one image. Its input is x[8][8][64]. Columns of the classifier
// beyond the number of classes take no part, and their gradient is +0.
#pragma once
#include <limits>

#include "batch_norm.h"
#include "exp_log.h"
#include "simd.h"

namespace {
constexpr int kFeatures = 64, kColumns = 16;
constexpr int kHeadWeights = kFeatures * kColumns + kColumns;  // fc[64][16], bias[16]

// Averages by rows of pixels, then over rows; a logit is bias + sum over features in order.
void pool_and_classify(const float* x, const float* fc, float* pooled, float* logits) {
  for (int c = 0; c < kFeatures; c += 16) {
    Vec sum = zero();
    for (int i = 0; i < 8; i++) {
      Vec row = zero();
      for (int j = 0; j < 8; j++) row = row + load(x + (i * 8 + j) * kFeatures + c);
      sum = sum + row;
    }
    store(pooled + c, sum * splat(1.f / 64));
  }
  Vec logit = load(fc + kFeatures * kColumns);
  for (int c = 0; c < kFeatures; c++) logit = fma(splat(pooled[c]), load(fc + c * kColumns), logit);
  store(logits, logit);
}
inline bool are_finite(const float* logits, int classes) {
  bool finite = true;
  for (int j = 0; j < classes; j++) finite = finite && is_finite(logits[j]);
  return finite;
}

// Processors differ in the bits of a NaN; this one is handed out.
inline float with_one_nan(float x) { return x == x ? x : std::numeric_limits<float>::quiet_NaN(); }

struct Loss {
  double cross_entropy;
  bool error;  // the prediction is the first maximum
};
// Also the gradient of the logits for a mean over count images, (softmax - one-hot) / count. Below 2^-90 it counts as
// 0: from a whole batch of such values the backward pass would run on denormals, 75 times slower.
Loss cross_entropy(const float* logits, int label, int classes, int count, float* gradient) {
  double exponential[kColumns], sum = 0;
  int best = 0;
  for (int j = 1; j < classes; j++) {
    if (logits[j] > logits[best]) best = j;
  }
  const double largest = logits[best];
  for (int j = 0; j < classes; j++) {
    exponential[j] = exp_nonpositive(logits[j] - largest);
    sum += exponential[j];
  }
  for (int j = 0; j < kColumns; j++) {
    const double exact = j < classes ? (exponential[j] / sum - (j == label)) / count : 0;
    gradient[j] = std::fabs(exact) < 0x1p-90 ? 0.f : (float)exact;
  }
  return {log_normal(sum) + largest - logits[label], best != label};
}

// Adds to the classifier's gradient and gives that of each pooled feature, spread evenly over its 64 pixels.
void classify_backward(const float* pooled, const float* fc, const float* gradient, int classes, float* fc_gradient,
                       float* pixel_gradient) {
  const Vec d = load(gradient);
  float* bias_gradient = fc_gradient + kFeatures * kColumns;
  store(bias_gradient, load(bias_gradient) + d);
  for (int c = 0; c < kFeatures; c++) {
    float* at = fc_gradient + c * kColumns;
    store(at, fma(splat(pooled[c]), d, load(at)));
    float sum = 0;
    for (int j = 0; j < classes; j++) sum = std::fma(fc[c * kColumns + j], gradient[j], sum);
    pixel_gradient[c] = sum * (1.f / 64);
  }
}
// Through the last ReLU: dz where x > 0, and the sums that the last batch normalisation needs
struct SpreadGradient : Epilogue<SpreadGradient> {};
void spread_backward(const float* pixel_gradient, const float* x, const float* y, const BatchNorm& norm,
                     ChunkSums* sums, float* dz) {
  SpreadGradient totals;
  totals.sums = sums;
  for (int c = 0; c < kFeatures; c += 16) {
    const Vec gradient = load(pixel_gradient + c), mean = load(norm.mean + c);
    totals.begin(c);
    for (int pixel = 0; pixel < 64; pixel += 4) {
      Vec d[4], centred[4];
      for (int i = 0; i < 4; i++) {
        const int at = (pixel + i) * kFeatures + c;
        d[i] = keep_where_positive(load(x + at), gradient);
        centred[i] = load(y + at) - mean;
        store(dz + at, d[i]);
      }
      totals.add(0, d, centred);
    }
    totals.end(c);
  }
}
}  // namespace
