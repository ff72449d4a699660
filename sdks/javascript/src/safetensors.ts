/** Arrays as safetensors files with one array. */
import { OpenRuntimeError } from "./errors.js";

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Int16Array
  | Int32Array
  | BigInt64Array
  | Uint8Array
  | Uint16Array
  | Uint32Array
  | BigUint64Array;

type View = { new (buffer: ArrayBuffer, offset: number, length: number): TypedArray; readonly BYTES_PER_ELEMENT: number };

/** Code in the file, type of the elements, and number of them per element of the array. */
const DTYPES = {
  float32: ["F32", Float32Array, 1],
  float64: ["F64", Float64Array, 1],
  int8: ["I8", Int8Array, 1],
  int16: ["I16", Int16Array, 1],
  int32: ["I32", Int32Array, 1],
  int64: ["I64", BigInt64Array, 1],
  uint8: ["U8", Uint8Array, 1],
  uint16: ["U16", Uint16Array, 1],
  uint32: ["U32", Uint32Array, 1],
  uint64: ["U64", BigUint64Array, 1],
  float16: ["F16", Uint16Array, 1],
  bfloat16: ["BF16", Uint16Array, 1],
  bool: ["BOOL", Uint8Array, 1],
  complex64: ["C64", Float32Array, 2],
} as const satisfies Record<string, readonly [code: string, view: View, each: number]>;

export type Dtype = keyof typeof DTYPES;

/** An array. `float16` and `bfloat16` are their 16 bits, `bool` is 0 and 1, `complex64` is pairs of numbers. */
export interface Tensor {
  dtype: Dtype;
  shape: number[];
  data: TypedArray;
}

/** Return the file of an array. `shape` defaults to one dimension, `dtype` to that of `data`. */
export function pack(data: TypedArray, shape?: readonly number[], dtype?: Dtype): Uint8Array {
  const kind = Object.entries(DTYPES).find(([name, [, View]]) => (dtype ? name === dtype : data.constructor === View));
  if (!kind || kind[1][1] !== data.constructor) throw new OpenRuntimeError(`${data.constructor.name} cannot be stored as ${dtype ?? "an array"}`);
  const [code, , each] = kind[1];
  shape ??= [data.length / each];
  if (shape.reduce((product, length) => product * length, each) !== data.length) {
    throw new OpenRuntimeError(`${data.length} elements do not fill the shape [${shape.join(", ")}] of ${kind[0]}`);
  }
  let header = JSON.stringify({ array: { dtype: code, shape, data_offsets: [0, data.byteLength] } });
  header += " ".repeat((8 - (header.length % 8)) % 8);
  const start = 8 + header.length;
  const file = new Uint8Array(start + data.byteLength);
  new DataView(file.buffer).setBigUint64(0, BigInt(header.length), true);
  file.set(new TextEncoder().encode(header), 8);
  file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start);
  return file;
}

/** Return the array of a file. */
export function unpack(file: ArrayBuffer): Tensor {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length))) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const entry = Object.entries(header).find(([name]) => name !== "__metadata__")?.[1];
  const kind = Object.entries(DTYPES).find(([, [code]]) => code === entry?.dtype);
  if (!entry || !kind) throw new OpenRuntimeError(`The file has no array of a known dtype: ${entry?.dtype ?? "it is empty"}`);
  const View: View = kind[1][1];
  const [start, end] = entry.data_offsets.map((offset) => 8 + length + offset) as [number, number];
  const count = (end - start) / View.BYTES_PER_ELEMENT;
  const aligned = start % View.BYTES_PER_ELEMENT === 0;
  const data = aligned ? new View(file, start, count) : new View(file.slice(start, end), 0, count);
  return { dtype: kind[0] as Dtype, shape: entry.shape, data };
}
