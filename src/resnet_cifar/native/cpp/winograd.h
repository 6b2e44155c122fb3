// 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), after Lavin & Gray 2016, "Fast Algorithms for Convolutional
// Neural Networks", with as many input as output channels (C = 16, 32, 64). A tile of 6x6 input pixels d gives 4x4
// output pixels y:
//   forward        y  = A' [(G w G') . (B' d B)] A, the dot a product over channels for each of the 36 positions
//   data gradient  the same with w transposed and flipped
//   weights        dw = G' [sum over tiles (A x A') . (B' dy B)] G, flipped: it shares B' dy B with the data gradient
// Points 0, +-3/4, +-3/2 and infinity: half the error of the usual 0, +-1, +-2.
//
// Layout: V[position][tile][C], U[position][in][out]. Every output pixel is a fixed tree of operations and sums over
// channels run upwards from 0; the weights' gradient sums the tiles of a group from 0 and then adds groups in order.
//
// With 32 and 64 channels, V of a group of images lies in the second cache. With 16 it would not leave much to a
// product, so that the six positions of one row are transformed, multiplied and transformed back at a time ("slices"):
// their operands stay in the first cache, and memory sees the half-transformed tiles alone.
#pragma once
#include "prefetch.h"
#include "simd.h"

namespace {
template <int N>
struct Constant {
  static constexpr int value = N;
};

// Images of a stage, [side][side][C]: 32x32x16, 16x16x32, 8x8x64. Padded ones have a ring of zeros.
template <int C>
struct Stage {
  static constexpr int kSide = 512 / C, kPadded = kSide + 2;
  static constexpr int kImage = kSide * kSide * C, kPaddedImage = kPadded * kPadded * C;
};

// A block is a group of images, or of one image some rows of tiles. Groups and rows are part of the bits.
template <int C>
struct Tiles : Stage<C> {
  static constexpr int kTile = 4, kPoints = 6, kPositions = kPoints * kPoints;
  static constexpr int kTilesASide = Stage<C>::kSide / kTile;
  static constexpr int kGroup = C == 16 ? 1 : C == 32 ? 2 : 4;   // images
  static constexpr int kRows = C == 16 ? 2 : kTilesASide;        // rows of tiles a block
  static constexpr int kBlocks = kTilesASide / kRows;            // blocks an image
  static constexpr int kTilesOfImage = kRows * kTilesASide, kCount = kTilesOfImage * kGroup;
  // From one position to the next; the spare line keeps positions out of the same sets of the cache.
  static constexpr int kPosition = kCount * C + 16, kMatrix = C * C + 16;
  static constexpr int kV = kPositions * kPosition, kU = kPositions * kMatrix;
  // Slices: vertically transformed tiles, one row of positions, half of the output transform.
  static constexpr int kColumns = kRows * kPoints * Stage<C>::kPadded * 16;
  static constexpr int kSlice = kPoints * kPosition, kHalf = kTile * kSlice;
};

// Register blocks of the products and how prefetches are spread over their steps.
template <int C>
struct Product : Tiles<C> {
  using T = Tiles<C>;
  static constexpr int kVectors = C / 16, kTilesABlock = kAccumulators / kVectors;
  static constexpr int kSteps = T::kCount / kTilesABlock * C;        // of one position
  static constexpr int kStepsPerLine = kSteps / (C * C / 16);        // of the next matrix
  static constexpr int kStepsPerTick = kStepsPerPrefetch * (C == 64 ? 2 : 1);
  static constexpr int kLonger = kStepsPerLine > kStepsPerTick ? kStepsPerLine : kStepsPerTick;
  static constexpr int kUnroll = kLonger > 2 ? kLonger : 2;
  static constexpr int kBytesPerUnroll = T::kCount * C * 4 / (kSteps / kUnroll);  // of the next position
  static_assert(T::kCount % kTilesABlock == 0 && kSteps % (C * C / 16) == 0 && C % kUnroll == 0, "");
  static_assert(kUnroll % kStepsPerLine == 0 && kUnroll % kStepsPerTick == 0 && T::kCount % kUnroll == 0, "");
  // Ticks of a group.
  static constexpr int kProductTicks = T::kPositions * kSteps / kStepsPerTick;
  static constexpr int kInTicks = C == 16 ? T::kRows * (3 * T::kSide + T::kPoints * T::kTilesASide) : 0;
  static constexpr int kOutTicks = C == 16 ? T::kCount * (8 + T::kPoints) : 0;
  static constexpr int kSpreadTicks = C == 16 ? T::kCount * (4 + T::kPoints) : 0;
  static constexpr int kForwardTicks = T::kBlocks * (kInTicks + kProductTicks + kOutTicks);
  static constexpr int kBackwardTicks = T::kBlocks * (kInTicks + kSpreadTicks + 2 * kProductTicks + kOutTicks);
};

// ---- The transforms of one row or column; names after the paper's matrices
namespace wino {
constexpr double a = 0.75, b = 1.5, a2 = a * a, b2 = b * b;
constexpr double na = 2 * a2 * (a2 - b2), nb = 2 * b2 * (b2 - a2);

RC_INLINE void b_transposed(const Vec* d, Vec* o) {
  const Vec sum = splat(float(a2 + b2)), product = splat(float(a2 * b2));
  o[0] = fma(product, d[0], fnma(sum, d[2], d[4]));
  Vec even = fnma(splat(float(b2)), d[2], d[4]), odd = fnma(splat(float(b2)), d[1], d[3]);
  o[1] = fma(splat(float(a)), odd, even);
  o[2] = fnma(splat(float(a)), odd, even);
  even = fnma(splat(float(a2)), d[2], d[4]);
  odd = fnma(splat(float(a2)), d[1], d[3]);
  o[3] = fma(splat(float(b)), odd, even);
  o[4] = fnma(splat(float(b)), odd, even);
  o[5] = fma(product, d[1], fnma(sum, d[3], d[5]));
}
RC_INLINE void a_transposed(const Vec* m, Vec* y) {
  const Vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  y[0] = (m[0] + s1) + s2;
  y[1] = fma(splat(float(b)), d2, splat(float(a)) * d1);
  y[2] = fma(splat(float(b2)), s2, splat(float(a2)) * s1);
  y[3] = fma(splat(float(b2 * b)), d2, fma(splat(float(a2 * a)), d1, m[5]));
}
RC_INLINE void a_times(const Vec* y, Vec* o) {
  Vec even = fma(splat(float(a2)), y[2], y[0]), odd = fma(splat(float(a2)), y[3], y[1]);
  o[0] = y[0];
  o[1] = fma(splat(float(a)), odd, even);
  o[2] = fnma(splat(float(a)), odd, even);
  even = fma(splat(float(b2)), y[2], y[0]);
  odd = fma(splat(float(b2)), y[3], y[1]);
  o[3] = fma(splat(float(b)), odd, even);
  o[4] = fnma(splat(float(b)), odd, even);
  o[5] = y[3];
}
RC_INLINE void g_times(const Vec* w, Vec* u) {
  u[0] = splat(float(1 / (a2 * b2))) * w[0];
  Vec even = fma(splat(float(a2 / na)), w[2], splat(float(1 / na)) * w[0]), odd = splat(float(a / na)) * w[1];
  u[1] = even + odd;
  u[2] = even - odd;
  even = fma(splat(float(b2 / nb)), w[2], splat(float(1 / nb)) * w[0]);
  odd = splat(float(b / nb)) * w[1];
  u[3] = even + odd;
  u[4] = even - odd;
  u[5] = w[2];
}
RC_INLINE void g_transposed(const Vec* u, Vec* w) {
  const Vec s1 = u[1] + u[2], d1 = u[1] - u[2], s2 = u[3] + u[4], d2 = u[3] - u[4];
  const Vec first = splat(float(1 / (a2 * b2))) * u[0];
  w[0] = fma(splat(float(1 / nb)), s2, fma(splat(float(1 / na)), s1, first));
  w[1] = fma(splat(float(b / nb)), d2, splat(float(a / na)) * d1);
  w[2] = fma(splat(float(b2 / nb)), s2, fma(splat(float(a2 / na)), s1, u[5]));
}
}  // namespace wino

// ---- Weights
// U = G w G'; w[3][3][C][C]
template <int C>
void transform_weights(const float* w, float* u) {
  for (int k = 0; k < C * C; k += 16) {
    Vec half[3][6];
    for (int j = 0; j < 3; j++) {
      const Vec d[3] = {load(w + j * C * C + k), load(w + (3 + j) * C * C + k), load(w + (6 + j) * C * C + k)};
      wino::g_times(d, half[j]);
    }
    for (int i = 0; i < 6; i++) {
      const Vec d[3] = {half[0][i], half[1][i], half[2][i]};
      Vec o[6];
      wino::g_times(d, o);
      for (int j = 0; j < 6; j++) store(u + (i * 6 + j) * Tiles<C>::kMatrix + k, o[j]);
    }
  }
}
// dw = G' U G, flipped
template <int C>
void transform_weight_gradient(const float* u, float* dw) {
  for (int k = 0; k < C * C; k += 16) {
    Vec half[3][6];
    for (int j = 0; j < 6; j++) {
      Vec d[6], o[3];
      for (int i = 0; i < 6; i++) d[i] = load(u + (i * 6 + j) * Tiles<C>::kMatrix + k);
      wino::g_transposed(d, o);
      for (int i = 0; i < 3; i++) half[i][j] = o[i];
    }
    for (int i = 0; i < 3; i++) {
      Vec o[3];
      wino::g_transposed(half[i], o);
      for (int j = 0; j < 3; j++) store(dw + ((2 - i) * 3 + 2 - j) * C * C + k, o[j]);
    }
  }
}

// ---- Pixels to tiles. A loader gives 16 channels of a pixel, from channel on where begin(channel) was called:
// pixel(y, x). Batch normalisation happens there, so that nobody stores a normalised image. Outside the image is 0.
//
// One row of tiles, vertically: for each pixel column x, B' times six pixels, to columns + (i * padded + x + 1) * 16.
template <int C, bool kTicks, class Loader>
RC_INLINE void transform_columns(const Loader& pixel, float* columns, int tile_row, Prefetcher& prefetch) {
  using T = Tiles<C>;
  const int top = 4 * tile_row - 1;
  auto vertical = [&](auto first, auto end) RC_INLINE_LAMBDA {
    for (int x = 0; x < T::kSide; x++) {
      Vec d[6], o[6];
      if (kTicks) {
        prefetch.tick();
        prefetch.tick();
        prefetch.tick();
      }
      RC_UNROLL(6)
      for (int i = 0; i < 6; i++) {
        d[i] = i >= decltype(first)::value && i < decltype(end)::value ? pixel(top + i, x) : zero();
      }
      wino::b_transposed(d, o);
      RC_UNROLL(6)
      for (int i = 0; i < 6; i++) store(columns + (i * T::kPadded + x + 1) * 16, o[i]);
    }
  };
  if (top < 0) {
    vertical(Constant<1>(), Constant<6>());
  } else if (top + 6 > T::kSide) {
    vertical(Constant<0>(), Constant<5>());
  } else {
    vertical(Constant<0>(), Constant<6>());
  }
}

// V = B' d B of one image into the tiles from `tile` on
template <int C, class Loader>
RC_INLINE void transform_input(Loader pixel, float* v, int tile, Prefetcher& prefetch) {
  using T = Tiles<C>;
  alignas(64) float columns[6 * T::kPadded * 16];
  for (int i = 0; i < 6; i++) {
    store(columns + i * T::kPadded * 16, zero());
    store(columns + (i * T::kPadded + T::kPadded - 1) * 16, zero());
  }
  for (int channel = 0; channel < C; channel += 16) {
    pixel.begin(channel);
    prefetch.turn();
    for (int row = 0; row < T::kRows; row++) {
      transform_columns<C, false>(pixel, columns, row, prefetch);
      for (int i = 0; i < 6; i++) {
        for (int x = 0; x < T::kTilesASide; x++) {
          Vec d[6], o[6];
          for (int j = 0; j < 6; j++) d[j] = load(columns + (i * T::kPadded + 4 * x + j) * 16);
          wino::b_transposed(d, o);
          float* out = v + i * 6 * T::kPosition + (tile + row * T::kTilesASide + x) * C + channel;
          for (int j = 0; j < 6; j++) store(out + j * T::kPosition, o[j]);
        }
      }
    }
  }
}
// X = A x A' of the 4x4 tiles of one image: for the weights' gradient
template <int C, class Loader>
RC_INLINE void spread_tiles(Loader pixel, float* out, int tile, Prefetcher& prefetch) {
  using T = Tiles<C>;
  for (int channel = 0; channel < C; channel += 16) {
    pixel.begin(channel);
    prefetch.turn();
    for (int row = 0; row < T::kRows; row++) {
      for (int x = 0; x < T::kTilesASide; x++) {
        Vec half[4][6];
        RC_UNROLL(4)
        for (int j = 0; j < 4; j++) {
          Vec d[4], o[6];
          for (int i = 0; i < 4; i++) d[i] = pixel(4 * row + i, 4 * x + j);
          wino::a_times(d, o);
          for (int i = 0; i < 6; i++) half[j][i] = o[i];
        }
        float* at = out + (tile + row * T::kTilesASide + x) * C + channel;
        RC_UNROLL(6)
        for (int i = 0; i < 6; i++) {
          Vec d[4], o[6];
          for (int j = 0; j < 4; j++) d[j] = half[j][i];
          wino::a_times(d, o);
          for (int j = 0; j < 6; j++) store(at + (i * 6 + j) * T::kPosition, o[j]);
        }
      }
    }
  }
}
// Tiles to pixels: y = A' m A of one image. An epilogue takes four pixels of a row: write(y, x, Vec[4]).
template <int C, class Epilogue>
RC_INLINE void transform_output(const float* v, int tile, Epilogue& epilogue, Prefetcher& prefetch) {
  using T = Tiles<C>;
  for (int channel = 0; channel < C; channel += 16) {
    epilogue.begin(channel);
    prefetch.turn();
    for (int row = 0; row < T::kRows; row++) {
      for (int x = 0; x < T::kTilesASide; x++) {
        const float* in = v + (tile + row * T::kTilesASide + x) * C + channel;
        Vec half[4][6];
        RC_UNROLL(6)
        for (int j = 0; j < 6; j++) {
          Vec d[6], o[4];
          for (int i = 0; i < 6; i++) d[i] = load(in + (i * 6 + j) * T::kPosition);
          wino::a_transposed(d, o);
          for (int i = 0; i < 4; i++) half[i][j] = o[i];
        }
        RC_UNROLL(4)
        for (int i = 0; i < 4; i++) {
          Vec o[4];
          wino::a_transposed(half[i], o);
          epilogue.write(4 * row + i, 4 * x, o);
        }
      }
    }
    epilogue.end(channel);
  }
}
// Tiles of the images that the last group of a chunk lacks
template <int C>
void clear_tiles(float* v, int images) {
  using T = Tiles<C>;
  const int first = images * T::kTilesOfImage, bytes = (T::kCount - first) * C * (int)sizeof(float);
  for (int i = 0; i < T::kPositions; i++) memset(v + i * T::kPosition + first * C, 0, bytes);
}

// ---- Products of one position
// V[tile] = V[tile] U, in place. What is used next (a matrix, a position of V) is fetched into the first cache.
template <int C>
RC_INLINE void multiply(float* v, const float* u, const float* next_u, const float* next_v, Prefetcher& prefetch) {
  using P = Product<C>;
  const char *line_u = (const char*)next_u, *line_v = (const char*)next_v, *line = prefetch.at;
  const long step = prefetch.step;
  for (int tile = 0; tile < P::kCount; tile += P::kTilesABlock) {
    float* at = v + tile * C;
    Vec sum[P::kTilesABlock][P::kVectors];
    for (int i = 0; i < P::kTilesABlock; i++) {
      for (int j = 0; j < P::kVectors; j++) sum[i][j] = zero();
    }
    RC_UNROLL(1)
    for (int k0 = 0; k0 < C; k0 += P::kUnroll) {
      if (C != 16) {
        __builtin_prefetch(line_v, 0, 3);
        line_v += P::kBytesPerUnroll;
      }
      RC_UNROLL(8)
      for (int k = k0; k < k0 + P::kUnroll; k++) {
        if ((k - k0) % P::kStepsPerLine == 0) {
          __builtin_prefetch(line_u, 0, 3);
          line_u += 64;
        }
        if ((k - k0) % P::kStepsPerTick == 0) {
          __builtin_prefetch(line, 0, 1);
          line += step;
        }
        Vec row[P::kVectors];
        for (int j = 0; j < P::kVectors; j++) row[j] = load(u + k * C + 16 * j);
        RC_UNROLL(16)
        for (int i = 0; i < P::kTilesABlock; i++) {
          const Vec x = splat(at[i * C + k]);
          for (int j = 0; j < P::kVectors; j++) sum[i][j] = fma(x, row[j], sum[i][j]);
        }
      }
    }
    for (int i = 0; i < P::kTilesABlock; i++) {
      for (int j = 0; j < P::kVectors; j++) store(at + i * C + 16 * j, sum[i][j]);
    }
  }
  prefetch.at = line;
  prefetch.turn();
}
// U += X' V, summed from 0 over the tiles and then added: shorter chains round less. first: instead of adding.
template <int C>
RC_INLINE void accumulate(const float* x, const float* v, float* u, bool first, const float* next_u,
                          const float* next_v, Prefetcher& prefetch) {
  using P = Product<C>;
  constexpr int kVectors = C == 16 ? 1 : 2, kRows = kAccumulators / kVectors;
  const char *line_u = (const char*)next_u, *line_v = (const char*)next_v, *line = prefetch.at;
  const long step = prefetch.step;
  for (int in = 0; in < C; in += kRows) {
    for (int out = 0; out < C; out += 16 * kVectors) {
      float* at = u + in * C + out;
      Vec sum[kRows][kVectors];
      for (int i = 0; i < kRows; i++) {
        for (int j = 0; j < kVectors; j++) sum[i][j] = zero();
      }
      RC_UNROLL(1)
      for (int t0 = 0; t0 < P::kCount; t0 += P::kUnroll) {
        if (C != 16) {
          __builtin_prefetch(line_v, 0, 3);
          line_v += P::kBytesPerUnroll;
        }
        RC_UNROLL(8)
        for (int t = t0; t < t0 + P::kUnroll; t++) {
          if ((t - t0) % P::kStepsPerLine == 0) {
            __builtin_prefetch(line_u, 0, 3);
            line_u += 64;
          }
          if ((t - t0) % P::kStepsPerTick == 0) {
            __builtin_prefetch(line, 0, 1);
            line += step;
          }
          Vec row[kVectors];
          for (int j = 0; j < kVectors; j++) row[j] = load(v + t * C + out + 16 * j);
          RC_UNROLL(16)
          for (int i = 0; i < kRows; i++) {
            const Vec factor = splat(x[t * C + in + i]);
            for (int j = 0; j < kVectors; j++) sum[i][j] = fma(factor, row[j], sum[i][j]);
          }
        }
      }
      if (first) {
        for (int i = 0; i < kRows; i++) {
          for (int j = 0; j < kVectors; j++) store(at + i * C + 16 * j, sum[i][j]);
        }
      } else {
        for (int i = 0; i < kRows; i++) {
          for (int j = 0; j < kVectors; j++) store(at + i * C + 16 * j, load(at + i * C + 16 * j) + sum[i][j]);
        }
      }
    }
  }
  prefetch.at = line;
  prefetch.turn();
}

// ---- Slices (16 channels, one image): the same transforms, cut between the two passes
template <class Loader>
RC_INLINE void slice_columns(Loader pixel, float* columns, int tile_row, Prefetcher& prefetch) {
  using T = Tiles<16>;
  pixel.begin(0);
  prefetch.turn();
  for (int row = 0; row < T::kRows; row++) {
    transform_columns<16, true>(pixel, columns + row * 6 * T::kPadded * 16, tile_row + row, prefetch);
  }
}
RC_INLINE void slice_input(const float* columns, float* slice, int i, Prefetcher& prefetch) {
  using T = Tiles<16>;
  for (int row = 0; row < T::kRows; row++) {
    for (int x = 0; x < T::kTilesASide; x++) {
      Vec d[6], o[6];
      prefetch.tick();
      for (int j = 0; j < 6; j++) d[j] = load(columns + ((row * 6 + i) * T::kPadded + 4 * x + j) * 16);
      wino::b_transposed(d, o);
      for (int j = 0; j < 6; j++) store(slice + j * T::kPosition + (row * T::kTilesASide + x) * 16, o[j]);
    }
  }
}
RC_INLINE void slice_output(const float* slice, float* half, int i, Prefetcher& prefetch) {
  using T = Tiles<16>;
  for (int k = 0; k < T::kCount * 16; k += 16) {
    Vec d[6], o[4];
    prefetch.tick();
    for (int j = 0; j < 6; j++) d[j] = load(slice + j * T::kPosition + k);
    wino::a_transposed(d, o);
    for (int j = 0; j < 4; j++) store(half + (i * 4 + j) * T::kPosition + k, o[j]);
  }
}
template <class Epilogue>
RC_INLINE void slice_pixels(const float* half, int tile_row, Epilogue& epilogue, Prefetcher& prefetch) {
  using T = Tiles<16>;
  epilogue.begin(0);
  prefetch.turn();
  for (int row = 0; row < T::kRows; row++) {
    for (int x = 0; x < T::kTilesASide; x++) {
      const float* in = half + (row * T::kTilesASide + x) * 16;
      Vec y[4][4];
      RC_UNROLL(4)
      for (int j = 0; j < 4; j++) {
        Vec d[6], o[4];
        prefetch.tick();
        prefetch.tick();
        for (int i = 0; i < 6; i++) d[i] = load(in + (i * 4 + j) * T::kPosition);
        wino::a_transposed(d, o);
        for (int i = 0; i < 4; i++) y[i][j] = o[i];
      }
      RC_UNROLL(4)
      for (int i = 0; i < 4; i++) epilogue.write(4 * (tile_row + row) + i, 4 * x, y[i]);
    }
  }
  epilogue.end(0);
}
template <class Loader>
RC_INLINE void slice_spread_columns(Loader pixel, float* half, int tile_row, Prefetcher& prefetch) {
  using T = Tiles<16>;
  pixel.begin(0);
  prefetch.turn();
  for (int row = 0; row < T::kRows; row++) {
    for (int x = 0; x < T::kTilesASide; x++) {
      RC_UNROLL(4)
      for (int j = 0; j < 4; j++) {
        Vec d[4], o[6];
        prefetch.tick();
        for (int i = 0; i < 4; i++) d[i] = pixel(4 * (tile_row + row) + i, 4 * x + j);
        wino::a_times(d, o);
        float* out = half + j * T::kPosition + (row * T::kTilesASide + x) * 16;
        for (int i = 0; i < 6; i++) store(out + i * 4 * T::kPosition, o[i]);
      }
    }
  }
}
RC_INLINE void slice_spread(const float* half, float* slice, int i, Prefetcher& prefetch) {
  using T = Tiles<16>;
  for (int k = 0; k < T::kCount * 16; k += 16) {
    Vec d[4], o[6];
    prefetch.tick();
    for (int j = 0; j < 4; j++) d[j] = load(half + (i * 4 + j) * T::kPosition + k);
    wino::a_times(d, o);
    for (int j = 0; j < 6; j++) store(slice + j * T::kPosition + k, o[j]);
  }
}

// ---- A group of images (from 1 to kGroup; the rest of the tiles are 0)
template <int C>
struct WinogradBuffers {
  float *v, *x;         // tiles; with 16 channels a slice of them
  float *columns, *half, *half_x;
  float *u, *du;        // transformed weights, and the sum of their gradient
};
// loader(i), epilogue(i): of image i; the epilogue also learns whether it is the first block of the image.
template <int C, class Loaders, class Epilogues>
RC_INLINE void winograd_forward(const WinogradBuffers<C>& buffers, int images, Prefetcher& prefetch,
                                const Loaders& loader, const Epilogues& epilogue) {
  using T = Tiles<C>;
  if constexpr (C == 16) {
    for (int row = 0; row < T::kTilesASide; row += T::kRows) {
      slice_columns(loader(0), buffers.columns, row, prefetch);
      for (int i = 0; i < 6; i++) {
        slice_input(buffers.columns, buffers.v, i, prefetch);
        for (int j = 0; j < 6; j++) {
          const float* u = buffers.u + (i * 6 + j) * T::kMatrix;
          multiply<C>(buffers.v + j * T::kPosition, u, u + T::kMatrix, nullptr, prefetch);
        }
        slice_output(buffers.v, buffers.half, i, prefetch);
      }
      auto write = epilogue(0, row == 0);
      slice_pixels(buffers.half, row, write, prefetch);
    }
  } else {
    for (int i = 0; i < images; i++) transform_input<C>(loader(i), buffers.v, i * T::kTilesOfImage, prefetch);
    if (images < T::kGroup) clear_tiles<C>(buffers.v, images);
    for (int position = 0; position < T::kPositions; position++) {
      float* v = buffers.v + position * T::kPosition;
      const float* u = buffers.u + position * T::kMatrix;
      multiply<C>(v, u, u + T::kMatrix, v + T::kPosition, prefetch);
    }
    for (int i = 0; i < images; i++) {
      auto write = epilogue(i, true);
      transform_output<C>(buffers.v, i * T::kTilesOfImage, write, prefetch);
    }
  }
}
// x_loader: the layer's input; dy_loader: gradient of its output; the epilogue gets the gradient of its input.
// first: of the chunk, so that the weights' gradient begins.
template <int C, class XLoaders, class DyLoaders, class Epilogues>
RC_INLINE void winograd_backward(const WinogradBuffers<C>& buffers, int images, bool first, Prefetcher& prefetch,
                                 const XLoaders& x_loader, const DyLoaders& dy_loader, const Epilogues& epilogue) {
  using T = Tiles<C>;
  if constexpr (C == 16) {
    for (int row = 0; row < T::kTilesASide; row += T::kRows) {
      slice_spread_columns(x_loader(0), buffers.half_x, row, prefetch);
      slice_columns(dy_loader(0), buffers.columns, row, prefetch);
      for (int i = 0; i < 6; i++) {
        slice_input(buffers.columns, buffers.v, i, prefetch);
        slice_spread(buffers.half_x, buffers.x, i, prefetch);
        for (int j = 0; j < 6; j++) {
          float *v = buffers.v + j * T::kPosition, *du = buffers.du + (i * 6 + j) * T::kMatrix;
          const float *x = buffers.x + j * T::kPosition, *u = buffers.u + (i * 6 + j) * T::kMatrix;
          accumulate<C>(x, v, du, first && row == 0, u, nullptr, prefetch);
          multiply<C>(v, u, du + T::kMatrix, nullptr, prefetch);
        }
        slice_output(buffers.v, buffers.half, i, prefetch);
      }
      auto write = epilogue(0);
      slice_pixels(buffers.half, row, write, prefetch);
    }
  } else {
    for (int i = 0; i < images; i++) {
      spread_tiles<C>(x_loader(i), buffers.x, i * T::kTilesOfImage, prefetch);
      transform_input<C>(dy_loader(i), buffers.v, i * T::kTilesOfImage, prefetch);
    }
    if (images < T::kGroup) {
      clear_tiles<C>(buffers.x, images);
      clear_tiles<C>(buffers.v, images);
    }
    for (int position = 0; position < T::kPositions; position++) {  // V is used twice while it is near, then replaced
      float *v = buffers.v + position * T::kPosition, *du = buffers.du + position * T::kMatrix;
      const float *x = buffers.x + position * T::kPosition, *u = buffers.u + position * T::kMatrix;
      accumulate<C>(x, v, du, first, u, v + T::kPosition, prefetch);
      multiply<C>(v, u, du + T::kMatrix, x + T::kPosition, prefetch);
    }
    for (int i = 0; i < images; i++) {
      auto write = epilogue(i);
      transform_output<C>(buffers.v, i * T::kTilesOfImage, write, prefetch);
    }
  }
}
}  // namespace
