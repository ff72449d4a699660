// Loaded models, with buttons to unload them.
import { button, Children, make, show, write } from "./dom.js";
import { bytes, long } from "./format.js";

function held(worker) {
  const leaves = worker.idle_seconds != null && `unloads in ${long(worker.keep_alive_seconds - worker.idle_seconds)}`;
  return [worker.state, worker.resident_bytes != null && bytes(worker.resident_bytes), leaves].filter(Boolean).join(" · ");
}

function kind(model) {
  const speed = model.tokens_per_second != null && `${Number(model.tokens_per_second.toPrecision(3))} tokens/s`;
  return [model.engine, model.quantisation, speed].filter(Boolean).join(" · ");
}

function line(runtime, say) {
  return (model) => {
    const name = make("strong");
    const about = make("div", { class: "or-dim" });
    const unload = button("Unload", `Unload ${model.name} and free its memory`, async () => {
      unload.disabled = true;
      try {
        await runtime.act("unload", { name: model.name });
        say("");
      } catch (problem) {
        say(`${model.name} was not unloaded: ${problem.message}`);
      } finally {
        unload.disabled = false;
      }
    });
    return {
      element: make("li", {}, make("div", { class: "or-head" }, name, unload), about),
      update(now) {
        write(name, now.name);
        write(about, [kind(now), ...now.resident.map(held)].filter(Boolean).join("; "));
        unload.disabled = now.resident.every((worker) => worker.state === "busy");
      },
    };
  };
}

export class Models {
  constructor(runtime, say) {
    this.list = make("ul", { class: "or-models", "aria-label": "Models in memory" });
    this.empty = make("div", { class: "or-empty" }, "None: a prompt loads the model it needs");
    this.element = make("section", { class: "or-card" }, make("h4", {}, "Models in memory"), this.list, this.empty);
    this.children = new Children(this.list, (model) => model.name, line(runtime, say));
  }

  update(models) {
    this.children.update(models);
    show(this.empty, !models.length);
  }
}
