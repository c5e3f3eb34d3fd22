// Runs a kernel's threads on the processor: every thread is a fiber that goes on until it has to wait for the others
// of its warp, block or cluster. The order in which waiting threads go on is a permutation chosen by a seed, and one
// block or another stands still for a while: a result that depends on it betrays a race.
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
  Fibers(int blocks, int threads, unsigned seed)
      : blocks_(blocks), threads_(threads), fibers_(blocks * threads), order_(blocks * threads), random_(seed) {
    for (int i = 0; i < blocks * threads; ++i) order_[i] = i;
    if (seed) std::shuffle(order_.begin(), order_.end(), random_);
  }

  // body(fiber) for all of them; between their turns, meanwhile(random) tells whether something is still on its way.
  void run(const std::function<void(int)>& body, const std::function<bool(std::mt19937&)>& meanwhile) {
    body_ = &body;
    for (std::size_t i = 0; i < fibers_.size(); ++i) prepare(int(i));
    while (go_on(meanwhile(random_))) continue;
  }
  bool has_ended(int block) const {
    for (int i = 0; i < threads_; ++i)
      if (!fibers_[block * threads_ + i].done) return false;
    return true;
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
  bool go_on(bool something_comes) {
    if (blocks_ > 1 && --turns_ < 0) {
      still_ = int(random_() % unsigned(blocks_ + 1));  // none, if it is `blocks_`
      turns_ = int(random_() % 60);
    }
    bool any = false, progress = something_comes;
    for (int i : order_) {
      if (fibers_[i].done) continue;
      any = true;
      if (i / threads_ == still_) {
        progress = true;
        continue;
      }
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
  const int blocks_, threads_;
  std::vector<Fiber> fibers_;
  std::vector<int> order_;
  std::mt19937 random_;
  int still_ = -1, turns_ = 0;  // the block that stands still, and how long
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
  T load(Address from) const {
    T x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  template <class T>
  void store(Address to, const T& x) const {
    std::memcpy(to, &x, sizeof(x));
  }
  Address in_block(int of, Address place) const;
  void begin_barrier(Address barrier, int count);
  void arrive_and_expect(Address barrier, int bytes);
  void arrive(Address barrier);
  void wait(Address barrier, int phase);
  void wait_as_warp(Address barrier, int phase) { wait(barrier, phase); }
  template <class T>
  void put(Address to, const T& value, Address barrier);
  int shuffle_xor(int x, int mask) { return shuffle(x, mask); }
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
  // Shared memory of a block.
  char* memory_of(int block) const {
    char* p = shared[block].get();
    return p + (64 - reinterpret_cast<std::uintptr_t>(p) % 64) % 64;
  }

  // What threads put into shared memory comes there some time later.
  struct Put {
    char *to, *barrier;
    std::size_t size;
    char bytes[16];
  };
  std::vector<Put> on_the_way;

  bool deliver(std::mt19937& random) {
    std::vector<Put> late;
    for (const Put& put : on_the_way) {
      if (random() % 8)
        late.push_back(put);
      else
        arrive(put);
    }
    on_the_way.swap(late);
    return !on_the_way.empty();
  }
  void arrive(const Put& put);
  // That memory of a block which has ended is not written to.
  void check_lives(const char* place) const {
    for (int b = 0; b < blocks; ++b) {
      if (memory_of(b) <= place && place < memory_of(b) + shared_bytes && fibers.has_ended(b)) {
        std::fprintf(stderr, "shared memory of a block that has ended is written to\n");
        std::abort();
      }
    }
  }

  Cluster(int blocks, int threads, std::size_t shared_bytes, unsigned seed)
      : blocks(blocks), threads(threads), shared_bytes(shared_bytes), fibers(blocks, threads, seed),
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
inline char* Block::shared() const { return cluster_.memory_of(rank_); }
inline Block::Address Block::in_block(int of, Address place) const {
  return cluster_.memory_of(of) + (place - cluster_.memory_of(rank_));
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
  static void change(void* place, int arrivals, int bytes) {
    Barrier now = of(place);
    now.arrived += arrivals;
    now.awaited += bytes;
    if (now.arrived == now.count && now.awaited == 0) {
      now.arrived = 0;
      now.phase ^= 1;
    }
    std::memcpy(place, &now, sizeof(now));
  }
};
static_assert(sizeof(Barrier) == sizeof(std::uint64_t));
inline void Block::begin_barrier(Address barrier, int count) {
  const Barrier begun{std::uint8_t(count), 0, 0, 0};
  std::memcpy(barrier, &begun, sizeof(begun));
}
inline void Block::arrive_and_expect(Address barrier, int bytes) {
  cluster_.check_lives(barrier);
  Barrier::change(barrier, 1, bytes);
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
  Cluster::Put put{to, barrier, sizeof(value), {}};
  static_assert(sizeof(value) <= sizeof(put.bytes));
  std::memcpy(put.bytes, &value, sizeof(value));
  cluster_.on_the_way.push_back(put);
}
inline void Cluster::arrive(const Put& put) {
  check_lives(put.to);
  std::memcpy(put.to, put.bytes, put.size);
  Barrier::change(put.barrier, 0, -int(put.size));
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
    const auto body = [&](int fiber) {
      Block block(cluster, fiber, fiber / threads, fiber % threads, c * blocks + fiber / threads, clusters * blocks);
      kernel(block);
    };
    cluster.fibers.run(body, [&](std::mt19937& random) { return cluster.deliver(random); });
    if (!cluster.on_the_way.empty()) {
      std::fprintf(stderr, "a cluster has ended before all that was put had come\n");
      std::abort();
    }
  }
}

}  // namespace simulator
