"""Which of NVML's GPUs is which of MLX's: NVML counts all of them along the PCI bus, CUDA those that it may see, in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.runtime.metrics.gpu.base import Gpu

ByUuid = Callable[[str], "Candidate | None"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU or MIG device of NVML; name and UUID are None where NVML does not tell them."""

    handle: Any
    name: str | None
    uuid: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """NVML's GPUs in its order. `countable`: CUDA counts the same ones, so that a number means something."""

    gpus: tuple[Candidate, ...]
    countable: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A place in CUDA's list. `certain`: named by UUID, so that it does not depend on any order."""

    candidate: Candidate
    certain: bool


def visible(machine: Machine, setting: str | None, by_uuid: ByUuid) -> list[Place]:
    """CUDA's list under `CUDA_VISIBLE_DEVICES`: indices, or UUIDs that may be cut short; CUDA stops at the first that it doesn't know."""
    if setting is None:
        return [Place(candidate, certain=False) for candidate in machine.gpus]
    found: list[Place] = []
    for entry in (part.strip() for part in setting.split(",")):
        by_number = entry.isdecimal() and int(entry) < len(machine.gpus)
        candidate = machine.gpus[int(entry)] if by_number else _named(entry, machine, by_uuid)
        if candidate is None:
            break
        found.append(Place(candidate, certain=not by_number))
    return found


def _named(entry: str, machine: Machine, by_uuid: ByUuid) -> Candidate | None:
    if entry.startswith("MIG-"):
        return by_uuid(entry)
    if not entry.startswith("GPU-"):
        return None
    matching = [candidate for candidate in machine.gpus if (candidate.uuid or "").startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def match(gpus: Sequence[Gpu], places: Sequence[Place], machine: Machine, along_the_bus: bool) -> dict[str, Candidate]:
    """What is sure, by `Gpu.key`; `along_the_bus`: CUDA was told to count as NVML does.

    Else CUDA puts the fastest first, and only among GPUs of one model, or by a name that is there once, is it sure which is meant:
    another GPU's figures would be worse than none.
    """
    names = [candidate.name for candidate in machine.gpus]
    alike = len(names) == 1 or (len(set(names)) == 1 and None not in names)
    found: dict[str, Candidate] = {}
    for gpu in gpus:
        if gpu.index >= len(places):
            continue
        place = places[gpu.index]
        if place.certain or (machine.countable and (along_the_bus or alike)):
            found[gpu.key] = place.candidate
        elif machine.countable and names.count(gpu.name) == 1:
            found[gpu.key] = machine.gpus[names.index(gpu.name)]
    return found
