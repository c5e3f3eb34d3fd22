// Tensors as the operators of both devices make and check them, on LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace kaleido {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_complex(ScalarType type) { return type == ScalarType::ComplexFloat || type == ScalarType::ComplexDouble; }
inline bool is_double(ScalarType type) { return type == ScalarType::Double || type == ScalarType::ComplexDouble; }
inline bool is_half(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

// An uninitialised tensor by one direct call: the operators of the stable ABI look their names up each time.
inline Tensor empty_tensor(const std::int64_t* sizes, std::int64_t dim, std::int32_t type, const Tensor& like) {
  std::int64_t strides[64], stride = 1;
  STD_TORCH_CHECK(dim <= 64, "expected at most 64 dimensions, got ", dim);
  for (std::int64_t d = dim - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<std::int64_t>(sizes[d], 1);
  }
  std::int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, type, device_type, device_index, &handle));
  return Tensor(handle);
}

inline std::int32_t type_code(const Tensor& tensor) {
  std::int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  return type;
}

inline Tensor empty_as(const Tensor& like) {
  const auto sizes = like.sizes();
  return empty_tensor(sizes.data(), std::int64_t(sizes.size()), type_code(like), like);
}

inline Tensor empty_tensor(std::initializer_list<std::int64_t> sizes, const Tensor& like) {
  return empty_tensor(sizes.begin(), std::int64_t(sizes.size()), type_code(like), like);
}

// In the place of a gradient that is not asked for.
inline Tensor nothing_like(const Tensor& tensor) { return empty_tensor({0}, tensor); }

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline void check_factors(const Tensor& factors) {
  const auto type = factors.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || is_double(type) || is_complex(type),
                  "expected factors in float32, float64, complex64 or complex128");
  STD_TORCH_CHECK(factors.dim() == 4 && factors.size(0) >= 1 && factors.size(1) >= 1 && factors.size(1) < 40 &&
                      factors.size(2) == 2 && factors.size(3) == std::int64_t(1) << factors.size(1),
                  "expected factors of shape (F, log2 n, 2, n) with F >= 1 and n >= 2 a power of two");
}

inline void check_types(const Tensor& x, const Tensor& factors) {
  const auto a = x.scalar_type(), b = factors.scalar_type();
  STD_TORCH_CHECK(is_half(a) ? b == ScalarType::Float : is_double(a) == is_double(b),
                  "expected x and factors of one precision, or x in half precision and factors in float32");
  STD_TORCH_CHECK(is_complex(b) || !is_complex(a), "expected complex factors with a complex x");
}

inline void check_features(std::int64_t in_features, std::int64_t out_features, std::int64_t n) {
  STD_TORCH_CHECK(in_features >= 1 && in_features <= n, "expected x of shape (..., m) with m between 1 and ", n,
                  ", got m = ", in_features);
  STD_TORCH_CHECK(out_features >= 1 && out_features <= n, "expected out_features between 1 and ", n, ", got ",
                  out_features);
}

// The result of `butterfly`, not yet computed.
inline Tensor empty_product(const Tensor& x, const Tensor& factors, std::int64_t out_features) {
  std::int64_t sizes[64];
  STD_TORCH_CHECK(x.dim() <= 64, "expected at most 64 dimensions, got ", x.dim());
  std::copy_n(x.sizes().data(), x.dim(), sizes);
  sizes[x.dim() - 1] = out_features;
  return empty_tensor(sizes, x.dim(), type_code(is_complex(factors.scalar_type()) ? factors : x), x);
}

inline void check_gradient(const Tensor& grad, std::int64_t grad_count, const Tensor& x, std::int64_t x_count,
                           const Tensor& factors) {
  const std::int64_t n = factors.size(3), m = x.size(x.dim() - 1), k = grad.size(grad.dim() - 1);
  STD_TORCH_CHECK(m >= 1 && m <= n && k >= 1 && k <= n && grad_count == x_count &&
                      is_complex(grad.scalar_type()) == is_complex(factors.scalar_type()),
                  "grad does not belong to x and factors");
}

// Of power spectra, but for the values of `rows`.
inline void check_frames(const Tensor& waveform, const Tensor& window, const Tensor& factors, const Tensor& rows,
                         std::int64_t hop) {
  const auto type = waveform.scalar_type();
  STD_TORCH_CHECK(is_complex(factors.scalar_type()) && !is_complex(type) &&
                      is_double(type) == is_double(factors.scalar_type()) && !is_half(type) &&
                      window.scalar_type() == type,
                  "expected waveform and window in float32 with factors in complex64, or float64 with complex128");
  STD_TORCH_CHECK(waveform.dim() == 2 && window.dim() == 1 && hop >= 1, "expected waveform (batch, time), window "
                  "(n_fft,) and hop >= 1");
  STD_TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == ScalarType::Long, "expected rows as 1-D int64");
  const std::int64_t length = window.size(0), time = waveform.size(1), n = factors.size(3);
  STD_TORCH_CHECK(1 <= length && length <= n && length <= time, "expected a window of at most ", n,
                  " samples and a waveform at least as long as it, got ", length, " and ", time);
}

}  // namespace kaleido
