// What the next images need is fetched into the second cache while these are computed, one line every few steps: in
// bursts the loads would wait for each other. A prefetch may name an address just past an array; it reads nothing.
#pragma once
#include <cstddef>

#include "simd.h"

namespace {
class Prefetcher {
 public:
  const char* at = kNothing;  // products keep these two in registers
  long step = 0;

  void add(const void* array, size_t bytes) {
    begin_[ranges_] = static_cast<const char*>(array);
    bytes_[ranges_++] = (long)bytes;
    total_ += (long)bytes;
  }
  // ticks: how often tick() will be called; a tick moves on by a line at most
  void start(long ticks) {
    step = (total_ + ticks - 1) / ticks;
    if (step > 64) step = 64;
    if (ranges_) at = begin_[0];
    end_ = ranges_ ? at + bytes_[0] : at;
  }
  RC_INLINE void tick() {
    __builtin_prefetch(at, 0, 1);
    at += step;
  }
  RC_INLINE void turn() {  // now and then: on to the next array
    if (__builtin_expect(at >= end_, 0)) next_range();
  }

 private:
  static constexpr char kNothing[64] = {};
  static constexpr int kMaxRanges = 6;
  const char* begin_[kMaxRanges] = {};
  long bytes_[kMaxRanges] = {};
  long total_ = 0;
  int ranges_ = 0, range_ = 0;
  const char* end_ = kNothing;

  void next_range() {
    if (++range_ < ranges_) {
      at = begin_[range_];
      end_ = at + bytes_[range_];
      return;
    }
    step = 0;
    if (ranges_) at = begin_[0];
    end_ = at + 1;
  }
};
}  // namespace
