// Gradients of products of butterfly matrices, as a pipeline: the threads of a block are divided into groups, each
// group does a few neighbouring stages of every vector, forwards and later backwards, and keeps the coefficients of
// its stages and the sums of their gradients in registers from the first vector to the last. Vectors travel from group
// to group through shared memory, where the input of every group waits until the gradient comes back. So nothing but
// x, the incoming gradient and the outgoing one passes through the GPU's memory, no sum is shared by two threads, and
// every sum adds its terms in the order of the vectors: the same bits in every run.
//
// In step t group k, which begins d(k) steps after the first, does forwards tile t - d(k) and backwards tile
// t - (2 D - d(k)), where D is the last group's delay. Blocks of a cluster divide the groups among themselves, the last
// blocks as many as fit. Each group begins a step after the one before it, and `handover` more where that is in another
// block: so much later may come what one block sends to the next, without anyone waiting for it. No block begins a step
// before its neighbours have ended the one `handover` steps before the last.
#pragma once

#include "multiply.h"

namespace kaleido_cuda {

// Stages of a group, and so index bits in its registers.
template <class Number>
constexpr int stages_of_group() {
  return sizeof(Number) == 4 ? 3 : sizeof(Number) == 8 ? 2 : 1;
}
// As many threads as have registers for that many coefficients and gradients.
template <class Number>
constexpr int backward_threads() {
  return sizeof(Number) == 4 ? 384 : 512;
}

struct Group {
  int first, last;  // numbers of its stages, first, ..., last - 1, all of one factor
  int position;     // lowest local index bit in registers
  int up;           // whether strides increase
  int delay;        // steps after the first group
  int x_offset, x_end;  // ring of tiles in shared memory for its inputs, in bytes
  int grad_offset, grad_mask;  // ring for the gradients of its outputs, and its tiles, a power of two, less one
};
constexpr int kMaxGroups = 64;

template <class Number, class Source, class Gradient, class Sink>
struct BackwardArgs {
  Source x;
  Gradient grad;
  Sink x_grad;
  Stages<Number> stages;
  TileMap map;
  std::int64_t tile_rows;
  int parts;             // clusters that share a place in the vector
  int n_groups;
  int groups_per_block;
  int threads_per_group;  // a power of two, and at least a warp
  int handover;
  int barriers;          // where they are in shared memory, in a cluster
  Number* partial;       // (parts * vectors_per_tile, stages.last - stages.first, 2, n): sums of gradients, or null
  Group groups[kMaxGroups];
};

template <class Number, class Source, class Gradient, class Sink, class Block>
struct GroupThread {
  static constexpr int kStages = stages_of_group<Number>();
  static constexpr int kElements = 1 << kStages;
  static constexpr int kBytes = sizeof(Number);
  using Args = BackwardArgs<Number, Source, Gradient, Sink>;

  using Address = typename Block::Address;

  const Args& args;
  Block& block;
  const int k, tile, part;
  Address places[kElements];  // of this thread's elements in a tile at the beginning of shared memory
  Number diagonal[kStages][kElements], off_diagonal[kStages][kElements];
  Number diagonal_grad[kStages][kElements], off_diagonal_grad[kStages][kElements];

  KALEIDO_DEVICE GroupThread(const Args& args, Block& block, int k)
      : args(args), block(block), k(k),
        tile(block.index() / block.cluster_size() % args.map.tiles_per_vector()),
        part(block.index() / block.cluster_size() / args.map.tiles_per_vector()) {
    // A swizzle of bits is that of some of them XOR that of the others.
    Places local = locals();
    local.start = swizzle<kBytes>(local.start);
    KALEIDO_UNROLL
    for (int b = 0; b < kStages; ++b) local.steps[b] = swizzle<kBytes>(local.steps[b]);
    KALEIDO_UNROLL
    for (int e = 0; e < kElements; ++e)  // not to be computed in every step
      places[e] = forgotten(block.address(block.shared()) + local(e) * kBytes);
  }

  // Read and computed anew each time: kept, they would take the registers of the coefficients.
  KALEIDO_DEVICE const Group& group() const { return args.groups[forgotten(k)]; }
  // Local indices of elements: bits of an element's number stand for bits of its index, in falling order where strides
  // increase, so that stage s always combines elements that differ in bit kStages - 1 - s.
  struct Places {
    int start, steps[kStages];
    KALEIDO_DEVICE int operator()(int e) const {
      int place = start;
      KALEIDO_UNROLL
      for (int b = 0; b < kStages; ++b)
        if (e >> b & 1) place ^= steps[b];
      return place;
    }
  };
  KALEIDO_DEVICE Places locals() const {
    const Group& own = group();
    const int thread = forgotten(block.thread()) & (args.threads_per_group - 1);
    Places places{window_index<kStages>(thread, 0, own.position), {}};
    KALEIDO_UNROLL
    for (int b = 0; b < kStages; ++b) places.steps[b] = 1 << (own.position + (own.up ? kStages - 1 - b : b));
    return places;
  }
  KALEIDO_DEVICE int tile_size() const { return 1 << args.map.local_bits; }

  static constexpr KALEIDO_EVERYWHERE int stage_bit(int s) { return kStages - 1 - s; }
  // Index bit of stage s, less map.low; windows may reach beyond the bits that the group is for.
  KALEIDO_DEVICE int active_bit(int s) const {
    return group().position + (group().up ? s : kStages - 1 - s) - args.map.column_bits;
  }
  // Number of stage s among those of the product.
  KALEIDO_DEVICE int number(int s) const {
    return args.stages.number(group().first / args.stages.log_n, active_bit(s) + args.map.low);
  }
  KALEIDO_DEVICE bool has_stage(int s) const {
    const int bit = active_bit(s), n = number(s);
    return 0 <= bit && bit < args.map.active_bits && group().first <= n && n < group().last;
  }

  KALEIDO_DEVICE void load_coefficients() {
    const Places local = locals();
    KALEIDO_UNROLL
    for (int s = 0; s < kStages; ++s) {
      const bool present = has_stage(s);
      KALEIDO_UNROLL
      for (int e = 0; e < kElements; ++e) {
        diagonal[s][e] = from_real<Number>(1);
        off_diagonal[s][e] = diagonal_grad[s][e] = off_diagonal_grad[s][e] = from_real<Number>(0);
        if (present) {
          const Number* from = args.stages.diagonal(number(s)) + args.map.index(tile, local(e));
          diagonal[s][e] = from[0];
          off_diagonal[s][e] = from[1 << args.stages.log_n];
        }
      }
    }
  }

  KALEIDO_DEVICE void store_gradients() {
    if (args.partial == nullptr) return;
    const Places local = locals();
    KALEIDO_UNROLL
    for (int s = 0; s < kStages; ++s) {
      if (!has_stage(s)) continue;
      const int n_stages = args.stages.last - args.stages.first;
      KALEIDO_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const std::int64_t chunk = std::int64_t(part) * args.map.vectors_per_tile() + args.map.vector(local(e));
        Number* to = args.partial + ((chunk * n_stages + number(s) - args.stages.first) * 2 << args.stages.log_n);
        to += args.map.index(tile, local(e));
        to[0] = diagonal_grad[s][e];
        to[1 << args.stages.log_n] = off_diagonal_grad[s][e];
      }
    }
  }

  KALEIDO_DEVICE void run_stage(int s, const Number* x, Number* y) const {
    KALEIDO_UNROLL
    for (int e = 0; e < kElements; ++e)
      y[e] = multiply_add(diagonal[s][e], x[e], multiply(off_diagonal[s][e], x[e ^ 1 << stage_bit(s)]));
  }

  KALEIDO_DEVICE void forward(Number* x) const {
    KALEIDO_UNROLL
    for (int s = 0; s < kStages; ++s) {
      Number y[kElements];
      run_stage(s, x, y);
      KALEIDO_UNROLL
      for (int e = 0; e < kElements; ++e) x[e] = y[e];
    }
  }

  // From the group's input and the gradient of its output to that of its input. What `grad` holds may still need the
  // output (`Gradient::kNeedsOutput`).
  KALEIDO_DEVICE void backward(const Number* x, Number* grad, bool is_last) {
    Number inputs[kStages][kElements];
    KALEIDO_UNROLL
    for (int e = 0; e < kElements; ++e) inputs[0][e] = x[e];
    KALEIDO_UNROLL
    for (int s = 0; s + 1 < kStages; ++s) run_stage(s, inputs[s], inputs[s + 1]);
    if constexpr (Gradient::kNeedsOutput) {
      if (is_last) {
        Number output[kElements];
        run_stage(kStages - 1, inputs[kStages - 1], output);
        KALEIDO_UNROLL
        for (int e = 0; e < kElements; ++e) grad[e] = args.grad.from_output(grad[e], output[e]);
      }
    }
    KALEIDO_UNROLL
    for (int s = kStages - 1; s >= 0; --s) {
      const int bit = stage_bit(s);
      KALEIDO_UNROLL
      for (int pair = 0; pair < kElements / 2; ++pair) {
        const int a = first_of_pair(pair, bit), b = a | 1 << bit;
        const Number xa = conjugate(inputs[s][a]), xb = conjugate(inputs[s][b]), ga = grad[a], gb = grad[b];
        diagonal_grad[s][a] = multiply_add(ga, xa, diagonal_grad[s][a]);
        diagonal_grad[s][b] = multiply_add(gb, xb, diagonal_grad[s][b]);
        off_diagonal_grad[s][a] = multiply_add(ga, xb, off_diagonal_grad[s][a]);
        off_diagonal_grad[s][b] = multiply_add(gb, xa, off_diagonal_grad[s][b]);
        grad[a] = multiply_add(conjugate(diagonal[s][a]), ga, multiply(conjugate(off_diagonal[s][b]), gb));
        grad[b] = multiply_add(conjugate(diagonal[s][b]), gb, multiply(conjugate(off_diagonal[s][a]), ga));
      }
    }
  }

  // Element e of tile number j of this part, as f(open(vector), index, e).
  template <class Open, class F>
  KALEIDO_DEVICE void for_each(int j, const Open& open, F&& f) const {
    const std::int64_t first = (part + std::int64_t(j) * args.parts) * args.map.vectors_per_tile();
    const Places local = locals();
    if (args.map.vectors_per_tile() == 1) {
      Places index{args.map.index(tile, local.start), {}};
      KALEIDO_UNROLL
      for (int b = 0; b < kStages; ++b) index.steps[b] = args.map.index(0, local.steps[b]);
      const auto vector = open(first);
      KALEIDO_UNROLL
      for (int e = 0; e < kElements; ++e) f(vector, index(e), e);
    } else {
      KALEIDO_UNROLL
      for (int e = 0; e < kElements; ++e)
        f(open(first + args.map.vector(local(e))), args.map.index(tile, local(e)), e);
    }
  }
  KALEIDO_DEVICE void load_x(int j, Number* x) const {
    args.x.visit([&](auto open) { for_each(j, open, [&](auto vector, int i, int e) { x[e] = vector(i); }); });
  }
  KALEIDO_DEVICE void load_grad(int j, Number* grad) const {
    args.grad.visit([&](auto open) { for_each(j, open, [&](auto vector, int i, int e) { grad[e] = vector(i); }); });
  }

  // Tiles in shared memory are told by where they begin, in bytes.
  KALEIDO_DEVICE void get(int at, Number* x) const {
    const int from = block.uniform(at);
    KALEIDO_UNROLL
    for (int e = 0; e < kElements; ++e) x[e] = block.template load<Number>(places[e] + from);
  }
  KALEIDO_DEVICE void put(int at, const Number* x) const {
    const int to = block.uniform(at);
    KALEIDO_UNROLL
    for (int e = 0; e < kElements; ++e) block.store(places[e] + to, x[e]);
  }
  // Into a tile of another block, whose barrier is told.
  KALEIDO_DEVICE void send(int rank, int at, const Number* x, Address barrier) const {
    const int to = block.uniform(at);
    const Address told = block.in_block(rank, barrier);
    KALEIDO_UNROLL
    for (int e = 0; e < kElements; ++e) block.put(block.in_block(rank, places[e] + to), x[e], told);
  }
};

// A ring of tiles in shared memory.
struct Ring {
  int begin, end, tile;  // in bytes
  KALEIDO_DEVICE int after(int at) const { return at + tile < end ? at + tile : begin; }
};

// What the blocks of a cluster tell each other. Of four barriers of a kind, each is for every fourth tile or step:
// what is told ahead of time is at most three further.
constexpr int kTurns = 4;
constexpr int kNeighbourKinds = 4;
constexpr int kNeighbourBytes = kNeighbourKinds * kTurns * 8;
template <class Block>
struct Neighbours {
  using Address = typename Block::Address;
  enum Kind { inputs, gradients, before, behind };  // tiles that have come; steps that the block there has ended

  Block& block;
  const int offset, rank, last;

  KALEIDO_DEVICE Address barrier(Kind kind, int turn) const {
    return block.address(block.shared()) + (offset + (kind * kTurns + (turn & (kTurns - 1))) * 8);
  }
  KALEIDO_DEVICE static int phase(int turn) { return int(unsigned(turn) / kTurns & 1); }
  KALEIDO_DEVICE void begin() const {
    if (block.thread() < kNeighbourKinds * kTurns)
      block.begin_barrier(barrier(Kind(block.thread() / kTurns), block.thread() % kTurns), 1);
    block.sync_cluster();
  }
  // Until tile j has come, of so many bytes; one of the threads that wait is to say so.
  KALEIDO_DEVICE void await(Kind kind, int j, int bytes, bool says) const {
    if (says) block.arrive_and_expect(barrier(kind, j), bytes);
    block.wait(barrier(kind, j), phase(j));
  }
  KALEIDO_DEVICE void await_step(Kind kind, int step) const {
    if (step >= 0) block.wait(barrier(kind, step), phase(step));
  }
  KALEIDO_DEVICE void tell_step(int step) const {
    if (block.thread() != 0) return;
    if (rank > 0) block.arrive(block.in_block(rank - 1, barrier(behind, step)));
    if (rank < last) block.arrive(block.in_block(rank + 1, barrier(before, step)));
  }
};

template <class Number, class Source, class Gradient, class Sink, class Block>
KALEIDO_DEVICE void backward_tiles(const BackwardArgs<Number, Source, Gradient, Sink>& args, Block& block) {
  using Thread = GroupThread<Number, Source, Gradient, Sink, Block>;
  using Between = Neighbours<Block>;
  const int group_of_block = block.uniform(block.thread() / args.threads_per_group);
  const int n_groups = args.n_groups, blocks = block.cluster_size(), rank = block.rank();
  const int number = n_groups - (blocks - rank) * args.groups_per_block + group_of_block;
  const bool idle = number < 0 || group_of_block >= args.groups_per_block;
  const int k = idle ? 0 : number;
  Thread thread(args, block, k);
  thread.load_coefficients();
  const int tiles = int((args.tile_rows - thread.part + args.parts - 1) / args.parts);  // of this part
  const bool is_first = !idle && k == 0, is_last = !idle && k == n_groups - 1;
  // Whether the groups before and after this one are in other blocks.
  const bool from_block = !idle && !is_first && group_of_block == 0;
  const bool to_block = !idle && !is_last && group_of_block == args.groups_per_block - 1;
  const Between between{block, args.barriers, rank, blocks - 1};
  if (blocks > 1) between.begin();

  // What comes from the GPU's memory is asked for a step ahead.
  Number ahead[Thread::kElements];
  if (tiles > 0) {
    if (is_first && !is_last) thread.load_x(0, ahead);
    if (is_last) thread.load_grad(0, ahead);
  }
  const int tile = thread.tile_size() * Thread::kBytes;
  // Of the group `away` from this one. Read anew each time: kept, they would take the registers of the coefficients.
  const auto group = [&](int away) -> const Group& { return args.groups[forgotten(k) + away]; };
  const auto inputs_of = [&](int away) { return Ring{group(away).x_offset, group(away).x_end, tile}; };
  const auto grad_at = [&](int away, int j) { return group(away).grad_offset + (j & group(away).grad_mask) * tile; };
  const bool says = (block.thread() & (args.threads_per_group - 1)) == 0;
  const int delay = args.groups[k].delay, all = 2 * args.groups[n_groups - 1].delay;
  // Where the group's next input is, that of the group after it, and that whose gradient comes next.
  int x_at = inputs_of(0).begin, next_at = is_last ? 0 : inputs_of(1).begin, back_at = x_at;
  for (int step = 0; step < tiles + all; ++step) {
    if (from_block) between.await_step(Between::before, step - 1 - args.handover);
    if (to_block) between.await_step(Between::behind, step - 1 - args.handover);
    const int onward = step - delay, back = step - (all - delay);
    if (!idle && !is_last && 0 <= onward && onward < tiles) {
      Number x[Thread::kElements];
      if (is_first) {
        thread.put(x_at, ahead);
        if (onward + 1 < tiles) thread.load_x(onward + 1, ahead);
      }
      if (from_block) between.await(Between::inputs, onward, tile, says);
      thread.get(x_at, x);
      x_at = inputs_of(0).after(x_at);
      thread.forward(x);
      if (to_block)
        thread.send(rank + 1, next_at, x, between.barrier(Between::inputs, onward));
      else
        thread.put(next_at, x);
      next_at = inputs_of(1).after(next_at);
    }
    if (!idle && 0 <= back && back < tiles) {
      Number x[Thread::kElements], grad[Thread::kElements];
      if (is_last && from_block) between.await(Between::inputs, back, tile, says);
      if (n_groups == 1)
        thread.load_x(back, x);
      else
        thread.get(back_at, x);
      back_at = inputs_of(0).after(back_at);
      if (is_last) {
        thread.put(grad_at(0, back), ahead);
        if (back + 1 < tiles) thread.load_grad(back + 1, ahead);
      }
      if (to_block) between.await(Between::gradients, back, tile, says);
      thread.get(grad_at(0, back), grad);
      thread.backward(x, grad, is_last);
      if (is_first)
        args.x_grad.store(thread, back, grad);
      else if (from_block)
        thread.send(rank - 1, grad_at(-1, back), grad, between.barrier(Between::gradients, back));
      else
        thread.put(grad_at(-1, back), grad);
    }
    block.sync();
    if (blocks > 1) between.tell_step(step);
  }
  if (!idle) thread.store_gradients();
  if (blocks > 1) block.sync_cluster();  // while others may still tell something, shared memory has to stay
}

// The gradient of the outputs as it is.
template <class Number>
struct RowsGradient {
  static constexpr bool kNeedsOutput = false;
  Rows<Number> rows;
  template <class F>
  KALEIDO_DEVICE void visit(F&& f) const {
    rows.visit(f);
  }
};

// That of z for a loss that depends on |z|^2 of chosen outputs: 2 z times the gradient of the squared magnitude.
template <class Number>
struct PowerGradient {
  static constexpr bool kNeedsOutput = true;
  using Real = RealOf<Number>;
  const Real* grad;   // (count, n_rows)
  const int* head;    // (n,): the first of the chosen outputs that is output i, or -1
  const int* next;    // (n_rows,): the next one that is the same output, or -1
  int n_rows;
  std::int64_t count;
  template <class F>
  KALEIDO_DEVICE void visit(F&& f) const {
    f([this](std::int64_t row) {
      return [=, *this](int i) -> Number {
        Real sum = 0;
        if (row < count)
          for (int at = head[i]; at >= 0; at = next[at]) sum += grad[row * n_rows + at];
        return from_real<Number>(sum);
      };
    });
  }
  KALEIDO_DEVICE Number from_output(Number squared_grad, Number z) const {
    return scale(z, 2 * real_part(squared_grad));
  }
};

// Writes the gradient of x, where it is asked for.
template <class Number>
struct RowsGradientSink {
  Rows<Number> rows;  // data is null if it is not
  template <class Thread>
  KALEIDO_DEVICE void store(const Thread& thread, int j, const Number* grad) const {
    if (rows.data == nullptr) return;
    rows.visit_writer(
        [&](auto open) { thread.for_each(j, open, [&](auto vector, int i, int e) { vector(i, grad[e]); }); });
  }
};

// Sums of partial gradients in the order of their chunks.
template <class Number, class Block>
KALEIDO_DEVICE void sum_chunks(const Number* partial, Number* total, std::int64_t chunks, std::int64_t numbers,
                               const Block& block) {
  for (std::int64_t i = thread_of_grid(block); i < numbers; i += threads_of_grid(block)) {
    Number sum = partial[i];
    for (std::int64_t c = 1; c < chunks; ++c) sum = multiply_add(from_real<Number>(1), partial[c * numbers + i], sum);
    total[i] = sum;
  }
}

}  // namespace kaleido_cuda
