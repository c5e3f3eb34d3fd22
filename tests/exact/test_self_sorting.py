"""A B* and a bit reversal of its outputs are one BB*."""

import pytest
import torch

from kaleido_audio import exact, ops
from kaleido_audio.exact.self_sorting import self_sorting


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_any_stages_are_sorted(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stages = torch.randn(n.bit_length() - 1, 2, n, dtype=dtype)
    expected = ops.to_dense(stages.unsqueeze(0))[exact.bit_reversal(n)]
    sorting = self_sorting(stages)
    assert sorting.dtype == dtype and sorting.shape == (2, n.bit_length() - 1, 2, n)
    torch.testing.assert_close(ops.to_dense(sorting), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("n", [2, 16, 128, 1024])
def test_the_fourier_transform_in_natural_order(n: int) -> None:
    stages = exact.dft(n, bit_reversed=True, dtype=torch.complex128).factors[0].detach()
    matrix = ops.to_dense(self_sorting(stages))
    torch.testing.assert_close(matrix, torch.fft.fft(torch.eye(n, dtype=torch.complex128)), rtol=0, atol=1e-13 * n)


def test_gradients_flow_to_the_stages() -> None:
    stages = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(self_sorting, stages)
