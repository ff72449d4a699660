// Data source of the dashboards of a page. It does for a page what `dashboard/feed.py` does for a kernel: the same queries at the same
// intervals, and a part is sent only if it has changed. It imports nothing of Jupyter.

import { ended, FINAL_STATES, IEvent, IHealth, ITask, ITaskPage, TaskChange } from './api';
import { Connection, messageOf } from './connection';

const RUNNING = 50;
const ROWS = 20;
/** Update interval of the charts for each timeframe, in seconds. */
const EVERY: Record<string, number> = { '5m': 1, '15m': 5, '1h': 15, '6h': 60, '24h': 60, '7d': 300 };
const POINTS = 300;
/** Minimum interval between messages about single tasks, in milliseconds. */
const CHANGES_EVERY = 100;
/** Minimum and maximum interval between requests for the list of tasks, in milliseconds. */
const TASKS_EVERY = 250;
const TASKS_MAX_AGE = 5_000;
/** Interval between requests for health, devices, sessions and models, in milliseconds. */
const SERVER_EVERY = 5_000;
/** Interval of repeated messages about a lost connection, in milliseconds: the dashboard takes silence for another problem. */
const LOST_EVERY = 3_000;

type Parts = Record<string, unknown>;
type Listener = (...args: any[]) => void;

/** What the dashboard module takes for the model of a widget. */
export class DashboardModel {
  constructor(
    private readonly feed: Feed,
    where: string
  ) {
    this.#parts.where = where;
  }

  /** Time of the last request for charts, in milliseconds. */
  charted = 0;

  get(name: string): any {
    return this.#parts[name];
  }

  set(name: string, value: unknown): void {
    this.#parts[name] = value;
    this.#emit(`change:${name}`);
    if (name === 'timeframe') {
      this.charted = 0;
      this.feed.requestCharts();
    }
  }

  /** Widgets synchronise with a kernel here. */
  save_changes(): void {
    // There is no kernel.
  }

  on(name: string, listener: Listener): void {
    this.#listeners.set(name, [...(this.#listeners.get(name) ?? []), listener]);
  }

  off(name: string, listener: Listener): void {
    this.#listeners.set(
      name,
      (this.#listeners.get(name) ?? []).filter(each => each !== listener)
    );
  }

  /** Handle a message of the dashboard. It sends only whether it is shown, because it has `request`. */
  send(message: { name: string; args: { shown: boolean } }): void {
    if (message.name === 'view') {
      if (message.args.shown) {
        this.feed.open(this);
      } else {
        this.feed.close(this);
      }
    }
  }

  /** Send a request to the API. With it the dashboard needs no kernel for its actions. */
  request(method: string, path: string, body?: unknown): Promise<unknown> {
    return this.feed.connection.request(method, path, body);
  }

  /** Set the parts that have changed. */
  update(parts: Parts): void {
    for (const [name, part] of Object.entries(parts)) {
      const text = JSON.stringify(part);
      if (this.#sent.get(name) !== text) {
        this.#sent.set(name, text);
        this.set(name, part);
      }
    }
  }

  /** Report a lost connection, each time anew. */
  lost(reason: string): void {
    this.#sent.delete('connection');
    this.set('connection', { live: false, reason });
  }

  #emit(name: string): void {
    for (const listener of this.#listeners.get(name) ?? []) {
      listener();
    }
  }

  readonly #parts: Parts = {
    timeframe: '5m',
    connection: {},
    health: {},
    devices: [],
    hosts: [],
    tasks: [],
    counts: {},
    sessions: [],
    models: [],
    operations: [],
    chart: {},
    changes: [],
    closed: false,
    /** Id of the task to show with its details. */
    selected: null
  };
  readonly #listeners = new Map<string, Listener[]>();
  readonly #sent = new Map<string, string>();
}

/** The data of all dashboards of a page. Without a visible dashboard it requests nothing. */
export class Feed {
  constructor(readonly connection: Connection) {}

  /** Start sending data to a dashboard. */
  open(model: DashboardModel): void {
    if (this.#models.has(model)) {
      return;
    }
    this.#models.add(model);
    if (this.#models.size > 1) {
      model.update(this.#latest);
      this.requestCharts();
      return;
    }
    const { connection } = this;
    const unsubscribe = connection.subscribe('metrics', 'task_progress');
    const removals = [unsubscribe, connection.events.add(event => this.#receive(event)), connection.changed.add(() => this.#onState())];
    this.#stop = () => removals.forEach(remove => remove());
    this.#state = null;
    this.#onState();
  }

  /** Stop sending data to a dashboard. */
  close(model: DashboardModel): void {
    if (this.#models.delete(model) && this.#models.size === 0) {
      this.#stop();
      clearInterval(this.#repeat);
      clearTimeout(this.#flush);
      this.#flush = 0;
    }
  }

  /** Request the charts that are due. */
  requestCharts(): void {
    if (this.connection.state === 'live') {
      void this.#guarded(() => this.#charts());
    }
  }

  #onState(): void {
    const { state, reason } = this.connection;
    if (state === this.#state) {
      return;
    }
    this.#state = state;
    clearInterval(this.#repeat);
    if (state === 'live') {
      this.#stale = true;
      this.#servedAt = 0;
      void this.#guarded(() => this.#refresh());
    } else if (state !== 'connecting') {
      const report = () => this.#models.forEach(model => model.lost(reason));
      report();
      this.#repeat = window.setInterval(report, LOST_EVERY);
    }
  }

  #receive(event: IEvent): void {
    if (event.type === 'metrics') {
      void this.#guarded(() => this.#refresh());
    } else if (event.data && (event.type === 'task_update' || event.type === 'task_progress')) {
      this.#onTask(event.data);
    }
  }

  #onTask(data: TaskChange): void {
    this.#stale = true;
    if (!this.#ids.has(data.task_id)) {
      if (Date.now() - this.#listedAt >= TASKS_EVERY) {
        void this.#guarded(() => this.#tasks());
      }
      return;
    }
    this.#changes.set(data.task_id, { ...this.#changes.get(data.task_id), ...data });
    this.#flush ||= window.setTimeout(() => {
      this.#flush = 0;
      const changes = [...this.#changes.values()];
      this.#changes.clear();
      this.#models.forEach(model => model.set('changes', changes));
    }, CHANGES_EVERY);
  }

  /** Run requests one at a time, and report a failure. */
  async #guarded(fetch: () => Promise<void>): Promise<void> {
    if (this.#busy || this.connection.state !== 'live' || this.#models.size === 0) {
      return;
    }
    this.#busy = true;
    try {
      await fetch();
    } catch (error) {
      if (this.connection.state === 'live') {
        this.#models.forEach(model => model.lost(messageOf(error)));
      }
    } finally {
      this.#busy = false;
    }
  }

  async #refresh(): Promise<void> {
    const get = <T>(path: string) => this.connection.request<T>('GET', path);
    if (Date.now() - this.#servedAt >= SERVER_EVERY) {
      this.#servedAt = Date.now();
      this.#operations ??= (await get<{ operations: unknown[] }>('operations')).operations;
      const [health, devices, hosts, sessions, models] = await Promise.all([
        get<IHealth>('health'),
        get<{ devices: unknown[] }>('devices'),
        get<{ hosts: unknown[] }>('hosts'),
        get<{ sessions: unknown[] }>('sessions'),
        get<{ models: { resident?: unknown[] }[] }>('models')
      ]);
      this.#update({
        connection: { live: true, reason: null },
        health,
        devices: devices.devices,
        hosts: hosts.hosts,
        sessions: sessions.sessions,
        models: models.models.filter(model => model.resident?.length),
        operations: this.#operations
      });
    }
    if (this.#stale || Date.now() - this.#listedAt >= TASKS_MAX_AGE) {
      await this.#tasks();
    }
    await this.#charts();
  }

  async #tasks(): Promise<void> {
    this.#listedAt = Date.now();
    const list = (query: string) => this.connection.request<ITaskPage>('GET', `tasks?${query}`);
    // Finished tasks are fetched first, so that a task that changes state in between is listed once, in its newer state.
    const finished = await list(`limit=${ROWS}&state=${FINAL_STATES}`);
    const waiting = await list(`limit=${ROWS}&order=next`);
    const running = await list(`limit=${RUNNING}&state=running`);
    const start = (task: ITask) => task.started_at ?? task.submitted_at;
    running.tasks.sort((a, b) => (start(a) < start(b) ? -1 : 1));
    const rows = new Map([...running.tasks, ...waiting.tasks, ...finished.tasks].map(task => [task.task_id, task]));
    this.#ids = new Set(rows.keys());
    this.#stale = [...rows.values()].some(task => !ended(task.status));
    const counts = { running: running.total_count, waiting: waiting.total_count, ended: finished.total_count };
    this.#update({ tasks: [...rows.values()], counts });
  }

  async #charts(): Promise<void> {
    const now = Date.now();
    const due = [...this.#models].filter(model => now - model.charted >= 900 * EVERY[model.get('timeframe')]);
    for (const timeframe of new Set(due.map(model => model.get('timeframe') as string))) {
      const history = await this.connection.request<object>('GET', `metrics/history?timeframe=${timeframe}&points=${POINTS}`);
      for (const model of due) {
        if (model.get('timeframe') === timeframe) {
          model.charted = now;
          model.set('chart', history);
        }
      }
    }
  }

  #update(parts: Parts): void {
    this.#latest = { ...this.#latest, ...parts };
    this.#models.forEach(model => model.update(parts));
  }

  readonly #models = new Set<DashboardModel>();
  #latest: Parts = {};
  #stop: () => void = () => undefined;
  #state: string | null = null;
  #operations: unknown[] | undefined;
  #ids = new Set<string>();
  readonly #changes = new Map<string, object>();
  #stale = true;
  #busy = false;
  #listedAt = 0;
  #servedAt = 0;
  #flush = 0;
  #repeat = 0;
}
