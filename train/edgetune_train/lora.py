"""LoRA adapters: which layers they sit on, and the peft configuration that says so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from peft import LoraConfig
from torch import nn

from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_train.settings import LoraSettings

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")


def resolve_targets(model: nn.Module, modules: Modules, targets: Sequence[str], *, vision: bool) -> list[str]:
    """Return the dotted names of the linear layers that `targets` mean, sorted.

    Args:
        model: the transformers model.
        modules: the family's module names.
        targets: see `LoraSettings.targets`.
        vision: see `LoraSettings.vision`.

    Raises:
        InputError: a target matches no linear layer; close names are listed.
    """
    linears = sorted(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    reachable = [name for name in linears if vision or not in_vision(name, modules)]
    found: set[str] = set()
    for target in targets:
        if target == "auto":
            pattern = re.compile(modules.lora_targets)
            matches = [name for name in reachable if pattern.fullmatch(name) or in_vision(name, modules)]
        elif _PLAIN_NAME.fullmatch(target):
            matches = [name for name in reachable if name == target or name.endswith("." + target)]
        else:
            try:
                pattern = re.compile(target)
            except re.error as error:
                raise InputError(f"LoRA target '{target}' is not a regular expression: {error}") from error
            matches = [name for name in linears if pattern.fullmatch(name)]
        if not matches:
            raise InputError(
                f"LoRA target '{target}' matches no linear layer", hint=_close_names(target, linears, reachable)
            )
        found.update(matches)
    return sorted(found)


def in_vision(name: str, modules: Modules) -> bool:
    """Whether a dotted module name lies in the vision tower or in what turns its output into image tokens."""
    return modules.sees(name)


def lora_config(
    model: nn.Module, names: Sequence[str], settings: LoraSettings, whole: Sequence[str] = ()
) -> LoraConfig:
    """Return the peft configuration that adapts exactly the layers `names` of `model`, and trains `whole` modules.

    Where the last parts of the names ("q_proj") select the same layers they are written instead of
    the whole names: it is the form that other tools that read adapters expect.
    """
    chosen = set(names)
    leaves = {name.rpartition(".")[2] for name in names}
    # Every module counts here, not only linear ones: peft would try to adapt whatever has such a name.
    selected = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        target_modules=sorted(leaves if selected == chosen else chosen),
        modules_to_save=list(whole) or None,
    )


def _close_names(target: str, linears: Sequence[str], reachable: Sequence[str]) -> str:
    """Return a hint with linear layers' names that resemble `target`."""
    tail = target.rpartition(".")[2]
    if any(name.rpartition(".")[2] == tail for name in set(linears) - set(reachable)):
        return "only the vision tower has layers of this name: add --vision-lora to adapt it"
    leaves = sorted({name.rpartition(".")[2] for name in reachable})
    inside = sorted({name.rpartition(".")[2] for name in reachable if target in name.split(".")})
    close = inside or difflib.get_close_matches(tail, leaves, n=5, cutoff=0.5) or leaves
    return "linear layers have names like " + ", ".join(close)
