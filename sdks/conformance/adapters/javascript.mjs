// Performs the steps of conformance cases with the JavaScript SDK; see ../runner.py. It holds no expectation.
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { ApiError, OpenRuntime, TaskError, TaskHandle } from "@openruntime/sdk";
import { connect } from "@openruntime/sdk/node";

const VIEWS = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, bool: Uint8Array, bfloat16: Uint16Array };
const HEARD_MS = 30_000;

const typed = (dtype, data) => (dtype === "int64" ? BigInt64Array.from(data, BigInt) : VIEWS[dtype].from(data));
const summary = (task) => ({ status: task.status, operation: task.operation, output: task.result?.output });
const counted = (list) => ({ count: list.length });
const textOf = (items) => items.map((item) => item.text ?? "").join("");

/** Collects events in the background. */
class Listener {
  completed = new Set();
  types = new Set();
  gap = false;
  #leaving = new AbortController();

  async start(client, topics) {
    const messages = client.events(topics, { signal: this.#leaving.signal });
    this.#take((await messages.next()).value);
    this.done = (async () => {
      for await (const message of messages) this.#take(message);
    })();
    this.done.catch(() => undefined);
  }

  #take(message) {
    this.types.add(message.type);
    if (message.type === "connected" && message.gap) this.gap = true;
    if (message.type === "task_update" && message.data.status === "completed") this.completed.add(message.data.task_id);
  }

  async until(condition) {
    for (const end = Date.now() + HEARD_MS; Date.now() < end && !condition(); ) await delay(10);
    this.#leaving.abort();
    await this.done;
  }
}

/** State of one case. */
class Player {
  ids = {};

  constructor({ url, token, mark }) {
    this.client = new OpenRuntime({ baseUrl: url, token });
    this.mark = mark;
  }

  id(name) {
    return this.ids[name] ?? name;
  }
  handle(step) {
    return this.client.tasks.handle(this.id(step.task));
  }
  options(step, call) {
    return { name: this.mark, ...step.options, ...call };
  }

  async run(step, call) {
    const task = await this.client.tasks.run(step.operation, step.parameters, this.options(step, call));
    if (step.as) this.ids[step.as] = task.task_id;
    return summary(task);
  }
  async submit(step, call) {
    this.ids[step.as] = (await this.client.tasks.submit(step.operation, step.parameters, this.options(step, call))).id;
    return { submitted: true };
  }
  async submit_for_output(step, call) {
    const { items, task } = await this.client.tasks.submitForOutput(step.operation, step.parameters, step.wait_s, this.options(step, call));
    return { text: textOf(items), status: task.status };
  }
  wait(step, call) {
    return this.handle(step).wait(call).then(summary);
  }
  completed(step, call) {
    return this.handle(step).completed(call).then(summary);
  }
  cancel(step, call) {
    return this.handle(step).cancel(call).then(summary);
  }
  purge(step, call) {
    return this.handle(step).purge(call).then(summary);
  }
  set_priority(step, call) {
    return this.handle(step).setPriority(step.priority, call).then(summary);
  }
  async get(step, call) {
    const task = await this.client.tasks.get(this.id(step.task), call);
    return { ...summary(task), has_parameters: Boolean(task.parameters) };
  }
  async output(step, call) {
    return { text: textOf(await Array.fromAsync(this.handle(step).output(call))) };
  }
  async payload(step, call) {
    const { encoding, data } = await this.handle(step).payload(call);
    return { encoding, bytes: data.length };
  }
  async submit_many(step, call) {
    const tasks = step.tasks.map((task) => ({ ...task, name: this.mark }));
    const results = await this.client.tasks.submitMany(tasks, call);
    this.ids[step.as] = results.flatMap((result) => (result instanceof TaskHandle ? [result.id] : []));
    const errors = results.flatMap((result, index) => (result instanceof ApiError ? [[index, problem(result).error]] : []));
    return { submitted: this.ids[step.as].length, error_count: errors.length, errors };
  }
  async results(step, call) {
    return { statuses: (await Array.fromAsync(this.client.tasks.results(this.ids[step.of], call))).map(({ task }) => task.status) };
  }
  async list(step, call) {
    const tasks = await Array.fromAsync(this.client.tasks.list({ name: this.mark, limit: step.limit, ...step.filter }, call));
    return { count: tasks.length, distinct: new Set(tasks.map((task) => task.task_id)).size };
  }
  async page(step, call) {
    const page = await this.client.tasks.page({ name: this.mark, limit: step.limit }, call);
    return { count: page.tasks.length, total_count: page.total_count };
  }
  enhanced(step, call) {
    return this.client.tasks.enhanced({ limit: step.limit }, call).then((page) => counted(page.tasks));
  }

  #ask(step, call) {
    return this.client.ai.ask(step.prompt, { parameters: step.parameters, name: this.mark, ...call });
  }
  async ask(step, call) {
    const handle = await this.#ask(step, call);
    let text = "";
    for await (const piece of handle) text += piece;
    const { status, result } = await handle.wait();
    return { status, text_is_result: text === result.output.text };
  }
  async answer(step, call) {
    return (await this.#ask(step, call)).answer();
  }
  agents(_, call) {
    return this.client.ai.agents(call).then(({ agents }) => counted(agents));
  }
  workflows(_, call) {
    return this.client.ai.workflows(call).then(counted);
  }
  insights({ metric_type, timeframe }, call) {
    return this.client.ai.insights({ metric_type, timeframe, wording: "none" }, call);
  }
  conversations(_, call) {
    return this.client.ai.conversations(call).then(counted);
  }
  conversation(step, call) {
    return this.client.ai.conversation(step.name, call).then(({ messages }) => ({ messages: messages.length }));
  }
  delete_conversation(step, call) {
    return this.client.ai.deleteConversation(step.name, call).then(({ messages }) => ({ messages: messages.length }));
  }
  models(_, call) {
    return this.client.models.list(call).then(({ models }) => counted(models));
  }
  unload(step, call) {
    return this.client.models.unload(step.name, call).then((unloaded) => ({ unloaded }));
  }

  async listen(step) {
    this.listener = new Listener();
    await this.listener.start(this.client, step.topics);
    return { connected: true };
  }
  async heard(step) {
    const wanted = step.completed.map((name) => this.id(name));
    const types = step.types ?? [];
    const { listener } = this;
    await listener.until(
      () => wanted.every((id) => listener.completed.has(id)) && types.every((type) => listener.types.has(type)) && (listener.gap || !step.gap),
    );
    const completed = wanted.filter((id) => listener.completed.has(id)).length;
    return { completed, gap: listener.gap, missing_types: types.filter((type) => !listener.types.has(type)) };
  }

  async array_round_trip(step, call) {
    const id = `round-trip-${crypto.randomUUID()}`;
    await this.put_array({ ...step, id }, call);
    const { dtype, shape, data } = await this.client.arrays.get(id, call);
    await this.client.arrays.delete(id, call);
    return { dtype, shape, data: Array.from(data, Number) };
  }
  put_array(step, call) {
    const data = typed(step.dtype, step.data);
    return this.client.arrays.put(step.id, data, { shape: step.shape, dtype: step.dtype, ...call });
  }
  async get_array(step, call) {
    return { dtype: (await this.client.arrays.get(step.id, call)).dtype };
  }
  array_info(step, call) {
    return this.client.arrays.info(step.id, call);
  }
  arrays(_, call) {
    return this.client.arrays.list(call).then(({ arrays }) => counted(arrays));
  }
  async reserve_array(step, call) {
    const array = await this.client.arrays.reserve({ shape: step.shape, dtype: step.dtype }, call);
    this.ids[step.as] = array.id;
    return array;
  }
  mark_array_ready(step, call) {
    return this.client.arrays.markReady(this.id(step.id), call);
  }
  delete_array(step, call) {
    return this.client.arrays.delete(step.id, call);
  }

  async sessions(step, call) {
    const session = (await this.client.sessions.list(call)).find(({ name }) => name === step.name);
    this.ids[step.as] = session.id;
    return session;
  }
  restart_session(step, call) {
    return this.client.sessions.restart(this.id(step.id), call);
  }
  end_session(step, call) {
    return this.client.sessions.end(this.id(step.id), call);
  }

  info(_, call) {
    return this.client.info(call);
  }
  health(_, call) {
    return this.client.health(call);
  }
  metrics(_, call) {
    return this.client.metrics(call);
  }
  metrics_history({ timeframe, points }, call) {
    return this.client.metricsHistory({ timeframe, points, ...call }).then((history) => ({ timeframe: history.timeframe }));
  }
  devices(_, call) {
    return this.client.devices(call).then(counted);
  }
  hosts(_, call) {
    return this.client.hosts(call).then(counted);
  }
  workers(_, call) {
    return this.client.workers(call).then(counted);
  }
  operations(_, call) {
    return this.client.operations(call).then(counted);
  }
  openapi(_, call) {
    return this.client.openapi(call).then(({ openapi }) => ({ openapi }));
  }
  async discover() {
    return (await connect()).health();
  }
}

function problem(error) {
  const name = error.name.replace(/Error$/, "").replace(/(?<=[a-z])[A-Z]/g, "_$&").toLowerCase();
  if (error instanceof ApiError) {
    const { status, code, retryAfter, details } = error;
    return { error: name, status, code, retry_after: retryAfter, fields: details.map(({ field }) => field), message: error.message };
  }
  if (error instanceof TaskError) return { error: name, task_status: error.task.status, type: error.task.failure?.type };
  return { error: ["abort", "timeout"].includes(name) ? "aborted" : name, message: String(error.stack) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  const player = new Player(order);
  const results = [];
  for (const step of order.steps) {
    const call = step.abort_after_s ? { signal: AbortSignal.timeout(1000 * step.abort_after_s) } : {};
    results.push(await player[step.do](step, call).catch(problem));
  }
  console.log(JSON.stringify(results));
}
