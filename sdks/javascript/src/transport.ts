/** HTTP requests with authentication, time limits, retries and errors as classes. */
import { ApiError, ConnectionError, ConnectionTimeoutError, OpenRuntimeError, responseError } from "./errors.js";

export interface Options {
  /** URL of the API: `/health` below it responds. Default: http://localhost:8000. */
  baseUrl?: string | undefined;
  /** Token of the server, or a function that returns the current one for each request. */
  token?: string | (() => string | undefined | Promise<string | undefined>) | undefined;
  /** Maximum number of retries of a request. Default: 2. */
  maxRetries?: number;
  /** Longest `Retry-After` to wait for, in milliseconds. Errors with a longer one are thrown at once. Default: 60,000. */
  maxRetryDelayMs?: number;
  /** Time limit of a response in milliseconds, in addition to a requested wait. Default: 30,000. */
  timeoutMs?: number;
  /** How long waits, streams and events try to reconnect to a lost server, in milliseconds. Default: 60,000. */
  maxOfflineMs?: number;
  fetch?: typeof globalThis.fetch;
  WebSocket?: typeof globalThis.WebSocket;
}

export interface Call {
  signal?: AbortSignal | undefined;
}

export type Query = Record<string, string | number | boolean | readonly string[] | null | undefined>;

export interface Request extends Call {
  query?: Query;
  json?: unknown;
  body?: Uint8Array;
  headers?: Record<string, string>;
  /** Milliseconds that the response may take in addition to the time limit. */
  waitMs?: number;
  /** false: the request has another effect if it is repeated, so it is not repeated after a lost connection. */
  repeatable?: boolean;
}

const PROXY_ERRORS = new Set([429, 502, 503, 504]);

export class Transport {
  readonly baseUrl: string;
  readonly WebSocket: typeof globalThis.WebSocket;
  /** Version of the server, from its last response. */
  serverVersion: string | null = null;
  readonly #options: Options;
  readonly #fetch: typeof globalThis.fetch;

  constructor(options: Options) {
    this.#options = options;
    this.baseUrl = (options.baseUrl ?? "http://localhost:8000").replace(/\/+$/, "");
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
  }

  async token(): Promise<string | undefined> {
    const { token } = this.#options;
    return typeof token === "function" ? token() : token;
  }

  /** Return the JSON of a response; null for one without content. */
  async json<T>(method: string, path: string, request: Request = {}): Promise<T> {
    const text = await this.#send(method, path, request, (response) => response.text());
    try {
      return (text === "" ? null : JSON.parse(text)) as T;
    } catch (cause) {
      throw new OpenRuntimeError(`${this.baseUrl} is not an OpenRuntime server: its response is not JSON`, { cause });
    }
  }

  /** Return a response and its content. */
  bytes(path: string, request: Request): Promise<{ headers: Headers; content: ArrayBuffer }> {
    return this.#send("GET", path, request, async (response) => ({ headers: response.headers, content: await response.arrayBuffer() }));
  }

  /** Return a response whose content the caller reads. The time limit is for its beginning. */
  stream(path: string, request: Request): Promise<Response> {
    return this.#send("GET", path, request, (response) => Promise.resolve(response));
  }

  /** Return the reconnection of a wait, a stream or events. */
  reconnection(signal: AbortSignal | undefined): Reconnection {
    return new Reconnection(this.#options.maxOfflineMs ?? 60_000, signal);
  }

  async #send<T>(method: string, path: string, request: Request, read: (response: Response) => Promise<T>): Promise<T> {
    for (let tries = 0; ; tries++) {
      try {
        return await this.#once(method, path, request, read);
      } catch (problem) {
        const delay = this.#retryDelay(problem, tries, request.repeatable ?? true);
        if (delay === null || tries >= (this.#options.maxRetries ?? 2)) throw problem;
        await sleep(delay, request.signal);
      }
    }
  }

  /** Return the milliseconds before a retry; null if a retry is hopeless, unsafe or too late. */
  #retryDelay(problem: unknown, tries: number, repeatable: boolean): number | null {
    if (problem instanceof ConnectionError) return repeatable ? backoff(tries) : null;
    if (!(problem instanceof ApiError)) return null;
    if (problem.retryAfter !== null) {
      const delay = 1000 * problem.retryAfter;
      return delay <= (this.#options.maxRetryDelayMs ?? 60_000) ? delay : null;
    }
    return problem.code === null && PROXY_ERRORS.has(problem.status) ? backoff(tries) : null;
  }

  async #once<T>(method: string, path: string, request: Request, read: (response: Response) => Promise<T>): Promise<T> {
    const headers: Record<string, string> = { Accept: "application/json", ...request.headers };
    const token = await this.token();
    if (token) headers["Authorization"] = `Bearer ${token}`;
    let body: BodyInit | null = (request.body as Uint8Array<ArrayBuffer> | undefined) ?? null;
    if (request.json !== undefined) {
      headers["Content-Type"] = "application/json";
      body = JSON.stringify(request.json);
    }
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), (this.#options.timeoutMs ?? 30_000) + (request.waitMs ?? 0));
    const signal = request.signal ? AbortSignal.any([request.signal, limit.signal]) : limit.signal;
    try {
      request.signal?.throwIfAborted();
      const response = await this.#fetch(this.url(path, request.query), { method, headers, body, signal });
      this.serverVersion = response.headers.get("openruntime-version") ?? this.serverVersion;
      if (!response.ok) throw await responseError(response);
      return await read(response);
    } catch (cause) {
      if (request.signal?.aborted) throw request.signal.reason;
      if (cause instanceof OpenRuntimeError) throw cause;
      if (limit.signal.aborted) throw new ConnectionTimeoutError(`${this.baseUrl} did not respond in time`, { cause });
      throw new ConnectionError(`${this.baseUrl} does not respond: ${String((cause as Error).cause ?? cause)}`, { cause });
    } finally {
      clearTimeout(timer);
    }
  }

  url(path: string, query: Query = {}): URL {
    const url = new URL(this.baseUrl + path);
    for (const [name, value] of Object.entries(query)) {
      for (const each of Array.isArray(value) ? (value as readonly string[]) : [value]) {
        if (each !== undefined && each !== null) url.searchParams.append(name, String(each));
      }
    }
    return url;
  }
}

/** Pauses between attempts to reconnect. They end after a time without progress. */
export class Reconnection {
  readonly #limitMs: number;
  readonly #signal: AbortSignal | undefined;
  #tries = 0;
  #offlineSince = 0;

  constructor(limitMs: number, signal: AbortSignal | undefined) {
    this.#limitMs = limitMs;
    this.#signal = signal;
  }

  progress(): void {
    this.#tries = 0;
  }

  /** Wait before the next attempt. Rethrow `problem` if it is not a lost connection, or the time is over. */
  async pause(problem: unknown): Promise<void> {
    this.#signal?.throwIfAborted();
    if (!(problem instanceof ConnectionError)) throw problem;
    if (this.#tries === 0) this.#offlineSince = Date.now();
    if (Date.now() - this.#offlineSince > this.#limitMs) throw problem;
    await sleep(backoff(this.#tries++), this.#signal);
  }
}

/** Return the milliseconds before retry `tries`, with jitter. */
export function backoff(tries: number): number {
  return Math.min(8_000, 500 * 2 ** tries) * (0.75 + 0.25 * Math.random());
}

/** Wait. Rejects with the signal's reason as soon as it aborts. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
