// What the gradients of power spectra need beside the butterfly kernels. Every sum adds its terms in one order.
#pragma once

#include "numbers.h"

namespace kaleido_cuda {

// The places of each output among the chosen ones, as a linked list: head[i] is the first k with rows[k] = i, next[k]
// the next one, -1 ends. One thread for each of the n outputs.
KALEIDO_DEVICE void link_rows(const std::int64_t* rows, int n_rows, int n, int i, int* head, int* next) {
  if (i >= n) return;
  int first = -1;
  for (int k = n_rows - 1; k >= 0; --k)
    if (rows[k] == i) {
      next[k] = first;
      first = k;
    }
  head[i] = first;
}

// Sample i of a frame, windowed.
template <class Real>
KALEIDO_DEVICE Real windowed_sample(const Real* waveform, const Real* window, std::int64_t time, int per_item, int hop,
                                    std::int64_t row, int i) {
  return waveform[row / per_item * time + row % per_item * hop + i] * window[i];
}

// Gradient of sample t of a waveform from those of the windowed samples, (items * per_item, length).
template <class Real>
KALEIDO_DEVICE Real overlap_add(const Real* frames_grad, const Real* window, std::int64_t item, int per_item,
                                std::int64_t t, int hop, int length) {
  const std::int64_t from = t < length ? 0 : (t - length) / hop + 1;  // the first frame that reaches t
  const std::int64_t to = t / hop < per_item - 1 ? t / hop : per_item - 1;
  Real sum = 0;
  for (std::int64_t f = from; f <= to; ++f) {
    const int i = int(t - f * hop);
    sum += frames_grad[(item * per_item + f) * length + i] * window[i];
  }
  return sum;
}

// Sum over the frames first, ..., last - 1 of the gradient of sample i of the window.
template <class Real>
KALEIDO_DEVICE Real window_gradient(const Real* frames_grad, const Real* waveform, std::int64_t time, int per_item,
                                    int hop, int length, std::int64_t first, std::int64_t last, int i) {
  Real sum = 0;
  for (std::int64_t row = first; row < last; ++row)
    sum += frames_grad[row * length + i] * waveform[row / per_item * time + row % per_item * hop + i];
  return sum;
}

}  // namespace kaleido_cuda
