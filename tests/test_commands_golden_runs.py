"""Evaluations, fine-tuning and a user's plug-ins, beside what tests/golden/commands/make.py has stored."""

import pytest

from golden.commands.checked import assert_stored, needs_mm
from golden.commands.checked import session as session


@pytest.mark.parametrize("part", ["evaluation", "plugins", pytest.param("finetuning", marks=needs_mm)])
def test_runs_give_the_records_that_they_gave(part, session):
    assert_stored(part, session)
