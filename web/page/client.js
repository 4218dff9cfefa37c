// @ts-check
/** The engine in its worker: requests as promises, messages without a request as events. */

import { sentence } from './format.js';

/** @typedef {'no-webgpu' | 'no-adapter' | 'device-lost' | 'out-of-memory' | 'invalid' | 'internal'} ErrorKind */
/** @typedef {{width: number, height: number, channels: number, count: number, rgba: Uint8ClampedArray}} Pictures */

/** An error that the engine reported. */
export class EngineError extends Error {
  /** @param {ErrorKind} kind @param {string} message */
  constructor(kind, message) {
    super(message);
    this.name = 'EngineError';
    this.kind = kind;
  }
}

/** Returns the error as an [`EngineError`]; those of the page itself get the kind `internal`. @param {unknown} error */
export function asEngineError(error) {
  if (error instanceof EngineError) return error;
  return new EngineError('internal', error instanceof Error ? error.message : String(error));
}

/** Sends requests to the worker. Dispatches its events, and `stopped` once the worker itself has failed. */
export class Engine extends EventTarget {
  #worker;
  /** @type {Map<number, {resolve: (value: any) => void, reject: (reason: EngineError) => void}>} */
  #waiting = new Map();
  #next = 1;
  /** @type {EngineError | undefined} */
  #failure;

  /** @param {Worker} worker */
  constructor(worker) {
    super();
    this.#worker = worker;
    worker.addEventListener('message', ({ data }) => this.#receive(data));
    worker.addEventListener('messageerror', () => this.#stop('a message of the engine could not be read'));
    worker.addEventListener('error', (event) => {
      event.preventDefault();
      this.#stop(event.message || 'its script could not be loaded');
    });
  }

  /** Whether the worker has failed, so that no request can succeed. */
  get stopped() {
    return this.#failure !== undefined;
  }

  /**
   * Sends a request and returns its result.
   * @param {string} type
   * @param {Record<string, unknown>} [fields]
   * @param {Transferable[]} [transfer] buffers to move instead of copying them
   * @returns {Promise<any>} rejects with an [`EngineError`]
   */
  request(type, fields = {}, transfer = []) {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      try {
        this.#worker.postMessage({ id, type, ...fields }, transfer);
      } catch (error) {
        this.#waiting.delete(id);
        reject(asEngineError(error));
      }
    });
  }

  /** Calls `listener` with each event of this name. @param {string} event @param {(detail: any) => void} listener */
  on(event, listener) {
    this.addEventListener(event, (e) => listener(/** @type {CustomEvent} */ (e).detail));
  }

  /** @param {any} message */
  #receive(message) {
    if (message.event) {
      this.dispatchEvent(new CustomEvent(message.event, { detail: message }));
      return;
    }
    const waiting = this.#waiting.get(message.id);
    if (!waiting) return;
    this.#waiting.delete(message.id);
    if (message.error) waiting.reject(new EngineError(message.error.kind, sentence(message.error.message)));
    else waiting.resolve(message.result);
  }

  /** @param {string} reason */
  #stop(reason) {
    if (this.#failure) return;
    // What it computes after a failure cannot be trusted.
    this.#worker.terminate();
    this.#failure = new EngineError('internal', `The engine has stopped: ${reason}.`);
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
    this.dispatchEvent(new CustomEvent('stopped', { detail: { message: this.#failure.message } }));
  }
}
