"""All benchmarks, one after the other. python tests/perf/run.py [--quick]"""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    failed = 0
    for script in sorted(Path(__file__).parent.glob("perf_*.py")):
        print(f"## {script.stem.removeprefix('perf_')}\n", flush=True)
        failed |= subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False).returncode
        print(flush=True)
    sys.exit(failed)
