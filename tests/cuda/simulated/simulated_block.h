// A block of threads as the kernels' headers see it, its threads taking turns on the processor.
#pragma once

#include "../simulator.h"

namespace kaleido_cuda {

struct Block : simulator::Block {
  Block() : simulator::Block(*simulator::current_block()) {}
};

}  // namespace kaleido_cuda
