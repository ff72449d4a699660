/** Client of an OpenRuntime server. */
import { Ai } from "./ai.js";
import { Arrays } from "./arrays.js";
import { events, type EventOptions } from "./events.js";
import type { Device, Health, Host, MetricsHistory, ModelList, OperationInfo, ServerMessage, ServiceInfo, Session, SystemMetrics, Timeframe, Topic, Worker } from "./schema.js";
import { Tasks } from "./tasks.js";
import { Transport, type Call, type Options } from "./transport.js";

export class OpenRuntime {
  readonly tasks: Tasks;
  readonly ai: Ai;
  readonly arrays: Arrays;
  readonly sessions: Sessions;
  readonly models: Models;
  readonly #transport: Transport;

  constructor(options: Options = {}) {
    this.#transport = new Transport(options);
    this.tasks = new Tasks(this.#transport);
    this.ai = new Ai(this.#transport);
    this.arrays = new Arrays(this.#transport);
    this.sessions = new Sessions(this.#transport);
    this.models = new Models(this.#transport);
  }

  /** URL of the API. */
  get baseUrl(): string {
    return this.#transport.baseUrl;
  }

  /** Version of the server, from its last response; null before the first. */
  get serverVersion(): string | null {
    return this.#transport.serverVersion;
  }

  /** Yield task updates and messages of further topics until the loop is left or `signal` aborts. Lost connections resume. */
  events(topics: readonly Topic[] = [], options: EventOptions = {}): AsyncGenerator<ServerMessage> {
    return events(this.#transport, topics, options);
  }

  info({ signal }: Call = {}): Promise<ServiceInfo> {
    return this.#transport.json("GET", "/", { signal });
  }

  health({ signal }: Call = {}): Promise<Health> {
    return this.#transport.json("GET", "/health", { signal });
  }

  metrics({ signal }: Call = {}): Promise<SystemMetrics> {
    return this.#transport.json("GET", "/metrics", { signal });
  }

  metricsHistory({ signal, ...query }: { timeframe?: Timeframe; points?: number; runtime?: string } & Call = {}): Promise<MetricsHistory> {
    return this.#transport.json("GET", "/metrics/history", { query, signal });
  }

  async devices({ signal }: Call = {}): Promise<Device[]> {
    return (await this.#transport.json<{ devices: Device[] }>("GET", "/devices", { signal })).devices;
  }

  /** Return the other machines that run tasks. */
  async hosts({ signal }: Call = {}): Promise<Host[]> {
    return (await this.#transport.json<{ hosts: Host[] }>("GET", "/hosts", { signal })).hosts;
  }

  async workers({ signal }: Call = {}): Promise<Worker[]> {
    return (await this.#transport.json<{ workers: Worker[] }>("GET", "/workers", { signal })).workers;
  }

  /** Return the operations with the JSON schemas of their parameters. */
  async operations({ signal }: Call = {}): Promise<OperationInfo[]> {
    return (await this.#transport.json<{ operations: OperationInfo[] }>("GET", "/operations", { signal })).operations;
  }

  /** Return the OpenAPI document. */
  openapi({ signal }: Call = {}): Promise<Record<string, unknown>> {
    return this.#transport.json("GET", "/openapi.json", { signal });
  }
}

/** Workers whose variables persist between tasks. A task with a new `session` starts one. */
export class Sessions {
  readonly #transport: Transport;
  constructor(transport: Transport) {
    this.#transport = transport;
  }

  async list({ signal }: Call = {}): Promise<Session[]> {
    return (await this.#transport.json<{ sessions: Session[] }>("GET", "/sessions", { signal })).sessions;
  }

  /** End the worker and its running task. The next task starts with an empty namespace. */
  restart(id: string, { signal }: Call = {}): Promise<Session | null> {
    return this.#transport.json("POST", `/sessions/${encodeURIComponent(id)}/restart`, { json: {}, signal, repeatable: false });
  }

  end(id: string, { signal }: Call = {}): Promise<Session | null> {
    return this.#transport.json("DELETE", `/sessions/${encodeURIComponent(id)}`, { signal, repeatable: false });
  }
}

/** Local language models, and profiles of remote providers. */
export class Models {
  readonly #transport: Transport;
  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list({ signal }: Call = {}): Promise<ModelList> {
    return this.#transport.json("GET", "/models", { signal });
  }

  /** Unload a model from memory. Returns the names of the unloaded models. */
  async unload(name: string, { signal }: Call = {}): Promise<string[]> {
    const path = `/models/${encodeURIComponent(name)}`;
    return (await this.#transport.json<{ unloaded: string[] }>("DELETE", path, { signal, repeatable: false })).unloaded;
  }
}
