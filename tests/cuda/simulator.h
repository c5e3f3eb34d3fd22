// Runs a kernel's threads on the processor: every thread is a fiber that goes on until it has to wait for the others
// of its warp, block or cluster. The order in which waiting threads go on is a permutation chosen by a seed: a result
// that depends on it betrays a race.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace simulator {

constexpr int kWarp = 32;

// Fibers that wait for each other in groups.
class Fibers {
 public:
  Fibers(int count, unsigned seed) : fibers_(count), order_(count) {
    for (int i = 0; i < count; ++i) order_[i] = i;
    std::mt19937 random(seed);
    if (seed) std::shuffle(order_.begin(), order_.end(), random);
  }

  void run(const std::function<void(int)>& body) {
    body_ = &body;
    for (std::size_t i = 0; i < fibers_.size(); ++i) prepare(int(i));
    while (go_on()) continue;
  }

  // The calling fiber waits until first, ..., first + count - 1 have all come here.
  void wait(int first, int count) {
    Fiber& self = fibers_[current_];
    self.waiting = true;
    int& arrived = arrived_[{first, count}];
    if (++arrived == count) {
      arrived = 0;
      for (int i = first; i < first + count; ++i) fibers_[i].waiting = false;
    }
    if (_setjmp(self.resume) == 0) _longjmp(back_, 1);
  }

  // The calling fiber waits until ready().
  void wait_for(const std::function<bool()>& ready) {
    Fiber& self = fibers_[current_];
    self.ready = &ready;
    while (!ready())
      if (_setjmp(self.resume) == 0) _longjmp(back_, 1);
    self.ready = nullptr;
  }

 private:
  // On its own, because getcontext, like setjmp, may return twice.
  __attribute__((noinline)) void prepare(int i) {
    Fiber& f = fibers_[i];
    f.begun = f.done = f.waiting = false;
    f.ready = nullptr;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack(i);
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    const auto self = reinterpret_cast<std::uintptr_t>(this);
    makecontext(&f.context, reinterpret_cast<void (*)()>(&Fibers::enter), 3, unsigned(self), unsigned(self >> 32), i);
  }
  // Lets every thread that does not wait go on as far as it gets; false once all have ended.
  bool go_on() {
    bool any = false, progress = false;
    for (int i : order_) {
      if (fibers_[i].done) continue;
      any = true;
      if (fibers_[i].waiting || (fibers_[i].ready && !(*fibers_[i].ready)())) continue;
      progress = true;
      resume(i);
    }
    if (any && !progress) {
      std::fprintf(stderr, "deadlock: every thread that has not ended waits for others\n");
      std::abort();
    }
    return any;
  }
  // By jumps, because swapcontext asks the operating system for the signal mask each time.
  void resume(int i) {
    current_ = i;
    if (_setjmp(back_) != 0) return;
    if (fibers_[i].begun) _longjmp(fibers_[i].resume, 1);
    fibers_[i].begun = true;
    setcontext(&fibers_[i].context);
  }
  static constexpr std::size_t kStack = 128 << 10;
  // Kept from launch to launch, lest the operating system has to find their pages each time.
  static char* stack(int i) {
    static thread_local std::vector<std::unique_ptr<char[]>> stacks;
    while (int(stacks.size()) <= i) stacks.emplace_back(new char[kStack]);  // not zeroed
    return stacks[i].get();
  }
  struct Fiber {
    ucontext_t context;
    jmp_buf resume;
    bool begun = false, done = false, waiting = false;
    const std::function<bool()>* ready = nullptr;  // what it waits for
  };
  static void enter(unsigned low, unsigned high, int index) {
    Fibers* self = reinterpret_cast<Fibers*>(std::uintptr_t(low) | std::uintptr_t(high) << 32);
    (*self->body_)(index);
    self->fibers_[index].done = true;
    _longjmp(self->back_, 1);
  }
  std::vector<Fiber> fibers_;
  std::vector<int> order_;
  std::map<std::pair<int, int>, int> arrived_;  // how many of a group wait
  jmp_buf back_;
  int current_ = -1;
  const std::function<void(int)>* body_ = nullptr;
};

struct Cluster;

// What a kernel sees of its block.
class Block {
 public:
  Block(Cluster& cluster, int fiber, int rank, int thread, int index, int count)
      : cluster_(cluster), fiber_(fiber), rank_(rank), thread_(thread), index_(index), count_(count) {}
  int thread() const { return thread_; }
  int threads() const;
  int index() const { return index_; }
  int count() const { return count_; }
  int rank() const { return rank_; }
  int cluster_size() const;
  char* shared() const;
  int uniform(int x) const { return x; }
  void sync();
  void sync_warp();
  void sync_cluster();
  using Address = char*;
  Address address(const void* shared) const { return static_cast<Address>(const_cast<void*>(shared)); }
  template <class T>
  T load(Address from, T) const {
    T x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  template <class T>
  void store(Address to, T x) const {
    std::memcpy(to, &x, sizeof(x));
  }
  Address in_block(int of, Address place) const;
  void begin_barrier(Address barrier, int count);
  void arrive_and_expect(Address barrier, int bytes);
  void arrive(Address barrier);
  void wait(Address barrier, int phase);
  template <class T>
  void put(Address to, const T& value, Address barrier);
  float shuffle_xor(float x, int mask) { return shuffle(x, mask); }
  double shuffle_xor(double x, int mask) { return shuffle(x, mask); }
  template <class T>
  auto shuffle_xor(T z, int mask) -> decltype(T{z.re, z.im}) {
    return T{shuffle(z.re, mask), shuffle(z.im, mask)};
  }

 private:
  template <class T>
  T shuffle(T x, int mask);
  int fiber_of(int rank, int thread) const;
  Cluster& cluster_;
  int fiber_, rank_, thread_, index_, count_;
};

// That of the thread which has just begun: what a kernel finds its block by.
inline Block*& current_block() {
  static thread_local Block* block = nullptr;
  return block;
}

struct Cluster {
  int blocks, threads;
  std::size_t shared_bytes;
  Fibers fibers;
  std::vector<std::unique_ptr<char[]>> shared;
  std::vector<double> exchanged;
  Cluster(int blocks, int threads, std::size_t shared_bytes, unsigned seed)
      : blocks(blocks), threads(threads), shared_bytes(shared_bytes), fibers(blocks * threads, seed),
        exchanged(blocks * threads) {
    for (int b = 0; b < blocks; ++b) {
      shared.push_back(std::make_unique<char[]>(shared_bytes + 64));
      std::fill_n(shared.back().get(), shared_bytes, char(0xff));  // NaN in every format
    }
  }
};

inline int Block::threads() const { return cluster_.threads; }
inline int Block::cluster_size() const { return cluster_.blocks; }
inline int Block::fiber_of(int rank, int thread) const { return rank * cluster_.threads + thread; }
inline char* Block::shared() const {
  char* p = cluster_.shared[rank_].get();
  return p + (64 - reinterpret_cast<std::uintptr_t>(p) % 64) % 64;
}
inline Block::Address Block::in_block(int of, Address place) const {
  const auto align = [](char* p) { return p + (64 - reinterpret_cast<std::uintptr_t>(p) % 64) % 64; };
  return align(cluster_.shared[of].get()) + (place - align(cluster_.shared[rank_].get()));
}
inline void Block::sync() { cluster_.fibers.wait(fiber_of(rank_, 0), cluster_.threads); }
inline void Block::sync_warp() {
  const int first = thread_ / kWarp * kWarp;
  cluster_.fibers.wait(fiber_of(rank_, first), std::min(kWarp, cluster_.threads - first));
}
inline void Block::sync_cluster() { cluster_.fibers.wait(0, cluster_.blocks * cluster_.threads); }
// A barrier in shared memory.
struct Barrier {
  std::uint8_t count, arrived;
  std::uint16_t phase;
  std::int32_t awaited;  // bytes that are expected, less those that have come

  static Barrier of(const void* place) {
    Barrier barrier;
    std::memcpy(&barrier, place, sizeof(barrier));
    return barrier;
  }
  void store(void* place) {
    if (arrived == count && awaited == 0) {
      arrived = 0;
      phase ^= 1;
    }
    std::memcpy(place, this, sizeof(*this));
  }
};
static_assert(sizeof(Barrier) == sizeof(std::uint64_t));
inline void Block::begin_barrier(Address barrier, int count) { Barrier{std::uint8_t(count), 0, 0, 0}.store(barrier); }
inline void Block::arrive_and_expect(Address barrier, int bytes) {
  Barrier now = Barrier::of(barrier);
  ++now.arrived;
  now.awaited += bytes;
  now.store(barrier);
}
inline void Block::arrive(Address barrier) { arrive_and_expect(barrier, 0); }
inline void Block::wait(Address barrier, int phase) {
  cluster_.fibers.wait_for([=] { return Barrier::of(barrier).phase != phase; });
}
template <class T>
void Block::put(Address to, const T& value, Address barrier) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(value)) {
    std::fprintf(stderr, "%zu bytes put to an address that is not a multiple of them\n", sizeof(value));
    std::abort();
  }
  std::memcpy(to, &value, sizeof(value));
  Barrier now = Barrier::of(barrier);
  now.awaited -= int(sizeof(value));
  now.store(barrier);
}
template <class T>
T Block::shuffle(T x, int mask) {
  cluster_.exchanged[fiber_] = double(x);
  sync_warp();
  const T result = T(cluster_.exchanged[fiber_ / kWarp * kWarp + ((fiber_ % kWarp) ^ mask)]);
  sync_warp();
  return result;
}

// kernel(block) for every thread of a grid of `clusters` clusters of `blocks` blocks, one cluster after the other.
template <class Kernel>
void launch(int clusters, int blocks, int threads, std::size_t shared_bytes, unsigned seed, const Kernel& kernel) {
  for (int c = 0; c < clusters; ++c) {
    Cluster cluster(blocks, threads, shared_bytes, seed);
    cluster.fibers.run([&](int fiber) {
      Block block(cluster, fiber, fiber / threads, fiber % threads, c * blocks + fiber / threads, clusters * blocks);
      kernel(block);
    });
  }
}

}  // namespace simulator
