"""The models: incremental equals full decoding, causality, padding, counts."""

import pytest
import torch
import torch.nn.functional as F

from kaleido_audio import KMatrix
from recipes.translation.config import ROWS, Config
from recipes.translation.counts import VOCABULARIES, count_parameters, count_row, markdown
from recipes.translation.kstack import StackedKLinear
from recipes.translation.model import EOS, PAD, Translator, apply_kernels
from recipes.translation.quantize import Unavailable, quantized

SMALL = {"dim": 32, "ffn": 48, "encoder_layers": 2, "decoder_layers": 4}


def small(row: str, **changes: object) -> Translator:
    torch.manual_seed(0)
    return Translator(Config(**{**ROWS[row], **SMALL, **changes}), 30, 40).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    source, target = (
        torch.randint(3, 30, (3, 9), generator=generator),
        torch.randint(3, 40, (3, 50), generator=generator),
    )
    source[1, 4:] = source[2, 7:] = PAD
    target[:, 0] = EOS
    return source, target


@pytest.mark.parametrize("row", list(ROWS))
def test_word_by_word_equals_whole_sentences(row: str) -> None:
    model = small(row).double()
    source, target = batch()
    with torch.no_grad():
        whole = model(source, target)
        state = model.decoder.start(*model.encode(source), 50)
        steps = torch.stack([model.decoder.step(target[:, t], state, t) for t in range(50)], dim=1)
    torch.testing.assert_close(steps, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", ["transformer", "dynamicconv"])
def test_a_state_with_chosen_rows_goes_on_as_they_would(row: str) -> None:
    model = small(row).double()
    source, target = batch()
    rows = torch.tensor([2, 2, 0])
    with torch.no_grad():
        whole = model(source[rows], target[rows])
        state = model.decoder.start(*model.encode(source), 50)
        for t in range(20):
            model.decoder.step(target[:, t], state, t)
        state = state.select(rows)
        logits = model.decoder.step(target[rows, 20], state, 20)
    torch.testing.assert_close(logits, whole[:, 20], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", ["transformer", "dynamicconv", "dynamicconv-k-all"])
def test_an_output_depends_on_no_later_word(row: str) -> None:
    model = small(row)
    source, target = batch()
    changed = target.clone()
    changed[:, 30:] = 5
    with torch.no_grad():
        assert torch.equal(model(source, target)[:, :30], model(source, changed)[:, :30])


@pytest.mark.parametrize("row", ["transformer", "dynamicconv"])
def test_padding_changes_nothing(row: str) -> None:
    model = small(row).double()
    source, target = batch()
    with torch.no_grad():
        padded, alone = model(source, target)[1], model(source[1:2, :4], target[1:2])[0]
    torch.testing.assert_close(padded, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "causal"), [(3, True), (31, True), (7, False), (1, True), (31, False)])
def test_kernels_are_a_convolution(kernel: int, causal: bool) -> None:
    x, weights = torch.randn(1, 1, 10, 4), torch.randn(kernel)
    shared = weights.expand(1, 1, 10, kernel)
    before = kernel - 1 if causal else kernel // 2
    padded = F.pad(x[0, 0].T, (before, kernel - 1 - before))[:, None]
    expected = F.conv1d(padded, weights[None, None]).squeeze(1).T
    torch.testing.assert_close(apply_kernels(x, shared, causal=causal)[0, 0], expected)


def test_kernels_sum_to_one_so_that_a_constant_stays() -> None:
    mixer = small("dynamicconv").decoder.layers[3].mixer
    weights = mixer._weights(torch.randn(2, 5, 32))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, 4))
    assert weights.shape == (2, 5, 4, 31)


def test_counts_are_exact() -> None:
    assert VOCABULARIES == (8848, 6632)
    assert {row: count_row(row) for row in ROWS} == {
        "transformer": 42_864_640,
        "dynamicconv": 38_685_184,
        "dynamicconv-k-ffn": 29_936_128,
        "dynamicconv-k-attention": 29_911_552,
        "dynamicconv-k-all": 24_087_040,
        "dynamicconv-k-all+output": 20_931_072,
    }
    table = markdown()
    assert "| DynamicConv | 38,685,184 | 39 M | 35.2 |" in table
    assert "No model was trained" in table


def test_the_encoder_can_have_k_matrices_too() -> None:
    dense, k = small("dynamicconv"), small("dynamicconv", encoder_k="ffn")
    # linear1, linear2: 4 * 32 * 5 in place of 32 * 32; fc1: two of those for 32 to 48; fc2: 4 * 64 * 6 for 48 to 32.
    saved = 2 * (2 * (32 * 32 - 640) + (32 * 48 - 2 * 640) + (48 * 32 - 4 * 64 * 6))
    assert count_parameters(dense) - count_parameters(k) == saved
    assert not any(isinstance(m, KMatrix) for m in k.decoder.modules())


def test_stacked_k_matrices_are_their_products_below_each_other() -> None:
    layer = StackedKLinear(5, 19, bias=True)
    x = torch.randn(4, 3, 5)
    rows = torch.cat([kmatrix.to_dense() for kmatrix in layer.kmatrices])
    assert [k.out_features for k in layer.kmatrices] == [8, 8, 3]
    torch.testing.assert_close(layer(x), x @ rows.T + layer.bias)
    with pytest.raises(ValueError, match="expected x of shape"):
        layer(torch.zeros(2, 6))


def test_int8_layers_are_close_to_the_dense_ones() -> None:
    model = small("dynamicconv-k-ffn")
    try:
        int8 = quantized(model)
    except Unavailable as reason:
        pytest.skip(str(reason))
    kinds = [type(module) for module in int8.modules()]
    assert torch.nn.Linear not in kinds and StackedKLinear in kinds
    source, target = batch()
    with torch.no_grad():
        dense = model(source, target)
        assert 0 < (int8(source, target) - dense).norm() < 0.1 * dense.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "rnn"}, "expected mixer in"),
        ({"decoder_k": "some"}, "expected decoder_k in"),
        ({"encoder_k": "all+output"}, "expected encoder_k in"),
        ({"dim": 30}, "multiple of heads"),
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\)"),
        ({"updates": 0}, "expected updates >= 1"),
        ({"max_length": 5000}, "every pair fits a batch"),
    ],
)
def test_configurations_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)
