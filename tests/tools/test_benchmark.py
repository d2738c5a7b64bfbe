import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
import dr2net
from tools import benchmark
from tools.benchmarks import depths, gradient_error, methods, peak_anatomy, scaling
from tools.benchmarks.candidates import share_weights
from tools.benchmarks.methods import METHODS, compiled, methods_for
from tools.benchmarks.networks import VITS, build, input_shape

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--models", "vit_tiny", "--depths", "3", "--sizes", "64", "--batches", "2"]
SMALL += ["--threads", "1"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Commands set two, which wait for each other where other tests are at work beside."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.fixture
def run_benchmark(monkeypatch):
    """Run tools/benchmark.py in this process; options as on the command line."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, options)])
        benchmark.main()

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What a small run prints and writes."""
    folder = tmp_path_factory.mktemp("benchmark")
    out, plot = folder / "new" / "result.json", folder / "picture.png"
    command = [sys.executable, ROOT / "tools/benchmark.py", *SMALL, "--steps", "2", "--warmup", "0"]
    command += ["--out", out, "--plot", plot]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    return done.stdout, json.loads(out.read_text())


class TestBenchmark:
    def test_every_method_is_printed_and_written_with_its_origin(self, small):
        printed, result = small
        found, left_out = methods_for("cpu", everything=False, with_compile=False)
        assert [row["method"].partition(":")[0] for row in result["rows"]] == list(found)
        assert all(method in printed for method in found)
        assert {"command", "date", "hardware", "versions"} <= set(result)
        assert result["left out"] == left_out
        for name, reason in left_out.items():
            assert f"{name} ({reason})" in result["notes"]
            assert f"left out: {name}: {reason}" in printed

    def test_the_best_setting_is_named_with_the_peaks_of_all(self, small):
        (case,) = small[1]["measured"]
        found = case["methods"]["checkpoint, best number of blocks"]
        peaks = {float(setting): peak for setting, peak in found["peaks by setting"].items()}
        assert found["setting"] == min(peaks, key=peaks.get)
        assert found["bytes"]["peak"] == peaks[found["setting"]]
        assert f"best number of blocks: {found['setting']:g} " in small[0]

    def test_exact_gradients_are_those_of_stored_activations(self, small):
        (case,) = small[1]["measured"]
        for name, found in case["methods"].items():
            error = found["errors"]
            assert error["float64"] > 0, name
            if "bfloat16" in name:
                assert 1e-3 < error["stored"] < 0.05
                continue
            assert error["float64"] < 1e-3, name
            if "conventional" in name:
                assert "stored" not in error
            elif "float" not in name:
                assert error["stored"] == 0, name
        assert case["methods"]["previous reversible, float (0, 1)"]["errors"]["stored"] > 0

    def test_memory_falls_as_the_methods_promise(self, small):
        (case,) = small[1]["measured"]
        kept = {name: found["bytes"]["kept"] for name, found in case["methods"].items()}
        for name, found in case["methods"].items():
            assert found["bytes"]["peak"] >= found["bytes"]["kept"] > 0
            assert found["largest batch"] > 0
            is_reversible = "Dr²Net" in name or "previous" in name
            assert (found["streams"] is not None) == is_reversible
        assert kept["Dr²Net, exact (0, 1)"] < kept["Dr²Net, exact (1/2, 1/2)"]
        assert kept["Dr²Net, exact (1/2, 1/2)"] < kept["Dr²Net, exact (1, 0.1)"]
        order = (
            "Dr²Net, exact (0, 1)",
            "checkpoint, every block",
            "selective checkpoint, products kept",
            "conventional",
        )
        assert sorted(order, key=kept.get) == list(order)

    def test_the_whole_step_counts_what_is_trained_alone(self, small):
        (case,) = small[1]["measured"]
        network = build("vit_tiny", 3, 64, 0)
        weights = sum(parameter.nbytes for parameter in network.parameters())
        state = {
            name: found["bytes"]["whole step"] - found["bytes"]["peak"]
            for name, found in case["methods"].items()
        }
        assert state["conventional"] == state["Dr²Net, exact (0, 1)"] == 4 * weights
        if lora := [found for name, found in state.items() if "LoRA" in name]:
            assert len(set(lora)) == 1
            assert weights < lora[0] < 2 * weights

    def test_methods_are_chosen_by_their_names_with_their_references(self, run_benchmark, capsys):
        run_benchmark(*SMALL, "--steps", 1, "--warmup", 0, "--methods", "exact (0, 1)")
        lines = capsys.readouterr().out.splitlines()
        named = [line.split("|")[1].strip() for line in lines if "| " in line]
        assert named[2:] == [
            "conventional",
            "checkpoint, every block",
            "Dr²Net, exact (0, 1)",
            "Dr²Net, exact (0, 1), MLPs in slices",
        ]

    def test_a_package_that_is_not_installed_is_said_and_not_fatal(
        self, run_benchmark, capsys, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(methods, "find_spec", lambda name: None)
        out = tmp_path / "result.json"
        options = ["--steps", 0, "--methods", "torch_remat, every", "LoRA, conv", "--out", out]
        run_benchmark(*SMALL, *options)
        result = json.loads(out.read_text())
        assert [row["method"] for row in result["rows"]] == [
            "conventional",
            "checkpoint, every block",
        ]
        reason = "needs torch_remat, not installed (pip install torch_remat)"
        assert result["left out"]["torch_remat, every block"] == reason
        assert f"torch_remat, every block ({reason})" in result["notes"]
        assert "LoRA, conventional (needs peft" in result["notes"]
        assert reason in capsys.readouterr().out

    def test_without_timed_steps_bytes_are_compared(self, small, run_benchmark, tmp_path):
        out = tmp_path / "result.json"
        run_benchmark(*SMALL, "--steps", 0, "--methods", "exact (7/8", "--out", out)
        result = json.loads(out.read_text())
        assert result["hardware"] == "any: nothing here is timed"
        assert {"seconds", "errors"}.isdisjoint(result["measured"][0]["methods"]["conventional"])
        timed = small[1]["measured"][0]["methods"]
        peaks = {name: found["bytes"]["peak"] for name, found in timed.items()}
        rows = {row["method"]: row for row in result["rows"]}
        named = {name for name, method in METHODS.items() if "exact (7/8" in name}
        assert set(rows) <= named | {
            "conventional",
            "checkpoint, every block",
            "LoRA, conventional",
        }
        assert {"conventional", "Dr²Net, exact (7/8, 1/8), whole blocks"} <= set(rows)
        for name in set(rows) & set(peaks):
            share = peaks[name] / peaks["conventional"]
            assert rows[name]["peak / conventional"] in (f"{share:.3f}", "")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--methods", "exact", "typo"], "none has ['typo'] in its name: conventional;"),
            (["--batches", "0"], "'0' is not a whole number above 0"),
            pytest.param(
                ["--device", "cuda"],
                "--device cuda: PyTorch finds no GPU here",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
            ),
            (["--steps", "-1"], "--steps and --warmup not below"),
            (["--steps", "0", "--plot", "times.png"], "--plot shows times: it needs --steps"),
            (["--sizes", "50"], "size 50 has to be a positive multiple of 16"),
            (["--frames", "3"], "frames 3 a multiple of 2"),
            (["--models", "swin_large", "--frames", "2"], "swin_large takes images"),
        ],
    )
    def test_mistakes_are_named(self, options, message, run_benchmark, capsys):
        with pytest.raises((SystemExit, ValueError)) as stopped:
            run_benchmark(*options)
        assert message in capsys.readouterr().err + str(stopped.value)


class TestNetworks:
    @pytest.mark.parametrize("name", VITS)
    def test_vits_have_their_sizes(self, name):
        with torch.device("meta"):
            network = build(name, None, 32, 0)
        width, depth, heads = VITS[name]
        assert (network.embed_dim, len(network.blocks)) == (width, depth)
        assert network.blocks[0].attn.num_heads == heads

    def test_videos_become_tubelets(self):
        network = build("vit_tiny", 1, 32, 4)
        tokens = network.patch_embed(torch.randn(input_shape(2, 32, 4)))
        assert tokens.shape == (2, 2 * 2 * 2, 192)
        assert network(torch.randn(input_shape(2, 32, 4))).shape == (2, 10)

    @pytest.mark.parametrize("method", ["checkpoint, every block", "Dr²Net, exact (0, 1)"])
    def test_methods_reach_all_of_a_swins_stages(self, method):
        network = build("swin_large", 2, 32, 0)
        before = {type(stage.blocks) for stage in network.layers}
        forward = METHODS[method].make(network)
        assert not before & {type(stage.blocks) for stage in forward.layers}


@pytest.mark.slow
def test_a_smaller_budget_makes_the_compiler_keep_less():
    network = build("vit_tiny", 2, 64, 0)
    x = torch.randn(4, 3, 64, 64)
    kept = []
    for budget in (1.0, 0.1):
        forward = compiled(share_weights(network), budget)
        kept.append(dr2net.diagnostics.bytes_kept(lambda forward=forward: forward(x)))
    assert kept[1] < kept[0]


class TestScaling:
    def test_a_sweep_is_measured_drawn_and_written(self, tmp_path, monkeypatch):
        case = replace(scaling.TINY, size=32, batch=1)
        cases = {depth: replace(case, depth=depth) for depth in (1, 2, 4)}
        sweep = scaling.Sweep("A title.", "blocks", cases, steps=2)
        monkeypatch.setitem(scaling.SWEEPS, "depth", sweep)
        options = ["x", "depth", "--turns", "2", "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", options)
        scaling.main()
        rows = json.loads((tmp_path / "scaling_depth.json").read_text())["rows"]
        found = {(row["quantity"], row["method"]): row for row in rows}
        assert float(found["kept (MB)", "Dr²Net, exact (0, 1)"]["power"]) < 0.05
        assert float(found["kept (MB)", "conventional"]["power"]) > 0.9
        assert found["s/step", "conventional"]["4"] == ""
        assert (tmp_path / "scaling_depth.png").read_bytes().startswith(b"\x89PNG")

    def test_what_would_not_fit_is_left_out(self):
        before = {10: {"kept": 10**9}}
        assert scaling.fits(before, 20, power=1)
        assert not scaling.fits(before, 10**6, power=1)
        assert not scaling.fits(before, 10**4, power=2)

    def test_the_sweeps_have_the_sizes_that_they_name(self):
        for width, case in scaling.SWEEPS["models"].cases.items():
            assert VITS[case.model][0] == width
        assert max(scaling.SWEEPS["tokens"].cases) > 50_000


def test_the_parts_of_the_peak_add_up(tmp_path):
    found = peak_anatomy.measure("vit_tiny", 64, 2)
    elements = 2 * 16 * 192
    for name, parts in found.items():
        assert all(number >= 0 for number in parts.values()), name
    assert found["Dr²Net, exact (0, 1)"]["streams"] == 2 * 4 * elements
    assert found["Dr²Net, exact (0, 1)"]["remainders"] == 0
    # 4 bits of each of 24 couplings.
    assert found["Dr²Net, exact (1, 0.1)"]["remainders"] == 24 * elements // 2


def test_the_plane_of_gradient_errors_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_error, "ALPHAS", (0.0, 1.0))
    monkeypatch.setattr(gradient_error, "BETAS", (0.1, 1.0))
    monkeypatch.setattr(gradient_error, "PAIRS", ((1.0, 0.1), (0.0, 1.0)))
    options = ["x", "--depth", "6", "--size", "32", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", options)
    gradient_error.main()
    errors = json.loads((tmp_path / "gradient_error.json").read_text())["errors"]
    assert errors["Dr²Net, exact"] == [[0.0, 0.0], [0.0, 0.0]]
    assert errors["previous reversible, float"][0][1] > 0.01
    assert (tmp_path / "gradient_error.png").read_bytes().startswith(b"\x89PNG")


class TestDepths:
    def test_peaks_are_compared_with_the_best_of_no_more_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr(depths, "PIXELS", 32)
        options = ["x", "--depths", "2", "3", "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", options)
        depths.main()
        result = json.loads((tmp_path / "depths.json").read_text())
        assert (tmp_path / "depths.png").read_bytes().startswith(b"\x89PNG")
        rows = {row["method"]: row for row in result["rows"]}
        # A forward more, of all but the stem and the head; PyTorch's checkpoint stops it early.
        again = float(rows["Dr²Net, exact (7/8, 1/8)"]["work"])
        assert 1 < float(rows["checkpoint, every block"]["work"]) < again < 4 / 3
        assert rows["conventional"]["work"] == "1.00"
        for name, bits in (("Dr²Net, exact (7/8, 1/8)", 3), ("Dr²Net, exact (1/2, 1/2)", 1)):
            assert rows[name]["bits"] == str(bits)
            assert len(rows[name]["/ best"].split(" · ")) == 2
        found, work = result["measured"]["3"], result["work"]
        best = min(
            found[name]["peak"]
            for name in depths.OTHERS
            if "bfloat16" not in name
            and work[name] <= work["Dr²Net, exact (7/8, 1/8)"] * (1 + depths.TOLERANCE)
        )
        share = found["Dr²Net, exact (7/8, 1/8)"]["peak"] / best
        shares = rows["Dr²Net, exact (7/8, 1/8)"]["/ best"]
        assert shares.split(" · ")[1] == f"{share:.2f}"

    def test_more_work_is_no_rival(self):
        found = {name: {"peak": 10} for name in depths.OTHERS}
        work = dict.fromkeys(depths.OTHERS, 130) | {"little": 131, "much": 150}
        more, rounded = (
            "checkpoint, every block, MLPs in slices",
            "checkpoint, best number of blocks, stream in bfloat16",
        )
        found[more]["peak"], found[rounded]["peak"] = 1, 5
        work[more] = 150
        assert depths.best_of_others(found, work, "much", False) == more
        assert depths.best_of_others(found, work, "little", True) == rounded
        best = depths.best_of_others(found, work, "little", False)
        assert found[best]["peak"] == 10
