/** Types built on those of the wire, which `schema.ts` has. */
import type { Outputs, Parameters, Task, TaskRequest, TaskResult, TaskState } from "./schema.js";
import type { Call } from "./transport.js";

/** Operations of the server; packages can add others. */
export type Operation = keyof Parameters | (string & {});
/** Parameters of an operation. */
export type ParametersOf<Name extends string> = Name extends keyof Parameters ? Parameters[Name] : Record<string, unknown>;
/** Output of an operation. */
export type OutputOf<Name extends string> = Name extends keyof Outputs ? Outputs[Name] : Record<string, unknown>;

/** Record of a completed task. */
export type CompletedTask<Name extends string = string> = Omit<Task, "status" | "result"> & {
  status: "completed";
  result: Omit<TaskResult, "output"> & { output: OutputOf<Name> };
};

/** Options of a submission. */
export interface SubmitOptions extends Call, Omit<Partial<TaskRequest>, "operation" | "parameters" | "wait" | "origin"> {
  /** Key by which the server recognizes a repeated submission. Default: a random one. */
  idempotencyKey?: string;
}

/** Return whether a task in this state has ended. */
export function isTerminal(state: TaskState): boolean {
  return state !== "pending" && state !== "running";
}

/** Value of `origin` in the records of tasks. */
export const ORIGIN = "sdk";
