// From the data set's bytes to the stem's input (He et al. 2015, section 4.2): (p / 255 - mean) / std for each pixel,
// each operation rounded to fp32; zeros, 4 on each side; a 32x32 crop of that; mirrored if asked. The crop is written
// as [y][x][3] into an image of 34x34 whose ring of zeros is the padding of the stem's convolution.
#pragma once
#include <cstdint>

namespace {
constexpr int kPixels = 32 * 32, kMargin = 4;
constexpr int kStemRow = 34 * 3, kStemInput = 34 * kStemRow + 4;  // a multiple of 16 floats

struct Crop {
  int top, left;  // from 0 to 2 kMargin
  bool flip;
};

void write_stem_input(const uint8_t* image, const float* mean, const float* std, Crop crop, float* out) {
  constexpr int kLine = 32 + 2 * kMargin;
  float line[3][kLine] = {};
  for (int y = 0; y < 32; y++) {
    float* row = out + (y + 1) * kStemRow + 3;
    const int from = crop.top + y - kMargin;
    if (from < 0 || from >= 32) {
      for (int i = 0; i < 96; i++) row[i] = 0;
      continue;
    }
    for (int c = 0; c < 3; c++) {
      const uint8_t* bytes = image + c * kPixels + from * 32;
      const float* means = mean + c * kPixels + from * 32;
      for (int x = 0; x < 32; x++) line[c][kMargin + x] = ((float)bytes[x] / 255.f - means[x]) / std[c];
    }
    const float *r = line[0] + crop.left, *g = line[1] + crop.left, *b = line[2] + crop.left;
    for (int x = 0; x < 32; x++) {
      const int in = crop.flip ? 31 - x : x;
      row[3 * x] = r[in];
      row[3 * x + 1] = g[in];
      row[3 * x + 2] = b[in];
    }
  }
}
}  // namespace
