// The interface of engine.h: checks at the door, one call at a time. Built once for each set.
#include "engine.h"

#include "step.h"

struct rc_network : Network {};

namespace {
std::atomic<int> g_threads{1};

// One call at a time; a mark that a parent left before a fork does not count.
std::atomic<int> g_owner{0};
class OneCall {
 public:
  OneCall() {
    int owner = g_owner.load();
    const int process = (int)getpid();
    mine_ = owner != process && g_owner.compare_exchange_strong(owner, process);
  }
  ~OneCall() {
    if (mine_) g_owner = 0;
  }
  OneCall(const OneCall&) = delete;
  OneCall& operator=(const OneCall&) = delete;
  bool refused() const { return !mine_; }

 private:
  bool mine_;
};

rc_status prepare(const OneCall& call, Network& net) {
  if (call.refused()) return RC_BUSY;
  const int threads = g_threads.load();
  return prepare_threads(threads) && reserve_threads(net, threads) ? RC_OK : RC_NO_MEMORY;
}

bool has_images(const rc_images* images) {
  return images && images->images && images->mean && images->std && images->count > 0;
}
rc_status check_batches(const Network& net, const rc_images* images, const rc_batches* batches, int batch, int steps) {
  if (!has_images(images) || !images->labels || !batches || batch < 2 || batch > net.max_batch || steps < 0) {
    return RC_BAD_ARGUMENT;
  }
  if (!batches->index || !batches->top || !batches->left || !batches->flip) return RC_BAD_ARGUMENT;
  for (int64_t i = 0; i < (int64_t)steps * batch; i++) {
    const int64_t image = batches->index[i];
    if (image < 0 || image >= images->count) return RC_BAD_INDEX;
    if (batches->top[i] > 2 * kMargin || batches->left[i] > 2 * kMargin) return RC_BAD_INDEX;
    if (images->labels[image] >= net.classes) return RC_BAD_LABEL;
  }
  return RC_OK;
}
Batch batch_at(const rc_images& images, const rc_batches& batches, int64_t first, int count) {
  Batch batch = {};
  batch.images = images.images;
  batch.labels = images.labels;
  batch.mean = images.mean;
  batch.std = images.std;
  batch.index = batches.index + first;
  batch.top = batches.top + first;
  batch.left = batches.left + first;
  batch.flip = batches.flip + first;
  batch.count = count;
  return batch;
}

// Not inlined, so that no arithmetic moves before the change of the mode.
__attribute__((noinline)) rc_status train(Network& net, const rc_images& images, const State& state,
                                          const rc_batches& batches, int batch, int steps, const float* lr,
                                          float momentum, float decay, double* losses, int32_t* errors, int* done) {
  for (int step = 0; step < steps; step++) {
    const Batch own = batch_at(images, batches, (int64_t)step * batch, batch);
    if (!train_step(net, state, own, {lr[step], momentum, decay}, losses + step, errors + step)) return RC_NONFINITE;
    *done = step + 1;
  }
  return RC_OK;
}
__attribute__((noinline)) rc_status differentiate_once(Network& net, const State& state, const Batch& batch,
                                                       float* gradient, double* loss, int32_t* errors) {
  return gradient_step(net, state, batch, gradient, loss, errors) ? RC_OK : RC_NONFINITE;
}
__attribute__((noinline)) rc_status evaluate_all(Network& net, Batch batch, int64_t count, const float* weights,
                                                 const float* statistics, float* logits) {
  rc_status status = RC_OK;
  const int64_t end = batch.first + count;
  for (; batch.first < end; batch.first += batch.count) {
    batch.count = (int)std::min<int64_t>(net.max_batch, end - batch.first);
    if (!evaluate(net, batch, weights, statistics, logits)) status = RC_NONFINITE;
    logits += (int64_t)batch.count * net.classes;
  }
  return status;
}
}  // namespace

const char* rc_set(void) { return kSetName; }
const char* rc_sources(void) { return RC_SOURCES; }
int rc_bits(void) { return RC_BITS; }
void rc_set_threads(int threads) { g_threads = std::max(1, std::min(threads, (int)Pool::kMaxThreads)); }

int rc_create(int residual, int n, int classes, int max_batch, rc_network** out) {
  if (!out) return RC_BAD_ARGUMENT;
  *out = nullptr;
  if (residual < 0 || residual > 1 || n < 1 || n > 1000) return RC_BAD_ARGUMENT;
  if (classes < 2 || classes > kColumns || max_batch < 1 || max_batch > Pool::kMaxItems) return RC_BAD_ARGUMENT;
  rc_network* network = new (std::nothrow) rc_network();
  if (!network || !reserve_network(*network, residual, n, classes, max_batch, g_threads.load())) {
    delete network;
    return RC_NO_MEMORY;
  }
  *out = network;
  return RC_OK;
}
void rc_destroy(rc_network* network) { delete network; }
int64_t rc_weight_count(const rc_network* network) { return network ? (int64_t)network->weight_count : 0; }
int64_t rc_statistic_count(const rc_network* network) { return network ? network->statistic_count() : 0; }

int rc_train(rc_network* network, const rc_images* images, const rc_state* state, const rc_batches* batches, int batch,
             int steps, const float* lr, float momentum, float weight_decay, double* losses, int32_t* errors,
             int* done) {
  if (!done) return RC_BAD_ARGUMENT;
  *done = 0;
  if (!network || !state || !state->weights || !state->velocity || !state->statistics) return RC_BAD_ARGUMENT;
  if (!lr || !losses || !errors || !is_finite(momentum) || !is_finite(weight_decay)) return RC_BAD_ARGUMENT;
  const rc_status checked = check_batches(*network, images, batches, batch, steps);
  if (checked != RC_OK) return checked;
  for (int step = 0; step < steps; step++) {
    if (!is_finite(lr[step])) return RC_BAD_ARGUMENT;
  }
  const OneCall call;
  const rc_status prepared = prepare(call, *network);
  if (prepared != RC_OK) return prepared;
  ExactFloats mode;
  return train(*network, *images, {state->weights, state->velocity, state->statistics}, *batches, batch, steps, lr,
               momentum, weight_decay, losses, errors, done);
}

int rc_gradient(rc_network* network, const rc_images* images, const rc_state* state, const rc_batches* batch_row,
                int batch, float* gradient, double* loss, int32_t* errors) {
  if (!network || !state || !state->weights || !state->statistics) return RC_BAD_ARGUMENT;
  if (!gradient || !loss || !errors) return RC_BAD_ARGUMENT;
  const rc_status checked = check_batches(*network, images, batch_row, batch, 1);
  if (checked != RC_OK) return checked;
  const OneCall call;
  const rc_status prepared = prepare(call, *network);
  if (prepared != RC_OK) return prepared;
  ExactFloats mode;
  return differentiate_once(*network, {state->weights, nullptr, state->statistics},
                            batch_at(*images, *batch_row, 0, batch), gradient, loss, errors);
}

int rc_logits(rc_network* network, const rc_images* images, const float* weights, const float* statistics,
              int64_t first, int64_t count, float* logits) {
  if (!network || !has_images(images) || !weights || !statistics || !logits || count < 0) return RC_BAD_ARGUMENT;
  if (first < 0 || first > images->count || count > images->count - first) return RC_BAD_INDEX;
  const OneCall call;
  const rc_status prepared = prepare(call, *network);
  if (prepared != RC_OK) return prepared;
  Batch batch = {};
  batch.images = images->images;
  batch.mean = images->mean;
  batch.std = images->std;
  batch.first = first;
  ExactFloats mode;
  return evaluate_all(*network, batch, count, weights, statistics, logits);
}
