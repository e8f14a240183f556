"""fledge on one GPU: what is right, then what is fast. One JSON line a check, in order of value; no network.

python benchmarks/on_gpu.py                 # at most 8 minutes on one card
python benchmarks/on_gpu.py --cpu-smoke     # the same program on a CPU, at tiny sizes: does it run at all?
python benchmarks/on_gpu.py --only resume,quickstart     --list

`ok` of a line is true, false, or null where there is nothing to judge; `skipped` says why a check was not made. The exit
code is 1 if one failed. Lines are also appended to $OUT/on_gpu.jsonl where OUT is set. docs/gpu.md has what was seen.
"""

import sys

from gpu import compiled, fast, right
from gpu.frame import main

if __name__ == "__main__":
    assert right and compiled and fast  # their checks are registered by the import
    sys.exit(main())
