// What the processor decides and not the set: the floating-point mode of a thread, and how it waits.
#pragma once
#include <stdint.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {
#if defined(__x86_64__)
typedef unsigned FloatMode;
inline FloatMode get_float_mode() { return _mm_getcsr(); }
inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
inline void pause_briefly() { _mm_pause(); }
constexpr FloatMode kExactMode = 0x1f80;  // round to nearest even, keep denormals, no traps
#elif defined(__aarch64__)
typedef uint64_t FloatMode;
inline FloatMode get_float_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
inline void pause_briefly() { __asm__ volatile("yield"); }
constexpr FloatMode kExactMode = 0;
#else
#error "the floating-point mode is not written for this processor"
#endif

// Work under this guard must stand in a function that is not inlined, or the compiler may move it out: it does not know
// that arithmetic depends on the mode.
struct ExactFloats {
  const FloatMode caller;
  ExactFloats() : caller(get_float_mode()) { set_float_mode(kExactMode); }
  ~ExactFloats() { set_float_mode(caller); }
};
}  // namespace
