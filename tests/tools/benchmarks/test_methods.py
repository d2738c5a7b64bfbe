"""The ways to train that the benchmark measures (tools/benchmarks/methods.py), in small."""

import copy

import pytest
import torch

pytest.importorskip("timm")
import timm

import dr2net
from tools.benchmarks import methods
from tools.benchmarks.candidates import (
    in_float64,
    loss_of,
    make_candidate,
    share_weights,
    trained,
)
from tools.benchmarks.checkpointing import SLICE_TOKENS
from tools.benchmarks.measurements import gradients_of, peak_bytes, relative_difference
from tools.benchmarks.methods import (
    CHECKPOINT,
    COMPILED,
    CONVENTIONAL,
    GPU,
    IN_SLICES,
    METHODS,
    methods_for,
    missing,
)
from tools.benchmarks.networks import build, make_input

APART = f"checkpoint, attention and MLP apart, {IN_SLICES}"
BEST = "checkpoint, best number of blocks"
LORA = f"LoRA, {CONVENTIONAL}"


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setitem(SLICE_TOKENS, "cpu", 8)


def network(depth=2):
    torch.manual_seed(0)
    return build("vit_tiny", depth, 64, 0)


def images(size=64, batch=2):
    torch.manual_seed(1)
    return make_input(batch, size, 0, "cpu")


def runnable(name):
    """A parameter of a test; skipped where what it needs is not there."""
    reasons = [missing(need, "cpu") for need in METHODS[name].needs]
    return pytest.param(name, marks=pytest.mark.skipif(any(reasons), reason=str(reasons)))


def gradients(name, original, x, precision="float32"):
    """Of the method, with each of its settings."""
    method = {**METHODS, **COMPILED}[name]
    found = []
    for setting in [[setting] for setting in method.settings] or [[]]:
        model = share_weights(original)
        forward = method.make(model, *setting)
        found.append(gradients_of(loss_of(forward, x, precision), trained(model)))
    return found


def peaks(original, x, precision="float32", **only):
    """Bytes of a step of the methods named, by their names here."""
    found = {}
    for key, name in only.items():
        candidate = make_candidate(METHODS[name], original, x, precision, "cpu")
        loss = loss_of(candidate.forward, x, precision)
        found[key] = peak_bytes(loss, trained(candidate.network), "cpu")
    return found


class TestGradients:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize(
        "name",
        [
            runnable(name)
            for name, method in METHODS.items()
            if method.pair == (1, 0)
            and not method.lora
            and GPU not in method.needs
            and not any(text in name for text in ("slices", "bfloat16", CONVENTIONAL))
        ],
    )
    def test_what_recomputes_has_the_gradients_of_what_stores(self, name, precision):
        original, x = network(), images()
        (expected,) = gradients(CONVENTIONAL, original, x, precision)
        for found in gradients(name, original, x, precision):
            assert all(map(torch.equal, found, expected))

    @pytest.mark.parametrize("name", [f"{CHECKPOINT}, {IN_SLICES}", APART])
    def test_slices_change_the_order_of_sums_alone(self, name):
        original, x = network(), images()
        ((expected,), (found,)) = (gradients(n, original, x) for n in (CONVENTIONAL, name))
        assert 0 < relative_difference(found, expected) < 1e-6

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("name", [name for name in METHODS if "bfloat16" in name])
    def test_a_stream_in_bfloat16_is_rounded(self, name, precision):
        original, x = network(), images()
        (expected,) = gradients(CONVENTIONAL, original, x, precision)
        for found in gradients(name, original, x, precision):
            # The rounding of bfloat16 is a relative 2^-9, of a stream of a few blocks.
            assert 1e-4 < relative_difference(found, expected) < 0.05

    @pytest.mark.parametrize("name", [CHECKPOINT, BEST, APART])
    def test_a_swins_stages_are_checkpointed_one_by_one(self, name):
        torch.manual_seed(0)
        original = timm.models.SwinTransformer(
            img_size=32, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4),
            window_size=4, num_classes=10, drop_path_rate=0.0,
        ).train()  # fmt: skip
        (expected,) = gradients(CONVENTIONAL, original, images(32))
        for found in gradients(name, original, images(32)):
            assert relative_difference(found, expected) < 1e-6

    @pytest.mark.parametrize(
        "name", [runnable(name) for name, method in METHODS.items() if method.lora]
    )
    def test_lora_trains_its_adapters_and_the_head_alone(self, name):
        original, x = network(), images()
        method = METHODS[name]
        candidate = make_candidate(method, original, x, "float32", "cpu")
        names = {n for n, p in candidate.network.named_parameters() if p.requires_grad}
        assert all("lora_" in n or n.startswith("head.") for n in names)
        # qkv, proj, fc1 and fc2 of two blocks have an A and a B; the head a weight and a bias.
        assert len(names) == 2 * 4 * 2 + 2
        assert all(parameter.requires_grad for parameter in original.parameters())
        reference = in_float64(original, *method.computes)
        exact = gradients_of(loss_of(reference, x.double(), "float64"), trained(reference))
        loss = loss_of(candidate.forward, x, "float32")
        found = gradients_of(loss, trained(candidate.network))
        assert relative_difference(found, exact) < 1e-5

    @pytest.mark.parametrize(
        "name", [name for name, method in METHODS.items() if "exact" in name and not method.lora]
    )
    def test_dr2nets_are_what_their_names_say(self, name):
        original = network(1)
        model = METHODS[name].make(share_weights(original))
        (chain,) = dr2net.chains(model)
        pair = tuple(map(eval, name.partition("(")[2].partition(")")[0].split(",")))
        assert dr2net.get_coefficients(model) == pytest.approx(pair, abs=2**-16)
        assert METHODS[name].pair == pytest.approx(pair)
        assert len(chain.couplings()) == (1 if "whole blocks" in name else 2)
        assert (chain.slicer is not None) == (IN_SLICES in name)


class TestMemory:
    def test_checkpointing_falls_as_its_kind_promises(self, monkeypatch):
        # Fewer slices than elsewhere here: each keeps a random state of 5 kB.
        monkeypatch.setitem(SLICE_TOKENS, "cpu", 128)
        # As many tokens a block as make activations larger than the weights' gradients.
        found = peaks(
            network(6),
            images(batch=32),
            conventional=CONVENTIONAL,
            selective="selective checkpoint, products kept",
            checkpoint=CHECKPOINT,
            apart=APART,
            bfloat16=f"{APART}, stream in bfloat16",
        )
        peak = {key: bytes_of["peak"] for key, bytes_of in found.items()}
        assert sorted(peak, key=peak.get) == sorted(peak, key=list(peak).index, reverse=True)
        elements = 32 * 16 * 192
        # Attention and MLP apart store 12 inputs; what else is kept is a fraction of one.
        kept = {key: bytes_of["kept"] for key, bytes_of in found.items()}
        assert kept["apart"] == pytest.approx(12 * 4 * elements, rel=0.05)
        assert kept["bfloat16"] == pytest.approx(12 * 2 * elements, rel=0.1)
        assert kept["checkpoint"] == pytest.approx(6 * 4 * elements, rel=0.05)

    def test_a_dr2net_keeps_a_bit_an_element_and_module_for_each_halving_of_beta(self):
        names = {
            f"{bits}{kind}": f"Dr²Net, exact ({text}){', whole blocks' if kind else ''}"
            for bits, text in ((4, "15/16, 1/16"), (3, "7/8, 1/8"), (2, "3/4, 1/4"))
            for kind in ("", "whole")
        }
        found = peaks(network(4), images(batch=16), **names)
        kept = {key: bytes_of["kept"] for key, bytes_of in found.items()}
        a_bit = 16 * 16 * 192 / 8
        # 8 modules, or 4 blocks.
        assert kept["4"] - kept["3"] == kept["3"] - kept["2"] == 8 * a_bit
        assert kept["4whole"] - kept["3whole"] == 4 * a_bit
        # Besides, each coupling keeps a few numbers.
        assert kept["3"] - kept["3whole"] == pytest.approx(3 * 4 * a_bit, rel=0.01)
        assert found["3whole"]["peak"] > found["3"]["peak"]  # the module is wider

    def test_the_setting_with_the_lowest_peak_is_taken(self):
        original, x = network(6), images(batch=32)
        candidate = make_candidate(METHODS[BEST], original, x, "float32", "cpu")
        assert tuple(candidate.peaks) == METHODS[BEST].settings
        assert candidate.setting == min(candidate.peaks, key=candidate.peaks.get)
        assert peaks(original, x, whole=CHECKPOINT)["whole"]["peak"] == candidate.peaks[1]
        loss = loss_of(candidate.forward, x, "float32")
        peak = peak_bytes(loss, trained(candidate.network), "cpu")["peak"]
        assert peak == candidate.peaks[candidate.setting] < candidate.peaks[3]


class TestWhatIsMissing:
    def test_is_said_and_left_out(self, monkeypatch):
        monkeypatch.setattr(methods, "find_spec", lambda name: None)
        monkeypatch.setattr(methods, "which", lambda name: None)
        found, left_out = methods_for("cpu", everything=True, with_compile=True)
        assert set(found) | set(left_out) == set(METHODS) | set(COMPILED)
        assert not set(found) & set(left_out)
        assert all(not method.needs for method in found.values())
        assert left_out["offload by trl"] == (
            "needs a GPU and needs trl, not installed (pip install trl)"
        )
        assert "torch_remat, not installed" in left_out["torch_remat, every block"]
        assert left_out["conventional, compiled"] == "needs a C++ compiler (g++, or CXX)"

    def test_on_a_gpu_offloading_is_there_and_compilation_needs_triton(self, monkeypatch):
        installed = {"peft"}
        monkeypatch.setattr(methods, "find_spec", lambda name: name in installed or None)
        found, left_out = methods_for("cuda:0", everything=False, with_compile=True)
        assert "offload to pinned memory" in found
        assert "Triton" in left_out["conventional, compiled"]
        installed |= {"triton", "trl"}
        found, left_out = methods_for("cuda:0", everything=False, with_compile=True)
        assert {"conventional, compiled", "offload by trl"} <= set(found)

    def test_extras_are_left_to_all(self):
        few, _ = methods_for("cpu", everything=False, with_compile=False)
        many, _ = methods_for("cpu", everything=True, with_compile=False)
        assert set(few) < set(many)
        assert all(not method.extra for method in few.values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if GPU in method.needs])
def test_offloaded_activations_come_back_as_they_were(name):
    if "trl" in METHODS[name].needs:
        pytest.importorskip("trl")
    # Without it, a GPU's convolutions and attention do not repeat their own gradients.
    torch.use_deterministic_algorithms(True, warn_only=True)
    original, x = network().cuda(), images().cuda()
    ((expected,), (found,)) = (gradients(n, original, x) for n in (CONVENTIONAL, name))
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
@pytest.mark.skipif(missing(methods.COMPILER, "cpu") is not None, reason="needs a compiler")
@pytest.mark.parametrize(
    "name", [f"{CHECKPOINT}, {IN_SLICES}", "LoRA, Dr²Net, exact (7/8, 1/8)", CHECKPOINT]
)
def test_compiled_modules_have_the_gradients_of_eager_ones(name):
    if METHODS[name].lora:
        pytest.importorskip("peft")
    original, x = network(), images()
    ((expected,), (found,)) = (
        gradients(n, original, x) for n in (name, f"{name}, compiled modules")
    )
    assert relative_difference(found, expected) < 1e-5


def test_networks_share_weights_and_nothing_else():
    original = network(1)
    one, other = share_weights(original), share_weights(original)
    for a, b, c in zip(*(n.parameters() for n in (original, one, other)), strict=True):
        assert a.data_ptr() == b.data_ptr() == c.data_ptr()
        assert a is not b
    copy.deepcopy(one)
    one.requires_grad_(False)
    other(images()).sum().backward()
    assert all(parameter.grad is None for parameter in original.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())
