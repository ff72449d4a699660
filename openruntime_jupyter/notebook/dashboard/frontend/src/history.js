// Metric history for charts, from messages of the kernel and from responses of the server.

function times(first, step, count) {
  return Array.from({ length: count }, (_, index) => first + index * step);
}

/** Unpack a message of the kernel: one float32 buffer with the means and then the maxima of each series. */
export function fromKernel({ timeframe, first, count, resolution, series, numbers }) {
  const view = numbers instanceof DataView ? numbers : new DataView(numbers.buffer ?? numbers);
  const all = new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  const column = (number) => Array.from(all.subarray(number * count, (number + 1) * count), (value) => (Number.isNaN(value) ? null : value));
  const columns = new Map(series.map(({ name, unit }, index) => [name, { unit, mean: column(2 * index), max: column(2 * index + 1) }]));
  return { timeframe, times: times(first, resolution, count), step: resolution, columns };
}

/** Convert a `MetricsHistory` response of the server. */
export function fromServer({ timeframe, timestamps, resolution_s: step, series }) {
  const first = timestamps.length ? Date.parse(timestamps[0]) / 1000 : 0;
  return { timeframe, times: times(first, step, timestamps.length), step, columns: new Map(Object.entries(series)) };
}
