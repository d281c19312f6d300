"""For the tests: a session for the parts of a file, and the comparison of one with what is stored."""

import importlib.util

import pytest

from .parts import check
from .place import Session

needs_mm = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="the extra `mm` is not installed")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Checkpoints, and the server of commands."""
    with Session(tmp_path_factory.mktemp("golden")) as session:
        yield session


def assert_stored(part: str, session: Session) -> None:
    """The commands still do what tests/golden/commands/stored says."""
    if diff := check(part, session):
        renew = f"python tests/golden/commands/make.py --force --only {part}"
        pytest.fail(f"{part}: something else than is stored; if it is intended: {renew}\n{diff}", pytrace=False)
