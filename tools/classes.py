"""The classes of a config, said once and used everywhere.

A config, or ``--cfg-options``, may say ``classes`` at its top: a list of names, a text file with a
name a line, or, where there are no names, a number. Everything in the model and the data that asks
for names or for ``num_classes`` is then given these.
"""

from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn

from dr2net.openmmlab.loaders import innermost

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# What the parts of a model that tell classes apart are called in OpenMMLab.
HEADS = ("cls_head", "bbox_head", "mask_head", "decode_head")


def spread_classes(config: Config) -> None:
    """Give ``config.classes`` to the model and to all datasets; no-op where there is none.

    Raises:
        FileNotFoundError: ``classes`` is the path of a file that is not there.
        ValueError: ``classes`` is empty, or has a name twice, or something else than names.
    """
    classes = config.get("classes")
    if classes is None:
        return
    names = None if isinstance(classes, int) else read_names(classes)
    count = classes if names is None else len(names)
    if count < 1:
        raise ValueError(f"classes={classes!r}: there has to be one class at least")
    _set_counts(config.get("model"), count)
    for loader in LOADERS:
        for dataset in innermost(config.get(loader)):
            if "num_classes" in dataset:
                dataset.num_classes = count
            if names is not None:
                known = dataset.get("metainfo")
                kept = {} if known is None or isinstance(known, str) else known
                dataset.metainfo = {**kept, "classes": names}


def read_names(classes: str | list | tuple) -> tuple[str, ...]:
    """Return names of classes, from a text file with one a line if ``classes`` is its path."""
    if isinstance(classes, str):
        file = Path(classes)
        if not file.is_file():
            raise FileNotFoundError(
                f"classes={classes!r} is no file. It is to be a text file with the name of a "
                'class a line, a list of names like ["cat","dog"], or the number of classes'
            )
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        names = list(classes)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes={classes!r}: expected names of classes, got {names}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes={classes!r} has {', '.join(twice)} more than once")
    return tuple(names)


def class_names(config: Config, meta: dict) -> list[str] | None:
    """Return the names of the classes of a trained model, None where nothing says them.

    Args:
        config: Its config.
        meta: What its checkpoint says beside the weights; goes first.
    """
    saved = meta.get("dataset_meta") or {}
    saved = saved.get("classes", saved.get("CLASSES"))  # capitals in files of older releases
    if saved and config.get("classes") is None:
        return list(saved)
    for dataset in innermost(config.get("test_dataloader")):
        metainfo = dataset.get("metainfo")
        if isinstance(metainfo, str):
            from tasks.detection.class_names import METAINFO

            return list(METAINFO[metainfo]["classes"])
        with DATASETS.switch_scope_and_registry(config.get("default_scope")) as registry:
            kind = registry.get(dataset.type)
        metainfo = {**getattr(kind, "METAINFO", {}), **(metainfo or {})}
        if metainfo.get("classes"):
            return list(metainfo["classes"])
    return None


def _set_counts(part: object, count: int) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "num_classes":
                part[key] = count
            elif key != "backbone":  # which may count those of its pretraining
                _set_counts(value, count)
    elif isinstance(part, list | tuple):
        for value in part:
            _set_counts(value, count)


class ClassesFitHook(Hook):
    """Ends a run whose model and data are of different classes, before its first iteration.

    Raises:
        ValueError: The training set counts other classes than the model, or a set has a label that
            the model does not know.
    """

    def before_train(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader.dataset, "train", exactly=True)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, runner.val_dataloader.dataset, "val")

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader.dataset, "test")

    def _check(self, runner: Runner, dataset: object, kind: str, exactly: bool = False) -> None:
        counted = count_of_model(runner.model)
        if counted is None:
            return
        name, count = counted
        names = (getattr(dataset, "metainfo", None) or {}).get("classes")
        declared = len(names) if names else getattr(dataset, "num_classes", None)
        highest = getattr(dataset, "highest_label", None)
        said = None
        if exactly and declared is not None and declared != count:
            said = f"{declared} classes" + (f" ({', '.join(names[:5])}, …)" if names else "")
        elif highest is not None and highest >= count:
            said = f"a label {highest} (labels count from 0)"
        if said:
            raise ValueError(
                f"the model has {count} classes (num_classes of {name}), the {kind} set {said}. "
                "Say the classes once, at the top of the config: classes = FILE with a name a "
                "line, a list of names, or a number; or --cfg-options classes=FILE"
            )


def count_of_model(model: nn.Module) -> tuple[str, int] | None:
    """Return the name of a model's head and its number of classes; None where it has none."""
    for name, part in model.named_modules():
        count = getattr(part, "num_classes", None)
        if isinstance(count, int) and any(word in HEADS for word in name.split(".")):
            return name, count
    return None
