/** Large arrays, as typed arrays. Parameters of tasks refer to them as `{ array: id }`. */
import { pack, unpack, type Dtype, type Tensor, type TypedArray } from "./safetensors.js";
import type { ArrayInfo, ArrayPage, ArrayRequest } from "./schema.js";
import type { Call, Transport } from "./transport.js";

const SAFETENSORS = "application/vnd.safetensors";
/** Milliseconds for the transfer of an array. */
const TRANSFER_MS = 600_000;

function pathOf(id: string): string {
  return `/arrays/${encodeURIComponent(id)}`;
}

export class Arrays {
  readonly #transport: Transport;
  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Upload an array under a name, or into the space reserved for an id. `shape` defaults to one dimension. */
  put(id: string, data: TypedArray, { shape, dtype, signal }: { shape?: readonly number[]; dtype?: Dtype } & Call = {}): Promise<ArrayInfo> {
    const headers = { "Content-Type": SAFETENSORS };
    return this.#transport.json("PUT", pathOf(id), { body: pack(data, shape, dtype), headers, signal, waitMs: TRANSFER_MS });
  }

  /** Download an array. */
  async get(id: string, { signal }: Call = {}): Promise<Tensor> {
    return unpack((await this.#transport.bytes(pathOf(id), { headers: { Accept: SAFETENSORS }, signal, waitMs: TRANSFER_MS })).content);
  }

  /** Return shape, dtype and size of an array. */
  info(id: string, { signal }: Call = {}): Promise<ArrayInfo> {
    return this.#transport.json("GET", pathOf(id), { signal });
  }

  /** Return all arrays, newest first, with the used and the allowed bytes. */
  list({ signal }: Call = {}): Promise<ArrayPage> {
    return this.#transport.json("GET", "/arrays", { signal });
  }

  /** Reserve space for an array, to be filled by `put`. */
  reserve(request: ArrayRequest, { signal }: Call = {}): Promise<ArrayInfo> {
    return this.#transport.json("POST", "/arrays", { json: request, signal, repeatable: false });
  }

  /** Mark an array as complete that this program wrote into the file `path`. */
  markReady(id: string, { signal }: Call = {}): Promise<ArrayInfo> {
    return this.#transport.json("POST", `${pathOf(id)}/ready`, { json: {}, signal, repeatable: false });
  }

  delete(id: string, { signal }: Call = {}): Promise<ArrayInfo | null> {
    return this.#transport.json("DELETE", pathOf(id), { signal, repeatable: false });
  }
}
