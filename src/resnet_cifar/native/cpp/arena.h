// Memory in one piece, on huge pages where the system has them: with small ones the step spends its time in page
// tables. Places are given out twice, by the same calls: the first time only the bytes are counted.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace {
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    if (mapped_) munmap(mapped_, used_ + kHugePage);
  }

  // Zeroed; null in the first round. A page and a line between two arrays keep them from the same sets of the cache.
  template <class T>
  T* take(size_t count) {
    const size_t offset = next_;
    next_ += (count * sizeof(T) + kPage - 1) / kPage * kPage + kPage + kLine;
    return base_ ? reinterpret_cast<T*>(base_ + offset) : nullptr;
  }
  // After the first round; false if there is no memory.
  bool reserve() {
    used_ = (next_ + kHugePage - 1) / kHugePage * kHugePage;  // the last page is huge as well
    next_ = 0;
    void* place = mmap(nullptr, used_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) return false;
    mapped_ = place;
    const uintptr_t address = reinterpret_cast<uintptr_t>(place);
    base_ = static_cast<char*>(place) + (kHugePage - address % kHugePage) % kHugePage;
    madvise(base_, used_, MADV_HUGEPAGE);  // a wish: without it the step is only slower
    return true;
  }

 private:
  static constexpr size_t kHugePage = 2 << 20, kPage = 4096, kLine = 64;
  void* mapped_ = nullptr;
  char* base_ = nullptr;
  size_t next_ = 0, used_ = 0;
};
}  // namespace
