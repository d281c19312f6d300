"""What the commands do, stored: `python tests/golden/commands/make.py` in the environment that tox makes.

Without options it works through all parts and prints what differs from tests/golden/commands/stored, writing only what
is not there yet; `--force` overwrites; `--only evaluation,tables` restricts it to some parts. The tests
(tests/test_commands_golden*.py) make the same texts by the same functions and compare.

An intended difference: `--force --only PART...`, read the diff, commit it with its reason. Some parts stand for what
older code has written and newer code has to read: `killed` (a run to resume), `evaluation`, `finetuning`, `plugins` and
`official` (records to print), `keys`, `looks` (a cache). Renew these on the code before a change, not on that after it.

Parts of the shared folder (SELFPATCH_SHARED, default ../shared) are left out where that is absent.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(tests), str(tests / "helpers")]
    from golden.commands.parts import main

    sys.exit(main(__doc__))
