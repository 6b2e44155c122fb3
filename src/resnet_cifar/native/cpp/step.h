// One SGD step (He et al. 2015, section 4.2), and the evaluation of images, in the order in which they happen.
#pragma once
#include "layers.h"

namespace {
// Batch normalisation of a layer whose convolution is done: by the batch, or in evaluation (statistics) by these.
bool normalise(Network& net, int index, const float* statistics) {
  const Layer& layer = net.layers[index];
  const float *gamma = net.weights + layer.gamma, *beta = net.weights + layer.beta;
  if (!net.training) {
    normalise_by_statistics(*layer.norm, layer.out, statistics + (size_t)index * kStatisticsOfLayer, gamma, beta);
    return true;
  }
  auto pixels = [&](int chunk) {
    const int first = chunk * kChunk, end = std::min(first + kChunk, net.batch.count);
    return (end - first) * layer.pixels();
  };
  return normalise_by_batch(*layer.norm, net.sums, net.chunks, pixels, layer.out, gamma, beta);
}
void normalise_backward(Network& net, const Layer& layer) {
  normalise_backward(*layer.norm, net.sums, net.chunks, net.batch.count * layer.pixels(), layer.out,
                     net.weights + layer.gamma, net.gradient + layer.gamma, net.gradient + layer.beta);
}

// Up to the outputs of the last convolution and their normalisation; false: not finite
bool forward(Network& net, const float* statistics) {
  prepare_weights(net);
  forward_stem(net);
  if (!normalise(net, 0, statistics)) return false;
  for (int block = 0; block < net.block_count; block++) {
    const Layer& first = net.first_layer(block);
    if (first.same_width()) {
      with_channels(first.out, [&](auto c) { forward_first<decltype(c)::value>(net, block); });
    } else if (first.in == 16) {
      forward_first_wider<16>(net, block);
    } else {
      forward_first_wider<32>(net, block);
    }
    if (!normalise(net, 1 + 2 * block, statistics)) return false;
    with_channels(first.out, [&](auto c) { forward_second<decltype(c)::value>(net, block); });
    if (!normalise(net, 2 + 2 * block, statistics)) return false;
  }
  return true;
}
template <int kSameWidth, int kWider>
void backward_first_layer(Network& net, int block) {
  const Layer& first = net.first_layer(block);
  if (first.same_width()) {
    with_channels(first.out, [&](auto c) { backward_first<decltype(c)::value, kSameWidth>(net, block); });
  } else if (first.in == 16) {
    backward_first_wider<16, kWider>(net, block);
  } else {
    backward_first_wider<32, kWider>(net, block);
  }
}
void backward(Network& net) {
  for (int block = net.block_count - 1; block >= 0; block--) {
    const Layer &first = net.first_layer(block), &second = net.second_layer(block);
    normalise_backward(net, second);
    with_channels(second.out, [&](auto c) { backward_second<decltype(c)::value>(net, block); });
    normalise_backward(net, first);
    if (net.residual) {
      backward_first_layer<kIdentity, kOptionA>(net, block);
    } else {
      backward_first_layer<kNone, kNone>(net, block);
    }
  }
  normalise_backward(net, net.stem());
  backward_stem(net);
}

// Into net.next_statistics; false: not finite
bool update_statistics(Network& net, const float* statistics) {
  bool finite = true;
  for (int i = 0; i < net.layer_count; i++) {
    const Layer& layer = net.layers[i];
    const float* old = statistics + (size_t)i * kStatisticsOfLayer;
    float* next = net.next_statistics + (size_t)i * kStatisticsOfLayer;
    memcpy(next, old, sizeof(float) * kStatisticsOfLayer);
    for (int c = 0; c < layer.out; c++) {
      next[c] = next_mean(*layer.norm, c, old[c]);
      next[64 + c] = next_variance(*layer.norm, c, old[64 + c], net.batch.count * layer.pixels());
      finite = finite && is_finite(next[c]) && is_finite(next[64 + c]);
    }
  }
  return finite;
}
// f(piece, first weight, end)
template <class F>
void for_pieces(const Network& net, F f) {
  parallel(sgd_pieces(net.weight_count), [&](int piece, int) {
    f(piece, piece * kSgdPiece, std::min(net.weight_count, (piece + 1) * kSgdPiece));
  });
}
bool weights_stay_finite(Network& net, const SgdArrays& arrays, const Sgd& sgd) {
  for_pieces(net, [&](int piece, size_t first, size_t end) {
    net.failed[piece] = !sgd_is_finite(arrays, sgd, first, end);
  });
  return none_failed(net, sgd_pieces(net.weight_count));
}

void begin_pass(Network& net, const Batch& batch, const float* weights, bool training) {
  net.batch = batch;
  net.weights = weights;
  net.training = training;
  net.chunks = (batch.count + kChunk - 1) / kChunk;
}

struct State {
  float *weights, *velocity, *statistics;
};
// Forward and backward: net.gradient and net.next_statistics. False: something is not finite.
bool differentiate(Network& net, const State& state, const Batch& batch, double* loss, int32_t* errors) {
  begin_pass(net, batch, state.weights, true);
  if (!forward(net, nullptr) || !forward_backward_head(net)) return false;
  double sum = 0;
  int32_t wrong = 0;
  for (int chunk = 0; chunk < net.chunks; chunk++) {
    sum += net.losses[chunk];
    wrong += net.errors[chunk];
  }
  backward(net);
  if (!is_finite(sum) || !update_statistics(net, state.statistics)) return false;
  *loss = sum / batch.count;
  *errors = wrong;
  return true;
}
void write_statistics(const Network& net, const State& state) {
  memcpy(state.statistics, net.next_statistics, sizeof(float) * net.statistic_count());
}
// False: something is not finite, and nothing has changed.
bool train_step(Network& net, const State& state, const Batch& batch, const Sgd& sgd, double* loss, int32_t* errors) {
  const SgdArrays arrays = {state.weights, state.velocity, net.gradient};
  double own_loss;
  int32_t own_errors;
  if (!differentiate(net, state, batch, &own_loss, &own_errors)) return false;
  if (!weights_stay_finite(net, arrays, sgd)) return false;
  for_pieces(net, [&](int, size_t first, size_t end) { sgd_write(arrays, sgd, first, end); });
  write_statistics(net, state);
  *loss = own_loss;
  *errors = own_errors;
  return true;
}
// The gradient of one batch and the statistics that training would leave; false: not finite, nothing has changed.
bool gradient_step(Network& net, const State& state, const Batch& batch, float* gradient, double* loss,
                   int32_t* errors) {
  double own_loss;
  int32_t own_errors;
  if (!differentiate(net, state, batch, &own_loss, &own_errors)) return false;
  for (size_t i = 0; i < net.weight_count; i++) {
    if (!is_finite(net.gradient[i])) return false;
  }
  memcpy(gradient, net.gradient, sizeof(float) * net.weight_count);
  write_statistics(net, state);
  *loss = own_loss;
  *errors = own_errors;
  return true;
}
// Logits [count][classes]; false: one of them is not finite.
bool evaluate(Network& net, const Batch& batch, const float* weights, const float* statistics, float* logits) {
  begin_pass(net, batch, weights, false);
  forward(net, statistics);
  return forward_head(net, logits);
}
}  // namespace
