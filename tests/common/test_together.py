"""Processes of one machine that are started together: how they end."""

import os
import sys

import pytest

from selfpatch_bench.pretrain.common.processes import run_together

# The second process ends. The first sees that, and has something left to do, for ever or for a moment.
WORK = """
import os, sys, time
folder, status = sys.argv[1:]
if os.environ["RANK"] == "1":
    os.close(os.open(f"{folder}/ends", os.O_WRONLY))
    sys.exit(int(status))
number = os.open(f"{folder}/ends", os.O_RDONLY)
while os.read(number, 1):
    pass
while int(status) < 128 and int(status):
    time.sleep(1)
open(f"{folder}/saved", "w").close()
"""


@pytest.mark.parametrize(("status", "saved"), [(0, True), (3, False), (143, True)])
def test_where_one_fails_the_others_are_killed_unless_they_were_told_to_stop(tmp_path, status, saved):
    os.mkfifo(tmp_path / "ends")
    line = [sys.executable, "-c", WORK, str(tmp_path), str(status)]
    assert run_together(line, 2) == ((1, status) if status else (0, 0))
    assert (tmp_path / "saved").exists() == saved
