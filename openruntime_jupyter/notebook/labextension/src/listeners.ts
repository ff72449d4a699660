// Callbacks of an object, called in the order in which they were added.

export class Listeners<T> {
  /** Add a callback. Returns the function that removes it. */
  add(callback: (value: T) => void): () => void {
    this.#callbacks.add(callback);
    return () => {
      this.#callbacks.delete(callback);
    };
  }

  /** Call all callbacks. */
  emit(value: T): void {
    for (const callback of [...this.#callbacks]) {
      callback(value);
    }
  }

  readonly #callbacks = new Set<(value: T) => void>();
}
