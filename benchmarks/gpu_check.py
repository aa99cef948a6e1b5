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
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]
SETTINGS = ("single", "multi", "sdf")


class Sheet:
    """The figures of a part, written to its file after each case."""

    def __init__(self, path: Path, device: torch.device, tiny: bool, settings: Sequence[str] = SETTINGS) -> None:
        self.path, self.device, self.tiny, self.settings = path, device, tiny, settings
        self.figures: Figures = {}

    def case(self, name: str, measure: Callable[[], Figures]) -> None:
        """Measure a case; an error becomes its figure."""
        start = time.perf_counter()
        try:
            found = measure()
        except Exception as error:  # the next case shall run all the same
            found = {"error": f"{type(error).__name__}: {str(error)[:600]}", "at": traceback.format_exc()[-2500:]}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        found["seconds of the case"] = round(time.perf_counter() - start, 1)
        self.figures[name] = found
        short = {key: value for key, value in found.items() if key not in ("at", "kernels", "waits")}
        print(f"{self.path.stem}, {name}: {json.dumps(short, default=str)}", flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1, default=str))


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], object], device: torch.device, steps: int = 20, rounds: int = 3, warm: int = 5) -> Figures:
    """Steps a second (median, least, most of the rounds), launches a step, and the peak of memory."""
    for _ in range(warm):
        step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        rates.append(steps / (time.perf_counter() - start))
    found: Figures = {
        "steps a second": round(statistics.median(rates), 2),
        "spread": [round(min(rates), 2), round(max(rates), 2)],
    }
    if device.type == "cuda":
        found["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found |= profile(step)
    return found


def profile(step: Callable[[], object], rows: int = 14) -> Figures:
    """Launches a step, the time in which the device works, and the kernels that take the most of it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
        step()
        torch.cuda.synchronize()
    averages = run.key_averages()
    launches = sum(event.count for event in averages if "LaunchKernel" in event.key or "GraphLaunch" in event.key)
    copies = sum(event.count for event in averages if event.key == "cudaMemcpyAsync")
    kernels = [(event.self_device_time_total / 1e3, event.count, short_name(event.key)) for event in averages]
    kernels = sorted((row for row in kernels if row[0] > 0 and not row[2].startswith(("aten::", "cuda"))), reverse=True)
    return {
        "launches": launches,
        "copies": copies,
        "device ms": round(sum(row[0] for row in kernels), 3),
        "kernels": [f"{milliseconds:.3f} ms {count} x {name}" for milliseconds, count, name in kernels[:rows]],
    }


def short_name(kernel: str) -> str:
    """A kernel's name without what all kernels' names share."""
    for common in (
        "void ",
        "at::native::",
        "(anonymous namespace)::",
        "cudnn::engines_precompiled::",
        "gpu_kernel_impl_nocast",
    ):
        kernel = kernel.replace(common, "")
    return kernel[:170]


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Make every wait for the device an error."""
    if device.type != "cuda":
        yield
        return
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(step: Callable[[], object]) -> list[str]:
    """The places in our code at which a step waits for the device, each with how often."""
    import warnings

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    found: dict[str, int] = {}

    def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()[:-1]
                  if "/prepkit/" in frame.filename or "/netspace/" in frame.filename]  # fmt: skip
        place = " < ".join(reversed(frames[-4:])) or f"{Path(filename).name}:{lineno}"
        found[place] = found.get(place, 0) + 1

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note  # type: ignore[assignment]
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{count} x {place}" for place, count in found.items()]


# The parts ------------------------------------------------------------------------------------------------------------


def part_tests(sheet: Sheet) -> None:
    """(a) The tests that need a GPU, and gradients of each setting on a CPU and on the GPU."""
    from benchmarks.gpu_steps import Case

    def gradients(setting: str, precision: str) -> Figures:
        found = {}
        for device in (torch.device("cpu"), sheet.device):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            case = Case(setting, device, True, precision, tf32=False)
            objective = case.eager_step.operations.objective
            losses = objective(case.next_batch())
            losses.total.backward()
            flat = [parameter.grad.flatten().double().cpu() for parameter in case.space.parameters()]
            found[device.type] = (float(losses.total.detach()), torch.cat(flat))
        (loss, expected), (other, gradient) = found["cpu"], found[sheet.device.type]
        cosine = torch.nn.functional.cosine_similarity(expected, gradient, dim=0)
        return {"losses": [loss, other], "1 - cosine": float(1 - cosine)}

    for setting in sheet.settings:
        for precision in ("float32", "bfloat16"):
            sheet.case(f"gradients, {setting}, {precision}", lambda s=setting, p=precision: gradients(s, p))  # type: ignore[misc]

    def tests() -> Figures:
        folders = ["netspace/training", "prepkit/fusion", "prepkit/running", "prepkit/support", "prepkit/training"]
        options = ["-q", "-p", "no:cacheprovider", "-W", "default", "-k", "gpu or cuda"]
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/{folder}" for folder in folders)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150)
        (sheet.path.parent / "tests.txt").write_text(done.stdout + done.stderr)
        return {"exit code": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}

    if sheet.device.type == "cuda":
        sheet.case("tests", tests)


def part_steps(sheet: Sheet) -> None:
    """(b) and (c): waits of a step; steps a second, launches and memory of the plain ways and ours."""
    from benchmarks.gpu_steps import Case

    device, tiny = sheet.device, sheet.tiny
    steps, rounds, warm = (1, 1, 1) if tiny else (20, 3, 10)
    for setting in sheet.settings:
        cases: list[Case] = []

        def build(setting: str = setting, cases: list[Case] = cases) -> Figures:
            cases.append(Case(setting, device, tiny, "float32" if device.type == "cpu" else "bfloat16"))
            return {}

        sheet.case(f"{setting}, build", build)
        if not cases:
            continue
        case = cases[0]
        ways: dict[str, Callable[[], object]] = {"plain TF32": case.plain}
        if device.type == "cuda":
            ways["plain bf16"] = lambda case=case: case.plain(bf16=True)  # type: ignore[misc]
        ways |= {"ours, eager": case.eager, "ours": case.ours}
        for name, way in ways.items():
            sheet.case(f"{setting}, {name}", lambda way=way: timed(way, device, steps, rounds, warm))  # type: ignore[misc]
        if device.type == "cuda":
            sheet.case(f"{setting}, waits", lambda case=case: step_without_waits(case))  # type: ignore[misc]


def step_without_waits(case: Any) -> Figures:
    """Where steps wait for the device beside the wait for ClassIds, and whether they run where waits are errors."""
    found: Figures = {"waits": waits(case.eager) + waits(case.ours)}
    with no_waits(case.device):
        for _ in range(3):
            case.eager()
            case.ours()
    found["recorded"] = [case.step.accumulate.recorded, case.step.update.recorded]
    found["failure"] = [case.step.accumulate.failure, case.step.update.failure]
    return found


def part_sections(sheet: Sheet) -> None:
    """Where the time of a step goes: each section recorded alone, in milliseconds of the device."""
    from benchmarks.gpu_steps import sections

    for setting in sheet.settings:
        sheet.case(setting, lambda s=setting: sections(s, sheet.device, sheet.tiny))  # type: ignore[misc]


def part_same(sheet: Sheet) -> None:
    """Whether recorded steps compute what the same steps compute one kernel at a time, over 30 steps."""
    from benchmarks.gpu_steps import Case

    def values(case: Case) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in case.space.parameters()])

    def compare(setting: str, precision: str) -> Figures:
        start = values(Case(setting, sheet.device, sheet.tiny, precision))
        losses, found = {}, {}
        for way in ("eager", "ours", "eager again"):
            case = Case(setting, sheet.device, sheet.tiny, precision)
            torch.backends.cudnn.deterministic = True
            step = case.ours if way == "ours" else case.eager
            losses[way] = [float(step()["loss"].detach()) for _ in range(3 if sheet.tiny else 30)]
            found[way] = values(case)
        moved = float((found["eager"] - start).norm())
        return {
            "moved": moved,
            "recorded, relative": float((found["ours"] - found["eager"]).norm()) / moved,
            "eager again, relative": float((found["eager again"] - found["eager"]).norm()) / moved,
            "losses": [[round(losses[way][place], 6) for place in (0, -1)] for way in losses],
        }

    for setting in sheet.settings:
        for precision in ("float32",) if sheet.tiny else ("float32", "bfloat16"):
            sheet.case(f"{setting}, {precision}", lambda s=setting, p=precision: compare(s, p))  # type: ignore[misc]


def part_variants(sheet: Sheet) -> None:
    """(c) What single choices are worth: ways to run instances, aligned outputs, cudnn's search, the plain network."""
    import functools

    from benchmarks.gpu_steps import Case
    from netspace.space.fast import _products
    from prepkit.running import instance_losses, instances

    device, tiny = sheet.device, sheet.tiny
    size = (1, 1, 1) if tiny else (20, 3, 10)
    precision = "float32" if device.type == "cpu" else "bfloat16"

    @contextmanager
    def as_it_is() -> Iterator[None]:
        yield

    @contextmanager
    def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
        before = getattr(owner, name)
        setattr(owner, name, value)
        instances.runner.cache_clear()
        try:
            yield
        finally:
            setattr(owner, name, before)
            instances.runner.cache_clear()

    @contextmanager
    def one_by_one() -> Iterator[None]:
        def no(*_: object, **__: object) -> bool:
            return False

        with changed(instances, "stacking_pays", no), changed(instance_losses, "stacking_pays", no):
            yield

    ways: dict[str, Callable[[], Any]] = {
        "as it is": as_it_is,
        "instances in a loop": one_by_one,
        "instances NCHW": lambda: changed(
            instances, "Runner", functools.partial(instances.Runner, channels_last=False)
        ),
        "plain network": lambda: changed(_products, "enabled", False),
        "cudnn.benchmark": lambda: changed(torch.backends.cudnn, "benchmark", True),
    }
    for setting in sheet.settings:
        for name, way in ways.items():

            def measure(setting: str = setting, way: Callable[[], Any] = way) -> Figures:
                with way():
                    return timed(Case(setting, device, tiny, precision).ours, device, *size)

            sheet.case(f"{setting}, {name}", measure)


def part_curve(sheet: Sheet) -> None:
    """(f) The start of cifar10_multi on random images: losses by step, in float32 (TF32) and bf16."""
    from benchmarks.gpu_steps import Case

    def curve(precision: str) -> Figures:
        case = Case("multi", sheet.device, sheet.tiny, precision)
        steps = range(3 if sheet.tiny else 300)
        parts = [{name: part.detach().clone() for name, part in case.ours().items()} for _ in steps]
        losses = [float(part["loss"]) for part in parts]
        every = max(1, len(losses) // 20)
        return {
            "losses": [round(loss, 3) for loss in losses[::every]],
            "largest": max(losses), "at step": losses.index(max(losses)) + 1, "last": losses[-1],
            "largest gradient": max(float(part["gradient_norm"]) for part in parts),
        }  # fmt: skip

    for precision in ("float32",) if sheet.tiny else ("float32", "bfloat16"):
        sheet.case(f"multi, {precision}", lambda p=precision: curve(p))  # type: ignore[misc]


def part_whole(sheet: Sheet) -> None:
    """(g) The commands as a user types them: a zoo, a space, a kill and a resume; memory that does not suffice."""
    out = sheet.path.parent / "whole"
    device = sheet.device.type

    def command(*words: str, limit: int = 120) -> Figures:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=limit)
        seconds = round(time.perf_counter() - start, 1)
        said = (done.stdout + done.stderr)[-1500:]
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {said[-500:]}")
        return {"seconds": seconds, "at": said}

    def refused(*words: str) -> Figures:
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=60)
        return {"exit code": done.returncode, "said": done.stderr.strip().splitlines()[-1:]}

    zoo = ("--zoo", str(out / "zoo"), "--set", "training.validate_every=50", "--device", device)
    train = ("netspace", "train", "digits_multi", *zoo, "--out")
    instances = ("--instances", "4", "--epochs", "3", "--device", device)
    sheet.case("zoo train", lambda: command("prepkit", "zoo", "train", "digits_multi", str(out / "zoo"), *instances))
    steps = ("4", "6") if sheet.tiny else ("100", "200")
    sheet.case("train", lambda: command(*train, str(out / "run"), "--steps", steps[0]))
    sheet.case("go on", lambda: command(*train, str(out / "run"), "--steps", steps[1], "--resume"))
    half = ("--set", "training.precision=bfloat16")
    sheet.case("bf16", lambda: command(*train, str(out / "half"), "--steps", steps[1], *half))
    sheet.case("reading", lambda: reading(out / "zoo", sheet.device))
    sheet.case("evaluate", lambda: command("netspace", "evaluate", str(out / "run"), "--device", device))
    if not sheet.tiny:
        sheet.case("out of memory", lambda: refused(*train, str(out / "large"), "--set", "batch.instances=100000"))


def reading(folder: Path, device: torch.device) -> Figures:
    """Whether loader and resident zoo give on the device what the zoo holds; an AssertionError where they do not."""
    import prepkit

    zoo = prepkit.open_zoo(folder, width=512)
    expected = zoo.preps()
    assert torch.equal(zoo.to(device).preps().cpu(), expected), "the resident zoo differs"
    read = 0
    for preps, _, indices in zoo.loader(5, seed=3, device=device):
        assert preps.device.type == device.type
        assert torch.equal(preps.cpu(), expected[indices.cpu()]), "a batch of the loader differs"
        read += len(preps)
    assert read == len(expected), f"the loader gave {read} of {len(expected)} instances"
    return {"instances": read}


def part_evaluating(sheet: Sheet) -> None:
    """(g) Evaluating predicted ResNet8: each loaded into the network and run in TF32, and ours in bf16."""
    import prepkit
    from benchmarks.baselines import evaluate_one_at_a_time
    from benchmarks.gpu_steps import Case

    device, tiny = sheet.device, sheet.tiny
    case = Case("single", device, tiny, "float32")
    (network,), (layout,), architecture = case.networks, case.layouts, case.registry.by_class_id(0)
    preps = case.data.preps_NHW[:1].repeat(2 if tiny else 64, 1, 1)
    images = torch.randn(4 if tiny else 10_000, *architecture.input_shape, device=device)

    def one_at_a_time() -> object:
        return [evaluate_one_at_a_time(network, layout, preps, part) for part in images.split(500)]

    def ours() -> object:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            return [prepkit.run_instances(architecture, preps, part) for part in images.split(500)]

    for name, way in (("one at a time", one_at_a_time), ("ours, bf16", ours)):
        sheet.case(name, lambda way=way: timed(way, device, 1, 3, 1))  # type: ignore[misc]


def part_zoo(sheet: Sheet) -> None:
    """(b), (d) and (e) for the training of zoos."""
    from benchmarks import gpu_zoo

    for name in ("zoo_waits", "zoo_many_against_one", "zoo_resumed", "zoo_epoch", "zoo_trials", "zoo_speed"):
        sheet.case(name, lambda name=name: getattr(gpu_zoo, name)(sheet.device, sheet.tiny))  # type: ignore[misc]


PARTS: dict[str, tuple[Callable[[Sheet], None], int]] = {  # name: what to run, limit in seconds
    "steps": (part_steps, 90),
    "sections": (part_sections, 40),
    "same": (part_same, 60),
    "variants": (part_variants, 60),
    "curve": (part_curve, 70),
    "whole": (part_whole, 90),
    "evaluating": (part_evaluating, 40),
    "tests": (part_tests, 90),
    "zoo": (part_zoo, 200),
}


# Running them ---------------------------------------------------------------------------------------------------------


def run_all(asked: argparse.Namespace) -> Figures:
    """Run parts, each in a process of its own, and join their figures."""
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    figures: Figures = {"conditions": conditions(asked.device)}
    for name in asked.parts:
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, "--out", str(out)]
        command += ["--device", asked.device, "--settings", *asked.settings, *["--tiny"] * asked.tiny]
        ended = "finished"
        try:
            code = subprocess.run(command, timeout=PARTS[name][1]).returncode
            ended = "finished" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after its limit of {PARTS[name][1]} s"
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
