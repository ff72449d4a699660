/** Prompts to language models, and what belongs to them. */
import { ConnectionError } from "./errors.js";
import type { AgentList, AiRequest, AiTask, Answer, Conversation, ConversationInfo, Insights, InsightsRequest, Task, TokenEvent, WorkflowInfo } from "./schema.js";
import { serverSentEvents } from "./sse.js";
import { TaskHandle, headersOf, orCancel } from "./tasks.js";
import type { Call, Transport } from "./transport.js";
import { ORIGIN } from "./types.js";

export interface PromptOptions extends Call, Omit<Partial<AiRequest>, "workflow_type" | "prompt" | "wait" | "stream" | "origin"> {
  /** Name of a workflow. Default: `model_inference`, which sends the prompt unchanged. */
  workflow?: string;
  idempotencyKey?: string;
}

export class Ai {
  readonly #transport: Transport;
  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /**
   * Submit a prompt. `for await (const text of handle)` streams the response, `await handle.answer()` returns it.
   * An abort of `signal` cancels the task.
   */
  async ask(prompt: string, options: PromptOptions = {}): Promise<PromptHandle> {
    const { signal, workflow = "model_inference", idempotencyKey = crypto.randomUUID(), ...fields } = options;
    const json = { workflow_type: workflow, prompt, origin: ORIGIN, ...fields };
    const post = async (signal: AbortSignal | undefined): Promise<PromptHandle> => {
      const request = { json, headers: headersOf(idempotencyKey), signal, waitMs: 60_000 };
      return new PromptHandle(this.#transport, (await this.#transport.json<AiTask>("POST", "/ai/tasks", request)).task_id, options.signal);
    };
    signal?.throwIfAborted();
    return orCancel(signal, post(signal), post);
  }

  /** Return the handle of a prompt by the id of its task, without a request. */
  handle(id: string, { signal }: Call = {}): PromptHandle {
    return new PromptHandle(this.#transport, id, signal);
  }

  agents({ signal }: Call = {}): Promise<AgentList> {
    return this.#transport.json("GET", "/ai/agents", { signal });
  }

  async workflows({ signal }: Call = {}): Promise<WorkflowInfo[]> {
    return (await this.#transport.json<{ workflows: WorkflowInfo[] }>("GET", "/ai/workflows", { signal })).workflows;
  }

  /** Return findings from the recorded history. */
  insights(request: InsightsRequest, { signal }: Call = {}): Promise<Insights> {
    return this.#transport.json("POST", "/ai/insights", { json: request, signal, waitMs: 300_000 });
  }

  /** Return the conversations, most recently used first. */
  async conversations({ signal, owner }: { owner?: string } & Call = {}): Promise<ConversationInfo[]> {
    const query = { owner };
    return (await this.#transport.json<{ conversations: ConversationInfo[] }>("GET", "/ai/conversations", { query, signal })).conversations;
  }

  /** Return a conversation with its messages. */
  conversation(name: string, { signal, owner }: { owner?: string } & Call = {}): Promise<Conversation> {
    return this.#transport.json("GET", `/ai/conversations/${encodeURIComponent(name)}`, { query: { owner }, signal });
  }

  /** Delete a conversation. Its tasks stay. */
  deleteConversation(name: string, { signal, owner }: { owner?: string } & Call = {}): Promise<Conversation | null> {
    return this.#transport.json("DELETE", `/ai/conversations/${encodeURIComponent(name)}`, { query: { owner }, signal, repeatable: false });
  }
}

/** A submitted prompt. An iteration yields its text while the model generates it. */
export class PromptHandle extends TaskHandle implements AsyncIterable<string> {
  readonly #signal: AbortSignal | undefined;

  constructor(transport: Transport, task: Task | string, signal: AbortSignal | undefined) {
    super(transport, task);
    this.#signal = signal;
  }

  /** Yield the text. Leaving the loop does not cancel the task. Throws a `TaskError` if it does not complete. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string> {
    for await (const { text } of this.pieces()) yield text;
    await this.#orCancel(this.completed({ signal: this.#signal }));
  }

  /**
   * Yield the pieces of the text after the first `since` characters. A lost connection resumes where it ended. A piece with index 0 after
   * others restarts the text: the worker died, and the task runs again.
   */
  async *pieces(since = 0): AsyncGenerator<TokenEvent> {
    const reconnection = this.transport.reconnection(this.#signal);
    for (;;) {
      try {
        const request = { query: { since }, headers: { Accept: "text/event-stream" }, signal: this.#signal };
        const response = await this.transport.stream(`/tasks/${encodeURIComponent(this.id)}/tokens`, request);
        for await (const { event, data } of serverSentEvents(response.body!)) {
          reconnection.progress();
          if (event === "task") return;
          if (event !== "token") continue;
          const piece = JSON.parse(data) as TokenEvent;
          since = piece.index + [...piece.text].length; // the server counts code points
          yield piece;
        }
        throw new ConnectionError("The stream ended before the task");
      } catch (problem) {
        await this.#orCancel(reconnection.pause(problem));
      }
    }
  }

  /** Wait for the response. Throws a `TaskError` if the task does not complete. */
  async answer(): Promise<Answer> {
    const task = await this.#orCancel(this.completed({ signal: this.#signal }));
    return task.result.output as unknown as Answer;
  }

  /** Await `work`; cancel the task if the signal has aborted. */
  #orCancel<T>(work: Promise<T>): Promise<T> {
    return orCancel(this.#signal, work, () => Promise.resolve(this));
  }
}
