"""Views of a runtime: status, devices, workers, sessions and operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.notebook.display.format import clock, duration
from openruntime_jupyter.notebook.display.html import View, block, joined, places, prose, table, tag, text_table
from openruntime_jupyter.schemas.sessions import Session as WorkerSession
from openruntime_jupyter.schemas.system import Device, Health, OperationInfo, Worker


class OperationTable(View, list[OperationInfo]):
    """Operations and their parameters: a list of records that is displayed as a table."""

    COLUMNS = ("operation", "description", "parameters")

    def _rows(self) -> list[list[str]]:
        return [[entry.name, entry.summary, _parameters(entry.parameters_schema)] for entry in self]

    def html(self) -> str:
        """Return the view as HTML."""
        rows = [[tag("code", name), summary, parameters] for name, summary, parameters in self._rows()]
        return block("OpenRuntime operations", table("Operations", self.COLUMNS, rows, wide=(1, 2), plain=(0, 1)))

    def text(self) -> str:
        """Return the view as plain text."""
        return text_table(self.COLUMNS, self._rows())


class Status(View):
    """Status of a runtime: address, health, devices and metrics. `health` and `devices` are the records."""

    COLUMNS = ("device", "name", "kind", "state", "running", "waiting", "slots", "free memory", "BLAS")

    def __init__(self, where: str, health: Health, devices: Sequence[Device]) -> None:
        self.where = where
        self.health = health
        self.devices = list(devices)

    @property
    def _head(self) -> str:
        place = "inside this process" if self.where == "embedded" else f"at {self.where}"
        return f"OpenRuntime {self.health.version}, {self.health.status}, {place}"

    def _rows(self) -> list[list[Any]]:
        return [[*_state(device), _free(device), device.blas or "—"] for device in self.devices]

    @property
    def _metrics(self) -> list[str]:
        metrics = self.health.metrics
        shown = [("CPU", metrics.cpu_utilization), ("GPU", metrics.gpu_utilization), ("memory", metrics.memory_usage)]
        percents = [f"{name} {value:.0f} %" for name, value in shown if value is not None and (name != "GPU" or self._has_gpu)]
        return [*percents, f"{metrics.active_tasks} running", f"{metrics.pending_tasks} waiting"]

    @property
    def _has_gpu(self) -> bool:
        return any(device.type == "gpu" for device in self.devices)

    @property
    def _advice(self) -> list[str]:
        return [*self.health.problems, *(f"{device.id}: {device.advice}" for device in self.devices if device.advice)]

    def html(self) -> str:
        """Return the view as HTML."""
        lines = [tag("strong", self._head), tag("div", joined(self._metrics), class_="m")]
        lines += [tag("div", f"! {problem}", class_="wa") for problem in self._advice]
        return block(
            "OpenRuntime status",
            *lines,
            *([table("Devices", self.COLUMNS, self._rows(), (4, 5, 6), wide=(1,), plain=(0, 1, 2, 3))] if self.devices else []),
            kind="ort-c",
        )

    def text(self) -> str:
        """Return the view as plain text."""
        lines = [self._head, " · ".join(self._metrics), *(f"! {problem}" for problem in self._advice)]
        return "\n".join([*lines, *([text_table(self.COLUMNS, self._rows())] if self.devices else [])])


class DeviceTable(View, list[Device]):
    """MLX devices: a list of records that is displayed as a table."""

    COLUMNS = ("device", "name", "kind", "state", "running", "waiting", "slots", "load", "free memory", "°C", "W", "BLAS")

    def _rows(self) -> list[list[Any]]:
        return [
            [
                *_state(device),
                "" if device.utilization is None else f"{device.utilization:.0f} %",
                _free(device),
                "" if device.temperature_celsius is None else f"{device.temperature_celsius:.0f}",
                "" if device.power_watts is None else f"{device.power_watts:.0f}",
                device.blas or "",
            ]
            for device in self
        ]

    def html(self) -> str:
        """Return the view as HTML."""
        if not self:
            return block("OpenRuntime devices", tag("div", NO_DEVICES, class_="m"))
        columns, rows = _filled(self.COLUMNS, self._rows())
        advice = [tag("div", f"! {device.id}: {device.advice}", class_="wa") for device in self if device.advice]
        numeric = places(columns, ("running", "waiting", "slots", "load", "°C", "W"))
        wide, plain = places(columns, ("name",)), places(columns, ("device", "name", "kind", "state"))
        return block("OpenRuntime devices", table("Devices", columns, rows, numeric, wide, plain), *advice)

    def text(self) -> str:
        """Return the view as plain text."""
        columns, rows = _filled(self.COLUMNS, self._rows())
        advice = [f"! {device.id}: {device.advice}" for device in self if device.advice]
        return "\n".join([text_table(columns, rows), *advice]) if self else NO_DEVICES


class WorkerTable(View, list[Worker]):
    """Worker processes: a list of records that is displayed as a table. A device shared by all is shown in the caption."""

    COLUMNS = ("worker", "device", "state", "task", "session", "model", "tasks done", "computed", "memory", "peak", "MLX's peak")

    def __init__(self, workers: Sequence[Worker], devices: Mapping[str, str]) -> None:
        super().__init__(workers)
        self._devices = devices

    def _device(self, worker: Worker) -> str:
        return self._devices.get(worker.device or "", worker.device or "")

    @property
    def _common(self) -> str | None:
        return self._device(self[0]) if len({worker.device for worker in self}) == 1 else None

    @property
    def _caption(self) -> str:
        number = f"{len(self):,} {'worker' if len(self) == 1 else 'workers'}"
        return f"{number} · on {self._common}" if self._common else number

    def _rows(self) -> list[list[Any]]:
        return [
            [
                worker.id,
                "" if self._common else self._device(worker),
                worker.state,
                worker.task_id or "",
                worker.session_name or "",
                worker.model or "",
                worker.tasks,
                duration(worker.device_time_s) if worker.tasks else "",
                *(
                    "" if size is None else gigabytes(size)
                    for size in (worker.resident_bytes, worker.resident_peak_bytes, worker.mlx_peak_bytes)
                ),
            ]
            for worker in self
        ]

    def html(self) -> str:
        """Return the view as HTML."""
        if not self:
            return block("OpenRuntime workers", tag("div", NO_WORKERS, class_="m"))
        columns, rows = _filled(self.COLUMNS, self._rows())
        numeric, wide, plain = (
            places(columns, self.COLUMNS[6:]),
            places(columns, ("device", "task", "session", "model")),
            places(columns, self.COLUMNS[:3]),
        )
        return block("OpenRuntime workers", table(self._caption, columns, rows, numeric, wide, plain))

    def text(self) -> str:
        """Return the view as plain text."""
        return f"{self._caption}\n{text_table(*_filled(self.COLUMNS, self._rows()))}" if self else NO_WORKERS


class SessionTable(View, list[WorkerSession]):
    """Sessions: a list of records that is displayed as a table. A notebook shared by all is shown in the caption."""

    COLUMNS = ("session", "state", "running", "notebook", "owner", "tasks done", "memory", "last used", "ends", "id")

    def _rows(self, code: Callable[[str], Any]) -> tuple[list[str], list[list[Any]]]:
        rows = [
            [
                each.name,
                str(each.state),
                code(each.task_id) if each.task_id else "",
                "" if len(self._notebooks) == 1 else _file(each),
                "" if len(self._owners) == 1 else each.owner or "",
                each.tasks,
                _size(each.resident_bytes),
                clock(each.used_at),
                clock(each.expires_at) if each.expires_at else "",
                code(each.id),
            ]
            for each in self
        ]
        return _filled(self.COLUMNS, rows)

    @property
    def _notebooks(self) -> set[str]:
        return {each.notebook or "" for each in self}

    @property
    def _owners(self) -> set[str]:
        return {each.owner or "" for each in self}

    @property
    def _caption(self) -> str:
        parts = [f"{len(self):,} {'session' if len(self) == 1 else 'sessions'}, most recently used first"]
        if len(self._notebooks) == 1 and _file(self[0]):
            parts.append(f"of {_file(self[0])}")
        return " · ".join(parts)

    @property
    def _advice(self) -> list[str]:
        return [
            f"! The session {each.name} has ended: {each.reason}. `%openruntime restart {each.name}` restarts it with an empty namespace"
            for each in self
            if each.reason
        ]

    def html(self) -> str:
        """Return the view as HTML."""
        if not self:
            return block("OpenRuntime sessions", tag("div", prose(NO_SESSIONS), class_="m"))
        columns, rows = self._rows(lambda text: tag("code", text))
        numeric = places(columns, ("tasks done", "memory"))
        wide, plain = places(columns, ("session", "running", "notebook", "owner", "id")), places(columns, ("session", "state"))
        advice = [tag("div", prose(line), class_="wa") for line in self._advice]
        return block("OpenRuntime sessions", table(self._caption, columns, rows, numeric, wide, plain), *advice)

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n".join([self._caption, text_table(*self._rows(str)), *self._advice]) if self else NO_SESSIONS


NO_SESSIONS = "No open sessions: `%%openruntime --session NAME` starts one"
NO_DEVICES = "No devices known yet: the first worker reports them when it has started"
NO_WORKERS = "No workers running: the next task starts one"


def _size(size: int | None) -> str:
    return "" if size is None else gigabytes(size)


def _file(session: WorkerSession) -> str:
    return PurePath(session.notebook).name if session.notebook else ""


def _state(device: Device) -> list[Any]:
    return [device.id, device.name, device.type.upper(), device.status, device.running, device.pending, device.slots]


def _free(device: Device) -> str:
    """Return the free and total memory, such as `"23.7 of 25.3 GB"`."""
    free, total = gigabytes(device.memory_available), gigabytes(device.memory_total)
    amount, unit = free.split()
    return f"{amount if total.endswith(f' {unit}') else free} of {total}"


def _filled(columns: Sequence[str], rows: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the non-empty columns. Values that this machine cannot measure are omitted."""
    kept = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _parameters(schema: dict[str, Any]) -> str:
    fields = schema.get("properties", {})
    return ", ".join(f"{name}={entry['default']!r}" if entry.get("default") is not None else name for name, entry in fields.items())
