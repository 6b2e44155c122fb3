// A pool of threads. parallel(items, f) calls f(item, thread) once for each item. Which thread takes an item decides no
// bit, so items may go where there is time: every thread starts with a range of its own and then takes from the others,
// and a thread without a core delays the rest by one item at most. Idle threads spin for a short time, then sleep.
//
// The floating-point mode is set and restored around the items on every thread: the caller's may flush denormals.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>

#include "simd/machine.h"

namespace {
typedef void (*Job)(void* context, int item, int thread);

class Pool {
 public:
  static constexpr int kMaxThreads = 64, kMaxItems = 65535;
  const pid_t process = getpid();

  // Starts what is missing up to the wanted number, the caller included. Fewer are no error: the bits are the same.
  void want(int threads) {
    while (started_ < threads) {
      Start* start = new (std::nothrow) Start{this, started_};
      if (!start) break;
      if (!create_thread(start)) {
        delete start;
        break;
      }
      started_++;
    }
    threads_ = threads < started_ ? threads : started_;
  }

  void run(int items, Job job, void* context) {
    if (threads_ < 2 || items < 2) {
      ExactFloats mode;
      for (int i = 0; i < items; i++) job(context, i, 0);
      return;
    }
    const uint32_t number = number_.load() + 1;
    job_ = job;
    context_ = context;
    left_ = items;
    active_ = threads_;
    for (int i = 0; i < threads_; i++) {
      const uint64_t first = items * i / threads_, end = items * (i + 1) / threads_;
      range_[i].bits.store((uint64_t)number << 32 | first << 16 | end, std::memory_order_release);
    }
    number_.store(number);
    if (sleepers_.load()) {
      pthread_mutex_lock(&mutex_);
      pthread_cond_broadcast(&work_);
      pthread_mutex_unlock(&mutex_);
    }
    do_items(number, 0, threads_);
    if (spin([&] { return left_.load(std::memory_order_acquire) == 0; })) return;
    pthread_mutex_lock(&mutex_);
    owner_sleeps_ = 1;
    while (left_.load()) pthread_cond_wait(&done_, &mutex_);
    owner_sleeps_ = 0;
    pthread_mutex_unlock(&mutex_);
  }

 private:
  static constexpr int kSpinMicroseconds = 50;
  // Number of the job (32 bits), next item (16) and end (16): who comes with the number of an old job gets nothing.
  struct alignas(64) Range {
    std::atomic<uint64_t> bits{0};
  };
  struct Start {
    Pool* pool;
    int thread;
  };
  Range range_[kMaxThreads];
  alignas(64) std::atomic<uint32_t> number_{0};
  alignas(64) std::atomic<int> left_{0};  // items of the job that are not done
  alignas(64) std::atomic<int> sleepers_{0}, owner_sleeps_{0}, active_{1};
  Job job_ = nullptr;
  void* context_ = nullptr;
  int threads_ = 1, started_ = 1;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t work_ = PTHREAD_COND_INITIALIZER, done_ = PTHREAD_COND_INITIALIZER;

  static void* thread_main(void* argument) {
    Start* start = static_cast<Start*>(argument);
    const Start copy = *start;
    delete start;
    copy.pool->work(copy.thread);
    return nullptr;
  }
  // Signals are for the program's own threads.
  static bool create_thread(Start* start) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    const bool created = pthread_create(&thread, nullptr, thread_main, start) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (created) pthread_detach(thread);
    return created;
  }

  template <class F>
  static bool spin(F ready) {  // whether it became ready in time
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      for (int i = 0; i < 64; i++) {
        if (ready()) return true;
        pause_briefly();
      }
      if (std::chrono::steady_clock::now() - start > std::chrono::microseconds(kSpinMicroseconds)) return ready();
    }
  }
  int next_item(uint32_t number, int thread, int threads) {  // -1: none left
    for (int i = 0; i < threads; i++) {
      std::atomic<uint64_t>& range = range_[(thread + i) % threads].bits;
      uint64_t bits = range.load(std::memory_order_acquire);
      for (;;) {
        const int item = (bits >> 16) & 0xffff, end = bits & 0xffff;
        if ((uint32_t)(bits >> 32) != number) return -1;
        if (item >= end) break;
        if (range.compare_exchange_weak(bits, bits + 0x10000, std::memory_order_acq_rel)) return item;
      }
    }
    return -1;
  }
  void do_items(uint32_t number, int thread, int threads) {
    ExactFloats mode;
    for (int item; (item = next_item(number, thread, threads)) >= 0;) {
      job_(context_, item, thread);  // the job cannot change: this item of it is not done
      if (left_.fetch_sub(1) == 1 && owner_sleeps_.load()) {
        pthread_mutex_lock(&mutex_);
        pthread_cond_signal(&done_);
        pthread_mutex_unlock(&mutex_);
      }
    }
  }
  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      if (!spin([&] { return number_.load(std::memory_order_acquire) != seen; })) {
        pthread_mutex_lock(&mutex_);
        sleepers_++;
        while (number_.load() == seen) pthread_cond_wait(&work_, &mutex_);
        sleepers_--;
        pthread_mutex_unlock(&mutex_);
      }
      seen = number_.load(std::memory_order_acquire);
      const int threads = active_.load();
      if (thread < threads) do_items(seen, thread, threads);
    }
  }
};

Pool* g_pool = nullptr;  // of the call in progress, and there is one at a time

// False: no memory. After a fork the child has no threads and gets a new pool; the old one's lock may be held.
bool prepare_threads(int threads) {
  if (!g_pool || g_pool->process != getpid()) {
    Pool* pool = new (std::nothrow) Pool;
    if (!pool) return false;
    g_pool = pool;
  }
  g_pool->want(threads);
  return true;
}
template <class F>
__attribute__((noinline)) void call_item(void* f, int item, int thread) {
  (*static_cast<F*>(f))(item, thread);
}
template <class F>
void parallel(int items, F f) {
  g_pool->run(items, call_item<F>, &f);
}
}  // namespace
