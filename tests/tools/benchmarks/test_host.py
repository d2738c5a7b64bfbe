"""The benchmark of the host's part of a step: every way takes its turns, and a file is written."""

import json
import sys
from functools import partial

import pytest
import torch

pytest.importorskip("timm")
import timm

from tools.benchmarks import host


def test_all_ways_are_measured_and_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "host.json"
    arguments = ["host.py", "--steps", "2", "--warmup", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    host.main()
    result = json.loads(out.read_text())
    assert [row["method"] for row in result["rows"]] == list(host.METHODS)
    assert all(len(values) == 2 for values in result["seconds"].values())
    assert host.CHECKPOINT in capsys.readouterr().out


@pytest.mark.parametrize("slices", [1, 2])
def test_the_bare_loop_has_the_gradients_of_a_chain_of_one_operation_a_move(slices):
    def gradients(method, context):
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=48, num_heads=3, depth=2, num_classes=5,
            class_token=False, global_pool="avg",
        )  # fmt: skip
        model = method(network.train())
        with context:
            model(torch.ones(1, 3, 16, 16)).sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    bare = gradients(partial(host.bare, slices=slices), torch.enable_grad())
    chain = gradients(
        host.METHODS[host.ONE_OPERATION], host.one_operation_a_move()
    )
    for a, b in zip(bare, chain, strict=True):
        torch.testing.assert_close(a, b)
    assert all(grad.abs().sum() > 0 for grad in bare)
