"""Train a NetSpace on a zoo. One visible loop; all settings stand in the recipe.

    run = train(load_recipe("digits_multi"), "zoo", "run")
    space = netspace.load("run")

All that is drawn depends on the recipe's seed and the number of the step, so an interrupted training that goes on with
`resume=True` has the same losses, bit for bit on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import count as count_from
from itertools import islice
from pathlib import Path

import torch
from filelock import BaseFileLock

import prepkit
from netspace.alignment import Alignment
from netspace.data import Batch, Data
from netspace.recipe import FROM_PREPS, Recipe, load_recipe
from netspace.run.card import write_card
from netspace.run.run import BEST, LATEST, NETWORK, OPTIMISER, Run, State, check_free
from netspace.space.network import NetSpace
from netspace.training._aligning import align_data
from netspace.training._functions import choose_functions
from netspace.training._logs import LINE_STEPS, MetricsLog, open_board
from netspace.training._objective import Objective
from netspace.training._run_folder import open_folder, open_zoo_of_recipe, zoo_of_run
from netspace.training._starting import initialisation_of, start_from_data
from netspace.training._step import Step, adam
from netspace.training._validation import Validation
from netspace.training.memory import OutOfMemory, advice, num_weights
from prepkit.errors import expect
from prepkit.support.background import Background
from prepkit.support.device import gpu_kernels, hardware, is_out_of_memory, own_device
from prepkit.support.logs import logger
from prepkit.support.processes import ParallelError, Ranks
from prepkit.support.progress import Progress
from prepkit.support.signals import deferred_signals

LOG = logger(__name__)


class Interrupted(prepkit.PrepkitError):
    """A training was asked to end; its state is kept."""

    exit_code = 130


def train(
    recipe: Recipe | str | Path,
    zoo: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "auto",
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    trust_code: bool = False,
) -> Run:
    """Train a NetSpace on a zoo and keep it in a run's folder.

    recipe: the settings, or what `load_recipe` takes; with `resume` they are those of the run, and only the number of
            steps may differ
    zoo:    folder of the zoo; with `resume` it may have grown since, and the instances that were there are taken
    out:    folder of the run: new, empty, or the one to go on with
    device: "auto", "cpu", "cuda", "cuda:1" or "mps"
    data:   folder of the task's data, for tasks that need one
    raises ZooMismatch, RunError, RecipeError, DeviceError, NotFinite, OutOfMemory, Interrupted, and SymmetryError for a
    recipe that aligns where scipy is missing
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    expect(recipe, Recipe, "recipe", "a Recipe, the name of a built-in one, or the path of a .toml file")
    expect(zoo, (str, os.PathLike), "zoo", "the folder of a zoo, or an address such as hf://user/zoo")
    expect(out, (str, os.PathLike), "out", "the folder of the run")
    chosen = own_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ranks = Ranks.join(chosen)
    lock: BaseFileLock | None = None
    try:
        num_weights(recipe)  # raises for sizes that no network can have, before anything is read or written
        if ranks.first and not resume:
            check_free(Path(out))
        opened = open_zoo_of_recipe(recipe, zoo, trust_code)
        if resume:
            opened = zoo_of_run(Path(out), recipe, opened)
        with gpu_kernels(chosen, recipe.training.deterministic):
            known = Run(out, trust_code=True).alignment if resume and recipe.align else None
            training = Training(
                recipe, opened, chosen, ranks, None if data is None else Path(data), progress or Progress(), known
            )
            run, lock = open_folder(Path(out), recipe, opened, zoo, resume, ranks, training.alignment)
            training.go(run)
        ranks.agree(None)  # the other processes wait here until all is written
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory. {advice(recipe, opened.registry, chosen)}") from error
    finally:
        if lock is not None:
            lock.release()
        ranks.leave()
    return run


class Training:
    """A training that is set up: zoo, samples and teacher are on the device."""

    def __init__(
        self,
        recipe: Recipe,
        zoo: prepkit.Zoo,
        device: torch.device,
        ranks: Ranks,
        data: Path | None,
        progress: Progress,
        known: Alignment | None = None,
    ) -> None:
        ranks.block(recipe.batch.instances)  # raises ParallelError before the data are loaded
        if recipe.loss.line > 0:
            _check_line_instances(len(recipe.architectures), recipe.batch.line_instances, ranks)
        self.recipe, self.device, self.ranks = recipe, device, ranks
        self.progress = progress if ranks.first else Progress()
        self.data = Data(recipe, zoo, device, data)
        self.alignment = align_data(self.data, known, ranks, self.progress) if recipe.align else None
        self.validation = Validation(recipe, zoo, self.data, self.alignment)
        self.initialisation = initialisation_of(recipe, zoo)

    def go(self, run: Run) -> None:
        """Train from the run's latest state, or from the start, to the recipe's last step."""
        recipe, ranks, last = self.recipe, self.ranks, self.recipe.training.steps
        space, optimiser, state = self._start(run)
        if state is None:
            choose_functions(run, space, self.data, ranks, self.device, self.progress)
        start, best = (0, None) if state is None else (state.step, state.facts["best"])
        objective = Objective(space, recipe, self.data.registry, self.data.teacher, ranks)
        take_step = Step(objective, optimiser, ranks, self.device)
        log = self._open_log(run, state)
        first, place = start + 1, hardware(self.device)
        LOG.info("training '%s' on %s, in %d processes, from step %d to %d", run.path, place, ranks.size, first, last)
        self.progress.begin(last, start, f"{last - start:,} left")
        batches = self.data.batches(start * recipe.batch.accumulate)
        steps = range(0) if self._is_enough(best) else range(start + 1, last + 1)
        try:
            with deferred_signals() as signals, Background() as self.writing:
                for step in steps:
                    rate = recipe.optimizer.rate(step - 1, last)
                    indices: list[int] = []
                    parts = take_step(_noted(islice(batches, recipe.batch.accumulate), indices), rate)
                    log.step(step, parts, indices, rate)

                    interrupted = self._is_interrupted(signals, step)
                    if step == last or step % recipe.training.validate_every == 0:
                        log.flush(step, rate)
                        scores = self._validate(space, log, step)
                        is_best = best is None or scores["score"] > best
                        best = scores["score"] if is_best else best
                        LOG.info(
                            "step %d: score %.4g%s", step, scores["score"], ", the best one yet" if is_best else ""
                        )
                        log.validated(step, scores, is_best)
                        self._save(run, step, space, optimiser, log, best, scores if is_best else None)
                        if self._is_enough(best):
                            break
                    elif interrupted:
                        self._save(run, step, space, optimiser, log, best, None)
                    if interrupted and step < last:
                        raise Interrupted(f"interrupted after step {step}; resume=True goes on from there.")
        finally:
            log.close()

    def _is_enough(self, best: float | None) -> bool:
        """Whether training stops here, because the best score has reached the recipe's `stop_at`."""
        stop_at = self.recipe.training.stop_at
        return stop_at is not None and best is not None and best >= stop_at

    def _is_interrupted(self, signals: list[int], step: int) -> bool:
        """Whether any process was asked to end; several processes ask each other only every few steps."""
        if self.ranks.size == 1:
            return bool(signals)
        return step % LINE_STEPS == 0 and self.ranks.any(bool(signals), self.device)

    def _validate(self, space: NetSpace, log: MetricsLog, step: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self.ranks.first:
            scores = self.validation(space)
            log.pictures(step, *self.validation.pictures(space))
        agreed: dict[str, float] = self.ranks.agree(scores)
        return agreed

    # Start and state --------------------------------------------------------------------------------------------------

    def _start(self, run: Run) -> tuple[NetSpace, torch.optim.Adam, State | None]:
        """Build network and optimiser, and load the run's latest state into them if there is one."""
        made = self.initialisation in FROM_PREPS
        space = run.new_space()
        state = run.state(LATEST)
        if state is not None:
            space.load_state_dict(state.part(NETWORK))
        elif made:
            start_from_data(space, self.initialisation, self.recipe, self.data)
        space.to(self.device)
        if state is None and made and self.ranks.size > 1:
            for tensor in space.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        trained = [parameter for parameter in space.parameters() if parameter.requires_grad]
        optimiser = adam(trained, self.recipe.optimizer.learning_rate, self.device, self.ranks.size == 1)
        if state is not None:
            _restore(optimiser, space, state)
        return space, optimiser, state

    def _open_log(self, run: Run, state: State | None) -> MetricsLog:
        """Open the log after the state's step; lines of later steps are forgotten, since these are taken again."""
        start, batch = 0 if state is None else state.step, self.recipe.batch
        if self.ranks.first:
            run.cut_metrics(start)
        log = MetricsLog(run, self.ranks, self.progress, batch.instances * batch.accumulate, last_step=start)
        if state is not None:
            log.restore(**state.facts["pending"], device=self.device)
        log.board = open_board(run, start, self.progress) if self.ranks.first else None
        return log

    def _save(
        self,
        run: Run,
        step: int,
        space: NetSpace,
        optimiser: torch.optim.Adam,
        log: MetricsLog,
        best: float | None,
        scores: Mapping[str, float] | None,
    ) -> None:
        """Write the state to go on from; scores are given if this is the best validation so far, which is kept too."""
        pending = log.pending(step)  # raises NotFinite: a state that is not finite is not kept
        if not self.ranks.first:
            return
        network = space.state_dict()
        tensors = {NETWORK + name: value for name, value in network.items()}
        for name, parameter in space.named_parameters():
            for moment, value in (optimiser.state[parameter] if parameter.requires_grad else {}).items():
                if moment != "step":
                    tensors[f"{OPTIMISER}{moment}.{name}"] = value
        tensors = {name: value.detach().cpu() for name, value in tensors.items()}
        state = State(step, tensors, {"best": best, "pending": {"names": log.names, "rows": pending}})
        if self.device.type == "cpu":
            write_states(run, state, scores)
        else:  # the tensors are copies, so the next steps need not wait for the disk
            self.writing.call(write_states, run, state, scores)


def _check_line_instances(architectures: int, instances: int, ranks: Ranks) -> None:
    """Raise ParallelError if the instances of the line loss cannot be dealt evenly to the processes."""
    enough = next(count for count in count_from(instances) if architectures * count % ranks.size == 0)
    if enough != instances:
        raise ParallelError(
            f"batch.line_instances: {instances} of each of {architectures} architectures cannot be dealt evenly to "
            f"{ranks.size} processes; use {enough}, or another --nproc-per-node."
        )


def _noted(batches: Iterator[Batch], indices: list[int]) -> Iterator[Batch]:
    """Yield batches, and note the instances of each."""
    for batch in batches:
        indices.extend(batch.indices)
        yield batch


def write_states(run: Run, state: State, scores: Mapping[str, float] | None) -> None:
    """Write a state as the latest and, if it has scores, the network as the best one."""
    if scores is not None:
        run.save(BEST, State(state.step, state.part(NETWORK), {"scores": dict(scores)}))
    run.save(LATEST, state)
    write_card(run)


def _restore(optimiser: torch.optim.Adam, space: NetSpace, state: State) -> None:
    """Give Adam the moments and the number of steps that a state holds."""
    kept = state.part(OPTIMISER)
    for name, parameter in space.named_parameters():
        if not parameter.requires_grad:
            continue
        optimiser.state[parameter] = {
            "step": torch.tensor(float(state.step), device=parameter.device if parameter.is_cuda else "cpu"),
            "exp_avg": kept[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": kept[f"exp_avg_sq.{name}"].to(parameter.device),
        }
