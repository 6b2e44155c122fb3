// One layer's pass over the batch, forward and backward. A convolution's loads apply the batch normalisation of the
// layer before, its stores sum for its own; what the next images read and write is prefetched meanwhile.
#pragma once
#include "network.h"

namespace {
// The images after this group, for the prefetcher; nothing at the end of the batch.
class NextImages {
 public:
  NextImages(const Network& net, Prefetcher& prefetch, int next, int group)
      : prefetch_(prefetch), next_(next), count_(std::min(net.batch.count - next, group)) {}
  bool any() const { return count_ > 0; }
  template <int C>
  void add(const float* array) {
    if (count_ > 0) prefetch_.add(at<C>(array, next_), sizeof(float) * Stage<C>::kImage * count_);
  }
  template <int C>
  static const float* at(const float* array, int image) {
    return array + (size_t)image * Stage<C>::kImage;
  }

 private:
  Prefetcher& prefetch_;
  int next_, count_;
};
template <int C>
float* image_of(float* array, int image) {
  return array + (size_t)image * Stage<C>::kImage;
}

// ---- Forward
void forward_stem(Network& net) {
  const Layer& layer = net.stem();
  for_chunks(net, [&](int chunk, ThreadBuffers&, int first, int end) {
    ChunkSums* sums = chunk_sums(net, chunk);
    for (int i = first; i < end; i++) {
      float* input = net.stem_input + (size_t)i * kStemInput;
      write_stem_input(net.batch.bytes(i), net.batch.mean, net.batch.std, net.batch.crop(i), input);
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + 1, 1);
      next.add<16>(layer.output);
      if (next.any()) {
        prefetch.add(net.batch.bytes(i + 1), 3 * kPixels);
        prefetch.add(input + kStemInput, sizeof(float) * kStemInput);
      }
      prefetch.start(kStemTicks);
      StoreOutput<16> store_output(image_of<16>(layer.output, i), sums, i == first);
      direct_forward<3, 16, 32, 1>(input, layer.aligned, store_output, prefetch);
    }
  });
}
// Input of a block, or what the last block gives (block = 3n), of image i: relu(batch norm + shortcut)
template <int C>
RC_INLINE void block_input(Network& net, int block, int i, float* x, float* padded) {
  const Layer& layer = net.layer_before(block);
  const float* y = image_of<C>(layer.output, i);
  if (block == 0 || !net.residual) {
    activate<C, kNone>(y, *layer.norm, nullptr, x, padded);
  } else if (C > 16 && !net.first_layer(block - 1).same_width()) {
    activate<C, kOptionA>(y, *layer.norm, net.inputs[block - 1] + (size_t)i * Stage<C>::kImage * 2, x, padded);
  } else {
    activate<C, kIdentity>(y, *layer.norm, image_of<C>(net.inputs[block - 1], i), x, padded);
  }
}
template <int C>
void forward_first(Network& net, int block) {
  using T = Tiles<C>;
  const Layer& layer = net.first_layer(block);
  float* inputs = net.inputs[block];
  const float* weights = net.weights + layer.weight;
  for_chunks_by_winograd<C>(net, weights, [&](int chunk, StageBuffers<C>& buffers, int first, int end) {
    ChunkSums* sums = chunk_sums(net, chunk);
    for (int i = first; i < end; i += T::kGroup) {
      const int images = std::min(end - i, (int)T::kGroup);
      for (int j = i; j < i + images; j++) block_input<C>(net, block, j, image_of<C>(inputs, j), nullptr);
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + T::kGroup, T::kGroup);
      next.add<C>(net.layer_before(block).output);
      if (block && net.residual) next.add<C>(net.inputs[block - 1]);
      next.add<C>(inputs);
      next.add<C>(layer.output);
      prefetch.start(Product<C>::kForwardTicks);
      winograd_forward<C>(
          buffers.winograd, images, prefetch, [&](int j) { return LoadImage<C>(image_of<C>(inputs, i + j)); },
          [&](int j, bool top) {
            return StoreOutput<C>(image_of<C>(layer.output, i + j), sums, top && i + j == first);
          });
    }
  });
}
// From C to 2C channels, stride 2
template <int C>
void forward_first_wider(Network& net, int block) {
  const Layer& layer = net.first_layer(block);
  for_chunks(net, [&](int chunk, ThreadBuffers& all, int first, int end) {
    StageBuffers<C>& buffers = all.of<C>();
    ChunkSums* sums = chunk_sums(net, chunk);
    for (int i = first; i < end; i++) {
      block_input<C>(net, block, i, image_of<C>(net.inputs[block], i), buffers.padded);
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + 1, 1);
      next.add<C>(net.layer_before(block).output);
      if (net.residual) next.add<C>(net.inputs[block - 1]);
      next.add<C>(net.inputs[block]);
      next.add<2 * C>(layer.output);
      prefetch.start(kStrideTicks);
      StoreOutput<2 * C> store_output(image_of<2 * C>(layer.output, i), sums, i == first);
      direct_forward<C, 2 * C, Stage<2 * C>::kSide, 2>(buffers.padded, layer.aligned, store_output, prefetch);
    }
  });
}
template <int C>
void forward_second(Network& net, int block) {
  using T = Tiles<C>;
  const Layer &layer = net.second_layer(block), &before = net.first_layer(block);
  const float* weights = net.weights + layer.weight;
  for_chunks_by_winograd<C>(net, weights, [&](int chunk, StageBuffers<C>& buffers, int first, int end) {
    ChunkSums* sums = chunk_sums(net, chunk);
    for (int i = first; i < end; i += T::kGroup) {
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + T::kGroup, T::kGroup);
      next.add<C>(before.output);
      next.add<C>(layer.output);
      prefetch.start(Product<C>::kForwardTicks);
      winograd_forward<C>(
          buffers.winograd, std::min(end - i, (int)T::kGroup), prefetch,
          [&](int j) { return LoadActivation<C>(image_of<C>(before.output, i + j), before.norm); },
          [&](int j, bool top) {
            return StoreOutput<C>(image_of<C>(layer.output, i + j), sums, top && i + j == first);
          });
    }
  });
}

// ---- Head. False: a logit is not finite
bool none_failed(const Network& net, int items) {
  return std::find(net.failed, net.failed + items, true) == net.failed + items;
}

bool forward_backward_head(Network& net) {
  const Layer& layer = net.layer_before(net.block_count);
  const float* fc = net.weights + net.head;
  for_chunks(net, [&](int chunk, ThreadBuffers&, int first, int end) {
    alignas(64) float x[Stage<64>::kImage], pooled[kFeatures], pixel_gradient[kFeatures];
    alignas(64) float logits[kColumns], logit_gradient[kColumns];
    float* fc_gradient = chunk_gradient(net, chunk, kHeadWeights);
    memset(fc_gradient, 0, sizeof(float) * kHeadWeights);
    ChunkSums* sums = chunk_sums(net, chunk);
    double loss = 0;
    int errors = 0;
    net.failed[chunk] = false;
    for (int i = first; i < end; i++) {
      block_input<64>(net, net.block_count, i, x, nullptr);
      pool_and_classify(x, fc, pooled, logits);
      if (!are_finite(logits, net.classes)) {
        net.failed[chunk] = true;
        break;
      }
      const int label = net.batch.labels[net.batch.image(i)];
      const Loss own = cross_entropy(logits, label, net.classes, net.batch.count, logit_gradient);
      loss += own.cross_entropy;
      errors += own.error;
      classify_backward(pooled, fc, logit_gradient, net.classes, fc_gradient, pixel_gradient);
      spread_backward(pixel_gradient, x, image_of<64>(layer.output, i), *layer.norm, sums,
                      image_of<64>(net.outer_gradient[2], i));
    }
    net.losses[chunk] = loss;
    net.errors[chunk] = errors;
  });
  if (!none_failed(net, net.chunks)) return false;
  sum_gradient(net, net.head, kHeadWeights);
  return true;
}
// [count][classes]; false: one of them is not finite
bool forward_head(Network& net, float* out) {
  const float* fc = net.weights + net.head;
  for_chunks(net, [&](int chunk, ThreadBuffers&, int first, int end) {
    alignas(64) float x[Stage<64>::kImage], pooled[kFeatures], logits[kColumns];
    net.failed[chunk] = false;
    for (int i = first; i < end; i++) {
      block_input<64>(net, net.block_count, i, x, nullptr);
      pool_and_classify(x, fc, pooled, logits);
      if (!are_finite(logits, net.classes)) net.failed[chunk] = true;
      for (int j = 0; j < net.classes; j++) out[(size_t)i * net.classes + j] = with_one_nan(logits[j]);
    }
  });
  return none_failed(net, net.chunks);
}

// ---- Backward
template <int C>
void backward_second(Network& net, int block) {
  using T = Tiles<C>;
  const Layer &layer = net.second_layer(block), &before = net.first_layer(block);
  float *outer = net.outer_gradient[layer.stage], *inner = net.inner_gradient[layer.stage];
  for_chunks_by_winograd<C>(net, layer.transposed, [&](int chunk, StageBuffers<C>& buffers, int first, int end) {
    ChunkSums* sums = chunk_sums(net, chunk);
    for (int i = first; i < end; i += T::kGroup) {
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + T::kGroup, T::kGroup);
      next.add<C>(outer);
      next.add<C>(layer.output);
      next.add<C>(before.output);
      next.add<C>(inner);
      prefetch.start(Product<C>::kBackwardTicks);
      winograd_backward<C>(
          buffers.winograd, std::min(end - i, (int)T::kGroup), i == first, prefetch,
          [&](int j) { return LoadActivation<C>(image_of<C>(before.output, i + j), before.norm); },
          [&](int j) {
            return LoadGradient<C>(image_of<C>(outer, i + j), image_of<C>(layer.output, i + j), layer.norm);
          },
          [&](int j) {
            float* dz = image_of<C>(inner, i + j);
            return StoreInnerGradient<C>(image_of<C>(before.output, i + j), before.norm, dz, sums);
          });
    }
    transform_weight_gradient<C>(buffers.winograd.du, chunk_gradient(net, chunk, 9 * C * C));
  });
  sum_gradient(net, layer.weight, 9 * C * C);
}
template <int C, int kShortcut>
void backward_first(Network& net, int block) {
  using T = Tiles<C>;
  const Layer &layer = net.first_layer(block), &before = net.layer_before(block);
  float *outer = net.outer_gradient[layer.stage], *inner = net.inner_gradient[layer.stage];
  float* inputs = net.inputs[block];
  for_chunks_by_winograd<C>(net, layer.transposed, [&](int chunk, StageBuffers<C>& buffers, int first, int end) {
    ChunkSums* sums = chunk_sums(net, chunk);
    for (int i = first; i < end; i += T::kGroup) {
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + T::kGroup, T::kGroup);
      next.add<C>(inner);
      next.add<C>(layer.output);
      next.add<C>(inputs);
      next.add<C>(outer);
      next.add<C>(before.output);
      prefetch.start(Product<C>::kBackwardTicks);
      winograd_backward<C>(
          buffers.winograd, std::min(end - i, (int)T::kGroup), i == first, prefetch,
          [&](int j) { return LoadImage<C>(image_of<C>(inputs, i + j)); },
          [&](int j) {
            return LoadGradient<C>(image_of<C>(inner, i + j), image_of<C>(layer.output, i + j), layer.norm);
          },
          [&](int j) {
            float* dz = image_of<C>(outer, i + j);  // the shortcut's gradient, replaced by the sum
            return StoreInputGradient<C, kShortcut>(image_of<C>(inputs, i + j), image_of<C>(before.output, i + j),
                                                    before.norm, dz, dz, sums);
          });
    }
    transform_weight_gradient<C>(buffers.winograd.du, chunk_gradient(net, chunk, 9 * C * C));
  });
  sum_gradient(net, layer.weight, 9 * C * C);
}
template <int C, int kShortcut>
void backward_first_wider(Network& net, int block) {
  constexpr int kWeights = 9 * C * 2 * C, kSide = Stage<2 * C>::kSide;
  const Layer &layer = net.first_layer(block), &before = net.layer_before(block);
  float *outer = net.outer_gradient[layer.stage], *inner = net.inner_gradient[layer.stage];
  float *inputs = net.inputs[block], *outer_before = net.outer_gradient[layer.stage - 1];
  for_chunks(net, [&](int chunk, ThreadBuffers& all, int first, int end) {
    float *padded = all.of<C>().padded, *padded_gradient = all.of<2 * C>().padded_gradient;
    ChunkSums* sums = chunk_sums(net, chunk);
    float* weight_gradient = chunk_gradient(net, chunk, kWeights);
    memset(weight_gradient, 0, sizeof(float) * kWeights);
    for (int i = first; i < end; i++) {
      float *x = image_of<C>(inputs, i), *y = image_of<2 * C>(layer.output, i);
      pad_gradient<2 * C>(image_of<2 * C>(inner, i), y, *layer.norm, padded_gradient);
      pad<C>(x, padded);
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + 1, 1);
      next.add<2 * C>(inner);
      next.add<2 * C>(layer.output);
      next.add<C>(inputs);
      next.add<C>(before.output);
      if (kShortcut != kNone) next.add<2 * C>(outer);
      next.add<C>(outer_before);
      prefetch.start(2 * kStrideTicks);
      direct_weight_gradient<C, 2 * C, kSide>(padded, padded_gradient, weight_gradient, prefetch);
      StoreInputGradient<C, kShortcut> store_gradient(x, image_of<C>(before.output, i), before.norm,
                                                      image_of<2 * C>(outer, i), image_of<C>(outer_before, i), sums);
      direct_data_gradient<C, 2 * C, kSide>(padded_gradient, layer.transposed, store_gradient, prefetch);
    }
  });
  sum_gradient(net, layer.weight, kWeights);
}
void backward_stem(Network& net) {
  const Layer& layer = net.stem();
  constexpr int kWeights = 27 * 16;
  float* outer = net.outer_gradient[0];
  for_chunks(net, [&](int chunk, ThreadBuffers& all, int first, int end) {
    float* padded_gradient = all.stage16.padded_gradient;
    float* weight_gradient = chunk_gradient(net, chunk, kWeights);
    memset(weight_gradient, 0, sizeof(float) * kWeights);
    for (int i = first; i < end; i++) {
      const float* input = net.stem_input + (size_t)i * kStemInput;
      pad_gradient<16>(image_of<16>(outer, i), image_of<16>(layer.output, i), *layer.norm, padded_gradient);
      Prefetcher prefetch;
      NextImages next(net, prefetch, i + 1, 1);
      next.add<16>(outer);
      next.add<16>(layer.output);
      if (next.any()) prefetch.add(input + kStemInput, sizeof(float) * kStemInput);
      prefetch.start(kStemGradientTicks);
      stem_weight_gradient(input, padded_gradient, weight_gradient, prefetch);
    }
  });
  sum_gradient(net, layer.weight, kWeights);
}

// ---- Weights as the passes read them
void copy_transposed(const float* weights, const Layer& layer) {
  const int in = layer.in, out = layer.out;
  for (int tap = 0; tap < 9; tap++) {
    const int place = layer.same_width() ? 8 - tap : tap;
    for (int i = 0; i < in; i += 16) {
      for (int o = 0; o < out; o += 16) {
        const float* from = weights + (size_t)(tap * in + i) * out + o;
        float* to = layer.transposed + (size_t)(place * out + o) * in + i;
        alignas(64) float block[256];
        for (int row = 0; row < 16; row++) store(block + 16 * row, load(from + row * out));
        for (int row = 0; row < 16; row++) {
          for (int column = 0; column < 16; column++) to[row * in + column] = block[column * 16 + row];
        }
      }
    }
  }
}
void prepare_weights(Network& net) {
  parallel(net.layer_count, [&](int item, int) {
    const Layer& layer = net.layers[net.layer_count - 1 - item];  // the wide ones take longest
    const float* weights = net.weights + layer.weight;
    if (layer.aligned) memcpy(layer.aligned, weights, sizeof(float) * 9 * layer.in * layer.out);
    if (layer.transposed && net.training) copy_transposed(weights, layer);
  });
}
}  // namespace
