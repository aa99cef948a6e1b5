"""Everything that only a GPU can tell, in one command of less than nine minutes.

    python -m benchmarks.gpu_check --out FOLDER                  # all parts
    python -m benchmarks.gpu_check --out FOLDER --parts steps    # some
    python -m benchmarks.gpu_check --device cpu --tiny           # the tests' form

Each part runs in a process of its own, for a failed kernel spoils a process, and within a limit of seconds. A part
writes what it knows after each case, so that a failure or the limit costs the cases after it alone. A short table comes
last; FOLDER/gpu_check.json holds all figures.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import gpu_choices, gpu_commands, gpu_parts, gpu_zoo
from benchmarks.gpu_sheet import SETTINGS, Figures, Sheet


def part_zoo(sheet: Sheet) -> None:
    """(b), (d) and (e) for the training of zoos."""
    for name, check in gpu_zoo.CHECKS.items():
        sheet.case(name, partial(check, sheet.device, sheet.tiny))


PARTS: dict[str, tuple[Callable[[Sheet], None], int]] = {  # name: what to run, limit in seconds
    "steps": (gpu_parts.part_steps, 65),
    "choices": (gpu_choices.part_choices, 35),
    "variants": (gpu_choices.part_variants, 65),
    "same": (gpu_parts.part_same, 55),
    "zoo": (part_zoo, 100),
    "tests": (gpu_parts.part_tests, 60),
    "whole": (gpu_commands.part_whole, 75),
    "curve": (gpu_parts.part_curve, 40),
    "sections": (gpu_parts.part_sections, 20),
    "evaluating": (gpu_commands.part_evaluating, 20),
}


def run_all(asked: argparse.Namespace) -> Figures:
    """Run parts, each in a process of its own, and join their figures."""
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    figures: Figures = {"conditions": conditions(asked.device)}
    for name in asked.parts:
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, "--out", str(out)]
        command += ["--device", asked.device, "--settings", *asked.settings, *["--tiny"] * asked.tiny]
        ended, limit = "finished", PARTS[name][1] * (1 if asked.device == "cuda" else 10)
        try:
            code = subprocess.run(command, timeout=limit).returncode
            ended = "finished" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after its limit of {limit} s"
        file = out / f"{name}.json"
        figures[name] = json.loads(file.read_text()) if file.exists() else {}
        figures[name]["end"] = {"how": ended, "seconds": round(time.perf_counter() - start, 1)}
        (out / "gpu_check.json").write_text(json.dumps(figures, indent=1))
    return figures


def conditions(device: str) -> Figures:
    """Hardware and versions."""
    from benchmarks.timing import conditions as of_cpu

    found: Figures = of_cpu()
    if device == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def table(figures: Figures) -> str:
    """One line for each case."""
    lines = []
    for part, cases in figures.items():
        for name, found in cases.items() if part != "conditions" else ():
            if "error" in found:
                words = f"FAILED {found['error'][:110]}"
            else:
                skip = ("at", "kernels", "waits", "seconds of the case")
                words = ", ".join(f"{key} {value}" for key, value in found.items() if key not in skip)
            lines.append(f"{part:6} {name:34} {words[:160]}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure prepkit and netspace on a GPU.")
    out = Path(os.environ.get("OUT", "gpu_check"))
    parser.add_argument("--out", type=Path, default=out, help="folder of the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts to run")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="which of netspace's")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, as in the tests")
    asked = parser.parse_args(arguments)
    if asked.part:
        file = asked.out / f"{asked.part}.json"
        PARTS[asked.part][0](Sheet(file, torch.device(asked.device), asked.tiny, asked.settings))
    else:
        print(table(run_all(asked)))


if __name__ == "__main__":
    main()
