"""The study's search of learning rates, what it goes on from, and what it says of runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("scipy")
from timm.models.vision_transformer import VisionTransformer

from tools.experiments import finetuning, study, tables
from tools.experiments.costs import whole_step
from tools.experiments.finetuning import RECIPES, finetune
from tools.experiments.image_sets import ImageSet, Part
from tools.experiments.ways import WAYS, is_new

HELD = "held (7/8, 1/8)"
SEEDS = range(2)


def run_of(way, rate, seed, validation=50.0, test=50.0, **more):
    more = {"weights": "same", **more}
    return dict(way=way, rate=rate, seed=seed, validation=validation, test=test, **more)


def runs_by_rate(way, accuracies):
    return [run_of(way, rate, seed, value) for rate, value in accuracies.items() for seed in SEEDS]


def draw(seed, train, validation, test):
    drawn = torch.Generator().manual_seed(seed)

    def part(number):
        labels = torch.randint(0, 3, (number,), generator=drawn)
        images = torch.randint(0, 60, (number, 1, 14, 14), generator=drawn)
        return Part((images + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)

    return ImageSet(part(train), part(validation), part(test))


@pytest.fixture
def recipe(monkeypatch):
    def tiny(size, classes, pretrained=True):
        return VisionTransformer(
            img_size=size, patch_size=14, embed_dim=24, depth=3, num_heads=3, num_classes=classes,
            init_values=0.1,
        ).train()  # fmt: skip

    monkeypatch.setattr(finetuning, "dinov2_small", tiny)
    small = {"numbers": (20, 10, 10), "classes": 3, "size": 28, "steps": 10, "batch": 4}
    return replace(RECIPES["fashion"], draw=draw, **small)


def test_search_begins_with_three_rates_and_goes_on_past_the_best_at_an_end():
    way = "conventional"
    assert study.rates_to_try([], way, SEEDS) == [1e-5, 3e-5, 1e-4]
    inside = runs_by_rate(way, {1e-5: 60, 3e-5: 70, 1e-4: 65})
    assert study.rates_to_try(inside, way, SEEDS) == [1e-5, 3e-5, 1e-4]
    low = runs_by_rate(way, {1e-5: 80, 3e-5: 70, 1e-4: 65})
    assert study.rates_to_try(low, way, SEEDS) == [3e-6, 1e-5, 3e-5, 1e-4]
    found = low + runs_by_rate(way, {3e-6: 75})
    assert study.rates_to_try(found, way, SEEDS) == [3e-6, 1e-5, 3e-5, 1e-4]
    assert study.chosen_rate(found, way, SEEDS) == 1e-5


def test_a_rate_counts_when_all_seeds_have_run():
    way = "conventional"
    found = [*runs_by_rate(way, {1e-5: 60, 3e-5: 70}), run_of(way, 1e-4, 0, 99.0)]
    assert study.chosen_rate(found, way, SEEDS) is None
    assert list(study.missing(found, [way], SEEDS, SEEDS)) == [(way, 1e-4, 1)]


def test_the_table_of_costs_is_of_the_bytes_in_its_file():
    path = Path(study.__file__).parents[2] / "results/study_costs.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for row in result["rows"]:
        measured = result["measured"][row["finetuning"]]
        assert row["whole step (MB)"] == f"{whole_step(measured) / 1e6:,.0f}"
        assert row["kept (MB)"] == f"{measured['kept'] / 1e6:,.0f}"


def test_runs_of_another_device_are_not_gone_on_from():
    study.refuse_other_devices([run_of("conventional", 3e-5, 0)], "cpu")
    with pytest.raises(SystemExit, match="of an H200, not of a CPU: give another --work-dir"):
        study.refuse_other_devices([run_of("conventional", 3e-5, 0, gpu="an H200")], "cpu")


def test_nothing_is_written_of_no_finished_way(tmp_path, monkeypatch):
    options = ["--table", "--work-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    for further, message in (([], "nothing is written"), (["--ways", "nosuch"], "none has")):
        monkeypatch.setattr("sys.argv", ["study.py", "fashion", *options, *further])
        with pytest.raises(SystemExit, match=message):
            study.main()
    assert not (tmp_path / "out").exists()


def test_the_first_seeds_choose_the_rate_at_which_the_others_run():
    way, first = "conventional", range(1)
    jobs = [(way, rate, 0) for rate in (1e-5, 3e-5, 1e-4)]
    assert list(study.missing([], [way], SEEDS, first)) == jobs
    found = [run_of(*jobs[0], 60), run_of(*jobs[1], 70), run_of(*jobs[2], 65)]
    assert list(study.missing(found, [way], SEEDS, first)) == [(way, 3e-5, 1)]
    found.append(run_of(way, 3e-5, 1, 10))
    assert not list(study.missing(found, [way], SEEDS, first))
    assert study.chosen_rate(found, way, first) == 3e-5


def test_a_twin_runs_once_at_the_rate_that_was_chosen():
    found = runs_by_rate("conventional", {1e-5: 60, 3e-5: 70, 1e-4: 65})
    twin = "conventional, checkpointed"
    assert list(study.missing(found, [twin], SEEDS, SEEDS)) == [(twin, 3e-5, 0)]
    assert not list(study.missing([], [twin], SEEDS, SEEDS))


def test_a_twin_with_other_weights_is_an_error():
    twin = "conventional, checkpointed"
    runs = [run_of("conventional", 3e-5, 0), run_of(twin, 3e-5, 0)]
    study.check_twins(runs)
    runs[1]["weights"] = "others"
    with pytest.raises(AssertionError, match="conventional, checkpointed did not end with"):
        study.check_twins(runs)


def test_table_says_mean_interval_and_paired_difference():
    values = {"conventional": [70.0, 72.0, 74.0], HELD: [69.0, 72.0, 72.0]}
    runs = [
        run_of(way, 3e-5, seed, test=test, plain=test + 1)
        for way, tests in values.items()
        for seed, test in enumerate(tests)
    ]
    result = tables.table_of(RECIPES["fashion"], runs, {"conventional": 3e-5, HELD: 3e-5}, 3)
    reference, held = result["rows"]
    # Student's t of 2 degrees of freedom at 97.5 % is 4.303.
    assert reference["top-1 (%)"] == f"72.0 ± {4.303 * 2 / 3**0.5:.1f}"
    assert held["to conventional"].startswith(f"-1.0 ± {4.303 * 1 / 3**0.5:.1f} (p 0.2")
    assert held["plain to conventional"].startswith("+0.0")
    assert reference["plain (%)"] == ""


@pytest.mark.parametrize("way", [name for name in WAYS if "paper's, float" not in name])
def test_every_way_trains_what_it_says_and_nothing_else(recipe, way, monkeypatch):
    kept = {}
    monkeypatch.setattr(finetuning, "digest", lambda model: kept.update(model=model) or "")
    found = finetune(recipe, way, 1e-3, seed=0)
    assert np.isfinite(found["loss"])
    assert 0 <= found["test"] <= 100
    assert ("plain" in found) == WAYS[way].ends_on_the_line
    trained = {name for name, value in kept["model"].named_parameters() if value.requires_grad}
    assert any(is_new(name) for name in trained)
    others = {name for name in trained if not is_new(name)}
    kinds = {"all": "blocks.", "biases": ".bias", "lora": "lora_", "side": "side."}
    expected = kinds.get(WAYS[way].trained)
    assert any(expected in name for name in others) if expected else not others
    if WAYS[way].channels or WAYS[way].trained == "biases":
        kind = "weight_of_trained_channels" if WAYS[way].channels else ".bias"
        assert all(name.endswith(kind) for name in others)


@pytest.mark.parametrize("way", [name for name in WAYS if WAYS[name].same_as])
def test_twins_end_with_the_same_weights(recipe, way):
    found = finetune(recipe, way, 1e-3, seed=1)
    twin = finetune(recipe, WAYS[way].same_as, 1e-3, seed=1)
    assert found["weights"] == twin["weights"]
    assert found["test"] == twin["test"]


def test_conventional_finetuning_learns_and_repeats(recipe):
    recipe = replace(recipe, steps=60)
    found = finetune(recipe, "conventional", 1e-3, seed=0)
    assert found["test"] > 60
    again = finetune(recipe, "conventional", 1e-3, seed=0)
    assert again["weights"] == found["weights"]


def test_study_goes_on_where_it_stopped_and_from_a_result_file(recipe, tmp_path, monkeypatch):
    class Here:
        """An executor without processes: the tiny network is in this one alone."""

        def __init__(self, *args, **kwargs):
            self.made = made

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def submit(self, function, *job):
            from concurrent.futures import Future

            if len(self.made) == limit:
                raise KeyboardInterrupt
            self.made.append(job)
            future = Future()
            future.set_result(function(*job))
            return future

    monkeypatch.setattr(study, "ProcessPoolExecutor", Here)
    monkeypatch.setitem(study.RECIPES, "fashion", recipe)
    command = ["study.py", "fashion", "--seeds", "2", "--ways", "frozen", "--work-dir"]
    made, limit = [], 2
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path / "work"), "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        study.main()
    limit = 100
    study.main()
    assert len(made) == len(set(made))
    assert len({rate for _, rate, _ in made}) >= 3
    result = json.loads((tmp_path / "study_fashion.json").read_text())
    assert len(result["runs"]) == len(made)
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path / "new"), "--out", str(tmp_path)])
    before = len(made)
    result["versions"]["torch"] = "of where it ran"
    (tmp_path / "study_fashion.json").write_text(json.dumps(result))
    study.main()
    assert len(made) == before
    assert (
        json.loads((tmp_path / "study_fashion.json").read_text())["versions"] == result["versions"]
    )
    monkeypatch.setitem(study.RECIPES, "fashion", replace(recipe, steps=11))
    with pytest.raises(FileExistsError, match="of another recipe"):
        study.main()
