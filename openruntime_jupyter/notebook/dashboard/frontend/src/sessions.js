// Sessions (workers that keep their variables), with buttons to restart or free them.
import { ConfirmButton } from "./confirm.js";
import { Children, make, show, write } from "./dom.js";
import { bytes, clock } from "./format.js";

/** Describe a session. `owner` is given if there are several owners. */
function about(session, called, owner) {
  const notebook = session.notebook?.split("/").pop();
  const last = session.ended_at ? `ended ${clock(session.ended_at)}` : `last used ${clock(session.used_at)}`;
  const used = session.state === "busy" ? `runs ${called(session.task_id)}` : last;
  const tasks = session.tasks ? `${session.tasks} ${session.tasks === 1 ? "task" : "tasks"} done` : "no tasks done yet";
  const ends = session.expires_at && `expires ${clock(session.expires_at)} unless used`;
  return [notebook, owner, tasks, bytes(session.resident_bytes), used, ends].filter(Boolean).join(" · ");
}

function line(sessions) {
  return (session) => {
    const name = make("strong");
    const state = make("span", { class: "or-state" });
    const facts = make("div", { class: "or-dim" });
    const reason = make("div", { class: "or-advice" });
    const restart = new ConfirmButton("Restart", () => sessions.act("restart", session.id));
    const free = new ConfirmButton("Free", () => sessions.act("free", session.id));
    return {
      element: make("li", {}, make("div", { class: "or-head" }, make("div", {}, name, " ", state, facts), make("div", { class: "or-two" }, restart.element, free.element)), reason),
      update(now) {
        write(name, now.name);
        write(state, now.state);
        state.dataset.state = now.state;
        write(facts, about(now, sessions.called, sessions.owners > 1 && now.owner));
        facts.title = now.notebook ?? "";
        write(reason, now.reason ?? "");
        show(reason, Boolean(now.reason));
        const lost = { busy: "its task and its variables are lost", idle: now.tasks ? "its variables are lost" : null }[now.state] ?? null;
        restart.update(`Restart the session ${now.name} with an empty namespace`, lost);
        free.update(`Free the session ${now.name} and its memory`, lost);
      },
    };
  };
}

export class Sessions {
  /** `called(id)` returns the display name of a task. */
  constructor(runtime, say, announce, called) {
    this.runtime = runtime;
    this.say = say;
    this.announce = announce;
    this.called = called;
    this.sessions = [];
    this.title = make("h4", {}, "Sessions");
    this.list = make("ul", { class: "or-sessions", "aria-label": "Sessions" });
    this.empty = make("div", { class: "or-empty" }, "No open sessions. ", make("code", {}, "%%openruntime --session NAME"), " starts one, which keeps its variables for the next cell.");
    this.element = make("section", { "aria-label": "Sessions" }, this.title, this.list, this.empty);
    this.children = new Children(this.list, (session) => session.id, line(this));
  }

  update(sessions) {
    this.sessions = sessions;
    this.owners = new Set(sessions.map((each) => each.owner)).size;
    this.children.update(sessions);
    show(this.title, sessions.length > 0);
    show(this.empty, !sessions.length);
  }

  async act(what, id) {
    const { name } = this.sessions.find((each) => each.id === id) ?? { name: id };
    try {
      const now = await this.runtime.act(what, { id });
      this.say("");
      this.announce(`The session ${name} was ${what === "free" ? "freed" : "restarted"}`);
      this.update(this.sessions.flatMap((each) => (each.id !== id ? [each] : what === "free" ? [] : [now])));
    } catch (problem) {
      this.say(`The session ${name}: ${problem.message}`);
    }
  }
}
