"""The paper's comparison on one model, whole, in one folder.

Three calls of ``dynamicvit compare`` that add to one table; stopped and started again, it goes on::

    python benchmarks/comparison.py LABELED VAL --checkpoint deit_tiny_patch16_224.safetensors

Any option of ``dynamicvit compare`` may follow (``--unlabeled``, ``--crop-pct``, ``-o``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys

#: Every method at the paper's budget, with a spread; at a smaller one; and what each part is worth.
PARTS = (
    ("--methods", "all", "--macs", "0.64", "--seeds", "3"),
    ("--methods", "all", "--macs", "0.48", "--seeds", "1"),
    ("--methods", "ablations", "--macs", "0.64", "--seeds", "1"),
)


def main() -> None:
    """Run the parts; what is not known here goes on to each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of class folders, to fine-tune on")
    parser.add_argument("validation", help="folder of class folders, to evaluate on")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=8000, help="seen by each method")
    parser.add_argument("--precision", default="bf16")
    options, rest = parser.parse_known_args()
    common = ["--data", options.data, "--validation", options.validation]
    common += ["--model", options.model, "--images", str(options.images)]
    common += ["--precision", options.precision, "--class-map", "imagenet"]
    for part in PARTS:
        command = [sys.executable, "-m", "dynamicvit", "compare", *common, *part, *rest]
        done = subprocess.run(command, check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
