"""Models that leave PyTorch: front ends with dense matrices, ONNX, AOTInductor."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from kaleido_audio import KMatrix
from kaleido_audio.frontends import LinearMel
from kaleido_audio.nn import KConv1x1, KLinear, KPermutation, to_dense
from kaleido_audio.transforms import DenseTransform, KFbank, KMelSpectrogram, KSpectrogram

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
ANY = torch.export.Dim.DYNAMIC
SMALL = {"sample_rate": 4000, "n_fft": 64, "hop_length": 20, "n_mels": 8}
KALDI = {"sample_frequency": 4000.0, "num_mel_bins": 8}
UNITARY = KMatrix(64, dtype=torch.complex64, constraint="orthogonal")

FRONT_ENDS = {
    "log": lambda **k: KMelSpectrogram(**SMALL, compression="log", **k),
    "size that is no power of two": lambda **k: KMelSpectrogram(**{**SMALL, "n_fft": 50}, compression="db", **k),
    "magnitude": lambda **k: KMelSpectrogram(**SMALL, power=1.0, win_length=40, normalized=True, **k),
    "margins": lambda **k: KMelSpectrogram(**SMALL, pad=3, pad_mode="constant", compression="log10", **k),
    "not centred": lambda **k: KMelSpectrogram(**SMALL, center=False, compression="pcen", **k),
    "all learnable": lambda **k: KMelSpectrogram(
        **SMALL, compression="pcen", learnable=("transform", "filterbank", "window", "compression"), **k
    ),
    "width 2": lambda **k: KMelSpectrogram(**SMALL, width=2, expansion=2, init="orthogonal", **k),
    "Kaldi": lambda **k: KFbank(**KALDI, **k),
    "Kaldi with energy": lambda **k: KFbank(**KALDI, snip_edges=False, use_energy=True, subtract_mean=True, **k),
    "power spectrum": lambda **k: KSpectrogram(64, hop_length=20, **k),
}


def trained(front_end: nn.Module) -> nn.Module:
    """As if some steps of training had been made."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in front_end.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return front_end.eval()


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("make", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_dense_front_ends_are_the_same_maps(make) -> None:
    front_end = trained(make(dtype=torch.float64))
    dense = to_dense(copy.deepcopy(front_end))
    assert not any(isinstance(module, KMatrix) for module in dense.modules())
    assert sum(isinstance(module, DenseTransform) for module in dense.modules()) == 1
    x = noise(2, 900, dtype=torch.float64).requires_grad_()
    expected = front_end(x)
    torch.testing.assert_close(dense(x), expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((module(x) * weights).sum(), x)[0] for module in (front_end, dense)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_dense_front_ends_know_lengths(make) -> None:
    front_end = trained(make())
    x, lengths = noise(3, 900), torch.tensor([900, 400, 111])
    expected, counts = front_end(x, lengths)
    features, same_counts = to_dense(copy.deepcopy(front_end))(x, lengths)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert same_counts.equal(counts)


@pytest.mark.parametrize("power", [None, 2.0])
@pytest.mark.parametrize(
    "init", [UNITARY, KMatrix(64, dtype=torch.complex64, constraint="odo", tied=True), KMatrix(64)]
)
def test_dense_spectrograms_of_other_k_matrices(init, power) -> None:
    spectrogram = KSpectrogram(64, hop_length=20, init=init, power=power, onesided=False)
    expected = spectrogram(noise(500))
    torch.testing.assert_close(to_dense(spectrogram)(noise(500)), expected, rtol=1e-4, atol=1e-4)


def test_dense_front_ends_train_what_was_trained() -> None:
    frozen = to_dense(KMelSpectrogram(**SMALL, learnable=("filterbank",)).train())
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["mel_scale.fb"]
    assert frozen.spectrogram.transform.training
    learning = to_dense(nn.Sequential(KMelSpectrogram(**SMALL, compression="log")).eval())
    learning(noise(2, 900)).sum().backward()
    weight = learning[0].spectrogram.transform.weight
    slopes = weight.grad.abs().amax(1).view(2, 33)[:, 1:-1]  # the filters see neither frequency 0 nor the highest
    assert weight.shape == (66, 64) and slopes.min() > 0
    assert not learning[0].spectrogram.transform.training
    assert set(learning.state_dict()) == {"0.spectrogram.window", "0.spectrogram.transform.weight", "0.mel_scale.fb"}
    assert to_dense(learning)[0].spectrogram.transform.weight.equal(weight)  # again


def test_dense_front_ends_stream() -> None:
    for front_end in (KMelSpectrogram(**SMALL, compression="pcen"), KFbank(**KALDI)):
        dense, x = to_dense(front_end), noise(900)
        stream = dense.stream()
        parts = [stream.push(piece) for piece in x.split(77)] + [stream.finish()]
        torch.testing.assert_close(torch.cat(parts, dim=-1), dense(x), rtol=1e-4, atol=1e-4)


def test_to_dense_refuses_front_ends_with_hooks() -> None:
    front_end = KMelSpectrogram(**SMALL)
    front_end.spectrogram.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="spectrogram has hooks"):
        to_dense(front_end)


def through_onnx(model: nn.Module, example: tuple, sizes: dict, path: Path):
    """The exported model as a function."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.onnx.export(model.eval(), example, path, dynamic_shapes=sizes, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)

    def run(*arguments: torch.Tensor) -> list[torch.Tensor]:
        names = [argument.name for argument in session.get_inputs()]
        inputs = {name: x.numpy() for name, x in zip(names, arguments, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, inputs)]

    return run


@pytest.mark.parametrize("name", ["log", "margins", "all learnable", "Kaldi", "Kaldi with energy"])
def test_front_ends_in_onnx_runtime(name, tmp_path) -> None:
    front_end = trained(FRONT_ENDS[name]())
    dense = to_dense(copy.deepcopy(front_end))
    run = through_onnx(dense, (noise(2, 900),), {"waveform": {0: ANY, 1: ANY}}, tmp_path / "model.onnx")
    with torch.no_grad():
        for shape in ((2, 900), (1, 300), (3, 2345)):
            x = noise(*shape)
            torch.testing.assert_close(run(x)[0], front_end(x), rtol=1e-3, atol=1e-3)


def test_lengths_in_onnx_runtime(tmp_path) -> None:
    front_end = trained(KMelSpectrogram(**SMALL, compression="log"))
    example, sizes = (noise(2, 900), torch.tensor([900, 300])), {"waveform": {0: ANY, 1: ANY}, "lengths": {0: ANY}}
    run = through_onnx(to_dense(copy.deepcopy(front_end)), example, sizes, tmp_path / "model.onnx")
    x, lengths = noise(3, 1200), torch.tensor([100, 1200, 777])
    with torch.no_grad():
        expected, counts = front_end(x, lengths)
    features, same_counts = run(x, lengths)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    assert same_counts.equal(counts)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: KLinear(24, 20, width=2), (4, 24)),
        (lambda: KConv1x1(6, 10), (4, 6, 3, 5)),
        (lambda: KPermutation(16), (4, 16)),
        (lambda: LinearMel(transform="low_rank"), (2, 2000)),
    ],
    ids=["KLinear", "KConv1x1", "KPermutation", "LinearMel"],
)
def test_layers_in_onnx_runtime_just_as_they_are(layer, shape, tmp_path) -> None:
    model, x = layer().eval(), noise(*shape)
    run = through_onnx(model, (x,), ({0: ANY},), tmp_path / "model.onnx")
    more = torch.cat([x, -x, 2 * x])
    with torch.no_grad():
        torch.testing.assert_close(run(more)[0], model(more), rtol=1e-4, atol=1e-4)


def test_complex_k_matrices_say_how_they_are_exported(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception, match=r"ONNX has no complex numbers: export kaleido_audio\.nn\.to_dense"):
        torch.onnx.export(KMelSpectrogram(**SMALL).eval(), (noise(2, 900),), tmp_path / "model.onnx", verbose=False)


def test_blocks_of_the_page_run(tmp_path, monkeypatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["session"], onnxruntime.InferenceSession)
    assert names["outputs"].shape == (3, 251, 10)
    x = torch.randn(2, 20_000)
    with torch.no_grad():
        expected = names["model"](x)
        torch.testing.assert_close(names["compiled"](x), expected, rtol=1e-3, atol=1e-3)
    (outputs,) = names["session"].run(None, {"waveform": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), expected, rtol=1e-3, atol=1e-3)
