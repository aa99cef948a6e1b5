"""The parts of the check for a GPU that type commands, and what these do: reading a zoo, evaluating, saving."""

import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import prepkit
from benchmarks.baselines import evaluate_one_at_a_time
from benchmarks.gpu_sheet import Figures, Sheet, timed, wait
from benchmarks.gpu_steps import Case


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
    """(g) Evaluating predicted ResNet8: each loaded into the network and run in TF32, and ours in TF32 and in bf16."""
    device, tiny = sheet.device, sheet.tiny
    case = Case("single", device, tiny, "float32")
    (network,), (layout,), architecture = case.networks, case.layouts, case.registry.by_class_id(0)
    preps = case.data.preps_NHW[:1].repeat(2 if tiny else 64, 1, 1)
    images = torch.randn(4 if tiny else 10_000, *architecture.input_shape, device=device)

    def one_at_a_time() -> object:
        return [evaluate_one_at_a_time(network, layout, preps, part) for part in images.split(500)]

    def ours(bf16: bool) -> object:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return [prepkit.run_instances(architecture, preps, part) for part in images.split(500)]

    ways = {"one at a time": one_at_a_time, "ours": lambda: ours(False), "ours, bf16": lambda: ours(True)}
    for name, way in ways.items():
        sheet.case(name, lambda way=way: timed(way, device, 1, 3, 1))  # type: ignore[misc]
    sheet.case("one save", lambda: saving(case, sheet.path.parent / "state.safetensors"))


def saving(case: Case, file: Path) -> Figures:
    """Seconds for which a step waits until its state is on the host, and seconds of the disk, beside later steps."""
    case.ours()
    wait(case.device)
    began = time.perf_counter()
    tensors = {f"network.{name}": tensor.cpu() for name, tensor in case.space.state_dict().items()}
    for number, state in enumerate(case.step.operations.optimizer.state.values()):
        tensors |= {f"{name}.{number}": state[name].cpu() for name in ("exp_avg", "exp_avg_sq")}
    copied = time.perf_counter()
    save_file(tensors, file)
    written = time.perf_counter()
    size = file.stat().st_size
    file.unlink()
    return {"to the host": round(copied - began, 4), "to the disk": round(written - copied, 4), "MB": size / 1e6}
