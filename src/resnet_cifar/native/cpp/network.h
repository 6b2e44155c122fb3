// The network of He et al. 2015, section 4.2: a stem and 3n blocks of two 3x3 convolutions with 16, 32 and 64 channels,
// each convolution followed by batch normalisation; shortcuts of kind A around the blocks, or none. Here is where
// everything lies, and how the work of a pass is divided.
//
// Work is divided into chunks of 16 images, the last one shorter. Every sum over the batch is one sum a chunk, added up
// in the order of chunks; so neither the number of threads nor their order is in the bits, but the size of chunks is.
#pragma once
#include <algorithm>
#include <new>

#include "arena.h"
#include "batch_norm.h"
#include "direct.h"
#include "head.h"
#include "input.h"
#include "sgd.h"
#include "threads.h"
#include "winograd.h"

namespace {
constexpr int kChunk = 16;
constexpr int kLargestGradient = 9 * 64 * 64;

struct Layer {
  int in, out, stage;          // channels, stage of the output; its side is 32 >> stage
  size_t weight, gamma, beta;  // places among the weights
  float* transposed;           // [3][3][out][in] for the data gradient, flipped for Winograd
  float* aligned;              // copy of the weights for direct convolutions: the caller's lie anywhere
  float* output;               // of the convolution, [image][side][side][out]
  BatchNorm* norm;
  bool same_width() const { return in == out; }
  double pixels() const { return 1024 >> (2 * stage); }
};

// Buffers of one thread for C channels; the rings of padded ones and the borders of columns stay zero.
template <int C>
struct StageBuffers {
  WinogradBuffers<C> winograd;
  float *padded, *padded_gradient;
  unsigned transformed;  // of which pass the transformed weights are
  void place(Arena& arena) {
    using T = Tiles<C>;
    winograd.v = arena.take<float>(C == 16 ? T::kSlice : T::kV);
    winograd.x = arena.take<float>(C == 16 ? T::kSlice : T::kV);
    winograd.columns = C == 16 ? arena.take<float>(T::kColumns) : nullptr;
    winograd.half = C == 16 ? arena.take<float>(T::kHalf) : nullptr;
    winograd.half_x = C == 16 ? arena.take<float>(T::kHalf) : nullptr;
    winograd.u = arena.take<float>(T::kU);
    winograd.du = arena.take<float>(T::kU);
    padded = arena.take<float>(T::kPaddedImage);
    padded_gradient = arena.take<float>(T::kPaddedImage);
    transformed = 0;
  }
};
struct ThreadBuffers {
  Arena arena;
  StageBuffers<16> stage16;
  StageBuffers<32> stage32;
  StageBuffers<64> stage64;
  bool reserve() {
    place();
    if (!arena.reserve()) return false;
    place();
    return true;
  }
  template <int C>
  StageBuffers<C>& of() {
    if constexpr (C == 16) {
      return stage16;
    } else if constexpr (C == 32) {
      return stage32;
    } else {
      return stage64;
    }
  }

 private:
  void place() {
    stage16.place(arena);
    stage32.place(arena);
    stage64.place(arena);
  }
};

// What a pass works on
struct Batch {
  const uint8_t *images, *labels;
  const float *mean, *std;
  const int32_t* index;                 // null: images from `first` on, in the middle of the padding
  const uint8_t *top, *left, *flip;
  int64_t first;
  int count;

  int64_t image(int i) const { return index ? index[i] : first + i; }
  const uint8_t* bytes(int i) const { return images + image(i) * 3 * kPixels; }
  Crop crop(int i) const { return index ? Crop{top[i], left[i], flip[i] != 0} : Crop{kMargin, kMargin, false}; }
};

struct Network {
  bool residual;
  int n, classes, max_batch;
  int layer_count, block_count;
  size_t weight_count, head;  // head: the classifier's place among the weights

  Layer* layers;                                   // stem, then two a block
  float** inputs;                                  // of each block, [image][side][side][channels]
  float* stem_input;                               // see input.h
  float *outer_gradient[3], *inner_gradient[3];    // dz of a block's second and first convolution, one a stage
  float *gradient, *chunk_gradients;               // of the weights; of one layer, by chunks
  ChunkSums* sums;
  double* losses;                                  // by chunks
  int* errors;
  bool* failed;                                    // by chunks or pieces: not finite
  float* next_statistics;

  // Of the pass in progress
  Batch batch;
  const float* weights;
  int chunks;
  bool training;
  unsigned pass;

  int thread_count;
  ThreadBuffers* threads[Pool::kMaxThreads];
  Arena arena;

  ~Network() {
    for (int i = 0; i < thread_count; i++) delete threads[i];
  }
  const Layer& stem() const { return layers[0]; }
  Layer& first_layer(int block) { return layers[1 + 2 * block]; }
  Layer& second_layer(int block) { return layers[2 + 2 * block]; }
  const Layer& layer_before(int block) { return layers[2 * block]; }  // whose activation is the block's input
  int64_t statistic_count() const { return (int64_t)layer_count * kStatisticsOfLayer; }

  void place() {
    const int kWidths[3] = {16, 32, 64};
    const size_t chunks_at_most = (max_batch + kChunk - 1) / kChunk;
    size_t next = 0;
    int layer = 0, block = 0;
    Layer* layer_list = arena.take<Layer>(layer_count);
    float** input_list = arena.take<float*>(block_count);
    auto add = [&](int in, int out, int stage) {
      Layer l = {};
      l.in = in;
      l.out = out;
      l.stage = stage;
      l.weight = next;
      l.gamma = l.weight + 9 * in * out;
      l.beta = l.gamma + out;
      next = l.beta + out;
      l.output = arena.take<float>(max_batch * image_size(stage));
      l.norm = arena.take<BatchNorm>(1);
      if (in > 3) l.transposed = arena.take<float>(9 * in * out);
      if (in != out) l.aligned = arena.take<float>(9 * in * out);
      if (layer_list) layer_list[layer] = l;
      layer++;
    };
    add(3, 16, 0);
    for (int stage = 0; stage < 3; stage++) {
      for (int i = 0; i < n; i++) {
        const int before = i == 0 && stage > 0 ? stage - 1 : stage;
        float* input = arena.take<float>(max_batch * image_size(before));
        if (input_list) input_list[block] = input;
        block++;
        add(kWidths[before], kWidths[stage], stage);
        add(kWidths[stage], kWidths[stage], stage);
      }
    }
    head = next;
    weight_count = head + kHeadWeights;
    layers = layer_list;
    inputs = input_list;
    stem_input = arena.take<float>((size_t)max_batch * kStemInput);
    for (int stage = 0; stage < 3; stage++) {
      outer_gradient[stage] = arena.take<float>(max_batch * image_size(stage));
      inner_gradient[stage] = arena.take<float>(max_batch * image_size(stage));
    }
    gradient = arena.take<float>(weight_count);
    chunk_gradients = arena.take<float>(chunks_at_most * kLargestGradient);
    sums = arena.take<ChunkSums>(chunks_at_most);
    losses = arena.take<double>(chunks_at_most);
    errors = arena.take<int>(chunks_at_most);
    failed = arena.take<bool>(std::max(chunks_at_most, weight_count / kSgdPiece + 1));
    next_statistics = arena.take<float>(statistic_count());
  }
  static size_t image_size(int stage) { return 16384 >> stage; }
};

// Buffers for at least so many threads; false: no memory
bool reserve_threads(Network& net, int threads) {
  while (net.thread_count < threads) {
    ThreadBuffers* buffers = new (std::nothrow) ThreadBuffers;
    if (!buffers) return false;
    if (!buffers->reserve()) {
      delete buffers;
      return false;
    }
    net.threads[net.thread_count++] = buffers;
  }
  return true;
}
// False: no memory
bool reserve_network(Network& net, bool residual, int n, int classes, int max_batch, int threads) {
  net.residual = residual;
  net.n = n;
  net.classes = classes;
  net.max_batch = max_batch;
  net.block_count = 3 * n;
  net.layer_count = 1 + 6 * n;
  net.place();
  if (!net.arena.reserve() || !reserve_threads(net, threads)) return false;
  net.place();
  return true;
}

// ---- Division of work
// f(chunk, buffers, first image, end)
template <class F>
void for_chunks(Network& net, F f) {
  parallel(net.chunks, [&](int chunk, int thread) {
    const int first = chunk * kChunk, end = std::min(first + kChunk, net.batch.count);
    f(chunk, *net.threads[thread], first, end);
  });
}
// f(chunk, buffers of C channels, first image, end), with the transformed weights in the buffers. Every thread
// transforms them for itself: they are nearer than those that another one made.
template <int C, class F>
void for_chunks_by_winograd(Network& net, const float* weights, F f) {
  if (!++net.pass) net.pass = 1;
  for_chunks(net, [&](int chunk, ThreadBuffers& all, int first, int end) {
    StageBuffers<C>& buffers = all.of<C>();
    if (buffers.transformed != net.pass) {
      transform_weights<C>(weights, buffers.winograd.u);
      buffers.transformed = net.pass;
    }
    f(chunk, buffers, first, end);
  });
}
// Cleared; null in evaluation
ChunkSums* chunk_sums(Network& net, int chunk) {
  if (!net.training) return nullptr;
  memset(&net.sums[chunk], 0, sizeof(ChunkSums));
  return &net.sums[chunk];
}
// One layer's gradient of a chunk, for size weights
float* chunk_gradient(Network& net, int chunk, int size) { return net.chunk_gradients + (size_t)chunk * size; }
// Sum over chunks in order, to its place in the gradient
void sum_gradient(Network& net, size_t place, int size) {
  constexpr int kPiece = 1024;
  parallel((size + kPiece - 1) / kPiece, [&](int piece, int) {
    for (int k = piece * kPiece; k < std::min(size, (piece + 1) * kPiece); k += 16) {
      Vec sum = load(net.chunk_gradients + k);
      for (int chunk = 1; chunk < net.chunks; chunk++) sum = sum + load(chunk_gradient(net, chunk, size) + k);
      store(net.gradient + place + k, sum);
    }
  });
}
// f(Constant<C>()) for the layer's number of channels
template <class F>
void with_channels(int channels, F f) {
  if (channels == 16) {
    f(Constant<16>());
  } else if (channels == 32) {
    f(Constant<32>());
  } else {
    f(Constant<64>());
  }
}
}  // namespace
