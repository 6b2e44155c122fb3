// Direct 3x3 convolutions, on images padded with a ring of zeros: the stem and the two layers of stride 2.
//   forward        y[i][j][o] = sum over kernel row, kernel column, input channel of x[S i + row][S j + column][c] w
//   data gradient  by the parity of the pixel, as stride 2 lets each parity see other taps
//   weights        dw[row][column][c][o] = sum over pixels of x[S i + row][S j + column][c] dy[i][j][o]
// Sums run in the order of the formulas from 0; the weights' gradient sums a block of rows from 0, then adds blocks.
#pragma once
#include "winograd.h"

namespace {
constexpr int smaller(int x, int y) { return x < y ? x : y; }

// sum[p][j] += sum over k < K of in[p * pixel + k] * w[k * width + 16 j ..]
template <int kPixels, int kVectors, int K>
RC_INLINE void add_tap(Vec (&sum)[kPixels][kVectors], const float* in, int pixel, const float* w, int width,
                       Prefetcher& prefetch) {
  constexpr int kUnroll = K % 4 ? 1 : kDirectUnroll;
  const char* line = prefetch.at;
  const long step = prefetch.step;
  RC_UNROLL(1)
  for (int k0 = 0; k0 < K; k0 += kUnroll) {
    RC_UNROLL(4)
    for (int k = k0; k < k0 + kUnroll; k++) {
      if ((k - k0) % kStepsPerPrefetch == 0) {
        __builtin_prefetch(line, 0, 1);
        line += step;
      }
      Vec row[kVectors];
      RC_UNROLL(4)
      for (int j = 0; j < kVectors; j++) row[j] = load(w + k * width + 16 * j);
      RC_UNROLL(16)
      for (int p = 0; p < kPixels; p++) {
        const Vec x = splat(in[p * pixel + k]);
        RC_UNROLL(4)
        for (int j = 0; j < kVectors; j++) sum[p][j] = fma(x, row[j], sum[p][j]);
      }
    }
  }
  prefetch.at = line;
}
// A block is kPixels pixels of a row, step apart, times kVectors vectors of channels.
template <int kPixels, int kVectors, class Epilogue>
RC_INLINE void write_block(Vec (&sum)[kPixels][kVectors], int y, int x, int step, Epilogue& epilogue) {
  for (int j = 0; j < kVectors; j++) {
    for (int p = 0; p < kPixels; p += 4) {
      const Vec o[4] = {sum[p][j], sum[p + 1][j], sum[p + 2][j], sum[p + 3][j]};
      epilogue.write_vector(j, y, x + step * p, step, o);
    }
  }
}
template <int kPixels, int kVectors>
RC_INLINE void clear(Vec (&sum)[kPixels][kVectors]) {
  for (int p = 0; p < kPixels; p++) {
    for (int j = 0; j < kVectors; j++) sum[p][j] = zero();
  }
}

// x[S side + 2][S side + 2][kIn] to y[side][side][kOut] by w[3][3][kIn][kOut]
template <int kIn, int kOut, int kSide, int kStride, class Epilogue>
RC_INLINE void direct_forward(const float* x, const float* w, Epilogue& epilogue, Prefetcher& prefetch) {
  constexpr int kVectors = smaller(kBlockVectors, kOut / 16), kPixels = smaller(kSide, kAccumulators / kVectors);
  constexpr int kWidth = kSide * kStride + 2;
  for (int channel = 0; channel < kOut; channel += 16 * kVectors) {
    epilogue.template begin_vectors<kVectors>(channel);
    for (int i = 0; i < kSide; i++) {
      for (int j = 0; j < kSide; j += kPixels) {
        Vec sum[kPixels][kVectors];
        clear(sum);
        for (int row = 0; row < 3; row++) {
          for (int column = 0; column < 3; column++) {
            const float* in = x + ((i * kStride + row) * kWidth + j * kStride + column) * kIn;
            const float* tap = w + (row * 3 + column) * kIn * kOut + channel;
            add_tap<kPixels, kVectors, kIn>(sum, in, kStride * kIn, tap, kOut, prefetch);
          }
        }
        prefetch.turn();
        write_block(sum, i, j, 1, epilogue);
      }
    }
    epilogue.template end_vectors<kVectors>(channel);
  }
}
// dx[2 side][2 side][kIn] from dy[side + 2][side + 2][kOut] by w transposed, [3][3][kOut][kIn]. The parity is
// outermost, so that the weights of its taps stay in the first cache.
template <int kIn, int kOut, int kSide, class Epilogue>
RC_INLINE void direct_data_gradient(const float* dy, const float* w, Epilogue& epilogue, Prefetcher& prefetch) {
  constexpr int kVectors = smaller(kBlockVectors, kIn / 16), kPixels = smaller(kSide, kAccumulators / kVectors);
  constexpr int kWidth = kSide + 2;
  for (int channel = 0; channel < kIn; channel += 16 * kVectors) {
    epilogue.template begin_vectors<kVectors>(channel);
    for (int parity = 0; parity < 4; parity++) {
      const int odd_y = parity >> 1, odd_x = parity & 1;
      for (int y = odd_y; y < 2 * kSide; y += 2) {
        for (int j = 0; j < kSide; j += kPixels) {
          Vec sum[kPixels][kVectors];
          clear(sum);
          for (int row = odd_y ? 0 : 1; row < 3; row += 2) {
            for (int column = odd_x ? 0 : 1; column < 3; column += 2) {
              const int dy_y = (y + 1 - row) / 2, dy_x = j + (odd_x + 1 - column) / 2;
              const float* in = dy + ((dy_y + 1) * kWidth + dy_x + 1) * kOut;
              const float* tap = w + (row * 3 + column) * kOut * kIn + channel;
              add_tap<kPixels, kVectors, kOut>(sum, in, kOut, tap, kIn, prefetch);
            }
          }
          prefetch.turn();
          write_block(sum, y, 2 * j + odd_x, 2, epilogue);
        }
      }
    }
    epilogue.template end_vectors<kVectors>(channel);
  }
}
// dw[3][3][kIn][kOut] += ..., stride 2; x and dy padded. A block of rows at a time, so that both stay in the first
// cache.
template <int kIn, int kOut, int kSide>
void direct_weight_gradient(const float* x, const float* dy, float* dw, Prefetcher& prefetch) {
  constexpr int kVectors = smaller(kBlockVectors, kOut / 16), kRows = kAccumulators / kVectors;
  constexpr int kWidth = 2 * kSide + 2, kDyWidth = kSide + 2, kBlock = kSide / 2 < 8 ? kSide : kSide / 4;
  for (int block = 0; block < kSide; block += kBlock) {
    for (int tap = 0; tap < 9; tap++) {
      for (int in = 0; in < kIn; in += kRows) {
        for (int out = 0; out < kOut; out += 16 * kVectors) {
          Vec sum[kRows][kVectors];
          clear(sum);
          const char* line = prefetch.at;
          const long step = prefetch.step;
          for (int i = block; i < block + kBlock; i++) {
            const float* at = x + ((i * 2 + tap / 3) * kWidth + tap % 3) * kIn + in;
            const float* dy_at = dy + ((i + 1) * kDyWidth + 1) * kOut + out;
            RC_UNROLL(1)
            for (int j0 = 0; j0 < kSide; j0 += 4) {
              RC_UNROLL(4)
              for (int j = j0; j < j0 + 4; j++) {
                if ((j - j0) % kStepsPerPrefetch == 0) {
                  __builtin_prefetch(line, 0, 1);
                  line += step;
                }
                Vec row[kVectors];
                for (int v = 0; v < kVectors; v++) row[v] = load(dy_at + j * kOut + 16 * v);
                RC_UNROLL(16)
                for (int c = 0; c < kRows; c++) {
                  const Vec factor = splat(at[j * 2 * kIn + c]);
                  for (int v = 0; v < kVectors; v++) sum[c][v] = fma(factor, row[v], sum[c][v]);
                }
              }
            }
          }
          prefetch.at = line;
          prefetch.turn();
          float* place = dw + (tap * kIn + in) * kOut + out;
          for (int c = 0; c < kRows; c++) {
            for (int v = 0; v < kVectors; v++) {
              store(place + c * kOut + 16 * v, load(place + c * kOut + 16 * v) + sum[c][v]);
            }
          }
        }
      }
    }
  }
}
// The stem's dw[27][16] += ... of one image; as many rows of the kernel at once as the registers hold
void stem_weight_gradient(const float* x, const float* dy, float* dw, Prefetcher& prefetch) {
  constexpr int kRows = kStemKernelRows, kWidth = 34;
  for (int first = 0; first < 3; first += kRows) {
    Vec sum[kRows * 9];
    for (int i = 0; i < kRows * 9; i++) sum[i] = zero();
    for (int i = 0; i < 32; i++) {
      for (int j = 0; j < 32; j++) {
        for (int tick = 0; tick < kBlockVectors; tick++) prefetch.tick();
        const Vec d = load(dy + ((i + 1) * kWidth + j + 1) * 16);
        RC_UNROLL(3)
        for (int row = 0; row < kRows; row++) {
          const float* at = x + ((i + first + row) * kWidth + j) * 3;
          RC_UNROLL(9)
          for (int k = 0; k < 9; k++) sum[row * 9 + k] = fma(splat(at[k]), d, sum[row * 9 + k]);
        }
      }
      prefetch.turn();
    }
    for (int i = 0; i < kRows * 9; i++) {
      float* place = dw + (first * 9 + i) * 16;
      store(place, load(place) + sum[i]);
    }
  }
}

// Calls of tick() that an image takes, or of the stem's gradient the fewest of any set
constexpr int kStemTicks = 32 * (32 / kAccumulators) * 27;
constexpr int kStemGradientTicks = 2048;
constexpr int kStrideTicks = 4608;
}  // namespace
