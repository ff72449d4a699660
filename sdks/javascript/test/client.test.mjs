// Unit tests of what the conformance cases cannot reach. Run with `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiError, ConnectionTimeoutError, OpenRuntime, OpenRuntimeError, UnavailableError } from "@openruntime/sdk";
import { pack, unpack } from "../dist/safetensors.js";
import { serverSentEvents } from "../dist/sse.js";

const json = (value, init) => new Response(JSON.stringify(value), init);

function chunks(...parts) {
  const encoder = new TextEncoder();
  return new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(typeof part === "string" ? encoder.encode(part) : part);
      controller.close();
    },
  });
}

test("events are parsed over any chunks and line ends", async () => {
  const text = new TextEncoder().encode("event: token\r\nid: 3\r\ndata: é👋\r\n\r\n: comment\n\ndata: a\ndata:b\n\nevent: x\ndata\n\n");
  const bytes = Array.from(text, (byte) => Uint8Array.of(byte));
  const found = await Array.fromAsync(serverSentEvents(chunks(...bytes)));
  assert.deepEqual(found, [
    { event: "token", data: "é👋" },
    { event: "message", data: "a\nb" },
    { event: "x", data: "" },
  ]);
});

test("a silent stream is a lost connection", async () => {
  const silent = new ReadableStream({});
  await assert.rejects(Array.fromAsync(serverSentEvents(silent, 20)), { name: "ConnectionError" });
});

test("arrays that do not fit are rejected", () => {
  assert.throws(() => pack(Float32Array.of(1, 2, 3), [2, 2]), OpenRuntimeError);
  assert.throws(() => pack(Float32Array.of(1), [1], "int8"), /Float32Array cannot be stored as int8/);
  assert.throws(() => pack(new Uint8ClampedArray(2)), /Uint8ClampedArray/);
});

test("arrays survive files whose data is not aligned", () => {
  const header = '{"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}'; // 54 bytes
  const file = new Uint8Array(8 + header.length + 8);
  new DataView(file.buffer).setBigUint64(0, BigInt(header.length), true);
  file.set(new TextEncoder().encode(header), 8);
  new DataView(file.buffer).setFloat64(8 + header.length, 1.5, true);
  assert.deepEqual(unpack(file.buffer), { dtype: "float64", shape: [1], data: Float64Array.of(1.5) });
  const part = Int16Array.of(1, 2, 3, 4).subarray(1, 3);
  assert.deepEqual(unpack(pack(part).buffer), { dtype: "int16", shape: [2], data: Int16Array.of(2, 3) });
});

test("a response that takes too long is an error of its own", async () => {
  const fetch = (_, { signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  await assert.rejects(new OpenRuntime({ fetch, timeoutMs: 10, maxRetries: 0 }).health(), ConnectionTimeoutError);
});

test("a server that is not OpenRuntime is named", async () => {
  const fetch = async () => new Response("<html>hello</html>");
  await assert.rejects(new OpenRuntime({ fetch }).health(), /localhost:8000 is not an OpenRuntime server/);
});

test("a request that is not repeatable is sent once", async () => {
  let sent = 0;
  const fetch = async () => {
    sent += 1;
    throw new TypeError("lost");
  };
  const client = new OpenRuntime({ fetch });
  await assert.rejects(client.tasks.handle("t").purge(), { name: "ConnectionError" });
  assert.equal(sent, 1);
});

test("the token is requested for each request, and the server's version is known", async () => {
  const tokens = ["one", "two"];
  const sent = [];
  const fetch = async (_, { headers }) => {
    sent.push(headers.Authorization);
    return json({}, { headers: { "OpenRuntime-Version": "2.1.0" } });
  };
  const client = new OpenRuntime({ fetch, token: async () => tokens.shift() });
  assert.equal(client.serverVersion, null);
  await client.health();
  await client.info();
  assert.deepEqual(sent, ["Bearer one", "Bearer two"]);
  assert.equal(client.serverVersion, "2.1.0");
});

test("errors are of the class of their status", async () => {
  const body = { status: "error", data: { code: "no_model", details: [] }, error: "No model", timestamp: "" };
  const client = new OpenRuntime({ fetch: async () => json(body, { status: 503 }) });
  await assert.rejects(client.ai.ask("hi"), (error) => error instanceof UnavailableError && error instanceof ApiError && error.code === "no_model");
});

test("an abort with a reason of the caller throws it", async () => {
  const reason = new Error("enough");
  const client = new OpenRuntime({ fetch: () => assert.fail("no request") });
  await assert.rejects(client.tasks.run("compute", {}, { signal: AbortSignal.abort(reason) }), reason);
});

test("a reader that is too slow is connected again, and misses nothing that the server sends again", async () => {
  const connected = [];
  class WebSocket {
    constructor(url) {
      connected.push(url.searchParams.get("since"));
      queueMicrotask(() => {
        const first = Number(url.searchParams.get("since") ?? 0);
        for (let id = first + 1; id <= 10_050; id++) this.onmessage({ data: JSON.stringify({ id, type: "heartbeat" }) });
      });
    }
    close() {}
  }
  const found = [];
  for await (const { id } of new OpenRuntime({ WebSocket }).events()) {
    found.push(id);
    if (id === 10_050) break;
  }
  assert.deepEqual(found, Array.from({ length: 10_050 }, (_, index) => index + 1));
  assert.deepEqual(connected, [null, "10001"]);
});
