/** Messages of the WebSocket. */
import type { Metrics, OutputItem, Progress, Task } from "./schema.js";

/** Topics; `task_update` is sent unless other topics are requested. */
export type Topic = "task_update" | "task_progress" | "task_output" | "ai_token" | "metrics";

export type ServerMessage = { id: number } & (
  | { type: "connected"; timestamp: string; message: string; gap?: boolean }
  | { type: "heartbeat" | "metrics"; timestamp: string; metrics: Metrics }
  | { type: "task_update"; data: Pick<Task, "task_id" | "status" | "execution_time"> & Partial<Task> }
  | { type: "task_progress"; data: { task_id: string } & Progress }
  | { type: "task_output"; data: { task_id: string; items: OutputItem[]; next: number } }
  | { type: "ai_token"; data: { task_id: string; index: number; text: string } }
  | { type: "subscribed"; topics: Topic[] }
  | { type: "error"; error: string }
);
