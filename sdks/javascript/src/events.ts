/** Live events by WebSocket, which reconnects and resumes. */
import { ApiError, ConnectionError } from "./errors.js";
import type { ServerMessage, Topic } from "./schema.js";
import type { Call, Transport } from "./transport.js";

export interface EventOptions extends Call {
  /** `id` of the last received message: later task updates are sent again. */
  since?: number | undefined;
}

const MOST_UNREAD = 10_000;
/** The server sends a heartbeat every 5 seconds. */
const LONGEST_SILENCE_MS = 30_000;
/** Close codes of the server: token missing or invalid, permission missing. */
const REFUSED: Readonly<Record<number, number>> = { 4001: 401, 4003: 403 };

/**
 * Yield messages until the loop is left or `signal` aborts. After a lost connection, missed task updates follow. A `connected` message
 * with `gap: true` means that some are no longer stored: read the tasks again.
 */
export async function* events(transport: Transport, topics: readonly Topic[], { signal, since }: EventOptions = {}): AsyncGenerator<ServerMessage> {
  const reconnection = transport.reconnection(signal);
  for (;;) {
    if (signal?.aborted) return;
    const url = transport.url("/ws", { since, topics });
    url.protocol = url.protocol.replace("http", "ws");
    // Browsers cannot set headers of a handshake.
    const token = await transport.token();
    if (token) url.searchParams.set("token", token);
    const inbox = new Inbox(new transport.WebSocket(url), signal);
    try {
      for await (const message of inbox) {
        reconnection.progress();
        since = message.id;
        yield message;
      }
    } finally {
      inbox.close();
    }
    if (signal?.aborted) return;
    const status = REFUSED[inbox.code];
    if (status !== undefined) throw ApiError.of({ message: inbox.reason, status, code: "not_allowed" });
    try {
      await reconnection.pause(new ConnectionError(`The WebSocket of ${transport.baseUrl} was closed with code ${inbox.code}: ${inbox.reason}`));
    } catch (problem) {
      if (signal?.aborted) return;
      throw problem;
    }
  }
}

/** Unread messages of one connection. Their number is bounded: a connection with too many is closed, and the next one resumes. */
class Inbox implements AsyncIterable<ServerMessage> {
  code = 1006;
  reason = "";
  readonly #socket: WebSocket;
  readonly #signal: AbortSignal | undefined;
  #unread: ServerMessage[] = [];
  #ended = false;
  #silence: ReturnType<typeof setTimeout> | undefined;
  #wake: () => void = () => undefined;
  readonly #abort = (): void => this.close();

  constructor(socket: WebSocket, signal: AbortSignal | undefined) {
    this.#socket = socket;
    this.#signal = signal;
    socket.onmessage = (event) => {
      if (this.#ended) return;
      this.#unread.push(JSON.parse(event.data as string) as ServerMessage);
      if (this.#unread.length > MOST_UNREAD) this.close();
      this.#expect();
      this.#wake();
    };
    socket.onerror = () => undefined; // `close` follows
    socket.onclose = (event) => {
      this.code = event.code;
      this.reason = event.reason;
      this.#end();
    };
    signal?.addEventListener("abort", this.#abort, { once: true });
    this.#expect();
  }

  close(): void {
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#socket.close();
    this.#end();
  }

  #expect(): void {
    clearTimeout(this.#silence);
    if (!this.#ended) this.#silence = setTimeout(() => this.close(), LONGEST_SILENCE_MS);
  }

  #end(): void {
    this.#ended = true;
    clearTimeout(this.#silence);
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ServerMessage> {
    for (;;) {
      const messages = this.#unread;
      this.#unread = [];
      yield* messages;
      if (this.#unread.length > 0) continue;
      if (this.#ended) return;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}
