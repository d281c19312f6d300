"""What the tests of mm share."""

import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_scope_left():
    """mmengine's Runner leaves its scope (mmdet or mmseg) to whatever comes after it in a process: not to other files."""
    yield
    if registry := sys.modules.get("mmengine.registry"):
        registry.DefaultScope._instance_dict.clear()
