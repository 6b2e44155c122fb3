// The interface of the native engine: one training step and the evaluation of the paper's CIFAR networks in fp32,
// with the same bits on every processor and with any number of threads.
//
// The caller owns all arrays; a network owns the working memory alone. Every function that can fail returns a status.
// One rc_train, rc_gradient or rc_logits at a time in a library: a second one from another thread gets RC_BUSY. A
// network is not to be destroyed while one of them has it.
#pragma once
#include <stdint.h>

#define RC_API extern "C" __attribute__((visibility("default")))

// Raised when the golden hashes of the tests change, never otherwise.
#define RC_BITS 1

enum rc_status {
  RC_OK = 0,
  RC_BAD_ARGUMENT = 1,  // a null pointer, a size out of its range, a rate that is not finite
  RC_BAD_LABEL = 2,     // a label that is not below the number of classes
  RC_BAD_INDEX = 3,     // an image that is not there, a crop outside the padded image
  RC_NO_MEMORY = 4,
  RC_BUSY = 5,
  RC_NONFINITE = 6,     // infinite or NaN: the step it happened in has changed nothing
};

struct rc_network;

// Images as the data set has them. Normalised, a pixel is (p / 255 - mean) / std, each operation rounded to fp32.
struct rc_images {
  const uint8_t* images;  // [count][3][32][32]
  const uint8_t* labels;  // [count]; not read by rc_logits
  int64_t count;
  const float* mean;      // [3][32][32]
  const float* std;       // [3]
};

// The order of the weights: stem, then the two convolutions of each block, each as w[3][3][in][out], gamma[out],
// beta[out]; then the classifier, fc[64][16] and bias[16], of which the first `classes` columns are used and the others
// are and stay zero. Statistics: mean[64], variance[64] a layer in the same order; of 16 and 32 channels the first
// ones.
struct rc_state {
  float* weights;
  float* velocity;
  float* statistics;
};

// What each step sees, [steps][batch]: the images, where their 32x32 crop lies in the image padded with zeros by 4
// after normalisation (top and left from 0 to 8), and whether it is then mirrored.
struct rc_batches {
  const int32_t* index;
  const uint8_t* top;
  const uint8_t* left;
  const uint8_t* flip;
};

// ---- About the library
RC_API const char* rc_set(void);      // avx512, avx2, neon or plain
RC_API const char* rc_sources(void);  // digest of the sources it was built from
RC_API int rc_bits(void);             // RC_BITS
RC_API int rc_supported(void);        // whether this processor and operating system run the set; 0 or 1
RC_API void rc_set_threads(int threads);

// ---- A network: residual 0 or 1, depth 6n+2, classes from 2 to 16, batches of 2 (training) or 1 to max_batch images
RC_API int rc_create(int residual, int n, int classes, int max_batch, struct rc_network** out);
RC_API void rc_destroy(struct rc_network* network);
RC_API int64_t rc_weight_count(const struct rc_network* network);      // floats of rc_state.weights and .velocity
RC_API int64_t rc_statistic_count(const struct rc_network* network);   // floats of rc_state.statistics

// SGD steps. lr[steps]; losses[steps] (mean cross-entropy of the batch, nats) and errors[steps] (wrong predictions, the
// first maximum counts) are written as far as *done says. Stops at the first step that is not RC_OK.
RC_API int rc_train(struct rc_network* network, const struct rc_images* images, const struct rc_state* state,
                    const struct rc_batches* batches, int batch, int steps, const float* lr, float momentum,
                    float weight_decay, double* losses, int32_t* errors, int* done);

// The gradient of the loss of one batch, in the order of the weights, and the statistics of its batch normalisation as
// rc_train would update them; weights stay. For tests.
RC_API int rc_gradient(struct rc_network* network, const struct rc_images* images, const struct rc_state* state,
                       const struct rc_batches* batch_row, int batch, float* gradient, double* loss, int32_t* errors);

// Logits [count][classes] of the images first to first + count, by the running statistics.
RC_API int rc_logits(struct rc_network* network, const struct rc_images* images, const float* weights,
                     const float* statistics, int64_t first, int64_t count, float* logits);
