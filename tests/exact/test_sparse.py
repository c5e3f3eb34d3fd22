"""Sparse matrices as K-matrices: equal to the matrix, in the class that the docstring and theorem 3 state."""

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact

scipy_sparse = pytest.importorskip("scipy.sparse")
REAL = (torch.float32, torch.float64)
DTYPES = (*REAL, torch.complex64, torch.complex128)


@st.composite
def matrices(draw, max_side: int = 20) -> np.ndarray:
    """Small integers at random places; products and sums of them are exact in every type."""
    m, n = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    density = draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random.integers(1, 9, (m, n)) * random.choice([-1, 1], (m, n)) * (random.random((m, n)) < density)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(matrices(), st.sampled_from([None, 2, 3, 4, 8]))
def test_equals_the_matrix_to_the_last_bit(matrix, expansion) -> None:
    k = exact.sparse(matrix, expansion=expansion)
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), matrix)
    assert k.expansion == expansion if expansion else k.expansion in (1, 2, 4)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(matrices())
def test_class(matrix) -> None:
    n, s = max(matrix.shape), np.count_nonzero(matrix)
    wide = exact.sparse(matrix, expansion=4)
    assert wide.width <= max(1, 2 * ceil(s / (2 * n)))
    for e in (2, 4, 8):
        if s <= (e - 1) * n:
            assert exact.sparse(matrix, expansion=e).width <= 2
        elif s <= e * n:
            assert exact.sparse(matrix, expansion=e).width <= 4
    if n > 1:
        # The default costs no more than an expansion of 4, for which theorem 3 has far larger widths.
        default = exact.sparse(matrix)
        assert default.weight.numel() <= wide.weight.numel()
        assert wide.width <= max(1, 4 * ceil(s / n))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(matrices())
def test_without_expansion_it_is_equal_or_refused(matrix) -> None:
    try:
        k = exact.sparse(matrix, expansion=1)
    except ValueError as error:
        assert np.count_nonzero(matrix) > max(matrix.shape) and "expected expansion >= 2" in str(error)
    else:
        np.testing.assert_array_equal(k.to_dense().detach().numpy(), matrix)


@pytest.mark.parametrize(
    ("matrix", "width", "expansion"),
    [
        (np.zeros((3, 5)), 1, 1),
        (np.diag([1.0, 2.0, 0.0, 4.0]), 1, 1),
        (np.eye(8)[::-1], 1, 1),
        (np.eye(8)[:, [6, 2, 5]], 1, 1),
        (np.repeat(np.eye(8), 2, axis=0), 1, 1),  # each input twice
        (np.repeat(np.eye(8), 4, axis=1), 1, 1),  # sums of four neighbours
        (np.eye(8) - np.eye(8, k=-1), 1, 2),  # differences: 15 nonzeros
        (np.ones((1, 8)), 1, 1),
        (np.ones((8, 1)), 1, 1),
        (np.eye(8) + np.eye(8)[::-1], 2, 2),
        (
            np.eye(16) + np.eye(16, k=1) + np.eye(16, k=-1),
            4,
            2,
        ),  # tridiagonal: 640 multiplications a factor, 768 in (BB*)^2_4
    ],
)
def test_class_of_known_patterns(matrix, width, expansion) -> None:
    k = exact.sparse(matrix)
    assert (k.width, k.expansion) == (width, expansion)
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), matrix)


def test_empty_rows_and_columns_are_gathered_and_spread_where_there_is_no_room() -> None:
    matrix = np.zeros((8, 8))
    matrix[np.ix_([0, 3, 7], [0, 4, 7])] = np.arange(1, 10).reshape(3, 3)
    matrix[0, 0] = 0
    k = exact.sparse(matrix, expansion=1)
    assert (k.width, k.size) == (4, 8)
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), matrix)
    assert exact.sparse(matrix, expansion=2).width == 2


def test_gathering_the_columns_first_can_save_a_layer() -> None:
    matrix = np.zeros((8, 8))
    for j, column in enumerate([0, 2, 4, 6, 7]):  # 15 nonzeros and 3 empty columns between: 18 places, 16 there
        matrix[[j, (j + 3) % 8, (j + 6) % 8], column] = 1 + j
    k = exact.sparse(matrix, expansion=2)
    assert k.width == 3  # two chunks would take 4
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), matrix)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype) -> None:
    random = np.random.default_rng(0)
    matrix = random.integers(-4, 5, (12, 9)) * (random.random((12, 9)) < 0.3)
    if dtype.is_complex:
        matrix = matrix * (1 + 2j)
    k = exact.sparse(matrix, dtype=dtype)
    assert k.factors.dtype == dtype
    assert torch.equal(k.to_dense(), torch.from_numpy(matrix).to(dtype))
    assert exact.sparse(k.to_dense()).factors.dtype == dtype
    assert exact.sparse(scipy_sparse.csr_matrix(k.to_dense().detach().numpy())).factors.dtype == dtype
    assert exact.sparse(k.to_dense().detach().to_sparse()).factors.dtype == dtype


def test_integers_half_precision_and_lists_become_float32() -> None:
    for matrix in (np.eye(3, dtype=np.int64), torch.eye(3, dtype=torch.bfloat16), [[1.0, 0.0]], [[True]]):
        assert exact.sparse(matrix).factors.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:Sparse")  # torch says that its sparse tensors are in beta
def test_every_kind_of_matrix() -> None:
    rows, columns = [0, 2, 2, 0, 1, 1], [1, 0, 3, 1, 2, 0]
    values = [1.0, 2.0, 3.0, 4.0, 0.0, 5.0]  # entry (0, 1) twice, a stored zero
    dense = np.array([[0, 5, 0, 0], [5, 0, 0, 0], [2, 0, 0, 3]], dtype=np.float32)
    coo = torch.sparse_coo_tensor([rows, columns], values, (3, 4), check_invariants=True)
    tensor = torch.from_numpy(dense)
    kinds = [
        dense,
        dense.tolist(),
        dense.astype(np.int64),
        np.asfortranarray(dense),
        tensor,
        tensor.half(),
        tensor.clone().requires_grad_(),
        tensor.T.contiguous().T,
        coo,
        tensor.to_sparse_csr(),
        tensor.to_sparse_csc(),
        scipy_sparse.coo_matrix((values, (rows, columns)), shape=(3, 4)),
        scipy_sparse.coo_array((values, (rows, columns)), shape=(3, 4)),
        scipy_sparse.csr_matrix(dense),
        scipy_sparse.csc_array(dense),
        scipy_sparse.lil_matrix(dense),
    ]
    for kind in kinds:
        k = exact.sparse(kind)
        np.testing.assert_array_equal(k.to_dense().detach().numpy(), dense, err_msg=str(type(kind)))
        assert not k.is_complex and k.weight.requires_grad
    lazy = (torch.tensor([[1.0, 2.0j]]).conj()).T
    assert torch.equal(exact.sparse(lazy).to_dense(), torch.tensor([[1.0], [-2.0j]]))


@pytest.mark.parametrize(("n", "per_row"), [(4096, 3), (512, 12)])
def test_large(n: int, per_row: int) -> None:
    matrix = scipy_sparse.random(n, n, density=per_row / n, format="csr", random_state=1)
    k = exact.sparse(matrix, expansion=4, dtype=torch.float64)
    assert k.width <= 2 * ceil(matrix.nnz / (2 * n))
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy((matrix @ x.numpy().T).T)
    assert (k(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_gradients() -> None:
    matrix = scipy_sparse.random(30, 20, density=0.1, random_state=2, format="csr")
    k = exact.sparse(matrix, dtype=torch.float64)
    x = torch.randn(5, 20, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 30, dtype=torch.float64)
    (k(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(weights.numpy() @ matrix))
    assert k.weight.grad.isfinite().all() and k.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.sparse(torch.ones(3)), r"matrix of shape \(rows, columns\).* got \(3,\)"),
        (lambda: exact.sparse(np.ones((0, 3))), r"at least one of each, got \(0, 3\)"),
        (lambda: exact.sparse(scipy_sparse.coo_array(np.ones(3))), r"got \(3,\)"),
        (lambda: exact.sparse(torch.ones(2, 2, 2).to_sparse()), r"got \(2, 2, 2\)"),
        (lambda: exact.sparse([[1.0, float("nan")]]), "finite entries in matrix, got 1"),
        (lambda: exact.sparse(scipy_sparse.csr_matrix([[1.0, float("inf")]])), "finite entries in matrix, got 1"),
        (lambda: exact.sparse([[1j]], dtype=torch.float64), "complex64 or complex128, got torch.float64"),
        (lambda: exact.sparse([[1.0]], dtype=torch.int64), "expected dtype in"),
        (lambda: exact.sparse(np.ones((4, 4)), expansion=1), "16 nonzeros of this 4 x 4 matrix .* expansion >= 2"),
        (lambda: exact.sparse([[1.0]], expansion=0), "expected expansion >= 1, got 0"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
