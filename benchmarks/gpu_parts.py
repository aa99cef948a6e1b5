"""The parts of the check for a GPU that are NetSpace's: gradients, steps, waits, sections, recordings and losses."""

import subprocess
import sys
from collections.abc import Callable

import torch

from benchmarks.gpu_sheet import Figures, Sheet, counted_waits, no_waits, timed
from benchmarks.gpu_steps import Case, moved, sections
from netspace.data import Batch


def part_tests(sheet: Sheet) -> None:
    """(a) The tests that need a GPU, and gradients of each setting on a CPU and on the GPU."""

    def gradients(setting: str, precision: str) -> Figures:
        found: dict[str, tuple[float, torch.Tensor]] = {}
        batch: Batch | None = None
        for device in (torch.device("cpu"), sheet.device):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            case = Case(setting, device, True, precision, tf32=False)
            objective = case.eager_step.operations.objective
            batch = batch or case.next_batch()  # the CPU's one, as a GPU draws other points
            losses = objective(moved(batch, device))
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
        folders = ["netspace/training"]
        folders += [f"prepkit/{name}" for name in ("fusion", "running", "support", "tasks", "training")]
        options = ["-q", "-p", "no:cacheprovider", "-W", "default", "-k", "gpu or cuda"]
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/{folder}" for folder in folders)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        (sheet.path.parent / "tests.txt").write_text(done.stdout + done.stderr)
        return {"exit code": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}

    if sheet.device.type == "cuda":
        sheet.case("tests", tests)


def part_steps(sheet: Sheet) -> None:
    """(b) and (c): waits of a step; steps a second, launches and memory of the plain ways and ours."""
    device, tiny = sheet.device, sheet.tiny
    steps, rounds, warm = (1, 1, 1) if tiny else (20, 3, 10)
    for setting in sheet.settings:
        cases: list[Case] = []

        def build(setting: str = setting, cases: list[Case] = cases) -> Figures:
            cases.append(Case(setting, device, tiny, "float32" if device.type == "cpu" else "bfloat16"))
            return {"third convolution": cases[0].chosen}

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


def step_without_waits(case: Case) -> Figures:
    """Where steps wait for the device beside the wait for ClassIds, and whether they run where waits are errors."""
    with counted_waits(case.device) as places:
        case.eager()
        case.ours()
    found: Figures = {"waits": [f"{count} x {place}" for place, count in places.items()]}
    with no_waits(case.device):
        for _ in range(3):
            case.eager()
            case.ours()
    found["recorded"] = [case.step.accumulate.recorded, case.step.update.recorded]
    found["failure"] = [case.step.accumulate.failure, case.step.update.failure]
    return found


def part_sections(sheet: Sheet) -> None:
    """Where the time of a step goes: each section recorded alone, in milliseconds of the device."""
    for setting in sheet.settings:
        sheet.case(setting, lambda s=setting: sections(s, sheet.device, sheet.tiny))  # type: ignore[misc]


def part_same(sheet: Sheet) -> None:
    """Whether recorded steps compute what the same steps compute one kernel at a time, over 30 steps."""

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


def part_curve(sheet: Sheet) -> None:
    """(f) The start of cifar10_multi on random images: losses by step, in float32 (TF32) and bf16."""

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
