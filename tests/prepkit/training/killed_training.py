"""A small spec of each kind of task, and a process that trains one in forked children, kills them, and counts epochs.

One process that has imported everything forks each child, so that many kills take seconds. Orders and answers are
lines of JSON: {"root", "seconds"} or {"root", "epochs"}, after which the child is killed.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import torch
import unflushed  # noqa: F401

import prepkit.training._units as units
from prepkit.tasks import load_task
from prepkit.training._stack import Stack
from prepkit.training.run import train_zoo
from prepkit.training.spec import parse_spec
from prepkit.zoo.card import card

HEAD = """\
name = "{name}"
description = "A few small networks."
license = "mit"
width = 128
seed = 3
"""
DIGITS = """
[task]
kind = "images"
dataset = "digits"
mean = [0.3053]
std = [0.3761]
split = {seed = 0, test = 360, validation = 180}

[training]
optimizer = "sgd"
learning_rate = 0.05
momentum = 0.9
weight_decay = 5e-4
batch_size = 128
"""
TEACHER = """
[teacher]
architecture = "resnet8@digits"
epochs = 1
"""
LAST = (
    HEAD.format(name="last")
    + 'architectures = ["lenet_like@digits", "vanilla_cnn@digits"]\n'
    + DIGITS
    + 'epochs = {low = 1, high = 3}\nkeep = "last"\n'
    + TEACHER
    + """
[instances]
"lenet_like@digits" = {train = 3, test = 1}
"vanilla_cnn@digits" = {train = 1, validation = 1}
"""
)
TRAJECTORY = (
    HEAD.format(name="trajectory")
    + 'architectures = ["lenet_like@digits"]\n'
    + DIGITS
    + 'epochs = 4\nkeep = {every = 2}\nschedule = "cosine"\n'
    + '\n[instances]\n"lenet_like@digits" = {train = 2, test = 1}\n'
)
BEST = (
    HEAD.format(name="best")
    + 'architectures = ["resnet8@digits", "lenet_like@digits"]\n'
    + DIGITS.replace("0.05", "0.2")  # so that the best epoch is not always the last
    + 'epochs = 3\nkeep = "best_validation"\n'
    + '\n[instances]\n"lenet_like@digits" = {train = 2}\n"resnet8@digits" = {test = 1}\n'
)
CHAIRS = (
    HEAD.format(name="chairs").replace("128", "64")
    + """
architectures = ["sine_mlp@sdf_small"]

[task]
kind = "shapes"
dataset = "procedural_chairs"
count = 3
seed = 0
points = {pool = 512, near_surface = 0.5, sigma = 0.05}
split = {seed = 0, validation = 128, test = 256}
steps_per_epoch = 5

[instances]
"sine_mlp@sdf_small" = {train = 2, test = 1}

[training]
optimizer = "adam"
learning_rate = 2e-3
batch_size = 64
epochs = 3
keep = "last"
"""
)
TEXTS = {"last": LAST, "trajectory": TRAJECTORY, "best": BEST, "chairs": CHAIRS}
# Resuming is worth a test only if there is something to resume: some epochs, in units of several instances.
KILLED = LAST.replace("{low = 1, high = 3}", "{low = 4, high = 8}")


def spec(text: str = LAST):
    return parse_spec(text, "test.toml")


def child(order: dict, pipe: int) -> None:
    """Train, telling the pipe of each epoch and what becomes of it."""
    units.SAVE_SECONDS = 0.0
    train_epoch = Stack._train_epoch

    def told(stack: Stack):
        os.write(pipe, f"epoch {stack.first[0].run}\n".encode())
        return train_epoch(stack)

    Stack._train_epoch = told
    try:
        train_zoo(spec(KILLED), order["root"], device="cpu", threads=1, stack=2)
        os.write(pipe, b"finished\n")
    except BaseException as error:
        os.write(pipe, f"error {error!r}\n".encode())
    finally:
        os._exit(0)


def run(order: dict) -> dict:
    """Fork a child, let it train for `seconds` or until it has begun `epochs` epochs, and kill it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        child(order, write_end)
    os.close(write_end)
    start, told = time.perf_counter(), b""
    while (left := start + order.get("seconds", 60) - time.perf_counter()) > 0:
        if told.count(b"\n") >= order.get("epochs", 10_000):
            break
        if select.select([read_end], [], [], left)[0]:
            piece = os.read(read_end, 65536)
            if not piece:
                break
            told += piece
    seconds = time.perf_counter() - start
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while piece := os.read(read_end, 65536):
        told += piece
    os.close(read_end)
    return {"told": told.decode().splitlines(), "seconds": seconds}


if __name__ == "__main__":
    torch.set_num_threads(1)
    card.picture_of = lambda zoo: None
    train_zoo(spec(CHAIRS), Path(sys.argv[1]) / "warm", device="cpu", threads=1)  # what is imported late is imported
    load_task(spec(KILLED).task)  # so is what reads digits, which takes as long as the training of a child
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
