// The models that are in memory, and how to unload them.
import { Children, make, show, write } from "./dom.js";
import { bytes, seconds } from "./format.js";

function line(runtime, say) {
  return (model) => {
    const name = make("strong");
    const about = make("span", { class: "or-dim" });
    const unload = make(
      "button",
      {
        type: "button",
        class: "or-button",
        title: `Free the memory of ${model.name}`,
        onclick: async () => {
          unload.disabled = true;
          try {
            await runtime.act("unload", { name: model.name });
            say("");
          } catch (problem) {
            say(`unload: ${problem.message}`);
          } finally {
            unload.disabled = false;
          }
        },
      },
      "Unload",
    );
    const element = make("li", {}, name, " ", about, " ", unload);
    return {
      element,
      update(now) {
        write(name, now.name);
        const held = now.resident.map((worker) =>
          [
            worker.state === "busy" ? `answers ${worker.task_id}` : worker.state,
            worker.resident_bytes != null && bytes(worker.resident_bytes),
            worker.idle_seconds != null && `unloads in ${seconds(Math.max(0, Math.round(worker.keep_alive_seconds - worker.idle_seconds)))}`,
          ]
            .filter(Boolean)
            .join(" · "),
        );
        write(about, held.join("; "));
        unload.hidden = now.resident.every((worker) => worker.state === "busy");
      },
    };
  };
}

export class Models {
  constructor(runtime, say) {
    this.list = make("ul", { class: "or-models", "aria-label": "Models in memory" });
    this.element = make("section", { hidden: true }, make("h4", {}, "Models in memory"), this.list);
    this.children = new Children(this.list, (model) => model.name, line(runtime, say));
  }

  update(models) {
    this.children.update(models);
    show(this.element, models.length > 0);
  }
}
