"""A process that lets forked children write, convert and merge zoos, and kills them; it takes orders as lines of JSON.

It has imported everything before it forks a child, so that fifty kills take seconds.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import unflushed  # noqa: F401
from writer_samples import tensors_of

from prepkit.zoo.change.convert import convert
from prepkit.zoo.change.merge import merge
from prepkit.zoo.write.writer import ZooWriter

OPTIONS = {"width": 8, "name": "zoo", "shard_bytes": 1000, "provenance": {"spec": "test"}}
NUM_ADDED = 16
NUM_STACKED = 10
STACK_ARCHITECTURE = "sine_mlp@sdf_small"
ALL_IDS = [f"m{index}" for index in range(NUM_ADDED)] + [f"s{index}" for index in range(NUM_STACKED)]


def sizes_of(index: int) -> tuple[int, ...]:
    return (3, 5 + index % 3, 2)


def stack_of(start: int, count: int) -> torch.Tensor:
    """Make PReps `[count, 72, 64]` of 4,481 parameters."""
    preps = torch.zeros(count, 72 * 64)
    for index in range(count):
        preps[index, :4481] = start + index + torch.arange(4481) / 8192
    return preps.view(count, 72, 64)


def write(root: str, format: str, done=lambda ids: None) -> None:
    """Write the zoo, or the instances that it lacks; `done` is called with the ids of each call that has returned."""
    with ZooWriter(root, format=format, resume=True, **OPTIONS) as writer:
        for index in range(NUM_ADDED):
            if f"m{index}" not in writer.finished_ids:
                tensors = tensors_of(index, sizes_of(index))
                done([writer.add(tensors, id=f"m{index}", split="train" if index % 4 else "test", accuracy=index / 64)])
        for start in range(0, NUM_STACKED, 5):
            ids = [f"s{index}" for index in range(start, start + 5)]
            if not writer.finished_ids.issuperset(ids):
                done(writer.add_stack(stack_of(start, 5), architecture=STACK_ARCHITECTURE, ids=ids, note=["x"] * 5))
        writer.set_teacher(tensors_of(99, (3, 50, 2)))


def write_other(root: Path) -> str:
    """Write a zoo that can be merged with the zoo of `write`."""
    with ZooWriter(root, width=8, shard_bytes=1000) as writer:
        for index in range(8):
            writer.add(tensors_of(index, (4, 6, 2)), id=f"other{index}", accuracy=0.5)
    return str(root)


def convert_zoo(root: str, format: str, sources: list[str], done=lambda ids: None) -> None:
    """Convert a zoo; `done` is called for each piece that was written."""
    convert(sources[0], root, format, card=False, progress=lambda count: done([str(count)]))


def merge_zoos(root: str, format: str, sources: list[str], done=lambda ids: None) -> None:
    """Merge zoos; `done` is called for each piece that was written."""
    merge(root, sources, format=format, name="zoo", card=False, progress=lambda count: done([str(count)]))


JOBS = {"write": write, "convert": convert_zoo, "merge": merge_zoos}


def child(order: dict, pipe: int) -> None:
    """Do the job, and write into the pipe what has returned."""

    def done(ids):
        os.write(pipe, "".join(f"{id}\n" for id in ids).encode())

    try:
        sources = {"sources": order["sources"]} if "sources" in order else {}
        JOBS[order.get("job", "write")](order["root"], order["format"], done=done, **sources)
        os.write(pipe, b"closed\n")
    except BaseException as error:
        os.write(pipe, f"error {error!r}\n".encode())
    finally:
        os._exit(0)


def output_until(pipe: int, deadline: float, num_lines: float) -> str:
    """Read what the child writes until a time, until it has written so many lines, or until it is done."""
    output = b""
    while (left := deadline - time.perf_counter()) > 0 and output.count(b"\n") < num_lines:
        if select.select([pipe], [], [], left)[0]:
            piece = os.read(pipe, 65536)
            if not piece:
                break
            output += piece
    return output.decode()


def run(order: dict) -> dict:
    """Fork a child, let it write for `seconds` or until it has written `lines` lines, and kill it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        child(order, write_end)
    os.close(write_end)
    start = time.perf_counter()
    output = output_until(read_end, start + order.get("seconds", 60), order.get("lines", float("inf")))
    seconds = time.perf_counter() - start
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while piece := os.read(read_end, 65536):
        output += piece.decode()
    os.close(read_end)
    return {"lines": output.split("\n")[:-1], "seconds": seconds}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm = Path(sys.argv[1])
    write(str(warm / "safetensors"), "safetensors")  # what is imported late is imported once
    write(str(warm / "hdf5"), "hdf5")
    merge_zoos(str(warm / "merged"), "hdf5", [str(warm / "safetensors"), write_other(warm / "other")])
    shutil.rmtree(warm / "merged")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
