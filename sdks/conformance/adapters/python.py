"""Performs the steps of conformance cases with `openruntime-sdk`; see ../runner.py. It holds no expectation."""

from __future__ import annotations

import array
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from openruntime import Client, TaskHandle, connect, errors

LONGEST_LISTENING = 30.0
FORMATS = {"float32": "f", "float64": "d", "int64": "q", "bool": "B", "bfloat16": "H"}
KINDS: dict[type[BaseException], str] = {
    TimeoutError: "aborted",
    errors.ArrayConflict: "conflict",
    errors.ArrayNotFound: "not_found",
    errors.ConversationNotFound: "not_found",
    errors.ModelNotFound: "not_found",
    errors.NotConnected: "connection",
    errors.SessionNotFound: "not_found",
    errors.TaskConflict: "conflict",
    errors.TaskNotFound: "not_found",
}
"""Names of classes that differ from those of the other SDKs; the others are the class in snake case, which is also the code."""

Step = dict[str, Any]


def snake_case(name: str) -> str:
    """Return the name of a class in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def problem(error: BaseException) -> dict[str, Any]:
    """Return what a program sees of an error."""
    lineage = [kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
    named = [KINDS[kind] for kind in type(error).__mro__ if kind in KINDS]
    general = (
        {"InvalidRequest", "Unavailable"} & {kind.__name__ for kind in lineage} if not isinstance(error, errors.RateLimited) else set()
    )
    found: dict[str, Any] = {
        "error": named[0] if named else snake_case(min(general, default=type(error).__name__)),
        "code": snake_case(type(error).__name__),
        "retry_after": getattr(error, "retry_after", None),
        "message": str(error),
    }
    if isinstance(error, errors.InvalidRequest):
        found |= {"status": 422, "fields": [detail["field"] for detail in error.details]}
    if isinstance(error, errors.BodyTooLarge):
        found["status"] = 413
    if isinstance(error, errors.TaskError):
        found |= {"task_status": error.task.status.value, "type": error.task.failure.type if error.task.failure else None}
    return found


def summary(task: Any) -> dict[str, Any]:
    """Return the fields of a record that cases compare."""
    output = task.result.output if task.result else None
    return {"status": task.status.value, "operation": task.operation, "output": output, "has_parameters": bool(task.parameters)}


def wire(model: Any) -> Any:
    """Return a record as JSON."""
    return model.model_dump(mode="json")


def counted(items: Iterable[Any]) -> dict[str, Any]:
    """Return the number of items."""
    return {"count": len(list(items))}


class Listener:
    """Collector of events."""

    def __init__(self, client: Client, topics: list[str]) -> None:
        self.completed: set[str] = set()
        self.types: set[str] = set()
        self.gap = False
        connected = threading.Event()

        def tell(message: dict[str, Any]) -> None:
            if message["type"] == "connected":
                # The gap of the first connection is what happened before.
                self.gap = self.gap or (connected.is_set() and bool(message.get("gap")))
                connected.set()
            self.types.add(message["type"])
            if message["type"] == "task_update" and message["data"]["status"] == "completed":
                self.completed.add(message["data"]["task_id"])

        self.watch = client.watch(topics, tell)
        if not connected.wait(LONGEST_LISTENING):
            raise TimeoutError("no `connected`")


class Player:
    """State of one case."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.ids: dict[str, str] = {}
        self.handles: dict[str, TaskHandle] = {}
        self.batches: dict[str, list[TaskHandle]] = {}
        self.listener: Listener | None = None
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Return the client, which connects at first use."""
        if self._client is None:
            self._client = connect(self.order["url"], self.order["token"]).with_options(name=self.order["mark"])
        return self._client

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def id(self, name: str) -> str:
        """Return the id that a step has stored under a name, or the name."""
        return self.ids.get(name, name)

    def handle(self, step: Step) -> TaskHandle:
        """Return the handle of a step's task."""
        return self.handles.get(step["task"]) or self.client.task(step["task"])

    def with_options(self, step: Step) -> Client:
        """Return the client with the step's options."""
        return self.client.with_options(**step.get("options", {}), deadline=step.get("abort_after_s"))

    def run(self, step: Step) -> Any:
        """Run a task."""
        output = self.with_options(step).run(step["operation"], **step["parameters"])
        if "as" in step:
            self.ids[step["as"]] = next(self.client.iter_tasks(name=self.order["mark"], limit=1)).task_id
        return {"status": "completed", "operation": step["operation"], "output": output}

    def submit(self, step: Step) -> Any:
        """Submit a task."""
        self.handles[step["as"]] = self.with_options(step).submit(step["operation"], **step["parameters"])
        return {"submitted": True}

    def submit_for_output(self, step: Step) -> Any:
        """Submit a task and read its first output."""
        handle = self.with_options(step).submit_for_output(step["operation"], step["wait_s"], **step["parameters"])
        return {"text": "".join(item.text or "" for item in handle.follow_output().items), "status": handle.status.value}

    def payload(self, step: Step) -> Any:
        """Download an opaque result."""
        handle = self.handle(step)
        return {"encoding": handle.task.result.payload.encoding, "bytes": len(handle.payload())}

    def wait(self, step: Step) -> Any:
        """Wait for a task."""
        handle = self.handle(step)
        if "abort_after_s" in step:
            handle.result(step["abort_after_s"])
        return summary(handle.wait())

    def completed(self, step: Step) -> Any:
        """Wait for the result of a task."""
        self.handle(step).result()
        return self.get(step)

    def cancel(self, step: Step) -> Any:
        """Cancel a task."""
        return summary(self.handle(step).cancel())

    def purge(self, step: Step) -> Any:
        """Delete a task."""
        handle = self.handle(step)
        handle.purge()
        return summary(handle.last_seen)

    def set_priority(self, step: Step) -> Any:
        """Change a priority."""
        return summary(self.handle(step).set_priority(step["priority"]))

    def get(self, step: Step) -> Any:
        """Read a task."""
        return summary(self.handle(step).described())

    def output(self, step: Step) -> Any:
        """Follow the output of a task."""
        return {"text": "".join(item.text or "" for item in self.handle(step).iter_output())}

    def submit_many(self, step: Step) -> Any:
        """Submit a batch."""
        outcomes = self.client.submit_batch(step["tasks"])
        self.batches[step["as"]] = [each for each in outcomes if isinstance(each, TaskHandle)]
        problems = [[index, problem(each)["error"]] for index, each in enumerate(outcomes) if isinstance(each, errors.OpenRuntimeError)]
        return {"submitted": len(self.batches[step["as"]]), "error_count": len(problems), "errors": problems}

    def results(self, step: Step) -> Any:
        """Wait for the tasks of a batch."""
        handles = self.batches[step["of"]]
        self.client.results(handles)
        return {"statuses": [handle.status.value for handle in handles]}

    def list(self, step: Step) -> Any:
        """Read all tasks."""
        tasks = list(self.client.iter_tasks(name=self.order["mark"], limit=step["limit"], states=step["filter"].get("state")))
        return {"count": len(tasks), "distinct": len({task.task_id for task in tasks})}

    def page(self, step: Step) -> Any:
        """Read a page of tasks."""
        page = self.client.tasks(name=self.order["mark"], limit=step["limit"])
        return {"count": len(page.tasks), "total_count": page.total_count}

    def enhanced(self, step: Step) -> Any:
        """Read a page in the format of the reference."""
        return counted(self.client.enhanced(step["limit"]).tasks)

    def ask(self, step: Step) -> Any:
        """Stream a response."""
        handle = self.client.ask(step["prompt"], **step["parameters"])
        text = "".join(handle)
        return {"status": handle.wait().status.value, "text_is_result": text == str(handle.result())}

    def answer(self, step: Step) -> Any:
        """Wait for a response."""
        reply = self.client.ask(step["prompt"], **step["parameters"]).result()
        return {"model_used": reply.model, "completion_tokens": reply.usage.completion_tokens}

    def conversation(self, step: Step) -> Any:
        """Read a conversation."""
        return {"messages": len(self.client.conversation(step["name"]).messages)}

    def delete_conversation(self, step: Step) -> Any:
        """Delete a conversation."""
        return {"messages": len(self.client.delete_conversation(step["name"]).messages)}

    def listen(self, step: Step) -> Any:
        """Start to listen."""
        self.listener = Listener(self.client, step["topics"])
        return {"connected": True}

    def heard(self, step: Step) -> Any:
        """Wait for events."""
        listener = self.listener
        assert listener is not None
        wanted, types = {self.id(name) for name in step["completed"]}, set(step.get("types", ()))
        end = time.monotonic() + LONGEST_LISTENING
        while time.monotonic() < end:
            if wanted <= listener.completed and types <= listener.types and (listener.gap or not step.get("gap")):
                break
            time.sleep(0.01)
        listener.watch.close()
        return {"completed": len(wanted & listener.completed), "gap": listener.gap, "missing_types": sorted(types - listener.types)}

    def put_array(self, step: Step) -> Any:
        """Upload an array."""
        data = array.array(FORMATS[step["dtype"]], step["data"])
        return wire(self.client.arrays.put(step["id"], data, shape=step["shape"], dtype=step["dtype"]))

    def array_round_trip(self, step: Step) -> Any:
        """Upload and download an array."""
        name = f"round-trip-{uuid.uuid4()}"
        self.put_array({**step, "id": name})
        found = self.client.arrays.get(name)
        self.client.arrays.delete(name)
        elements = array.array(FORMATS[step["dtype"]], bytes(found.data))
        return {"dtype": found.dtype, "shape": list(found.shape), "data": list(elements)}

    def get_array(self, step: Step) -> Any:
        """Download an array."""
        return {"dtype": self.client.arrays.get(step["id"]).dtype}

    def reserve_array(self, step: Step) -> Any:
        """Reserve space."""
        found = self.client.arrays.reserve(step["shape"], step["dtype"])
        self.ids[step["as"]] = found.id
        return wire(found)

    def mark_array_ready(self, step: Step) -> Any:
        """Mark an array as complete."""
        return wire(self.client.arrays.mark_ready(self.id(step["id"])))

    def array_info(self, step: Step) -> Any:
        """Describe an array."""
        return wire(self.client.arrays.info(step["id"]))

    def arrays(self, _: Step) -> Any:
        """List the arrays."""
        return counted(self.client.arrays.list().arrays)

    def delete_array(self, step: Step) -> Any:
        """Delete an array."""
        return wire(self.client.arrays.delete(step["id"]))

    def sessions(self, step: Step) -> Any:
        """Find a session."""
        found = next(session for session in self.client.sessions() if session.name == step["name"])
        self.ids[step["as"]] = found.id
        return wire(found)

    def restart_session(self, step: Step) -> Any:
        """Restart a session."""
        return wire(self.client.restart_session(self.id(step["id"])))

    def end_session(self, step: Step) -> Any:
        """End a session."""
        return wire(self.client.free_session(self.id(step["id"])))

    def unload(self, step: Step) -> Any:
        """Unload a model."""
        return self.client.unload(step["name"])

    def info(self, _: Step) -> Any:
        """Read the service's name."""
        return wire(self.client.info())

    def openapi(self, _: Step) -> Any:
        """Read the document."""
        return {"openapi": self.client.openapi()["openapi"]}

    def health(self, _: Step) -> Any:
        """Read the health."""
        return wire(self.client.health())

    def metrics(self, _: Step) -> Any:
        """Read the metrics."""
        return wire(self.client.metrics())

    def metrics_history(self, step: Step) -> Any:
        """Read the metrics over time."""
        return {"timeframe": self.client.metrics_history(step["timeframe"], step["points"]).timeframe}

    def insights(self, step: Step) -> Any:
        """Read findings."""
        return wire(self.client.insights(step["metric_type"], step["timeframe"], "none"))

    def discover(self, _: Step) -> Any:
        """Find a local server."""
        with connect() as client:
            return wire(client.health())

    def counted(self, name: str) -> Callable[[Step], Any]:
        """Return a step that counts what a method of the client returns."""
        read: dict[str, Callable[[], Iterable[Any]]] = {
            "agents": lambda: self.client.agents().agents,
            "conversations": self.client.conversations,
            "devices": self.client.devices,
            "hosts": self.client.hosts,
            "models": lambda: self.client.models().models,
            "operations": self.client.operations,
            "workers": self.client.workers,
            "workflows": self.client.workflows,
        }
        return lambda _: counted(read[name]())


def main() -> None:
    """Perform all orders."""
    for line in sys.stdin:
        order = json.loads(line)
        player = Player(order)
        results = []
        for step in order["steps"]:
            try:
                perform = getattr(player, step["do"], None) or player.counted(step["do"])
                results.append(perform(step))
            except Exception as error:  # the result of the step
                results.append(problem(error))
        player.close()
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
