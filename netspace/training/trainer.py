"""train: a NetSpace learns the space of a zoo's networks. One visible loop; all settings stand in the recipe.

    run = train(load_recipe("digits_multi"), "zoo", "run")
    space = netspace.load("run")

All that is drawn depends on the recipe's seed and the number of the step, so that an interrupted training goes on with
`resume=True` to the same losses, bit for bit on a CPU.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

import prepkit
from netspace.data import Data, check_architectures
from netspace.recipe import Recipe
from netspace.run.card import write_card
from netspace.run.run import BEST, LATEST, LOCK, NETWORK, OPTIMISER, Run, RunError, State, check_free
from netspace.space.device import own_device, use_tf32
from netspace.space.network import NetSpace
from netspace.space.starts import start_from_preps
from netspace.training.logs import EVERY_STEPS, Log, NotFinite, board_of
from netspace.training.memory import OutOfMemory, advice, is_out_of_memory, num_weights
from netspace.training.objective import Objective
from netspace.training.parallel import Ranks
from netspace.training.validation import Validation
from prepkit.errors import InvalidShape
from prepkit.files import output_error
from prepkit.lock import take_lock
from prepkit.progress import Progress


class Interrupted(prepkit.PrepkitError):
    """A training was asked to end; its state is kept."""

    exit_code = 130


def train(
    recipe: Recipe,
    zoo: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "auto",
    data: Path | None = None,
    progress: Progress | None = None,
    trust_code: bool = False,
) -> Run:
    """Train a NetSpace on a zoo, into a run's folder.

    recipe: what is trained and how; with `resume` that of the run, but perhaps for the number of steps
    zoo:    folder of the zoo
    out:    folder of the run: new, or empty, or one to go on with
    device: "auto", "cpu", "cuda", "cuda:1" or "mps"
    data:   folder of the task's data, for tasks that need one
    raises ZooMismatch, RunError, RecipeError, DeviceError, NotFinite, OutOfMemory, Interrupted
    """
    where = own_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    ranks = Ranks.join(where)
    lock: FileLock | None = None
    try:
        num_weights(recipe)  # raises what the network's sizes may be wrong in, before anything is read or written
        if ranks.first and not resume:
            check_free(Path(out))
        opened = _opened(recipe, zoo, trust_code)
        training = Training(recipe, opened, where, ranks, data, progress or Progress())
        run, lock = _folder(Path(out), recipe, opened, zoo, resume, ranks)
        training.go(run)
        ranks.agree(None)  # the others wait until all is written
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory. {advice(recipe, opened.registry, where)}") from error
    finally:
        if lock is not None:
            lock.release()
        ranks.leave()
    return run


class Training:
    """A training that is set up: zoo, samples and teacher are on the device."""

    def __init__(
        self, recipe: Recipe, zoo: prepkit.Zoo, device: torch.device, ranks: Ranks, data: Path | None, told: Progress
    ) -> None:
        use_tf32(device)
        ranks.block(recipe.batch.instances)
        self.recipe, self.device, self.ranks = recipe, device, ranks
        self.progress = told if ranks.first else Progress()
        self.data = Data(recipe, zoo, device, data)
        self.validation = Validation(recipe, zoo, self.data)

    def go(self, run: Run) -> None:
        """Train from the run's latest state, or from the start, to the recipe's last step."""
        recipe, ranks = self.recipe, self.ranks
        space, optimiser, state = self._start(run)
        start = 0 if state is None else state.step
        best: float | None = None if state is None else state.facts["best"]
        objective = Objective(space, recipe, self.data.registry, self.data.teacher, ranks)
        parameters = [one for one in space.parameters() if one.requires_grad]
        if ranks.first:
            run.cut_metrics(start)
        log = Log(run, ranks, self.progress, recipe.batch.instances * recipe.batch.accumulate)
        if state is not None:
            log.restore(**state.facts["pending"], device=self.device)
        log.board = board_of(run, start, self.progress) if ranks.first else None
        log.last_step = start
        self.progress.begin(recipe.training.steps, start, f"{recipe.training.steps - start:,} left")
        batches = self.data.batches(start * recipe.batch.accumulate)
        steps = range(0) if self._enough(best) else range(start + 1, recipe.training.steps + 1)
        try:
            with asked_to_end() as asked:
                for step in steps:
                    rate = recipe.optimizer.rate(step - 1, recipe.training.steps)
                    parts: dict[str, torch.Tensor] = {}
                    indices: tuple[int, ...] = ()
                    for _ in range(recipe.batch.accumulate):
                        batch = next(batches)
                        losses = objective(batch)
                        torch.autograd.backward(losses.total * self._weight())
                        indices += batch.indices
                        parts = {name: part + parts.get(name, 0.0) for name, part in losses.parts.items()}
                    ranks.add_gradients(parameters)
                    parts = {name: part * self._weight() for name, part in parts.items()}
                    parts["gradient_norm"] = self._clipped(parameters)
                    optimiser.param_groups[0]["lr"] = rate
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                    log.step(step, parts, indices, rate)

                    interrupted = self._interrupted(asked, step)
                    if step == recipe.training.steps or step % recipe.training.validate_every == 0:
                        log.flush(step, rate)
                        scores = self._validate(space, log, step)
                        better = best is None or scores["score"] > best
                        best = scores["score"] if better else best
                        log.validated(step, scores, better)
                        self._save(run, step, space, optimiser, log, best, scores if better else None)
                        if self._enough(best):
                            break
                    elif interrupted:
                        self._save(run, step, space, optimiser, log, best, None)
                    if interrupted and step < recipe.training.steps:
                        raise Interrupted(f"interrupted after step {step}; --resume goes on from there.")
        finally:
            log.close()

    def _enough(self, best: float | None) -> bool:
        """Whether the best score is one to stop at."""
        stop_at = self.recipe.training.stop_at
        return stop_at is not None and best is not None and best >= stop_at

    def _interrupted(self, asked: list[int], step: int) -> bool:
        """Whether some process was asked to end; several of them only ask each other every few steps."""
        if self.ranks.size == 1:
            return bool(asked)
        return step % EVERY_STEPS == 0 and self.ranks.any(bool(asked), self.device)

    def _weight(self) -> float:
        """Of each of several batches: means are averaged over them, sums added up."""
        return 1.0 if self.recipe.has_classes else 1.0 / self.recipe.batch.accumulate

    def _clipped(self, parameters: list[nn.Parameter]) -> torch.Tensor:
        """The norm of all gradients together, before they are clipped."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)
        if self.recipe.optimizer.clip is not None:
            clip_grads_with_norm_(parameters, self.recipe.optimizer.clip, norm)
        return norm

    def _validate(self, space: NetSpace, log: Log, step: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self.ranks.first:
            scores = self.validation(space)
            log.pictures(step, *self.validation.pictures(space))
        agreed: dict[str, float] = self.ranks.agree(scores)
        return agreed

    # Start and state --------------------------------------------------------------------------------------------------

    def _start(self, run: Run) -> tuple[NetSpace, torch.optim.Adam, State | None]:
        """Network and optimiser, and the state that they were brought back from."""
        space = run.new_space()
        state = run.state(LATEST)
        if state is not None:
            space.load_state_dict(state.part(NETWORK))
        elif self.recipe.network.initialisation == "from_preps":
            self._start_from_preps(space)
        space.to(self.device)
        if state is None and self.recipe.network.initialisation == "from_preps" and self.ranks.size > 1:
            for tensor in space.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        fused = self.device.type in ("cpu", "cuda")
        trained = [parameter for parameter in space.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=self.recipe.optimizer.learning_rate, fused=fused)
        if state is not None:
            _restore(optimiser, space, state)
        return space, optimiser, state

    def _start_from_preps(self, space: NetSpace) -> None:
        architecture = self.data.registry.by_class_id(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.training.seed)
            network = architecture.build_folded()
            tensors = {name: value.detach() for name, value in network.state_dict().items()}
            shape = prepkit.PRepShape(self.recipe.network.height, self.recipe.network.width)
            start_from_preps(
                space, self.data.preps_NHW.cpu(), architecture.layout.pack(tensors, shape), architecture.layout
            )

    def _save(
        self,
        run: Run,
        step: int,
        space: NetSpace,
        optimiser: torch.optim.Adam,
        log: Log,
        best: float | None,
        scores: Mapping[str, float] | None,
    ) -> None:
        """Write the state to go on from and, where there are scores, the weights of the best validation so far."""
        pending = log.look(step)  # raises NotFinite: what is not finite is not kept
        if not self.ranks.first:
            return
        network = space.state_dict()
        if scores is not None:
            run.save(BEST, State(step, network, {"scores": dict(scores)}))
        tensors = {NETWORK + name: value for name, value in network.items()}
        for name, parameter in space.named_parameters():
            for moment, value in (optimiser.state[parameter] if parameter.requires_grad else {}).items():
                if moment != "step":
                    tensors[f"{OPTIMISER}{moment}.{name}"] = value
        run.save(LATEST, State(step, tensors, {"best": best, "pending": {"names": log.names, "rows": pending}}))
        write_card(run)


def _restore(optimiser: torch.optim.Adam, space: NetSpace, state: State) -> None:
    """Adam's moments and number of steps, as they were."""
    kept = state.part(OPTIMISER)
    for name, parameter in space.named_parameters():
        if not parameter.requires_grad:
            continue
        optimiser.state[parameter] = {
            "step": torch.tensor(float(state.step), device=parameter.device if parameter.is_cuda else "cpu"),
            "exp_avg": kept[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": kept[f"exp_avg_sq.{name}"].to(parameter.device),
        }


def _opened(recipe: Recipe, zoo: str | os.PathLike[str], trust_code: bool) -> prepkit.Zoo:
    """The zoo at the recipe's height and width."""
    network = recipe.network
    try:
        return prepkit.open_zoo(zoo, width=network.width, height=network.height, trust_code=trust_code)
    except InvalidShape:
        check_architectures(recipe, prepkit.open_zoo(zoo, trust_code=trust_code))  # a better reason, if it is that
        raise


def _folder(
    out: Path, recipe: Recipe, zoo: prepkit.Zoo, zoo_path: str | os.PathLike[str], resume: bool, ranks: Ranks
) -> tuple[Run, FileLock | None]:
    """The run's folder, begun or gone on with, and the first process's lock on it."""
    lock = None
    if ranks.first:
        if resume:
            Run(out, trust_code=True)  # raises RunError before anything is written
        else:
            check_free(out)
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise output_error(out, error) from error
        lock = take_lock(out / LOCK, out)
        try:
            if not resume:
                Run.create(out, recipe, zoo, zoo_path)
            run = Run(out, trust_code=True)
            _check_resumable(run, recipe, zoo)
            if recipe != run.recipe:
                run.change_steps(recipe)
        except BaseException:
            lock.release()
            raise
    ranks.agree(None)  # the others wait until the folder is there
    return Run(out, trust_code=True), lock


def _check_resumable(run: Run, recipe: Recipe, zoo: prepkit.Zoo) -> None:
    """raises RunError if a run was begun with another recipe or zoo, is further already, or has lost its state."""
    latest, best = run.facts(LATEST), run.facts(BEST)
    # A kill between the first best state and the first latest one leaves no more than these steps give again.
    if latest is None and best is not None and best["step"] > run.recipe.training.validate_every:
        raise RunError(
            f"'{run.path}' has the best weights, after step {best['step']}, but not the state that training goes on "
            "from (checkpoints/latest.json); train anew into another folder."
        )
    if latest is not None and recipe.training.steps < latest["step"]:
        raise RunError(
            f"'{run.path}' has taken {latest['step']:,} steps already, more than the {recipe.training.steps:,} that "
            "were asked for; use --steps of at least as many."
        )
    steps = replace(recipe.training, steps=run.recipe.training.steps)
    if replace(recipe, training=steps) != run.recipe:
        before, now = _flat(run.recipe.to_dict()), _flat(replace(recipe, training=steps).to_dict())
        differing = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in now if before.get(key) != now[key]
        ]
        raise RunError(
            f"'{run.path}' was begun with another recipe: {'; '.join(differing)}. Use the same, or another --out."
        )
    if zoo.manifest.to_dict()["sha256"] != run.record["zoo"]["sha256"]:
        raise RunError(f"'{run.path}' was begun with another zoo, '{run.record['zoo']['name']}'. Use the same.")


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


@contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them, so that a step ends before the training does.

    A second one acts as it always did.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Interrupted", "NotFinite", "train"]
