// Compiled by a test, and never run: the types accept what is right and reject what is wrong.
import { OpenRuntime, TaskError, TaskHandle, type ServerMessage } from "@openruntime/sdk";
import { connect } from "@openruntime/sdk/node";

const client = new OpenRuntime({ token: async () => "secret" });

const task = await client.tasks.run("matrix_multiply", { size: 100, dtype: "float32" });
export const device: string = task.result.device_used;
export const status: "completed" = task.status;
export const speed: number = task.result.output.gflops;
// @ts-expect-error: a number
await client.tasks.run("matrix_multiply", { size: "100" });
// @ts-expect-error: an unknown parameter
await client.tasks.run("matrix_multiply", { sizes: 100 });
// @ts-expect-error: an unknown option
await client.tasks.run("matrix_multiply", {}, { priorty: 1 });
await client.tasks.run("operation_of_a_package", { anything: [1, { goes: true }] });

const handle: TaskHandle<"compute"> = await client.tasks.submit("compute", { expression: "a", inputs: { a: 1 } });
const record = await handle.wait();
// @ts-expect-error: it may have failed
export const output = record.result.output;

export function seen(message: ServerMessage): string | undefined {
  if (message.type === "task_update") return message.data.task_id;
  if (message.type === "heartbeat") return String(message.metrics.active_tasks);
  // @ts-expect-error: another message
  return message.metrics;
}

try {
  await (await connect({ maxRetries: 0 })).health();
} catch (error) {
  if (error instanceof TaskError) console.log(error.task.failure?.traceback);
}
