// The dashboard on a page of its own, `GET /dashboard`: for the stand-alone server, and for users of VS Code.
import { Connection } from "../../../labextension/src/connection";
import { DashboardModel, Feed } from "../../../labextension/src/feed";

const element = document.getElementById("dashboard")!;
const base = new URL(element.dataset.base!, location.href);
const socket = new URL("ws", base);
socket.protocol = socket.protocol.replace("http", "ws");

const connection = new Connection({
  baseUrl: base.href,
  webSocketUrl: socket.href,
  token: new URLSearchParams(location.search).get("token") ?? "",
});
const feed = new Feed(connection);
const model = new DashboardModel(feed, base.href);

connection.changed.add(() => {
  const { state, metrics } = connection;
  const count = metrics && metrics.active_tasks + metrics.pending_tasks;
  document.title = state !== "live" && state !== "connecting" ? `${state} · OpenRuntime` : count ? `${count} ${count === 1 ? "task" : "tasks"} · OpenRuntime` : "OpenRuntime";
});
// A hidden page requests nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? feed.close(model) : feed.open(model)));

const { default: dashboard } = await import("./dashboard.js");
dashboard.render({ model, el: element });
await connection.open();
