"""``Dr2NetHook``: one line of a config makes the backbone of any model a Dr²Net."""

import uuid

import pytest
import torch
from torch.utils.data import TensorDataset

pytest.importorskip("mmengine")
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

import dr2net
import dr2net.openmmlab  # registers the hook
from tests.conversion.families import timm_vit
from tests.test_loop import network

HOOK = {"type": "Dr2NetHook"}


class Classifier(BaseModel):
    """A model around a backbone, converted by itself or not."""

    def __init__(self, kind="vit", converted=None):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm_vit(depth=2) if kind == "vit" else network(3)
        self.kind = kind
        if converted is not None:
            dr2net.convert(self.backbone, **converted)

    def forward(self, x, mode="loss"):
        x = x.view(-1, 3, 32, 32) if self.kind == "vit" else x[:, :40].view(-1, 5, 8)
        loss = self.backbone(x).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


def run(tmp_path, model, hooks, epochs=2, resume=False):
    runner = Runner(
        model=model,
        randomness={"seed": 0},
        work_dir=str(tmp_path),
        train_dataloader={
            "batch_size": 2,
            "num_workers": 0,
            "dataset": TensorDataset(torch.linspace(-1, 1, 4 * 3072).view(4, 3072)),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": lambda batch: {"x": torch.stack([x for (x,) in batch])},
        },
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}},
        custom_hooks=hooks,
        # mmengine keeps visualizers by experiment, whose name has a resolution of 1 s.
        experiment_name=uuid.uuid4().hex,
        resume=resume,
    )
    runner.train()
    return runner


def assert_same_weights(a, b):
    first, second = a.model.state_dict(), b.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("kind", "converted", "settings"),
    [
        ("vit", {}, {}),
        ("vit", {"alpha": 1, "beta": 0.5}, {"alpha": (1, 1), "beta": (0.5, 0.5), "end": 9}),
        ("vit", {"couplings": "block"}, {"couplings": "block"}),
        ("loop", {"blocks": "layers"}, {"blocks": "layers"}),
        ("vit", {}, {"modules": [""]}),
    ],
)
def test_it_trains_as_a_model_that_was_converted_before(tmp_path, kind, converted, settings):
    schedule = {key: settings[key] for key in ("alpha", "beta", "end") if key in settings}
    expected = run(
        tmp_path / "a",
        Classifier(kind, converted),
        [{"type": "CoefficientScheduleHook", **schedule}],
    )
    found = run(tmp_path / "b", Classifier(kind), [{**HOOK, **settings}])
    assert_same_weights(found, expected)
    assert dr2net.chains(found.model)


def test_it_resumes_as_an_unbroken_run(tmp_path):
    hooks = [{**HOOK, "beta": (0.125, 0.5), "end": 3}, {"type": "EMAHook"}]
    unbroken = run(tmp_path / "a", Classifier(), hooks, epochs=3)
    run(tmp_path / "b", Classifier(), hooks, epochs=1)
    resumed = run(tmp_path / "b", Classifier(), hooks, epochs=3, resume=True)
    assert_same_weights(resumed, unbroken)
    averaged = unbroken.hooks[[type(h).__name__ for h in unbroken.hooks].index("EMAHook")].ema_model
    assert dr2net.get_coefficients(averaged) == dr2net.get_coefficients(unbroken.model)


def test_mlps_in_slices_and_kept_blocks(tmp_path):
    settings = {"mlp_tokens": 8, "keep": ["blocks.1"]}
    runner = run(tmp_path, Classifier(), [{**HOOK, **settings}], epochs=1)
    (chain,) = dr2net.chains(runner.model)
    assert chain.keep == {"1"}
    assert chain.slicer.tokens == 8


def test_a_part_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"modules='neck'\): the Classifier has no such part"):
        run(tmp_path, Classifier(), [{**HOOK, "modules": "neck"}])


def test_a_backbone_that_is_one_already_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="converted already"):
        run(tmp_path, Classifier(converted={}), [HOOK])


def test_an_option_of_a_family_is_handed_on(tmp_path):
    with pytest.raises(TypeError, match="fused_attention: not an option for VisionTransformer"):
        run(tmp_path, Classifier(), [{**HOOK, "options": {"fused_attention": True}}])


def test_a_backbone_config_by_its_blocks():
    backbone = {
        "type": "mmaction.VisionTransformer", "img_size": 32, "patch_size": 8, "embed_dims": 32,
        "num_heads": 2, "depth": 3, "num_frames": 4,
    }  # fmt: skip
    import dr2net.openmmlab.mended  # isort: skip - makes mmaction2 importable
    import mmaction.models  # noqa: F401

    config = Config({"type": "Dr2NetBackbone", "backbone": backbone, "blocks": "blocks"})
    model = MODELS.build(config)
    (chain,) = dr2net.chains(model)
    model(torch.randn(1, 3, 4, 32, 32)).square().mean().backward()
    assert chain.was_called
