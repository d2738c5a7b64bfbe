import pickle
import uuid

import pytest
import torch

pytest.importorskip("mmengine")
from dr2net.openmmlab.checkpoint import open_checkpoint
from tools.test import main


@pytest.fixture
def run_test():
    def run(config, checkpoint, work_dir, *options, settings=()):
        name = f"experiment_name={uuid.uuid4().hex}"
        arguments = ["--work-dir", str(work_dir), *options, "--cfg-options", name, *settings]
        return main([str(config), str(checkpoint), *arguments])

    return run


@pytest.fixture
def checkpoint(trained):
    config, run = trained
    return config, run / "epoch_2.pth"


def test_metrics_are_returned_and_predictions_saved(checkpoint, run_test, tmp_path):
    dump = tmp_path / "predictions.pkl"
    metrics = run_test(*checkpoint, tmp_path / "test", "--dump", str(dump))
    assert metrics.keys() >= {"acc/top1", "acc/top5"}
    predictions = pickle.loads(dump.read_bytes())
    assert len(predictions) == 4
    assert predictions[0]["pred_score"].sum().item() == pytest.approx(1, abs=1e-5)


def test_a_checkpoint_of_another_model_is_an_error(checkpoint, run_test, tmp_path):
    torch.save({"state_dict": {"layer.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no weight of the checkpoint fits the model"):
        run_test(checkpoint[0], tmp_path / "other.pth", tmp_path / "test")


def test_a_checkpoint_that_runs_code_is_opened_only_if_trusted(checkpoint, run_test, tmp_path):
    config, path = checkpoint
    content = open_checkpoint(path) | {"extra": uuid.UUID(int=0)}
    path = tmp_path / "unsafe.pth"
    torch.save(content, path)
    with pytest.raises(RuntimeError, match=r"unsafe\.pth was refused.*uuid.UUID"):
        run_test(config, path, tmp_path / "test")
    run_test(config, path, tmp_path / "test", "--trust-checkpoint")
    run_test(config, path, tmp_path / "test", settings=["trust_checkpoint=True"])


def test_the_config_of_a_deterministic_training_is_tested_so(checkpoint, run_test, tmp_path):
    # Refused before anything else: cuBLAS would refuse in the middle.
    with pytest.MonkeyPatch.context() as context:
        context.setenv("CUBLAS_WORKSPACE_CONFIG", ":1:1")
        with pytest.raises(ValueError, match="CUBLAS_WORKSPACE_CONFIG=:1:1"):
            run_test(*checkpoint, tmp_path / "test", settings=["randomness.deterministic=True"])


def test_dump_asks_for_a_pickle_name(checkpoint, run_test, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_test(*checkpoint, tmp_path / "test", "--dump", "predictions.json")
    assert "expected FILE.pkl, got predictions.json" in capsys.readouterr().err


def test_files_for_leaderboards_need_an_evaluator(checkpoint, run_test, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_test(
            *checkpoint,
            tmp_path / "test",
            "--format-only",
            str(tmp_path / "out"),
            settings=["test_evaluator=None"],
        )
    assert "the config has no test_evaluator" in capsys.readouterr().err
