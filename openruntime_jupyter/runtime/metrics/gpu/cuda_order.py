"""Matching of NVML's GPUs with MLX's: NVML lists all GPUs in PCI bus order, CUDA the visible ones in its own order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.runtime.metrics.gpu.base import Gpu

ByUuid = Callable[[str], "Candidate | None"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU or MIG device of NVML; name and UUID are None if NVML does not report them."""

    handle: Any
    name: str | None
    uuid: str | None


@dataclass(frozen=True, slots=True)
class NvmlGpus:
    """NVML's GPUs in order. If `countable`, CUDA lists the same GPUs, so that indices can be compared."""

    gpus: tuple[Candidate, ...]
    countable: bool


@dataclass(frozen=True, slots=True)
class VisibleDevice:
    """Entry of CUDA's device list; `certain` if it was named by UUID and so does not depend on the order."""

    candidate: Candidate
    certain: bool


def visible(machine: NvmlGpus, setting: str | None, by_uuid: ByUuid) -> list[VisibleDevice]:
    """Return CUDA's device list for a value of `CUDA_VISIBLE_DEVICES`.

    The value lists indices or UUIDs, which may be abbreviated. Like CUDA, ignore everything from the first unknown entry on.
    """
    if setting is None:
        return [VisibleDevice(candidate, certain=False) for candidate in machine.gpus]
    found: list[VisibleDevice] = []
    for entry in (part.strip() for part in setting.split(",")):
        by_number = entry.isdecimal() and int(entry) < len(machine.gpus)
        candidate = machine.gpus[int(entry)] if by_number else _named(entry, machine, by_uuid)
        if candidate is None:
            break
        found.append(VisibleDevice(candidate, certain=not by_number))
    return found


def _named(entry: str, machine: NvmlGpus, by_uuid: ByUuid) -> Candidate | None:
    if entry.startswith("MIG-"):
        return by_uuid(entry)
    if not entry.startswith("GPU-"):
        return None
    matching = [candidate for candidate in machine.gpus if (candidate.uuid or "").startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def match(gpus: Sequence[Gpu], places: Sequence[VisibleDevice], machine: NvmlGpus, along_the_bus: bool) -> dict[str, Candidate]:
    """Return the certain matches by `Gpu.key`; `along_the_bus` means that CUDA uses the PCI bus order, as NVML does.

    Otherwise CUDA puts the fastest GPU first, and a match is certain only if all GPUs have the same name or the name is unique.
    Uncertain matches are omitted, because metrics of the wrong GPU are worse than none.
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
