// How the page reaches the runtime: by the server that the page came from where that is the runtime's own, else through the kernel.

const TIMEOUT = 20_000;
/** Milliseconds in which a server that lives answers the smallest question. */
const SOON = 5_000;
const AGAIN = ["operation", "parameters", "device_preference", "priority", "timeout", "retries", "name", "memory_limit", "session"];

/** The runtime says no: why, and what is wrong with which field. */
export class Refused extends Error {
  constructor(message, details) {
    super(message);
    this.details = details ?? [];
  }
}

/** What is asked for as the query of an address; a list is one with commas. */
function query(said) {
  return new URLSearchParams(Object.entries(said).map(([name, value]) => [name === "states" ? "state" : name, String(value)]));
}

/** The address of the Jupyter Server that the page came from; raises where it came from none. */
function jupyter() {
  return new URL(JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl, location.href);
}

export class Runtime {
  constructor(model) {
    this.model = model;
    this.waiting = new Map();
    this.number = 0;
    this.base = null;
    this.asked = null;
    this.heard = (message) => this.answered(message);
    model.on("msg:custom", this.heard);
  }

  close() {
    this.model.off("msg:custom", this.heard);
    for (const { timer } of this.waiting.values()) clearTimeout(timer);
  }

  /** Whether this page's server runs `runtime`: then buttons work while the kernel is busy. */
  async look(runtime) {
    if (!runtime || this.asked === runtime) return;
    this.asked = runtime;
    this.base = null;
    try {
      const base = new URL("openruntime/", jupyter());
      const health = await (await fetch(new URL("health", base))).json();
      if (health.runtime === runtime) this.base = base;
    } catch {
      // VS Code, an exported page, or a server without the extension: the kernel does it.
    }
  }

  /** Whether the server answers that the page came from; true where the page came from none. */
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

  async ask(method, path, body) {
    const cookie = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]+)/);
    const headers = { "Content-Type": "application/json", ...(cookie ? { "X-XSRFToken": decodeURIComponent(cookie[1]) } : {}) };
    let answer;
    try {
      answer = await fetch(new URL(path, this.base), { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new Refused("the server does not answer: try again when the dashboard says that it is back");
    }
    let said;
    try {
      said = await answer.json();
    } catch {
      throw new Refused(`the server answered with status ${answer.status} and without a reason`);
    }
    if (!answer.ok) throw new Refused(said.error ?? said.message ?? `the server answered with status ${answer.status}`, said.data?.details);
    return said;
  }

  /** Do what `name` says with `said`; rejects with the reason in words. */
  async act(name, said) {
    return this.base ? this.direct(name, said) : this.throughKernel(name, said);
  }

  async direct(name, said) {
    const task = said.id && `tasks/${encodeURIComponent(said.id)}`;
    if (name === "cancel") return this.ask("DELETE", task);
    if (name === "priority") return this.ask("PATCH", task, { priority: said.priority });
    if (name === "tasks") return this.ask("GET", `tasks?${query(said)}`);
    if (name === "task") return this.ask("GET", `${task}?parameters=false`);
    if (name === "output") return this.ask("GET", `${task}/output?since=${said.since ?? 0}`);
    if (name === "restart") return this.ask("POST", `sessions/${encodeURIComponent(said.id)}/restart`, {});
    if (name === "free") return this.ask("DELETE", `sessions/${encodeURIComponent(said.id)}`);
    if (name === "unload") return this.ask("DELETE", `models/${encodeURIComponent(said.name)}`);
    if (name === "insights") return this.ask("POST", "ai/insights", said);
    if (name === "run") return this.ask("POST", "tasks", { ...said, origin: "notebook", wait: false });
    if (name !== "again") throw new Error(`there is no action ${name}`);
    const before = await this.ask("GET", task);
    const request = { wait: false, origin: "notebook" };
    for (const field of AGAIN) if (before[field] != null) request[field] = before[field];
    try {
      return await this.ask("POST", "tasks", request);
    } catch (problem) {
      if (!problem.details?.length || !request.parameters?.arrays?.length) throw problem;
      throw new Refused("large arrays are let go of at a task's end, so it can't be done once more: run its cell, or make its call, again");
    }
  }

  throughKernel(name, said) {
    return new Promise((resolve, reject) => {
      const number = ++this.number;
      const timer = setTimeout(() => {
        this.waiting.delete(number);
        reject(new Refused("the kernel does not answer: it may be busy with a cell. Try again when that has ended"));
      }, TIMEOUT);
      this.waiting.set(number, { resolve, reject, timer });
      this.model.send({ number, name, said });
    });
  }

  answered(message) {
    const waiting = this.waiting.get(message.number);
    if (!waiting) return;
    clearTimeout(waiting.timer);
    this.waiting.delete(message.number);
    if (message.error) waiting.reject(new Refused(message.error, message.details));
    else waiting.resolve(message.answer);
  }
}
