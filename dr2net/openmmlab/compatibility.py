"""Make the OpenMMLab versions of requirements/constraints.txt import and work together.

Five known problems, each mended only where it is found:

- mmcv installed without its compiled operators lacks ``mmcv._ext``, which ``mmcv.ops`` and
  ``mmdet.models`` import at once. A stand-in lets them import; an operator that is then called
  raises an error that says what is missing, unless a body for it was given
  (``provide_operators``) or is found then (``look_for_operators``). Where the compiled module
  exists it is left alone, and one that exists but does not load fails with its own error.
- mmaction2 1.2.0 refuses mmcv 2.2 and later by an assertion, although all that dr2net uses of it
  works with 2.2 and 2.3.
- mmaction2 1.2.0 imports, where transformers is installed, names that transformers 5 no longer has.
  Its multimodal networks (VindLU), the ones that need them, are then left out, as without
  transformers.
- The mmaction2 1.2.0 wheel lacks ``mmaction.models.localizers.drn``, a sub-package that its own
  ``__init__`` imports.
- mmdet prints at each start, twice, that it could not import OneDL, where that is not installed.
"""

import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

MMACTION_VERSION = "1.2.0"
# What mmaction2 1.2.0 refuses at import and was seen to work with.
MMCV_RELEASES = ("2.2", "2.3")
# The newest mmcv release line that mmaction2 1.2.0 accepts.
MMCV_ACCEPTED = "2.1.0"


# What mmdet imports for OneDL, by module.
ONEDL = {
    "mmdet.datasets.onedl": ("OneDLDataset", "OneDLLineInstancesDatasetAdapter"),
    "mmdet.datasets.transforms.loading_onedl": ("LoadLineAnnotations", "LoadOneDLSegmentation"),
}

# Called at the first operator that is missing.
_looking: list[Callable[[], object]] = []


def install() -> None:
    """Mend what needs it; a second call changes nothing."""
    _stand_in_for_compiled_ops()
    _stand_in_for_onedl()
    if _installed_version("mmaction2") == MMACTION_VERSION:
        _stand_in_for_drn()
        _import_mmaction()
        _leave_out_multimodal_networks()


def provide_operators(operators: Mapping[str, Callable[..., Any]]) -> bool:
    """Give operators to the stand-in for mmcv's compiled ones; mmcv's own classes then call them.

    Args:
        operators: bodies by their name in ``mmcv._ext``, with the arguments that mmcv gives.

    Returns:
        False, with nothing done, where there is no stand-in: mmcv is compiled or not installed.
    """
    stand_in = sys.modules.get("mmcv._ext")
    if not isinstance(stand_in, _StandIn):
        return False
    vars(stand_in).update(operators)
    return True


def look_for_operators(provide: Callable[[], object]) -> None:
    """Have ``provide`` called once, where a compiled operator is called that is missing.

    For what takes too long to import for models that call none of them.
    """
    _looking.append(provide)


class _StandIn(ModuleType):
    """A module in the place of one that is missing."""


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _exists(module: str) -> bool:
    """Whether a module is loaded or can be found; unlike importlib's find_spec, imports nothing."""
    if module in sys.modules:
        return True
    folders, parts = None, module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), folders)
        if spec is None:
            return False
        folders = list(spec.submodule_search_locations or [])
    return True


def _add_module(name: str) -> ModuleType:
    module = _StandIn(name, f"Stand-in of dr2net.openmmlab.compatibility for {name}.")
    # mmengine asks importlib for the module's spec, which refuses a module that has none.
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    sys.modules[name] = module
    return module


def _stand_in_for_compiled_ops() -> None:
    if not _exists("mmcv") or _exists("mmcv._ext"):
        return

    def __getattr__(name: str) -> Callable[..., Any]:  # noqa: N807 - a module's (PEP 562)
        if name.startswith("__"):
            raise AttributeError(name)

        def missing_operator(*args: Any, **kwargs: Any) -> Any:
            while _looking:
                _looking.pop()()
            if name in vars(stand_in):
                return vars(stand_in)[name](*args, **kwargs)
            raise RuntimeError(
                f"mmcv's compiled operator {name!r} was called, but this mmcv was installed "
                "without compiled operators. Install onedl-mmcv with them (pip install "
                "--no-build-isolation onedl-mmcv, with a C++ compiler, setuptools<82 and ninja), "
                "or use a model that does not need this operator."
            )

        return missing_operator

    stand_in = _add_module("mmcv._ext")
    stand_in.__getattr__ = __getattr__  # type: ignore[method-assign]


def _stand_in_for_onedl() -> None:
    """Modules with the names that mmdet imports, which are then in no registry, as without."""
    if not _exists("mmdet") or _exists("onedl"):
        return
    for module, names in ONEDL.items():
        if module not in sys.modules:
            stand_in = _add_module(module)
            for name in names:
                setattr(stand_in, name, None)


def _stand_in_for_drn() -> None:
    if _exists("mmaction.models.localizers.drn"):
        return

    class DRN:
        """Dense Regression Network, which mmaction2 1.2.0 forgot to ship."""

        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError(
                "the localizer DRN is missing from the mmaction2 1.2.0 package; "
                "use mmaction2's repository to train it"
            )

    package = _add_module("mmaction.models.localizers.drn")
    package.__path__ = []
    _add_module("mmaction.models.localizers.drn.drn").DRN = DRN  # type: ignore[attr-defined]


def _import_mmaction() -> None:
    """Import mmaction, whose ``__init__`` does no more than check versions, past that check."""
    if "mmaction" in sys.modules:
        return
    import mmcv

    version = mmcv.__version__
    if version.startswith(MMCV_RELEASES):
        mmcv.__version__ = MMCV_ACCEPTED
    try:
        import mmaction  # noqa: F401
    finally:
        mmcv.__version__ = version


def _leave_out_multimodal_networks() -> None:
    version = _installed_version("transformers")
    if version is not None and int(version.split(".")[0]) >= 5:
        from mmaction.utils import dependency

        dependency.WITH_MULTIMODAL = False
