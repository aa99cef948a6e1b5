"""LoRA adapters as PEFT writes them: what adapter_config.json says of each module, and which tensors are pairs.

    adapter_config.json        r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, base_model_name_or_path, ...
    adapter_model.safetensors  base_model.model.<module>.lora_A.weight [r, in], and lora_B.weight [out, r]

An adapter changes the weight of a module by dW = s B A, with s = alpha / r, or alpha / sqrt(r) with `use_rslora`.
What does more than that (DoRA, biases) is refused by name.

    pytorch_lora_weights.safetensors  of diffusers, without a config: <module>.lora.down.weight [r, in], that is A,
                                      and <module>.lora.up.weight [out, r], that is B; the scale is 1
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prepkit.errors import ZooError, listed
from prepkit.support.text import Brief

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
ADAPTER_CONFIG = "adapter_config"  # column with the text of each adapter's CONFIG
PREFIX = "base_model.model."  # stands before the names of modules in WEIGHTS
SIDE = re.compile(r"(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|embedding_(?P<embedding>[AB]))")
OF_DIFFUSERS = re.compile(r"(?P<module>.+)[._]lora\.(?P<side>down|up)\.weight")
SIDES = {"down": "A", "up": "B"}
HEADS = {  # modules that PEFT saves whole for these tasks, also where the config does not name them
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
MORE_THAN_PAIRS = {
    "use_dora": "the magnitudes of DoRA",
    "lora_bias": "the bias of lora_B",
    "use_qalora": "the pooled inputs of QALoRA",
    "use_bdlora": "the block-diagonal factors of BD-LoRA",
    "target_parameters": "pairs of parameters that belong to no module of their own",
    "trainable_token_indices": "rows of an embedding",
    "arrow_config": "the routing of Arrow",
}
NOT_RUN = (
    "an adapter runs only inside its base model, which prepkit does not run; `prepkit zoo adapters DIR DST` writes the "
    "files that PEFT loads into it"
)
NO_PLACE = "A zoo keeps pairs (A, B) with dW = s B A alone; leave this adapter out."


@dataclass(frozen=True, repr=False)
class LoraConfig(Brief):
    """A checked adapter_config.json: its text and what it says; for an adapter of diffusers the text is empty."""

    text: str
    values: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, place: str) -> LoraConfig:
        """Read the text of an adapter_config.json.

        place: the file, for errors
        raises ZooError if it is damaged, or of an adapter that is more than pairs (A, B)
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ZooError(f"{place}: damaged, it is not JSON ({error}). Fetch it again.") from None
        if not isinstance(values, dict):
            raise ZooError(f"{place}: holds a {type(values).__name__}, not an object. Fetch it again.")
        kind = values.get("peft_type")
        if kind != "LORA":
            raise ZooError(f"{place}: peft_type is {kind!r}; only adapters of type 'LORA' are read. {NO_PLACE}")
        for key, what in MORE_THAN_PAIRS.items():
            if values.get(key):
                raise ZooError(f"{place}: {key} is {json.dumps(values[key])[:60]}, which adds {what}. {NO_PLACE}")
        if values.get("bias", "none") not in (None, "none"):
            raise ZooError(f"{place}: bias is {values['bias']!r}, which changes biases of the base model. {NO_PLACE}")
        _check(values, place)
        return cls(text, values)

    @property
    def base_model(self) -> str | None:
        """The model that the adapter was trained on."""
        return self.values.get("base_model_name_or_path")

    @property
    def task_type(self) -> str | None:
        """The kind of task, such as CAUSAL_LM."""
        return self.values.get("task_type")

    def rank(self, module: str) -> int:
        """Return the rank of a module: that of the first key of rank_pattern that fits it, else r."""
        return int(_of_module(self.values.get("rank_pattern") or {}, module, self.values["r"]))

    def scale(self, module: str) -> float:
        """Return the factor s of a module's dW = s B A."""
        alpha = float(_of_module(self.values.get("alpha_pattern") or {}, module, self.values["lora_alpha"]))
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.values.get("use_rslora") else alpha / rank

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """Last parts of the names of modules that are kept whole beside the pairs."""
        return *(self.values.get("modules_to_save") or ()), *HEADS.get(self.task_type or "", ())


@dataclass(frozen=True)
class PairNames:
    """The names of the two tensors of a module."""

    A: str
    B: str


def diffusers_config(shapes: Mapping[str, tuple[int, ...]]) -> LoraConfig | None:
    """Return what a config would say of an adapter of diffusers, whose scale is 1; None if no tensor is of one.

    shapes: shape of each tensor in the file
    """
    ranks = {
        match["module"]: shape[0]
        for name, shape in shapes.items()
        if (match := OF_DIFFUSERS.fullmatch(name)) and match["side"] == "down" and shape
    }
    if not ranks and not any(map(OF_DIFFUSERS.fullmatch, shapes)):
        return None
    usual = max(ranks.values(), default=1)
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
    values = {"peft_type": "LORA", "r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
    return LoraConfig("", values)


def pairs_in(shapes: Mapping[str, tuple[int, ...]], config: LoraConfig, place: str) -> dict[str, PairNames]:
    """Return the pair of each module, called as in the base model; all other tensors are of modules saved whole.

    shapes: shape of each tensor in the file
    raises ZooError for a tensor without its partner, one that is of no pair and no saved module, or another rank than
    the config says
    """
    sides: dict[str, dict[str, str]] = {}
    for name in shapes:
        side = _side(name)
        if side is not None:
            sides.setdefault(side[0], {})[side[1]] = name
        elif not _is_saved(name, config.saved_modules):
            raise ZooError(f"{place}: '{name}' is of no pair lora_A, lora_B and of no module_to_save. {NO_PLACE}")
    if not sides:
        raise ZooError(f"{place}: holds no pair lora_A, lora_B; it has {listed(shapes)}.")
    for module, found in sides.items():
        if len(found) == 1:
            name = next(iter(found.values()))
            raise ZooError(
                f"{place}: '{name}' has no partner '{_partner(name)}'; the file is not whole. Fetch it again."
            )
        _check_shapes(module, shapes[found["A"]], shapes[found["B"]], config.rank(module), place)
    return {module: PairNames(found["A"], found["B"]) for module, found in sides.items()}


def _side(name: str) -> tuple[str, str] | None:
    """Return the module that a tensor is of, and whether it is A or B; None for a tensor of no pair."""
    match = SIDE.fullmatch(name)
    if match:
        return match["module"].removeprefix(PREFIX), match["side"] or match["embedding"]
    match = OF_DIFFUSERS.fullmatch(name)
    return (match["module"], SIDES[match["side"]]) if match else None


def _partner(name: str) -> str:
    """Return the name of the other tensor of a pair."""
    match = OF_DIFFUSERS.fullmatch(name)
    if match:
        at = match.start("side")
        return f"{name[:at]}{'up' if match['side'] == 'down' else 'down'}{name[match.end('side') :]}"
    last = max(name.rfind(text) for text in ("lora_A", "lora_B", "embedding_A", "embedding_B"))
    at = name.index("_", last) + 1
    return f"{name[:at]}{'B' if name[at] == 'A' else 'A'}{name[at + 1 :]}"


def _check(values: Mapping[str, Any], place: str) -> None:
    """Raise ZooError unless what is read of a config has the types that it needs."""
    _expect(values, "r", _is_rank, "a whole number above 0", place)
    _expect(values, "lora_alpha", _is_number, "a number", place)
    _expect(values, "use_rslora", lambda value: isinstance(value, bool | None), "true or false", place)
    for key in ("base_model_name_or_path", "task_type"):
        _expect(values, key, lambda value: isinstance(value, str | None), "text", place)
    saved = "modules_to_save"
    _expect(values, saved, lambda value: value is None or _is_list_of(_is_text, value), "a list of names", place)
    for key, check in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
        pattern = values.get(key)
        if pattern is not None and not (isinstance(pattern, dict) and all(map(check, pattern.values()))):
            raise ZooError(f"{place}: {key} is no object of names with numbers: {json.dumps(pattern)[:60]}.")
        for name in pattern or ():
            try:
                re.compile(name)
            except re.error as error:
                raise ZooError(f"{place}: {key} has '{name}', which is no regular expression: {error}.") from None


def _expect(values: Mapping[str, Any], key: str, check: Callable[[Any], bool], words: str, place: str) -> None:
    if not check(values.get(key)):
        found = json.dumps(values[key])[:60] if key in values else "missing"
        raise ZooError(f"{place}: {key} is {found}; it must be {words}.")


def _is_list_of(check: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(check, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first key that is the module's name, or the end of it after a dot; keys are patterns."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_saved(name: str, modules: Iterable[str]) -> bool:
    return any(f".{module}." in f".{name}" for module in modules)


def _check_shapes(module: str, a: tuple[int, ...], b: tuple[int, ...], rank: int, place: str) -> None:
    shapes = f"'{module}' has lora_A {list(a)} and lora_B {list(b)}"
    if len(a) < 2 or len(a) != len(b) or a[0] != b[1] or any(size != 1 for size in b[2:]):
        raise ZooError(f"{place}: {shapes}, whose product B A is none. {NO_PLACE}")
    if a[0] != rank:
        raise ZooError(
            f"{place}: {shapes}, so rank {a[0]}, but {CONFIG} says {rank}; the two files belong to different adapters. "
            "Fetch both again."
        )
