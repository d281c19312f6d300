"""Five steps of every recipe, and a run that older code left behind: tests/golden/commands/make.py has stored both."""

import pytest

from golden.commands.checked import assert_stored
from golden.commands.checked import session as session


@pytest.mark.parametrize("part", ["recipes", "killed", "exports"])
def test_training_goes_as_it_went(part, session):
    assert_stored(part, session)
