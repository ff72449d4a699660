/** Parser of server-sent events. */
import { ConnectionError } from "./errors.js";

export interface ServerSentEvent {
  event: string;
  data: string;
}

/** Yield the events of a response. The server sends a comment every 10 seconds, so `idleMs` of silence is a lost connection. */
export async function* serverSentEvents(body: ReadableStream<Uint8Array>, idleMs = 30_000): AsyncGenerator<ServerSentEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = "message";
  let data: string[] = [];
  try {
    for (;;) {
      const { value, done } = await within(reader.read(), idleMs);
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield { event, data: data.join("\n") };
          event = "message";
          data = [];
          continue;
        }
        const [, field, content] = /^([^:]*):? ?(.*)$/s.exec(line)!;
        if (field === "event") event = content!;
        else if (field === "data") data.push(content!);
      }
    }
  } catch (cause) {
    throw cause instanceof ConnectionError ? cause : new ConnectionError("The connection of the stream was lost", { cause });
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

async function within<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new ConnectionError(`The stream was silent for ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
