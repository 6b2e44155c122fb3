// Batch normalisation (Ioffe & Szegedy 2015), and the element-wise work that goes with it into the convolutions' loads
// and stores. With y a convolution's output, m its batch mean rounded to fp32, v the biased variance:
//   forward   scale (y - m) + shift,  scale = gamma / sqrt(v + eps)
//   backward  dy = A dz + B (y - m) + K,  from the sums of dz and dz (y - m) over the batch
// The rounding of m goes into shift, K and the sums.
//
// Sums: fp32 inside a block of at most 1024 pixels (four pixels in pairs, then upwards), double over the blocks of a
// chunk, and chunks in order. Large means: everything is taken relative to a number near the mean before it is squared
// or scaled; forward this is the chunk's first pixel, as it is known before the sums begin.
#pragma once
#include "winograd.h"

namespace {
constexpr float kEpsilon = 1e-5f;
constexpr double kStatisticMomentum = 0.1;
constexpr int kStatisticsOfLayer = 128;  // mean[64], variance[64]

struct alignas(64) BatchNorm {
  float mean[64], scale[64], shift[64];
  float a[64], b[64], k[64];
  double exact_mean[64], variance[64], inverse_deviation[64], mean_rounding[64];  // exact_mean - mean
};
// Of one chunk. Forward: sums of y - origin and (y - origin)^2; backward: of dz and dz (y - mean).
struct alignas(64) ChunkSums {
  double first[64], second[64];
  float origin[64];
};

inline bool is_finite(double x) { return std::fabs(x) <= DBL_MAX; }
inline bool is_finite(float x) { return std::fabs(x) <= FLT_MAX; }

// ---- From sums to coefficients. pixels(chunk): how many values the sums of a chunk are over
template <class Pixels>
bool normalise_by_batch(BatchNorm& norm, const ChunkSums* sums, int chunks, Pixels pixels, int channels,
                        const float* gamma, const float* beta) {  // false: not finite
  double count = 0, *mean = norm.exact_mean, *squares = norm.variance;
  for (int chunk = 0; chunk < chunks; chunk++) {  // merged by the formula of Chan, Golub & LeVeque 1979
    const ChunkSums& part = sums[chunk];
    const double n = pixels(chunk), inverse = 1 / n, total = count + n, weight = n / total, factor = count * weight;
    for (int c = 0; c < channels; c++) {
      const double shift = part.first[c] * inverse, own = part.second[c] - part.first[c] * shift;
      const double old = chunk ? mean[c] : 0, old_squares = chunk ? squares[c] : 0;
      const double difference = (part.origin[c] + shift) - old;
      mean[c] = chunk ? old + difference * weight : part.origin[c] + shift;
      squares[c] = (old_squares + (own < 0 ? 0 : own)) + (difference * difference) * factor;
    }
    count = total;
  }
  double zero_if_finite = 0;
  for (int c = 0; c < channels; c++) {
    const double variance = norm.variance[c] /= count, inverse = 1 / std::sqrt(variance + kEpsilon);
    const double scale = gamma[c] * inverse;
    norm.inverse_deviation[c] = inverse;
    norm.mean[c] = (float)norm.exact_mean[c];
    norm.mean_rounding[c] = norm.exact_mean[c] - norm.mean[c];
    norm.scale[c] = (float)scale;
    norm.shift[c] = (float)(beta[c] - scale * norm.mean_rounding[c]);
    zero_if_finite += 0 * (float)variance + 0 * norm.mean[c] + 0 * norm.scale[c] + 0 * norm.shift[c];
  }
  return zero_if_finite == 0;
}
void normalise_by_statistics(BatchNorm& norm, int channels, const float* statistics, const float* gamma,
                             const float* beta) {
  for (int c = 0; c < channels; c++) {
    const double inverse = 1 / std::sqrt((double)statistics[64 + c] + kEpsilon);
    norm.mean[c] = statistics[c];
    norm.scale[c] = (float)(gamma[c] * inverse);
    norm.shift[c] = beta[c];
  }
}
void normalise_backward(BatchNorm& norm, const ChunkSums* sums, int chunks, double count, int channels,
                        const float* gamma, float* gamma_gradient, float* beta_gradient) {
  for (int c = 0; c < channels; c++) {
    double first = 0, second = 0;
    for (int chunk = 0; chunk < chunks; chunk++) {
      first += sums[chunk].first[c];
      second += sums[chunk].second[c];
    }
    const double inverse = norm.inverse_deviation[c];
    second -= norm.mean_rounding[c] * first;  // now relative to the unrounded mean
    beta_gradient[c] = (float)first;
    gamma_gradient[c] = (float)(second * inverse);
    const double a = gamma[c] * inverse, b = -a * inverse * inverse * second / count;
    norm.a[c] = (float)a;
    norm.b[c] = (float)b;
    norm.k[c] = (float)(-a * first / count - b * norm.mean_rounding[c]);
  }
}
// Running statistics: old + 0.1 (batch - old), the variance unbiased
inline float next_mean(const BatchNorm& norm, int c, float old) {
  return (float)((1 - kStatisticMomentum) * old + kStatisticMomentum * norm.exact_mean[c]);
}
inline float next_variance(const BatchNorm& norm, int c, float old, double count) {
  const double unbiased = norm.variance[c] * (count / (count - 1));
  return (float)((1 - kStatisticMomentum) * old + kStatisticMomentum * unbiased);
}

// ---- Whole images of C channels
enum Shortcut { kNone, kIdentity, kOptionA };  // option A (He et al. 2015, 4.2): every other pixel, new channels 0

// x = relu(normalised y + shortcut), to the image x and, where padded is not null, also to the inside of a padded one
template <int C, int kShortcut>
void activate(const float* y, const BatchNorm& norm, const float* shortcut, float* x, float* padded) {
  using S = Stage<C>;
  for (int i = 0; i < S::kSide; i++) {
    for (int c = 0; c < C; c += 16) {
      const Vec mean = load(norm.mean + c), scale = load(norm.scale + c), shift = load(norm.shift + c);
      for (int j = 0; j < S::kSide; j++) {
        const int at = (i * S::kSide + j) * C + c;
        Vec z = fma(load(y + at) - mean, scale, shift);
        if (kShortcut == kIdentity) z = z + load(shortcut + at);
        if (kShortcut == kOptionA && c < C / 2) z = z + load(shortcut + (4 * i * S::kSide + 2 * j) * (C / 2) + c);
        z = relu(z);
        store(x + at, z);
        if (padded) store(padded + ((i + 1) * S::kPadded + j + 1) * C + c, z);
      }
    }
  }
}
template <int C>
void pad(const float* x, float* padded) {
  using S = Stage<C>;
  for (int i = 0; i < S::kSide; i++) {
    memcpy(padded + ((i + 1) * S::kPadded + 1) * C, x + i * S::kSide * C, sizeof(float) * S::kSide * C);
  }
}
// dy of one image, padded
template <int C>
void pad_gradient(const float* dz, const float* y, const BatchNorm& norm, float* padded) {
  using S = Stage<C>;
  for (int i = 0; i < S::kSide; i++) {
    for (int c = 0; c < C; c += 16) {
      const Vec mean = load(norm.mean + c), a = load(norm.a + c), b = load(norm.b + c), k = load(norm.k + c);
      for (int j = 0; j < S::kSide; j++) {
        const int at = (i * S::kSide + j) * C + c;
        const Vec dy = fma(a, load(dz + at), fma(b, load(y + at) - mean, k));
        store(padded + ((i + 1) * S::kPadded + j + 1) * C + c, dy);
      }
    }
  }
}

// ---- Loaders (see winograd.h)
template <int C>
struct LoadImage {
  const float* image;
  const float* at;
  explicit LoadImage(const float* image) : image(image), at(image) {}
  RC_INLINE void begin(int channel) { at = image + channel; }
  RC_INLINE Vec operator()(int y, int x) const { return load(at + (y * Stage<C>::kSide + x) * C); }
};
template <int C>
struct LoadActivation {  // relu(normalised y)
  const float* y;
  const BatchNorm* norm;
  const float* at;
  Vec mean, scale, shift;
  LoadActivation(const float* y, const BatchNorm* norm) : y(y), norm(norm), at(y) {}
  RC_INLINE void begin(int channel) {
    mean = load(norm->mean + channel);
    scale = load(norm->scale + channel);
    shift = load(norm->shift + channel);
    at = y + channel;
  }
  RC_INLINE Vec operator()(int i, int j) const {
    return relu(fma(load(at + (i * Stage<C>::kSide + j) * C) - mean, scale, shift));
  }
};
template <int C>
struct LoadGradient {  // dy
  const float *dz, *y;
  const BatchNorm* norm;
  const float *dz_at, *y_at;
  Vec mean, a, b, k;
  LoadGradient(const float* dz, const float* y, const BatchNorm* norm)
      : dz(dz), y(y), norm(norm), dz_at(dz), y_at(y) {}
  RC_INLINE void begin(int channel) {
    mean = load(norm->mean + channel);
    a = load(norm->a + channel);
    b = load(norm->b + channel);
    k = load(norm->k + channel);
    dz_at = dz + channel;
    y_at = y + channel;
  }
  RC_INLINE Vec operator()(int i, int j) const {
    const int pixel = (i * Stage<C>::kSide + j) * C;
    return fma(a, load(dz_at + pixel), fma(b, load(y_at + pixel) - mean, k));
  }
};

// ---- Epilogues take four results of a row, step pixels apart, store them and add to the sums (which are null in
// evaluation). A direct convolution has up to kBlockVectors vectors of channels in the making, Winograd one.
template <class Self>
struct Epilogue {
  ChunkSums* sums = nullptr;
  int channel = 0;
  Vec first[kBlockVectors], second[kBlockVectors];

  template <int kVectors>
  RC_INLINE void begin_vectors(int c) {
    channel = c;
    for (int j = 0; j < kVectors; j++) first[j] = second[j] = zero();
  }
  template <int kVectors>
  RC_INLINE void end_vectors(int) {
    if (!sums) return;
    for (int j = 0; j < kVectors; j++) {
      alignas(64) float a[16], b[16];
      store(a, first[j]);
      store(b, second[j]);
      double *to_first = sums->first + channel + 16 * j, *to_second = sums->second + channel + 16 * j;
      for (int i = 0; i < 16; i++) to_first[i] += a[i];
      for (int i = 0; i < 16; i++) to_second[i] += b[i];
    }
  }
  RC_INLINE void begin(int c) { static_cast<Self*>(this)->template begin_vectors<1>(c); }
  RC_INLINE void end(int c) { static_cast<Self*>(this)->template end_vectors<1>(c); }
  RC_INLINE void write(int y, int x, const Vec* o) { static_cast<Self*>(this)->write_vector(0, y, x, 1, o); }
  RC_INLINE void add(int j, const Vec* a, const Vec* b) {  // first += a, second += a b
    first[j] = first[j] + ((a[0] + a[1]) + (a[2] + a[3]));
    second[j] = second[j] + (fma(a[0], b[0], a[1] * b[1]) + fma(a[2], b[2], a[3] * b[3]));
  }
};
// Forward: y, and its sums
template <int C>
struct StoreOutput : Epilogue<StoreOutput<C>> {
  using Base = Epilogue<StoreOutput<C>>;
  float* y;
  bool sets_origin;  // this block holds the chunk's first pixel
  Vec origin[kBlockVectors];

  StoreOutput(float* y, ChunkSums* sums, bool sets_origin) : y(y), sets_origin(sets_origin) { this->sums = sums; }
  template <int kVectors>
  RC_INLINE void begin_vectors(int c) {
    Base::template begin_vectors<kVectors>(c);
    for (int j = 0; j < kVectors; j++) origin[j] = this->sums ? load(this->sums->origin + c + 16 * j) : zero();
  }
  template <int kVectors>
  RC_INLINE void end_vectors(int c) {
    Base::template end_vectors<kVectors>(c);
    if (!sets_origin || !this->sums) return;
    for (int j = 0; j < kVectors; j++) store(this->sums->origin + c + 16 * j, origin[j]);
  }
  RC_INLINE void write_vector(int j, int row, int column, int step, const Vec* o) {
    float* at = y + (row * Stage<C>::kSide + column) * C + this->channel + 16 * j;
    for (int i = 0; i < 4; i++) store(at + i * step * C, o[i]);
    if (sets_origin && row == 0 && column == 0) origin[j] = o[0];
    Vec difference[4];
    for (int i = 0; i < 4; i++) difference[i] = o[i] - origin[j];
    this->add(j, difference, difference);
  }
};
// Backward through the ReLU inside a block: dz of the first convolution from the gradient of the second one's input
template <int C>
struct StoreInnerGradient : Epilogue<StoreInnerGradient<C>> {
  const float* y;
  const BatchNorm* norm;
  float* dz;
  StoreInnerGradient(const float* y, const BatchNorm* norm, float* dz, ChunkSums* sums) : y(y), norm(norm), dz(dz) {
    this->sums = sums;
  }
  RC_INLINE void write_vector(int j, int row, int column, int step, const Vec* o) {
    const int c = this->channel + 16 * j, at = (row * Stage<C>::kSide + column) * C + c;
    const Vec scale = load(norm->scale + c), shift = load(norm->shift + c), mean = load(norm->mean + c);
    Vec d[4], centred[4];
    for (int i = 0; i < 4; i++) {
      centred[i] = load(y + at + i * step * C) - mean;
      d[i] = keep_where_positive(fma(centred[i], scale, shift), o[i]);
      store(dz + at + i * step * C, d[i]);
    }
    this->add(j, d, centred);
  }
};
// Backward into the block before: dz of its second convolution, from the gradient of this block's input through the
// convolution (o) and through the shortcut. x: this input; y, norm: of the layer that made it. dz may be the shortcut's
// gradient itself.
template <int C, int kShortcut>
struct StoreInputGradient : Epilogue<StoreInputGradient<C, kShortcut>> {
  const float *x, *y, *shortcut;
  const BatchNorm* norm;
  float* dz;
  StoreInputGradient(const float* x, const float* y, const BatchNorm* norm, const float* shortcut, float* dz,
                     ChunkSums* sums)
      : x(x), y(y), shortcut(shortcut), norm(norm), dz(dz) {
    this->sums = sums;
  }
  RC_INLINE void write_vector(int j, int row, int column, int step, const Vec* o) {
    constexpr int kSide = Stage<C>::kSide;
    const int c = this->channel + 16 * j, at = (row * kSide + column) * C + c;
    const Vec mean = load(norm->mean + c);
    Vec d[4], centred[4];
    for (int i = 0; i < 4; i++) {
      Vec sum = o[i];
      if (kShortcut == kIdentity) sum = sum + load(shortcut + at + i * step * C);
      if (kShortcut == kOptionA && !(row & 1) && !(column & 1)) {
        sum = sum + load(shortcut + ((row / 2) * (kSide / 2) + column / 2 + i) * (2 * C) + c);
      }
      d[i] = keep_where_positive(load(x + at + i * step * C), sum);
      centred[i] = load(y + at + i * step * C) - mean;
      store(dz + at + i * step * C, d[i]);
    }
    this->add(j, d, centred);
  }
};
}  // namespace
