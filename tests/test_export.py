"""A finetuned network, still at β > 0, leaves PyTorch's eager mode with the same outputs."""

import warnings

import pytest
import timm
import torch

import dr2net
from dr2net import residual
from tests.toy import export, make_chain


def vit(alpha, beta, arithmetic="exact"):
    torch.manual_seed(0)
    network = timm.create_model("test_vit", depth=3).eval()
    return dr2net.convert(network, alpha, beta, arithmetic=arithmetic)


IMAGES = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (1, 0.1), (0.3, 0.7), (0, 1)])
@pytest.mark.parametrize("arithmetic", ["exact", "exact64", "float"])
@pytest.mark.filterwarnings("ignore:chain. at")
def test_an_exported_chain_returns_the_same_bits(alpha, beta, arithmetic):
    chain = make_chain(alpha, beta, arithmetic=arithmetic).eval()
    x = 30 * torch.randn(2, 5, 8)
    assert torch.equal(export(chain, (x,)).module()(x), chain(x))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_an_exported_vit_returns_the_same_bits(grad):
    model = vit(1, 0.1)
    with torch.set_grad_enabled(grad):
        program = export(model, (IMAGES,))
    assert torch.equal(program.module()(IMAGES), model(IMAGES))


def test_an_exported_program_takes_batches_of_other_sizes():
    model = vit(1, 0.1)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = export(model, (IMAGES,), dynamic_shapes={"x": {0: batch}}, strict=False)
    other = torch.randn(5, 3, 160, 160)
    assert torch.equal(program.module()(other), model(other))


@pytest.mark.parametrize("move", [False, True])
def test_coefficients_written_into_the_buffer_reach_the_export(move):
    model, other = vit(1, 0.1), vit(0.25, 0.75)
    if move:
        model.to(torch.float64).to(torch.float32)
    model.load_state_dict(other.state_dict())
    program = export(model, (IMAGES,))
    assert torch.equal(program.module()(IMAGES), other(IMAGES))


def test_features_are_exported():
    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = make_chain(1, 0.1, blocks=4).eval()

        def forward(self, x, shift):
            return self.chain.features(x, shift, blocks=[1, 3])

    model, inputs = Features(), (torch.randn(2, 5, 8), torch.randn(5, 8))
    exported = export(model, inputs).module()(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(exported, model(*inputs), strict=True))


def test_coefficients_that_others_wrote_are_reported():
    chain, x = make_chain(1, 0.1).eval(), torch.randn(2, 5, 8)
    chain.coefficients.copy_(make_chain(0, 1).coefficients)
    with pytest.raises(RuntimeError, match=r"get_coefficients\(model\) before the export"):
        export(chain, (x,), strict=False)
    assert dr2net.get_coefficients(chain) == (0, 1)
    assert torch.equal(export(chain, (x,)).module()(x), chain(x))


def test_torchscript_is_refused_with_what_to_do_instead():
    with pytest.raises(RuntimeError, match=r"cannot compile blocks: .*torch\.export.*revert"):
        torch.jit.script(vit(1, 0.1))


def run_onnx(model, x, path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(found)


@pytest.mark.parametrize(
    ("alpha", "beta", "arithmetic"),
    [(1, 0, "exact"), (1, 0.1, "exact"), (0, 1, "exact"), (1, 0.1, "exact64"), (1, 0.1, "float")],
)
def test_stream_arithmetic_in_onnx_is_pytorch_s(alpha, beta, arithmetic, tmp_path):
    # Modules whose kernels round alike in both, so that what is left is the chain's own arithmetic.
    chain = make_chain(alpha, beta, arithmetic=arithmetic, branches=(halve,)).eval()
    x = 30 * torch.randn(2, 5, 8)
    assert torch.equal(run_onnx(chain, x, tmp_path / "chain.onnx"), chain(x))


@residual
def halve(block, x):
    return torch.relu(x) * 0.5 - 0.25


def test_onnx_runtime_returns_what_pytorch_does_with_a_vit(tmp_path):
    model = vit(1, 0.1)
    found = run_onnx(model, IMAGES, tmp_path / "model.onnx")
    # ONNX Runtime's matrix products round otherwise than PyTorch's.
    torch.testing.assert_close(found, model(IMAGES), rtol=1e-4, atol=1e-5)
