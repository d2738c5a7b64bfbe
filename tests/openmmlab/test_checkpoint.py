import argparse
import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

import mmengine.runner.checkpoint as mmengine_checkpoint
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, save_checkpoint
from safetensors.torch import save_file

import dr2net
from dr2net.openmmlab import checkpoint as checkpoints

ROOT = Path(__file__).parents[2]


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(autouse=True)
def _installed():
    checkpoints.install()
    yield
    checkpoints.trust_checkpoints(False)


@pytest.fixture
def weights():
    return {"backbone.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def unsafe_file(tmp_path, weights):
    path = tmp_path / "unsafe.pth"
    torch.save({"state_dict": weights, "extra": RunsCode(tmp_path / "ran")}, path)
    return path


class TestOpening:
    def test_torch_file_opens(self, tmp_path, weights):
        torch.save({"state_dict": weights}, tmp_path / "a.pth")
        opened = CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth"), map_location="cpu")
        assert torch.equal(opened["state_dict"]["backbone.weight"], weights["backbone.weight"])

    def test_safetensors_file_opens(self, tmp_path, weights):
        save_file(weights, tmp_path / "a.safetensors")
        opened = CheckpointLoader.load_checkpoint(str(tmp_path / "a.safetensors"))
        assert torch.equal(opened["backbone.weight"], weights["backbone.weight"])

    def test_what_mmengine_saves_opens(self, tmp_path):
        hub = MessageHub.get_instance("test_what_mmengine_saves_opens")
        hub.update_scalar("train/loss", 1.5)
        hub.update_info("best_score", np.float64(0.5))
        hub.update_info("scores", np.arange(3))
        meta = {"epoch": 1, "dataset_meta": {"palette": np.zeros((2, 3), np.uint8)}}
        path = tmp_path / "epoch_1.pth"
        save_checkpoint({"meta": meta, "message_hub": hub.state_dict()}, str(path))
        history = checkpoints.open_checkpoint(path)["message_hub"]["log_scalars"]["train/loss"]
        assert isinstance(history, HistoryBuffer)
        assert history.statistics("mean") == 1.5

    def test_command_line_of_the_original_repositories_opens(self, tmp_path, weights):
        torch.save({"model": weights, "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
        assert checkpoints.open_checkpoint(tmp_path / "a.pth")["args"].lr == 1.0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"not a checkpoint", "is damaged"),
            (b"junk" * 100, "is damaged"),
            (b"PK\x03\x04" + bytes(100), "is damaged"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_damaged_file_is_named(self, tmp_path, content, message, suffix):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"broken{suffix} {message}"):
            checkpoints.open_checkpoint(path)

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated_file_is_named(self, tmp_path, kept):
        path = tmp_path / "cut.pth"
        torch.save({"state_dict": {"weight": torch.rand(100, 100)}}, path)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(ValueError, match=r"cut\.pth is damaged"):
            checkpoints.open_checkpoint(path)

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
            checkpoints.open_checkpoint(tmp_path / "gone.pth")

    def test_file_without_a_dict_is_named(self, tmp_path):
        torch.save(torch.zeros(1), tmp_path / "tensor.pth")
        with pytest.raises(ValueError, match=r"tensor\.pth holds a Tensor"):
            checkpoints.open_checkpoint(tmp_path / "tensor.pth")


class TestRefusing:
    @pytest.mark.parametrize(
        "name",
        [
            "{path}",
            "https://example.org/unsafe.pth",
            "http://example.org/unsafe.pth",
            "torchvision://net",
            "modelzoo://net",
            "openmmlab://net",
            "open-mmlab://net",
        ],
    )
    def test_file_that_runs_code_is_refused_by_every_scheme(
        self, name, unsafe_file, tmp_path, monkeypatch
    ):
        def download(url, path, **_):
            Path(path).write_bytes(unsafe_file.read_bytes())

        urls = {"net": "https://example.org/unsafe.pth"}
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        monkeypatch.setattr(mmengine_checkpoint, "get_torchvision_models", lambda: urls)
        monkeypatch.setattr(mmengine_checkpoint, "get_external_models", lambda: urls)
        with pytest.raises(
            checkpoints.UntrustedCheckpointError,
            match=r"unsafe\.pth was refused: opening it would run pathlib.*--trust-checkpoint",
        ):
            CheckpointLoader.load_checkpoint(name.format(path=unsafe_file))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["mmcls://a", "pavi://a", "s3://a", "petrel://a", "x:s3://a"])
    def test_schemes_that_cannot_be_made_safe_are_refused(self, name):
        with pytest.raises(ValueError, match="download this one"):
            CheckpointLoader.load_checkpoint(name)

    def test_no_scheme_of_mmengine_is_left(self):
        loaders = CheckpointLoader._schemes.values()
        assert {loader.__module__ for loader in loaders} == {checkpoints.__name__}

    def test_trusted_file_opens(self, unsafe_file, tmp_path):
        checkpoints.trust_checkpoints(True)
        checkpoints.open_checkpoint(unsafe_file)
        assert (tmp_path / "ran").exists()

    def test_attributes_are_not_reachable_through_the_log_history(self, tmp_path):
        class Reaches:
            def __reduce__(self):
                return getattr, (HistoryBuffer, "__init__")

        torch.save({"extra": Reaches()}, tmp_path / "a.pth")
        with pytest.raises(checkpoints.UntrustedCheckpointError, match="getattr"):
            checkpoints.open_checkpoint(tmp_path / "a.pth")


class TestMatching:
    @pytest.fixture
    def model(self):
        return nn.ModuleDict({"backbone": nn.Linear(3, 2), "head": nn.Linear(2, 5)})

    def load(self, model, state_dict, tmp_path):
        torch.save({"state_dict": state_dict}, tmp_path / "a.pth")
        mmengine_checkpoint.load_checkpoint(model, str(tmp_path / "a.pth"), logger="silent")

    def test_matching_weights_load(self, model, tmp_path):
        weight = torch.rand(2, 3)
        self.load(model, {"backbone.weight": weight}, tmp_path)
        assert torch.equal(model["backbone"].weight, weight)

    @pytest.mark.parametrize(
        "state_dict",
        [
            {},
            {"conv1.weight": torch.zeros(3)},
            {"backbone.weight": torch.zeros(7, 7)},
        ],
        ids=["empty", "other names", "other shapes"],
    )
    def test_a_file_of_another_model_is_an_error(self, model, state_dict, tmp_path):
        with pytest.raises(
            checkpoints.UnmatchedCheckpointError, match=r"model has backbone\.weight"
        ):
            self.load(model, state_dict, tmp_path)

    def test_a_file_that_matches_the_head_alone_is_an_error(self, model, tmp_path):
        with pytest.raises(checkpoints.UnmatchedCheckpointError, match="backbone"):
            self.load(model, {"head.weight": torch.zeros(5, 2)}, tmp_path)

    def test_init_cfg_is_checked_too(self, tmp_path):
        torch.save({"state_dict": {"backbone.other": torch.zeros(1)}}, tmp_path / "a.pth")

        class Net(BaseModule):
            def __init__(self):
                super().__init__(
                    {
                        "type": "Pretrained",
                        "checkpoint": str(tmp_path / "a.pth"),
                        "prefix": "backbone.",
                    }
                )
                self.fc = nn.Linear(2, 2)

        with pytest.raises(checkpoints.UnmatchedCheckpointError):
            Net().init_weights()

    def test_counts_are_logged(self, model, monkeypatch):
        logged = []
        monkeypatch.setattr(
            checkpoints, "print_log", lambda message, logger: logged.append(message)
        )
        state_dict = {
            "backbone.weight": torch.zeros(2, 3),
            "head.weight": torch.zeros(9, 2),
            "x": 1,
        }
        checkpoints.load_state_dict(model, state_dict)
        assert logged == [
            "checkpoint: 1 of the model's 4 parameters matched, 2 missing from the file, "
            "1 of another shape, 1 unexpected in the file"
        ]


class TestSaving:
    @pytest.fixture
    def backend(self):
        return get_file_backend("a.pth", backend_args={"backend": "atomic_local"})

    def test_new_content_replaces_the_old(self, backend, tmp_path):
        backend.put(b"old", tmp_path / "a.pth")
        backend.put(b"new", tmp_path / "a.pth")
        assert (tmp_path / "a.pth").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]

    @pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
    def test_a_failed_write_leaves_the_old_file(self, backend, tmp_path, monkeypatch, step):
        def fail(*_):
            raise OSError("No space left on device")

        backend.put(b"old", tmp_path / "a.pth")
        with monkeypatch.context() as patched:
            patched.setattr(step, fail)
            with pytest.raises(OSError, match="No space"):
                backend.put(b"new", tmp_path / "a.pth")
        assert (tmp_path / "a.pth").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
    def test_folders_that_are_not_brought_to_the_disk_are_no_error(
        self, backend, tmp_path, monkeypatch, number
    ):
        sync = os.fsync

        def refuse_folders(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            sync(descriptor)

        monkeypatch.setattr("os.fsync", refuse_folders)
        backend.put(b"new", tmp_path / "a.pth")
        assert (tmp_path / "a.pth").read_bytes() == b"new"

    def test_a_folder_that_cannot_be_brought_to_the_disk_is_an_error(
        self, backend, tmp_path, monkeypatch
    ):
        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("os.open", fail)
        with pytest.raises(OSError, match="Input/output"):
            backend.put(b"new", tmp_path / "a.pth")

    def test_a_kill_leaves_a_whole_file(self, tmp_path):
        # Every save fills the file with one byte; a mixture would be a torn write.
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import itertools, sys\n"
                "from dr2net.openmmlab.checkpoint import AtomicLocalBackend\n"
                "for number in itertools.count():\n"
                "    AtomicLocalBackend().put(bytes([number % 256]) * 2**24, sys.argv[1])\n"
                "    print(number, flush=True)",
                str(tmp_path / "a.pth"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = (tmp_path / "a.pth").read_bytes()
        assert len(content) == 2**24
        assert len(set(content)) == 1


class TestResuming:
    def touch(self, folder, *names):
        for name in names:
            (folder / name).write_bytes(b"x")

    def test_last_checkpoint_is_followed(self, tmp_path):
        self.touch(tmp_path, "epoch_1.pth", "epoch_2.pth")
        (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_1.pth"))
        assert checkpoints.find_resumable_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"

    def test_moved_work_folder_is_followed(self, tmp_path):
        self.touch(tmp_path, "epoch_1.pth", "epoch_2.pth")
        (tmp_path / "last_checkpoint").write_text("/before/epoch_1.pth")
        assert checkpoints.find_resumable_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"

    @pytest.mark.parametrize("pointer", ["", "gone.pth", None], ids=["empty", "gone", "absent"])
    @pytest.mark.parametrize("kind", ["epoch", "iter"])
    def test_newest_file_is_found_without_it(self, tmp_path, pointer, kind):
        self.touch(
            tmp_path, f"{kind}_9.pth", f"{kind}_10.pth", f"{kind}_11.pth.partial", "best_1.pth"
        )
        if pointer is not None:
            (tmp_path / "last_checkpoint").write_text(pointer)
        assert checkpoints.find_resumable_checkpoint(tmp_path) == tmp_path / f"{kind}_10.pth"

    def test_nothing_is_found_in_a_new_folder(self, tmp_path):
        assert checkpoints.find_resumable_checkpoint(tmp_path / "new") is None


class Classifier(nn.Module):
    """A backbone with a chain, or without, and a head."""

    def __init__(self, pair=None):
        super().__init__()
        timm = pytest.importorskip("timm")
        self.backbone = timm.models.VisionTransformer(32, 16, embed_dim=8, depth=2, num_heads=2)
        self.head = nn.Linear(8, 3)
        if pair is not None:
            dr2net.convert(self.backbone, *pair)


class TestFunction:
    """The same weights under another equation are another network."""

    @pytest.fixture
    def in_a_test(self):
        with checkpoints.expect_whole_models():
            yield

    @pytest.mark.parametrize("pair", [(0.0, 1.0), (0.875, 0.125)])
    def test_a_dr2net_is_not_loaded_into_a_plain_network(self, pair):
        state = Classifier(pair).state_dict()
        with pytest.raises(ValueError, match=r"is of a Dr²Net at .*tools/publish\.py"):
            checkpoints.load_state_dict(Classifier(), state)

    def test_at_beta_0_it_is_the_plain_network(self):
        state = Classifier((1.0, 0.0)).state_dict()
        model = Classifier()
        checkpoints.load_state_dict(model, state)
        assert torch.equal(model.head.weight, state["head.weight"])

    def test_a_plain_checkpoint_starts_a_training(self):
        state = Classifier().state_dict()
        model = Classifier((1.0, 0.5))
        checkpoints.load_state_dict(model, state)
        assert dr2net.get_coefficients(model) == (1.0, 0.5)

    @pytest.mark.usefixtures("in_a_test")
    def test_a_plain_checkpoint_is_not_tested_as_a_dr2net(self):
        with pytest.raises(ValueError, match=r"\(1\.0, 0\.5\).* is a plain network's"):
            checkpoints.load_state_dict(Classifier((1.0, 0.5)), Classifier().state_dict())
        checkpoints.load_state_dict(Classifier((1.0, 0.0)), Classifier().state_dict())

    @pytest.mark.usefixtures("in_a_test")
    def test_a_missing_head_is_not_tested(self):
        state = Classifier().state_dict()
        del state["head.bias"]
        with pytest.raises(ValueError, match=r"1 parameters .*head\.bias \(3,\) among them"):
            checkpoints.load_state_dict(Classifier(), state)

    @pytest.mark.usefixtures("in_a_test")
    def test_a_head_of_another_shape_is_not_tested(self):
        state = Classifier().state_dict() | {"head.bias": torch.zeros(4)}
        with pytest.raises(ValueError, match=r"another shape"):
            checkpoints.load_state_dict(Classifier(), state)

    def test_a_missing_head_starts_a_training(self):
        state = {k: v for k, v in Classifier().state_dict().items() if "head" not in k}
        checkpoints.load_state_dict(Classifier(), state)
