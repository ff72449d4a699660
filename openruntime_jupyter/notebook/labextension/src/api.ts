// The parts of the API's objects that the page uses. `/openapi.json` describes them in full.

export type TaskState =
  | 'pending'
  | 'running'
  | 'completed'
  | 'failed'
  | 'cancelled'
  | 'timed_out'
  | 'interrupted';

export interface IProgress {
  n: number;
  total: number | null;
  message: string | null;
  remaining: number | null;
}

export interface ITask {
  task_id: string;
  status: TaskState;
  operation: string;
  name: string | null;
  notebook: string | null;
  session_name: string | null;
  device_used: string | null;
  position: number | null;
  estimated_start: string | null;
  waiting_for: string | null;
  progress: IProgress | null;
  submitted_at: string;
  started_at: string | null;
  execution_time: number | null;
  error: string | null;
  result?: { output: Record<string, any> } | null;
}

export interface ITaskPage {
  tasks: ITask[];
  total_count: number;
}

export interface IMetrics {
  gpu_utilization: number | null;
  cpu_utilization: number | null;
  memory_usage: number | null;
  active_tasks: number;
  pending_tasks: number;
  hosts?: string;
}

export interface IHealth {
  status: string;
  timestamp: string;
  version: string;
  runtime: string;
  devices: number;
  metrics: IMetrics;
  problems: string[];
}

/** An output item in nbformat's format, or a change of earlier output. */
export interface IOutputItem {
  output_type:
    | 'stream'
    | 'display_data'
    | 'execute_result'
    | 'update_display_data'
    | 'clear_output';
  name?: 'stdout' | 'stderr';
  text?: string;
  data?: Record<string, unknown>;
  metadata?: Record<string, unknown>;
  display_id?: string;
  wait?: boolean;
}

export interface ITaskOutput {
  items: IOutputItem[];
  next: number;
  truncated: boolean;
  finished: boolean;
}

/** What an event says of a task: changed fields, or the progress. */
export type TaskChange = Partial<ITask> & Partial<IProgress> & { task_id: string };

/** A message of the WebSocket. `data` depends on `type`. */
export interface IEvent {
  type: string;
  metrics?: IMetrics;
  data?: TaskChange;
}

/** Return a task after a change. */
export function changed<T extends Partial<ITask>>(task: T | undefined, change: TaskChange): T {
  const { n, total = null, message = null, remaining = null, ...fields } = change;
  const progress = n === undefined ? {} : { progress: { n, total, message, remaining } };
  return { ...(task as T), ...fields, ...progress };
}

/** Progress in percent; null if it is unknown. */
export function percent(progress: IProgress | null | undefined): number | null {
  return progress?.total ? Math.min(100, Math.floor((100 * progress.n) / progress.total)) : null;
}

/** The final states, which never change. */
export const FINAL_STATES = ['completed', 'failed', 'cancelled', 'timed_out', 'interrupted'];

/** True for a final state. */
export function ended(state: string): boolean {
  return FINAL_STATES.includes(state);
}

/** The non-empty parts with separators between them. */
export function joined(parts: unknown[], separator = ' · '): string {
  return parts.filter(Boolean).join(separator);
}

/** The name of a task, or else its operation. */
export function titleOf(task: { name?: string | null; operation?: string }): string {
  return task.name || task.operation || '';
}

/** A duration for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`. */
export function duration(seconds: number): string {
  if (seconds < 10) {
    return `${seconds.toFixed(1)} s`;
  }
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  if (hours) {
    return `${hours} h ${minutes} min`;
  }
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}
