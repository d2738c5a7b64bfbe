import pytest


@pytest.fixture(autouse=True)
def scope_of_mmengine():
    """As ``default_scope`` in the configs, whatever other tests have left."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmengine"):
        yield
