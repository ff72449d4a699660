/** Tasks: submit, wait, list, cancel. */
import { ApiError, taskError } from "./errors.js";
import type { BatchItem, BatchProblem, OutputItem, ResultItem, Task, TaskOrder, TaskOutput, TaskPage, TaskState } from "./schema.js";
import type { Call, Query, Transport } from "./transport.js";
import { ORIGIN, isTerminal, type CompletedTask, type Operation, type ParametersOf, type SubmitOptions } from "./types.js";

/** Seconds of one request of a longer wait. Proxies close connections that are silent for longer. */
const LONGEST_WAIT_S = 20;
/** Largest batch of the server. */
const LARGEST_BATCH = 5_000;
/** Milliseconds to find and cancel the task of an aborted call. */
const CLEAN_UP_MS = 10_000;

export interface TaskFilter {
  state?: readonly TaskState[];
  operation?: string;
  owner?: string;
  notebook?: string;
  /** Text that the task's name contains. */
  name?: string;
  /** Page size, 1 to 1000. */
  limit?: number;
}

export interface PageQuery extends TaskFilter {
  /** `next` lists pending tasks in the order in which they will run. */
  order?: TaskOrder;
  /** Id of a task: only older tasks. */
  before?: string | null;
  offset?: number;
}

export interface BatchTask extends Omit<SubmitOptions, "signal" | "idempotencyKey"> {
  operation: Operation;
  parameters?: object;
}

/** Start a request body: parameters, options and origin. */
function submission(operation: string, parameters: object, { signal: _, idempotencyKey: __, ...fields }: SubmitOptions): object {
  return { operation, parameters, origin: ORIGIN, ...fields };
}

export function headersOf(key: string, waitS = 0): Record<string, string> {
  return { "Idempotency-Key": key, Prefer: waitS > 0 ? `wait=${waitS}` : "respond-async" };
}

/** Await `work`. If `signal` has aborted, cancel the task that `find` returns. */
export async function orCancel<T>(signal: AbortSignal | undefined, work: Promise<T>, find: (limit: AbortSignal) => Promise<TaskHandle>): Promise<T> {
  try {
    return await work;
  } catch (problem) {
    if (signal?.aborted) {
      const limit = AbortSignal.timeout(CLEAN_UP_MS);
      await find(limit)
        .then((handle) => handle.cancel({ signal: limit }))
        .catch(() => undefined); // the abort is the error of the call
    }
    throw problem;
  }
}

export class Tasks {
  readonly #transport: Transport;
  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Submit a task. It continues without this program. */
  async submit<Name extends Operation>(operation: Name, parameters: ParametersOf<Name>, options: SubmitOptions = {}): Promise<TaskHandle<Name>> {
    const key = options.idempotencyKey ?? crypto.randomUUID();
    return new TaskHandle(this.#transport, await this.#post(operation, parameters, options, key, 0));
  }

  /** Run a task and return its record. Throws a `TaskError` if it does not complete. An abort of `signal` cancels the task. */
  async run<Name extends Operation>(operation: Name, parameters: ParametersOf<Name>, options: SubmitOptions = {}): Promise<CompletedTask<Name>> {
    const { signal } = options;
    const key = options.idempotencyKey ?? crypto.randomUUID();
    const post = async (waitS: number, signal: AbortSignal | undefined): Promise<TaskHandle<Name>> =>
      new TaskHandle(this.#transport, await this.#post(operation, parameters, { ...options, signal }, key, waitS));
    signal?.throwIfAborted();
    // The server may have queued the task although its response was not read: the same key finds it.
    const handle = await orCancel(signal, post(LONGEST_WAIT_S, signal), (limit) => post(0, limit));
    return orCancel(signal, handle.completed({ signal }), () => Promise.resolve(handle));
  }

  /**
   * Submit many tasks, in parts that the server accepts. Returns a handle or an error for each, in the same order.
   * `durable: false` is faster; the tasks are interrupted if the server ends first.
   */
  async submitMany(
    tasks: readonly BatchTask[],
    { durable = true, idempotencyKey = crypto.randomUUID(), signal }: { durable?: boolean; idempotencyKey?: string } & Call = {},
  ): Promise<(TaskHandle | ApiError)[]> {
    const found: (TaskHandle | ApiError)[] = [];
    for (let start = 0; start < tasks.length; start += LARGEST_BATCH) {
      const part = tasks.slice(start, start + LARGEST_BATCH).map(({ operation, parameters = {}, ...fields }) => submission(operation, parameters, fields));
      const headers = { "Idempotency-Key": start === 0 ? idempotencyKey : `${idempotencyKey}-${start}` };
      const json = { tasks: part, durable };
      const answer = await this.#transport.json<{ tasks: BatchItem[] }>("POST", "/tasks/batch", { json, headers, signal, waitMs: 60_000 });
      found.push(...answer.tasks.map(({ task, error }) => (task ? new TaskHandle(this.#transport, task) : batchError(error!))));
    }
    return found;
  }

  /** Yield the result of each task when it has ended: its record, or an error for an unknown task. */
  async *results(ids: readonly string[], { signal }: Call = {}): AsyncGenerator<ResultItem> {
    const left = new Set(ids);
    const reconnection = this.#transport.reconnection(signal);
    while (left.size > 0) {
      const json = { tasks: [...left].slice(0, LARGEST_BATCH), at_least: 1, wait: LONGEST_WAIT_S };
      let results: ResultItem[];
      try {
        ({ results } = await this.#transport.json<{ results: ResultItem[] }>("POST", "/tasks/batch/results", { json, signal, waitMs: 1000 * LONGEST_WAIT_S }));
      } catch (problem) {
        await reconnection.pause(problem);
        continue;
      }
      reconnection.progress();
      for (const result of results) if (left.delete(result.task_id)) yield result;
    }
  }

  /** Submit a task and return its first output and its record, after at most `waitS` seconds. Continue with `handle(id).output()`. */
  submitForOutput<Name extends Operation>(operation: Name, parameters: ParametersOf<Name>, waitS: number, options: SubmitOptions = {}): Promise<TaskOutput> {
    return this.#transport.json("POST", "/tasks/output", {
      query: { wait: waitS },
      json: submission(operation, parameters, options),
      headers: { "Idempotency-Key": options.idempotencyKey ?? crypto.randomUUID() },
      signal: options.signal,
      waitMs: 1000 * waitS,
    });
  }

  /** Return the handle of a task by its id, without a request. */
  handle(id: string): TaskHandle {
    return new TaskHandle(this.#transport, id);
  }

  /** Return the record of a task with its parameters; with `summary`, large values are described. */
  get(id: string, { signal, summary }: { summary?: boolean } & Call = {}): Promise<Task> {
    return this.#transport.json("GET", pathOf(id), { query: { summary }, signal });
  }

  /** Yield all tasks, newest first. */
  async *list(filter: TaskFilter = {}, call: Call = {}): AsyncGenerator<Task> {
    let before: string | null = null;
    do {
      const page: TaskPage = await this.page({ ...filter, before }, call);
      yield* page.tasks;
      before = page.next_before;
    } while (before !== null);
  }

  /** Return one page of tasks. */
  page(query: PageQuery = {}, { signal }: Call = {}): Promise<TaskPage> {
    return this.#transport.json("GET", "/tasks", { query: { ...query } satisfies Query, signal });
  }

  /** Return one page of tasks in the format of the OpenRuntime reference. */
  enhanced(query: Pick<PageQuery, "limit" | "offset" | "before"> = {}, { signal }: Call = {}): Promise<TaskPage> {
    return this.#transport.json("GET", "/tasks/enhanced", { query: { ...query } satisfies Query, signal });
  }

  #post(operation: string, parameters: object, options: SubmitOptions, key: string, waitS: number): Promise<Task> {
    const json = submission(operation, parameters, options);
    return this.#transport.json("POST", "/tasks", { json, headers: headersOf(key, waitS), signal: options.signal, waitMs: 1000 * waitS });
  }
}

function batchError({ code: status, error_code: code, message, details, retry_after: retryAfter }: BatchProblem): ApiError {
  return ApiError.of({ message, status, code, details, retryAfter });
}

function pathOf(id: string): string {
  return `/tasks/${encodeURIComponent(id)}`;
}

/** A submitted task. */
export class TaskHandle<Name extends string = string> {
  readonly id: string;
  protected readonly transport: Transport;
  #record: Task | undefined;

  constructor(transport: Transport, task: Task | string) {
    this.transport = transport;
    this.id = typeof task === "string" ? task : task.task_id;
    this.#record = typeof task === "string" ? undefined : task;
  }

  /** The newest record that was received; undefined before the first. */
  get record(): Task | undefined {
    return this.#record;
  }

  /** Request the present record, without parameters. */
  refresh({ signal }: Call = {}): Promise<Task> {
    return this.#refresh(0, signal);
  }

  async #refresh(waitS: number, signal: AbortSignal | undefined): Promise<Task> {
    const query = { wait: waitS, parameters: false };
    return (this.#record = await this.transport.json<Task>("GET", pathOf(this.id), { query, signal, waitMs: 1000 * waitS }));
  }

  /** Wait for the end of the task and return its record. An abort ends the wait, not the task. */
  async wait({ signal }: Call = {}): Promise<Task> {
    const reconnection = this.transport.reconnection(signal);
    while (!this.#record || !isTerminal(this.#record.status)) {
      try {
        await this.#refresh(this.#record ? LONGEST_WAIT_S : 0, signal);
        reconnection.progress();
      } catch (problem) {
        await reconnection.pause(problem);
      }
    }
    return this.#record;
  }

  /** Wait for the end of the task. Throws a `TaskError` unless it completed. */
  async completed(call: Call = {}): Promise<CompletedTask<Name>> {
    const task = await this.wait(call);
    if (task.status !== "completed") throw taskError(task);
    return task as CompletedTask<Name>;
  }

  /** Cancel the task and return its record after its end; null without the permission to read it. */
  async cancel({ signal }: Call = {}): Promise<Task | null> {
    const task = await this.transport.json<Task | null>("DELETE", pathOf(this.id), { signal });
    this.#record = task ?? this.#record;
    return task;
  }

  /** Delete the ended task with its output and result. */
  purge({ signal }: Call = {}): Promise<Task | null> {
    return this.transport.json("DELETE", pathOf(this.id), { query: { purge: true }, signal, repeatable: false });
  }

  /** Change the priority of the pending task, 1 to 10. */
  async setPriority(priority: number, { signal }: Call = {}): Promise<Task | null> {
    const task = await this.transport.json<Task | null>("PATCH", pathOf(this.id), { json: { priority }, signal });
    this.#record = task ?? this.#record;
    return task;
  }

  /** Yield what the task prints and displays, until its end. `since` is the `next` of an earlier response. */
  async *output({ signal, since = 0 }: { since?: number } & Call = {}): AsyncGenerator<OutputItem> {
    const reconnection = this.transport.reconnection(signal);
    for (;;) {
      let output: TaskOutput;
      try {
        const query = { since, wait: LONGEST_WAIT_S };
        output = await this.transport.json("GET", `${pathOf(this.id)}/output`, { query, signal, waitMs: 1000 * LONGEST_WAIT_S });
        reconnection.progress();
      } catch (problem) {
        await reconnection.pause(problem);
        continue;
      }
      yield* output.items;
      since = output.next;
      if (output.finished) return;
    }
  }

  /** Return the opaque result of a `python` or `call` task, for example a cloudpickle. */
  async payload({ signal }: Call = {}): Promise<{ encoding: string; data: Uint8Array }> {
    const { headers, content } = await this.transport.bytes(`${pathOf(this.id)}/payload`, { signal, headers: { Accept: "*/*" }, waitMs: 600_000 });
    return { encoding: headers.get("x-openruntime-encoding") ?? "", data: new Uint8Array(content) };
  }
}
