/** Errors of this package. Each has its `name` as a literal, because minifiers rename classes. */
import type { Detail, ErrorCode, Task } from "./schema.js";

/** Newer servers have further codes. */
type Code = ErrorCode | (string & {});

/** Base class of all errors of this package. */
export class OpenRuntimeError extends Error {
  override readonly name: string = "OpenRuntimeError";
}

/** The server does not respond, or its response was cut off. */
export class ConnectionError extends OpenRuntimeError {
  override readonly name: string = "ConnectionError";
}

/** The server did not respond in time. */
export class ConnectionTimeoutError extends ConnectionError {
  override readonly name = "ConnectionTimeoutError";
}

export interface Problem {
  message: string;
  /** HTTP status; for an entry of a batch, that of an equivalent single request. */
  status: number;
  /** Machine-readable code such as `queue_full`; null if a proxy or an older server responded. */
  code?: Code | null | undefined;
  /** Invalid fields. */
  details?: readonly Detail[] | null | undefined;
  /** Seconds after which a retry can succeed; null if it cannot. */
  retryAfter?: number | null;
}

/** An error response of the server. */
export class ApiError extends OpenRuntimeError {
  override readonly name: string = "ApiError";
  readonly status: number;
  readonly code: Code | null;
  readonly details: readonly Detail[];
  readonly retryAfter: number | null;

  constructor({ message, status, code, details, retryAfter }: Problem) {
    super(message);
    this.status = status;
    this.code = code ?? null;
    this.details = details ?? [];
    this.retryAfter = retryAfter ?? null;
  }

  /** Return the error of the class for `status`. */
  static of(problem: Problem): ApiError {
    return new (BY_STATUS[problem.status] ?? ApiError)(problem);
  }
}

/** 400: the server cannot read the request. */
export class MalformedRequestError extends ApiError {
  override readonly name = "MalformedRequestError";
}
/** 401, 403: token or permission missing. */
export class NotAllowedError extends ApiError {
  override readonly name = "NotAllowedError";
}
/** 404: unknown task, array, session, model or conversation. */
export class NotFoundError extends ApiError {
  override readonly name = "NotFoundError";
}
/** 409: the state of the task or array does not allow the request. */
export class ConflictError extends ApiError {
  override readonly name = "ConflictError";
}
/** 413: the body exceeds the server's limit. */
export class BodyTooLargeError extends ApiError {
  override readonly name = "BodyTooLargeError";
}
/** 422: invalid values; `details` names the fields. */
export class InvalidRequestError extends ApiError {
  override readonly name = "InvalidRequestError";
}
/** 429: too many requests. */
export class RateLimitedError extends ApiError {
  override readonly name = "RateLimitedError";
}
/** 503: temporarily unavailable; `code` is the reason. */
export class UnavailableError extends ApiError {
  override readonly name = "UnavailableError";
}

const BY_STATUS: Readonly<Record<number, typeof ApiError>> = {
  400: MalformedRequestError,
  401: NotAllowedError,
  403: NotAllowedError,
  404: NotFoundError,
  409: ConflictError,
  413: BodyTooLargeError,
  422: InvalidRequestError,
  429: RateLimitedError,
  503: UnavailableError,
};

/** Return the error of a response whose status is not a success. */
export async function responseError(response: Response): Promise<ApiError> {
  const seconds = Number.parseFloat(response.headers.get("retry-after") ?? "");
  const { status } = response;
  const retryAfter = seconds >= 0 ? seconds : null;
  try {
    const { error, data } = (await response.json()) as { error: unknown; data: { code?: string; details?: Detail[] } | null };
    if (typeof error === "string") return ApiError.of({ message: error, status, code: data?.code, details: data?.details, retryAfter });
  } catch {
    // The response is from a proxy or from another program.
  }
  return ApiError.of({ message: `${response.url} responded with ${status} ${response.statusText}, without an error of OpenRuntime`, status, retryAfter });
}

/** A task that did not complete; `task` is its record. */
export class TaskError extends OpenRuntimeError {
  override readonly name: string = "TaskError";
  readonly task: Task;
  constructor(task: Task) {
    super(task.error ?? `${task.task_id}: ${task.status}`);
    this.task = task;
  }
}
/** The task raised an exception; `task.failure.traceback` is the remote traceback. */
export class TaskFailedError extends TaskError {
  override readonly name: string = "TaskFailedError";
}
/** The worker process of the task died. */
export class WorkerDiedError extends TaskFailedError {
  override readonly name = "WorkerDiedError";
}
/** The task was cancelled; `task.cancel_stage` is the stage that stopped it. */
export class TaskCancelledError extends TaskError {
  override readonly name = "TaskCancelledError";
}
/** The task ran longer than its timeout. */
export class TaskTimedOutError extends TaskError {
  override readonly name = "TaskTimedOutError";
}
/** The server ended while the task ran. */
export class TaskInterruptedError extends TaskError {
  override readonly name = "TaskInterruptedError";
}

/** Return the error of a task that did not complete. */
export function taskError(task: Task): TaskError {
  if (task.status === "cancelled") return new TaskCancelledError(task);
  if (task.status === "timed_out") return new TaskTimedOutError(task);
  if (task.status === "interrupted") return new TaskInterruptedError(task);
  return new (task.failure?.kind === "worker_died" ? WorkerDiedError : TaskFailedError)(task);
}
