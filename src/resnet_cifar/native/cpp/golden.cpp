// Trains from a file and writes the raw state to another one: for sets that Python cannot load but an emulator can.
// Built with engine.cpp and cpu.cpp of a set into one program:  golden IN OUT
//
// Both files are little-endian, without gaps.
//   IN   int32    residual, n, classes, max_batch, batch, steps, images, threads, hostile
//        float    momentum, weight_decay
//        uint8    images[images][3][32][32], labels[images]
//        float    mean[3][32][32], std[3], weights[rc_weight_count]
//        int32    index[steps][batch]
//        uint8    top[steps][batch], left[steps][batch], flip[steps][batch]
//        float    lr[steps]
//   OUT  int32    status of rc_train, done, status of rc_logits
//        double   losses[steps]
//        int32    errors[steps]
//        float    weights, velocity, statistics, logits[images][classes]
// Velocity and running means start at 0, running variances at 1. hostile: the caller rounds towards zero and flushes
// denormals to zero, which must change no bit and must be as it was afterwards.
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "engine.h"
#include "simd/machine.h"

namespace {
#if defined(__x86_64__)
constexpr FloatMode kFlush = 0x8040;
#else
constexpr FloatMode kFlush = 1 << 24;
#endif

void need(bool given, const char* what) {
  if (given) return;
  fprintf(stderr, "golden: %s\n", what);
  exit(1);
}
template <class T>
std::vector<T> read(FILE* file, size_t count) {
  std::vector<T> values(count);
  need(fread(values.data(), sizeof(T), count, file) == count, "the input is too short");
  return values;
}
template <class T>
void write(FILE* file, const std::vector<T>& values) {
  need(fwrite(values.data(), sizeof(T), values.size(), file) == values.size(), "cannot write");
}
}  // namespace

int main(int argc, char** argv) {
  need(argc == 3, "golden IN OUT");
  need(rc_supported(), "this processor does not run the set");
  FILE* in = fopen(argv[1], "rb");
  FILE* out = fopen(argv[2], "wb");
  need(in && out, "cannot open a file");

  const std::vector<int32_t> header = read<int32_t>(in, 9);
  const int classes = header[2], max_batch = header[3], batch = header[4], steps = header[5], count = header[6];
  const std::vector<float> rates = read<float>(in, 2);
  rc_set_threads(header[7]);
  rc_network* network;
  need(rc_create(header[0], header[1], classes, max_batch, &network) == RC_OK, "rc_create");

  const auto pixels = read<uint8_t>(in, (size_t)count * 3072), labels = read<uint8_t>(in, count);
  const auto mean = read<float>(in, 3072), std = read<float>(in, 3);
  auto weights = read<float>(in, rc_weight_count(network));
  const size_t rows = (size_t)steps * batch;
  const auto index = read<int32_t>(in, rows);
  const auto top = read<uint8_t>(in, rows), left = read<uint8_t>(in, rows), flip = read<uint8_t>(in, rows);
  const auto lr = read<float>(in, steps);

  std::vector<float> velocity(weights.size()), statistics(rc_statistic_count(network));
  for (size_t i = 0; i < statistics.size(); i++) statistics[i] = i % 128 < 64 ? 0 : 1;
  std::vector<double> losses(steps);
  std::vector<int32_t> errors(steps), status(3);
  std::vector<float> logits((size_t)count * classes);
  const rc_images images = {pixels.data(), labels.data(), count, mean.data(), std.data()};
  const rc_state state = {weights.data(), velocity.data(), statistics.data()};
  const rc_batches batches = {index.data(), top.data(), left.data(), flip.data()};

  const FloatMode before = get_float_mode();
  if (header[8]) {
    fesetround(FE_TOWARDZERO);
    set_float_mode(get_float_mode() | kFlush);
  }
  const FloatMode mode = get_float_mode();
  status[0] = rc_train(network, &images, &state, &batches, batch, steps, lr.data(), rates[0], rates[1], losses.data(),
                       errors.data(), &status[1]);
  status[2] = rc_logits(network, &images, weights.data(), statistics.data(), 0, count, logits.data());
  need(get_float_mode() == mode, "the caller's floating-point mode has changed");
  set_float_mode(before);

  write(out, status);
  write(out, losses);
  write(out, errors);
  write(out, weights);
  write(out, velocity);
  write(out, statistics);
  write(out, logits);
  need(fclose(out) == 0, "cannot write");
  fclose(in);
  rc_destroy(network);
  return 0;
}
