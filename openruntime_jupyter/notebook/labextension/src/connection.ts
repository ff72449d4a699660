// Connection of a page to the runtime of its server: requests over HTTP, events over one WebSocket.
// It imports nothing of Jupyter, because the stand-alone server's page uses it too.

import { IEvent, IHealth, IMetrics } from './api';
import { Listeners } from './listeners';

/** Shortest and longest delay between two attempts to connect, in milliseconds. */
const SHORTEST_DELAY = 1_000;
const LONGEST_DELAY = 12_000;
/** Delay in a hidden page, which connects when it is shown, and without a login. */
const RARE_DELAY = 30_000;

/** Milliseconds after a change of a task until the metrics are requested, so that many changes cause one request. */
const METRICS_DELAY = 250;

export type ConnectionState =
  | 'connecting'
  | 'live'
  | 'no answer'
  | 'no access'
  /** The server does not run OpenRuntime. It is not asked again. */
  | 'absent';

export interface IServerAddress {
  /** URL of the API, with a slash at the end. */
  baseUrl: string;
  /** URL of the WebSocket. */
  webSocketUrl: string;
  /** Token of the server; empty if a cookie identifies the user. */
  token: string;
  /** Return false while a request makes no sense, such as while JupyterHub's server is stopped. */
  reachable?: () => boolean;
}

/** Error response of the server, with the reason and the invalid fields. */
export class ResponseError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly details: unknown[] = []
  ) {
    super(message);
  }
}

export class Connection {
  /** Emitted with each message of the WebSocket. */
  readonly events = new Listeners<IEvent>();
  /** Emitted when the state or the metrics change. */
  readonly changed = new Listeners<void>();
  state: ConnectionState = 'connecting';
  /** Why the connection is not live; empty if it is. */
  reason = '';
  metrics: IMetrics | null = null;
  /** Id of the runtime; empty until it has answered. */
  runtime = '';
  /** Resolved once the state is known. */
  readonly answered = new Promise<void>(resolve => this.changed.add(() => this.state === 'connecting' || resolve()));

  constructor(private readonly address: IServerAddress) {
    document.addEventListener('visibilitychange', () => {
      if (this.#retry && !document.hidden) {
        void this.open();
      }
    });
  }

  /** Connect, and reconnect whenever the connection is lost. The first request is HTTP, since a failed handshake gives no reason. */
  async open(): Promise<void> {
    clearTimeout(this.#retry);
    this.#retry = 0;
    if (this.address.reachable?.() === false) {
      return this.#lost('Jupyter is not connected to its server.');
    }
    try {
      const health = await this.request<IHealth>('GET', 'health');
      this.metrics = health.metrics;
      this.runtime = health.runtime;
    } catch (error) {
      const status = error instanceof ResponseError ? error.status : 0;
      if (status === 404) {
        return this.#change('absent', 'This server does not run OpenRuntime.');
      }
      // `request` has already handled a missing login.
      return this.state === 'no access' ? undefined : this.#lost(messageOf(error));
    }
    this.#connect();
  }

  /** Send a request to the API, for example `request('GET', 'tasks')`. Throws a `ResponseError` with a readable message. */
  async request<T>(method: string, path: string, body?: unknown): Promise<T> {
    let response: Response;
    try {
      response = await fetch(this.address.baseUrl + path, {
        method,
        headers: this.#headers(),
        body: body === undefined ? undefined : JSON.stringify(body)
      });
    } catch {
      throw new ResponseError('no response from the server: try again when it is connected', 0);
    }
    if (response.ok) {
      return (await response.json()) as T;
    }
    const problem = await response.json().catch(() => ({}));
    if (response.status === 401 || (response.status === 403 && method === 'GET')) {
      this.#refuse();
    }
    throw new ResponseError(
      problem.error ?? problem.message ?? `the server responded with status ${response.status}`,
      response.status,
      problem.data?.details
    );
  }

  /** Subscribe to topics of events until the returned function is called. */
  subscribe(...topics: string[]): () => void {
    topics.forEach(topic => this.#count(topic, 1));
    let subscribed = true;
    return () => {
      if (subscribed) {
        subscribed = false;
        topics.forEach(topic => this.#count(topic, -1));
      }
    };
  }

  #headers(): Record<string, string> {
    // JupyterHub accepts a cookie only with this header, also for GET.
    const cookie = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]+)/);
    return {
      'Content-Type': 'application/json',
      ...(cookie ? { 'X-XSRFToken': decodeURIComponent(cookie[1]) } : {}),
      ...(this.address.token ? { Authorization: `token ${this.address.token}` } : {})
    };
  }

  #connect(): void {
    const { webSocketUrl, token } = this.address;
    const socket = new WebSocket(webSocketUrl + (token ? `?token=${encodeURIComponent(token)}` : ''));
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ reason }) => {
      this.#socket = null;
      this.#lost(reason || 'The connection was closed.');
    };
  }

  #receive(event: IEvent): void {
    if (event.type === 'connected') {
      this.#delay = SHORTEST_DELAY;
      const topics = [...this.#topics.keys()];
      if (topics.length) {
        this.#send('subscribe', topics);
      }
      this.#change('live', '');
    }
    if (event.metrics) {
      this.metrics = event.metrics;
      this.changed.emit();
    } else if (event.type === 'task_update' && !this.#refresh) {
      this.#refresh = window.setTimeout(() => void this.#refreshMetrics(), METRICS_DELAY);
    }
    this.events.emit(event);
  }

  /** Request the metrics after a change of a task. The heartbeat brings them only every five seconds. */
  async #refreshMetrics(): Promise<void> {
    try {
      if (!document.hidden) {
        this.metrics = await this.request<IMetrics>('GET', 'metrics');
        this.changed.emit();
      }
    } catch {
      // `state` tells that the connection is lost.
    } finally {
      this.#refresh = 0;
    }
  }

  #count(topic: string, change: number): void {
    const before = this.#topics.get(topic) ?? 0;
    const after = before + change;
    if (after > 0) {
      this.#topics.set(topic, after);
    } else {
      this.#topics.delete(topic);
    }
    if (before === 0 || after === 0) {
      this.#send(after > 0 ? 'subscribe' : 'unsubscribe', [topic]);
    }
  }

  #send(type: string, topics: string[]): void {
    if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({ type, topics }));
    }
  }

  #change(state: ConnectionState, reason: string): void {
    this.state = state;
    this.reason = reason;
    this.changed.emit();
  }

  #lost(reason: string): void {
    this.#change('no answer', reason);
    this.#retryIn(document.hidden ? RARE_DELAY : this.#delay);
    this.#delay = Math.min(LONGEST_DELAY, 2 * this.#delay);
  }

  /** Close the WebSocket, which would outlive the login. */
  #refuse(): void {
    if (this.#socket) {
      this.#socket.onclose = null;
      this.#socket.close();
      this.#socket = null;
    }
    this.#change('no access', 'You are not logged in, or you do not have the permission to read openruntime on this server.');
    this.#retryIn(RARE_DELAY);
  }

  #retryIn(delay: number): void {
    clearTimeout(this.#retry);
    this.#retry = window.setTimeout(() => void this.open(), delay);
  }

  #socket: WebSocket | null = null;
  readonly #topics = new Map<string, number>();
  #delay = SHORTEST_DELAY;
  #retry = 0;
  #refresh = 0;
}

/** The message of an error, for people. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
