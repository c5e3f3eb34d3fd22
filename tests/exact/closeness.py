"""How the tests of exact K-matrices compare them with other people's maps."""

import numpy as np

from kaleido_audio import KMatrix


def assert_is(k: KMatrix, expected: np.ndarray, width: int, expansion: int) -> None:
    """The dense form equals the matrix, and the K-matrix lies in (BB*)^width_expansion."""
    expected = np.asarray(expected)
    dense = k.to_dense().detach().numpy()
    assert dense.shape == expected.shape
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-12 * max(np.abs(expected).max(), 1e-300))
    assert k.width == width and k.expansion <= expansion
