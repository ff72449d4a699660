// Connection of the page to the runtime: directly if the page's server hosts the runtime, else through the kernel.

const TIMEOUT = 20_000;
/** Timeout of a status request to the server, in milliseconds. */
const SOON = 5_000;
const AGAIN = ["operation", "parameters", "device_preference", "priority", "timeout", "retries", "name", "memory_limit", "session"];

/** Error response of the runtime, with the reason and the invalid fields. */
export class RequestError extends Error {
  constructor(message, details) {
    super(message);
    this.details = details ?? [];
  }
}

/** Convert arguments to a URL query. Lists become comma-separated values. */
function query(args) {
  return new URLSearchParams(Object.entries(args).map(([name, value]) => [name === "states" ? "state" : name, String(value)]));
}

/** Return the URL of the Jupyter Server that served the page. Throws if there is none. */
function jupyter() {
  return new URL(JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl, location.href);
}

/** Return the headers of a request. JupyterHub accepts a cookie only with the XSRF token, also for GET. */
function headers() {
  const cookie = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]+)/);
  return { "Content-Type": "application/json", ...(cookie ? { "X-XSRFToken": decodeURIComponent(cookie[1]) } : {}) };
}

/** Submit the task `id` again with `request(method, path, body)`, and return the new task. */
export async function runAgain(request, id, caller = { origin: "notebook" }) {
  const before = await request("GET", `tasks/${encodeURIComponent(id)}`);
  const body = { wait: false, ...caller };
  for (const field of AGAIN) if (before[field] != null) body[field] = before[field];
  try {
    return await request("POST", "tasks", body);
  } catch (problem) {
    if (!problem.details?.length || !body.parameters?.arrays?.length) throw problem;
    throw new RequestError("its large input arrays have been deleted, so it cannot be run again from here: rerun its cell or call");
  }
}

export class Runtime {
  constructor(model) {
    this.model = model;
    /** A page with its own connection to the server has `request`. Then no kernel is needed. */
    this.page = model.request ? (method, path, body) => model.request(method, path, body) : null;
    this.waiting = new Map();
    this.number = 0;
    this.base = null;
    this.checkedRuntime = null;
    this.listener = (message) => this.settle(message);
    model.on("msg:custom", this.listener);
  }

  /** Return the fields of a request that name its caller. */
  get caller() {
    return { origin: "notebook", notebook: this.model.get("notebook") ?? null };
  }

  close() {
    this.model.off("msg:custom", this.listener);
    for (const { timer } of this.waiting.values()) clearTimeout(timer);
  }

  /** Detect whether the page's server hosts `runtime`. If so, buttons work while the kernel is busy. */
  async look(runtime) {
    if (this.page || !runtime || this.checkedRuntime === runtime) return;
    this.checkedRuntime = runtime;
    this.base = null;
    try {
      const base = new URL("openruntime/", jupyter());
      const health = await (await fetch(new URL("health", base), { headers: headers() })).json();
      if (health.runtime === runtime) this.base = base;
    } catch {
      // VS Code, an exported page, or a server without the extension: use the kernel.
    }
  }

  /** Return whether the server of the page responds; true if the page has no server. */
  async served() {
    let base;
    try {
      base = jupyter();
    } catch {
      return true;
    }
    return fetch(new URL("api/status", base), { signal: AbortSignal.timeout(SOON) }).then(
      () => true,
      () => false,
    );
  }

  /** True if requests go to the server directly. */
  get isDirect() {
    return Boolean(this.page ?? this.base);
  }

  async ask(method, path, body) {
    if (this.page) return this.page(method, path, body);
    let answer;
    try {
      answer = await fetch(new URL(path, this.base), { method, headers: headers(), body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new RequestError("no response from the server: try again when the dashboard is connected");
    }
    let payload;
    try {
      payload = await answer.json();
    } catch {
      throw new RequestError(`the server responded with status ${answer.status} and no reason`);
    }
    if (!answer.ok) throw new RequestError(payload.error ?? payload.message ?? `the server responded with status ${answer.status}`, payload.data?.details);
    return payload;
  }

  /** Run the action `name`. Rejects with a readable reason. */
  async act(name, args) {
    return this.isDirect ? this.direct(name, args) : this.throughKernel(name, args);
  }

  async direct(name, args) {
    const task = args.id && `tasks/${encodeURIComponent(args.id)}`;
    if (name === "cancel") return this.ask("DELETE", task);
    if (name === "delete") return this.ask("DELETE", `${task}?purge=true`);
    if (name === "priority") return this.ask("PATCH", task, { priority: args.priority });
    if (name === "tasks") return this.ask("GET", `tasks?${query(args)}`);
    if (name === "task") return this.ask("GET", `${task}?summary=true`);
    if (name === "output") return this.ask("GET", `${task}/output?since=${args.since ?? 0}`);
    if (name === "restart") return this.ask("POST", `sessions/${encodeURIComponent(args.id)}/restart`, {});
    if (name === "free") return this.ask("DELETE", `sessions/${encodeURIComponent(args.id)}`);
    if (name === "unload") return this.ask("DELETE", `models/${encodeURIComponent(args.name)}`);
    if (name === "insights") return this.ask("POST", "ai/insights", args);
    if (name === "run") return this.ask("POST", "tasks", { ...args, ...this.caller, wait: false });
    if (name !== "again") throw new Error(`unknown action ${name}`);
    return runAgain((...request) => this.ask(...request), args.id, this.caller);
  }

  throughKernel(name, args) {
    return new Promise((resolve, reject) => {
      const number = ++this.number;
      const timer = setTimeout(() => {
        this.waiting.delete(number);
        reject(new RequestError("no response from the kernel, which may be busy with a cell: try again when the cell has finished"));
      }, TIMEOUT);
      this.waiting.set(number, { resolve, reject, timer });
      this.model.send({ number, name, args });
    });
  }

  settle(message) {
    const waiting = this.waiting.get(message.number);
    if (!waiting) return;
    clearTimeout(waiting.timer);
    this.waiting.delete(message.number);
    if (message.error) waiting.reject(new RequestError(message.error, message.details));
    else waiting.resolve(message.answer);
  }
}
