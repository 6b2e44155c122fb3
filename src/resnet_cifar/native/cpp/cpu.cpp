// May this machine run the set? Compiled without the set's instructions, so that the answer can be given everywhere.
#include <cmath>
#include <cstdint>

#include "engine.h"
#include "simd/machine.h"

namespace {
#if defined(RC_SET_PLAIN)
// Here the C library's fma serves the loss and the classifier. These are cases in which a product or a sum that is
// rounded on its own, or in double, gives something else.
bool fma_is_exact() {
  struct {
    volatile float x, y, z, result;
  } const single[] = {
      {0x1.001p0f, 0x1.001p0f, -0x1.002p0f, 0x1p-24f},        // the product's last bits
      {24929.f, 673.f, 0x1p-40f, 16777218.f},                 // a tie in double: 24929 * 673 = 2^24 + 1
      {24929.f, 673.f, -0x1p-40f, 16777216.f},
      {-24929.f, 673.f, -0x1p-40f, -16777218.f},
      {0x1p-75f, 0x1p-75f, 0x1p-149f, 0x1p-148f},             // ties among the denormals go to the even one
      {0x1p-75f, 0x1p-75f, 0.f, 0.f},
      {0x1.8p-75f, 0x1p-75f, 0.f, 0x1p-149f},
      {0x1.fffffep127f, 2.f, -0x1.fffffep127f, 0x1.fffffep127f},  // no overflow in between
  };
  struct {
    volatile double x, y, z, result;
  } const both[] = {
      {0x1.0000001p0, 0x1.0000001p0, -0x1.0000002p0, 0x1p-56},
      {321., 28059810762433., 0x1p-60, 9007199254740994.},  // a tie: the product is 2^53 + 1
      {321., 28059810762433., -0x1p-60, 9007199254740992.},
      {0x1.fffffffffffffp1023, 2., -0x1.fffffffffffffp1023, 0x1.fffffffffffffp1023},
      {0x1p-538, 0x1p-537, 0., 0.},
      {0x1.8p-538, 0x1p-537, 0., 0x1p-1074},
  };
  bool exact = true;
  for (const auto& c : single) exact = exact && std::fma(c.x, c.y, c.z) == c.result;
  for (const auto& c : both) exact = exact && std::fma(c.x, c.y, c.z) == c.result;
  return exact;
}
bool (*volatile g_check)() = fma_is_exact;  // through a pointer, see ExactFloats
#endif
}  // namespace

int rc_supported(void) {
#if defined(RC_SET_AVX512)  // these ask the operating system too, whether it keeps the registers
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(RC_SET_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(RC_SET_NEON)
  return 1;
#elif defined(RC_SET_PLAIN)
  ExactFloats mode;
  return g_check();
#else
#error "define RC_SET_AVX512, RC_SET_AVX2, RC_SET_NEON or RC_SET_PLAIN"
#endif
}
