"""Views of a runtime: status, devices, hosts, workers, sessions, operations, models and insights; and the help of the magics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.notebook.display.format import as_of, clock, duration, file_name, local_times
from openruntime_jupyter.notebook.display.html import (
    Column,
    RecordTable,
    Styled,
    View,
    code,
    joined,
    line,
    prose,
    sign,
    styled,
    table,
    task_id,
    warnings,
)
from openruntime_jupyter.schemas.ai import ModelInfo, ModelList
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.insights import Finding, Insights
from openruntime_jupyter.schemas.system import Device, Health, OperationInfo, Worker
from openruntime_jupyter.schemas.system import Session as WorkerSession


class OperationTable(RecordTable[OperationInfo]):
    """Operations and their parameters."""

    label, caption = "OpenRuntime operations", "Operations"
    columns = (
        Column("operation", lambda each: code(each.name), labelled=False),
        Column("description", lambda each: each.summary, "wrap", labelled=False),
        Column("parameters", lambda each: _parameters(each.parameters_schema), "wrap"),
    )


def _parameters(schema: dict[str, Any]) -> str:
    fields = schema.get("properties", {})
    return ", ".join(f"{name}={entry['default']!r}" if entry.get("default") is not None else name for name, entry in fields.items())


NAMED_DEVICE: tuple[Column[Device], ...] = (
    Column("device", lambda each: each.id, labelled=False),
    Column("name", lambda each: each.name, "wrap", labelled=False),
    Column("kind", lambda each: each.type.upper(), labelled=False),
    Column("state", lambda each: each.status, labelled=False),
    Column("running", lambda each: each.running, "number"),
    Column("waiting", lambda each: each.pending, "number"),
    Column("slots", lambda each: each.slots, "number"),
)
BLAS: Column[Device] = Column("BLAS", lambda each: each.blas or "")


def _free(device: Device) -> str:
    return _of(device.memory_available, device.memory_total)


def _of(available: int, memory: int) -> str:
    """Return the free and total memory, such as `"23.7 of 25.3 GB"`."""
    free, total = gigabytes(available), gigabytes(memory)
    amount, unit = free.split()
    return f"{amount if total.endswith(f' {unit}') else free} of {total}"


FREE_MEMORY = Column("free memory", _free)


class DeviceTable(RecordTable[Device]):
    """MLX devices."""

    label = "OpenRuntime devices"
    empty = "No devices known yet: the first worker reports them when it has started"
    columns = (
        *NAMED_DEVICE,
        Column("load", lambda each: _measured(each.utilization, " %"), "number"),
        FREE_MEMORY,
        Column("°C", lambda each: _measured(each.temperature_celsius), "number"),
        Column("W", lambda each: _measured(each.power_watts), "number"),
        BLAS,
    )

    def __init__(self, devices: Iterable[Device]) -> None:
        super().__init__(devices)
        self.caption = f"Devices · {as_of()}"

    def notes(self) -> Iterable[Styled]:
        """Return advice on the devices."""
        return warnings(_device_advice(self))


def _measured(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.0f}{unit}"


def _device_advice(devices: Iterable[Device]) -> list[str]:
    return [f"{device.id}: {device.advice}" for device in devices if device.advice]


def _devices_of(host: Host) -> str:
    return ", ".join(device.removeprefix(f"{host.name}.") for device in host.devices)


def _free_on(host: Host) -> str:
    return "" if host.memory_available is None or host.memory_total is None else _of(host.memory_available, host.memory_total)


class HostTable(RecordTable[Host]):
    """Other machines that run tasks of the runtime."""

    label = "OpenRuntime hosts"
    empty = (
        "All tasks run on the runtime's own machine. A server that is started by "
        "`jupyter openruntime --OpenRuntimeApp.engine=ssh --OpenRuntimeApp.hosts='[\"NAME\"]'` also uses the machine NAME"
    )
    columns = (
        Column("host", lambda each: each.name, labelled=False),
        Column("state", lambda each: each.state, labelled=False),
        Column("devices", _devices_of, "wrap"),
        Column("running", lambda each: f"{each.running} of {each.slots}" if each.slots else "", "number"),
        Column("CPU", lambda each: _measured(each.cpu_utilization, " %"), "number"),
        Column("free memory", _free_on),
        Column("models", lambda each: ", ".join(each.models), "wrap"),
        Column("round trip", lambda each: "" if each.round_trip_s is None else f"{1000 * each.round_trip_s:.1f} ms", "number"),
        Column("Python", lambda each: each.python or ""),
        Column("MLX", lambda each: each.mlx_version or ""),
        Column("address", lambda each: each.address, "wrap"),
        Column("since", lambda each: clock(each.since)),
    )

    def __init__(self, hosts: Iterable[Host]) -> None:
        super().__init__(hosts)
        self.caption = f"{summary_of(self)} · {as_of()}"

    def notes(self) -> Iterable[Styled]:
        """Return the problems of hosts that are not ready, with advice."""
        return warnings(_host_problems(self))


def _host_problems(hosts: Iterable[Host]) -> list[str]:
    return [": ".join(filter(None, (host.name, host.problem, host.advice))) for host in hosts if host.problem]


def summary_of(hosts: Sequence[Host]) -> str:
    """Return the numbers of hosts by state, such as `"3 hosts, 1 lost"`."""
    others = Counter(host.state for host in hosts if host.state != "ready")
    number = f"{len(hosts):,} {'host' if len(hosts) == 1 else 'hosts'}"
    return ", ".join([number, *(f"{others[state]} {state}" for state in others)])


ALONE = (
    "Only this notebook uses this queue. To share one queue among all notebooks, start a server with `jupyter openruntime` in a terminal, "
    "or install OpenRuntime in the environment of Jupyter Server and restart it. Then run `%openruntime connect auto`."
)
"""Note on a runtime inside a kernel."""


class Status(View):
    """Status of a runtime: address, health, devices, hosts and metrics. `health`, `devices` and `hosts` are the records."""

    label, kind = "OpenRuntime status", "ort-c"

    def __init__(self, where: str, health: Health, devices: Sequence[Device], hosts: Sequence[Host] = ()) -> None:
        self.where = where
        self.health = health
        self.devices = list(devices)
        self.hosts = list(hosts)
        self._read_at = as_of()

    def content(self) -> Iterable[Styled]:
        """Return the address, the metrics, problems and devices."""
        place = "inside this process" if self.where == "embedded" else f"at {self.where}"
        yield styled("strong", f"OpenRuntime {self.health.version}, {self.health.status}, {place}")
        yield line(joined(self._metrics()), class_="m")
        if self.where == "embedded":
            yield line(prose(ALONE), class_="m")
        yield from warnings([*self.health.problems, *_device_advice(self.devices)])
        if self.devices:
            yield table("Devices", (*NAMED_DEVICE, FREE_MEMORY, BLAS), self.devices)

    def _metrics(self) -> list[str]:
        metrics = self.health.metrics
        measured = {"CPU": metrics.cpu_utilization, "GPU": metrics.gpu_utilization, "memory": metrics.memory_usage}
        if not any(device.type == "gpu" for device in self.devices):
            del measured["GPU"]
        percents = [f"{name} {value:.0f} %" for name, value in measured.items() if value is not None]
        hosts = [summary_of(self.hosts)] if self.hosts else []
        return [*percents, *hosts, f"{metrics.active_tasks} running", f"{metrics.pending_tasks} waiting", self._read_at]


class WorkerTable(RecordTable[Worker]):
    """Worker processes. A device shared by all is shown in the caption."""

    label = "OpenRuntime workers"
    empty = "No workers running: the next task starts one"

    def __init__(self, workers: Sequence[Worker], devices: Mapping[str, str]) -> None:
        super().__init__(workers)

        def device(worker: Worker) -> str:
            return devices.get(worker.device or "", worker.device or "")

        names = {device(worker) for worker in workers}
        common = names.pop() if len(names) == 1 else ""
        count = f"{len(workers):,} {'worker' if len(workers) == 1 else 'workers'}"
        self.caption = " · ".join([count, *([f"on {common}"] if common else []), as_of()])
        self.columns = (
            Column("worker", lambda each: each.id, labelled=False),
            Column("device", lambda each: "" if common else device(each), "wrap", labelled=False),
            Column("state", lambda each: each.state, labelled=False),
            Column("task", lambda each: task_id(each.task_id) if each.task_id else ""),
            Column("session", lambda each: each.session_name or "", "wrap"),
            Column("model", lambda each: each.model or "", "wrap"),
            Column("tasks done", lambda each: each.tasks, "number"),
            Column("computed", lambda each: duration(each.device_time_s) if each.tasks else "", "number"),
            Column("memory", lambda each: _size(each.resident_bytes), "number"),
            Column("peak", lambda each: _size(each.resident_peak_bytes), "number"),
            Column("MLX's peak", lambda each: _size(each.mlx_peak_bytes), "number"),
        )


def _size(size: int | None) -> str:
    return "" if size is None else gigabytes(size)


class SessionTable(RecordTable[WorkerSession]):
    """Sessions. A notebook shared by all is shown in the caption."""

    label = "OpenRuntime sessions"
    empty = "No open sessions: `%%openruntime --session NAME` starts one"

    def __init__(self, sessions: Sequence[WorkerSession]) -> None:
        super().__init__(sessions)
        notebooks, owners = {file_name(each.notebook) for each in sessions}, {each.owner for each in sessions}
        common = notebooks.pop() if len(notebooks) == 1 else ""
        count = f"{len(sessions):,} {'session' if len(sessions) == 1 else 'sessions'}, most recently used first"
        self.caption = " · ".join([count, *([f"of {common}"] if common else []), as_of()])
        self.columns = (
            Column("session", lambda each: each.name, "wrap", labelled=False),
            Column("state", lambda each: str(each.state), labelled=False),
            Column("running", lambda each: task_id(each.task_id) if each.task_id else ""),
            Column("notebook", lambda each: "" if common else file_name(each.notebook), "wrap"),
            Column("owner", lambda each: (each.owner or "") if len(owners) > 1 else "", "wrap"),
            Column("tasks done", lambda each: each.tasks, "number"),
            Column("memory", lambda each: _size(each.resident_bytes), "number"),
            Column("last used", lambda each: clock(each.used_at)),
            Column("ends", lambda each: clock(each.expires_at) if each.expires_at else ""),
            Column("id", lambda each: code(each.id), "wrap"),
        )

    def notes(self) -> Iterable[Styled]:
        """Return advice on ended sessions."""
        return warnings(
            f"The session {each.name} has ended: {each.reason}. `%openruntime restart {each.name}` restarts it with an empty namespace"
            for each in self
            if each.reason
        )


class ModelTable(RecordTable[ModelInfo]):
    """Local models of the runtime. `profiles` are the remote providers, which are shown in the same table."""

    label = "OpenRuntime models"
    empty = (
        "No model is available for prompts: `%openruntime pull` downloads a small local model, "
        "and OPENAI_API_KEY in the server's environment or a profile in its configuration sets up a provider"
    )
    rows: tuple[Column[Sequence[str]], ...] = (
        Column("model", lambda row: row[0], "wrap", labelled=False),
        Column("engine", lambda row: row[1], labelled=False),
        Column("type", lambda row: row[2]),
        Column("size", lambda row: row[3], "number"),
        Column("needs", lambda row: row[4], "number"),
        Column("context", lambda row: row[5], "number"),
        Column("speed", lambda row: row[6], "number"),
        Column("can", lambda row: row[7], "wrap"),
        Column("in memory", lambda row: row[8]),
        Column("default", lambda row: row[9]),
        Column("hosts", lambda row: row[10]),
    )

    def __init__(self, found: ModelList) -> None:
        super().__init__(found.models)
        self.profiles = found.profiles
        self._read_at = as_of()

    def content(self) -> Iterable[Styled]:
        """Return a table of models and profiles."""
        remote_first = any(profile.default for profile in self.profiles)
        local = [
            (
                model.name,
                model.engine or "",
                model.quantisation or "",
                _size(model.bytes),
                _size(model.memory_bytes),
                "" if model.context_length is None else f"{model.context_length:,} tokens",
                "" if model.tokens_per_second is None else f"{model.tokens_per_second:.3g} tokens/s",
                ", ".join(model.abilities),
                "; ".join(_held(model)) or "—",
                "✓" if model.default and not remote_first else "",
                ", ".join(model.hosts),
            )
            for model in self
        ]
        remote = [
            (f"{each.name}: {each.model or 'no model set'}", "profile", *[""] * 6, "remote", "✓" if each.default else "", "")
            for each in self.profiles
        ]
        rows = [*local, *remote]
        caption = f"Models · {self._read_at}" if any(model.resident for model in self) else "Models"
        return [table(caption, self.rows, rows) if rows else line(prose(self.empty), class_="m")]


def _held(model: ModelInfo) -> list[str]:
    """Return the states of the workers that hold the model."""
    held = []
    for worker in model.resident:
        size = "" if worker.resident_bytes is None else f", {gigabytes(worker.resident_bytes)}"
        if worker.idle_seconds is None:
            held.append(f"busy with {worker.task_id}{size}")
        else:
            held.append(f"idle{size}, for {duration(max(0.0, worker.keep_alive_seconds - worker.idle_seconds))} more")
    return held


SEVERITIES = {"warning": ("✕", "no"), "notice": ("!", "wa"), "info": ("·", "m")}


class InsightsCard(View):
    """Findings from the recorded history, most important first. `insights` is the record."""

    label, kind = "OpenRuntime insights", "ort-c"

    def __init__(self, insights: Insights) -> None:
        self.insights = insights

    @property
    def findings(self) -> list[Finding]:
        """Findings with their metrics, times and tasks."""
        return self.insights.findings

    def content(self) -> Iterable[Styled]:
        """Return the findings with local times and with names in code style: as reworded by a model, or with their severities."""
        insights = self.insights
        yield styled("strong", f"{insights.metric_type} over the last {insights.timeframe}, at {clock(insights.timestamp)}")
        if insights.worded_by != "none":
            yield from (line(self._prose(each)) for each in insights.insights.splitlines() if each.strip())
            return
        for finding in self.findings:
            mark, colour = SEVERITIES[finding.severity]
            yield line(sign(mark, colour, finding.severity), " ", self._prose(finding.text))
            if finding.advice:
                yield line(self._prose(finding.advice), class_="m")

    def _prose(self, text: str) -> Styled:
        return prose(local_times(text, self.insights.timestamp))


class Help(View):
    """Tables of commands and options, with a note below. Both have rows of a usage and its description."""

    label, kind = "OpenRuntime help", "ort-c"

    def __init__(self, title: str, commands: Sequence[tuple[str, str]], options: Sequence[tuple[str, str]], note: str) -> None:
        self.commands = commands
        self._title, self._options, self._note = title, options, note

    def content(self) -> Iterable[Styled]:
        """Return the tables and the note."""
        yield _usages(self._title, "command", self.commands)
        yield _usages("Options", "option", self._options)
        yield line(self._note, class_="m")

    def text(self) -> str:
        """Return the view as plain text, with blank lines between the tables."""
        return "\n\n".join(self.content())


def _usages(caption: str, name: str, rows: Sequence[tuple[str, str]]) -> Styled:
    usage = Column[tuple[str, str]](name, lambda row: code(row[0]), "wrap", labelled=False)
    return table(caption, [usage, Column("description", lambda row: prose(row[1]), "wrap", labelled=False)], rows)
