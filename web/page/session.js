// @ts-check
/** The state of the page: what the engine has, and what it does. User interface modules listen to it. */

import { saveFile } from './dom.js';
import { asEngineError } from './client.js';
import { count, sentence } from './format.js';

/**
 * @typedef {'opening' | 'unavailable' | 'ready' | 'compiling' | 'training' | 'paused' | 'finished' | 'diverged' | 'loaded' | 'lost'} Phase
 * `ready` has no model, `loaded` one that cannot be trained further; after `lost` only the weights can be saved.
 * @typedef {{name: string, vendor: string, driver: string, backend: string, kind: 'gpu' | 'software', limits: {maxBufferSize: number, maxBindingSize: number}, features: string[]}} Adapter
 * @typedef {{kind: 'shapes' | 'pictures' | 'cifar', name: string, count: number, validation: number, size: number[], classes: string[], preview: import('./client.js').Pictures}} Data
 * @typedef {{origin: 'trained' | 'file', name: string, channels: number, blocks: number, latentDim: number, imageSize: number[], parameters?: number}} Model
 */

const FILE_NAME = 'model.safetensors';
/** Titles of data sets that have no name of their own. @type {Partial<Record<Data['kind'], string>>} */
const TITLES = { shapes: 'Built-in shapes', pictures: 'Your images' };

/** Dispatches `adapter`, `phase`, `data`, `model` and `checking` when these change, `weights` when a copy was saved, and `problem` with an error to show. */
export class Session extends EventTarget {
  /** @type {Phase} */
  phase = 'opening';
  /** @type {Data | null} */
  data = null;
  /** @type {Model | null} */
  model = null;
  /** Whether the kernels are being checked. */
  checking = false;
  /** Steps that the model was trained for. */
  step = 0;
  /** Epochs that the model was trained for. */
  epoch = 0;
  /** `step` when the weights were last downloaded. */
  #savedStep = 0;
  /** The weights after the last epoch or pause, in case the engine fails. @type {{bytes: ArrayBuffer, step: number} | null} */
  #copy = null;

  /** @param {import('./client.js').Engine} engine */
  constructor(engine) {
    super();
    this.engine = engine;
    engine.on('step', ({ step, epoch }) => {
      this.step = step;
      this.epoch = epoch;
    });
    engine.on('epoch', () => this.#keepCopy());
    engine.on('finished', () => this.#enter('finished'));
    engine.on('diverged', ({ step, message }) => {
      this.#enter('diverged');
      this.#problem('diverged', sentence(`Training stopped at step ${count(step)}: ${message}`));
    });
    engine.on('lost', ({ message }) => this.#lose(sentence(message)));
    engine.on('stopped', ({ message }) => this.#lose(message));
  }

  /** Calls `listener` with each event of this name. @param {string} event @param {(detail: any) => void} listener */
  on(event, listener) {
    this.addEventListener(event, (e) => listener(/** @type {CustomEvent} */ (e).detail));
  }

  /** Whether data and settings cannot be changed. */
  get busy() {
    return this.phase === 'compiling' || this.phase === 'training' || this.phase === 'paused';
  }

  /** The step up to which a download would have the best weights. */
  get #saveableStep() {
    return this.phase === 'lost' ? (this.#copy?.step ?? 0) : this.step;
  }

  /** Whether there are trained weights that were not downloaded. */
  get unsaved() {
    return this.model?.origin === 'trained' && this.#saveableStep > this.#savedStep;
  }

  /** Whether weights can be downloaded. */
  get canSave() {
    if (!this.model) return false;
    return this.#saveableStep > 0 || (this.model.origin === 'file' && this.phase !== 'lost');
  }

  /** Whether the model can decode and encode now. */
  get canExplore() {
    return this.canSave && this.phase !== 'lost';
  }

  /** Whether the images of the data set have the size that the model knows. */
  get dataFits() {
    return Boolean(this.data && this.model && this.data.size.every((value, i) => value === this.model?.imageSize[i]));
  }

  /** Opens the GPU and returns its description. Rejects with the engine's error if there is none. @returns {Promise<Adapter>} */
  async open() {
    try {
      const adapter = await this.#openAdapter();
      this.#enter('ready');
      return adapter;
    } catch (error) {
      this.#enter('unavailable');
      throw error;
    }
  }

  /** Opens the GPU again after it was lost. The engine has kept the images and the weights. */
  async reopen() {
    try {
      await this.#openAdapter();
      const kept = await this.engine.request('weights').catch(() => null);
      if (kept) await this.engine.request('load', kept, [kept.bytes]);
      if (this.model?.origin === 'trained') this.step = this.#saveableStep;
      if (!kept) this.#setModel(null);
      this.#enter(kept ? 'loaded' : 'ready');
    } catch (error) {
      this.#problem('device-lost', asEngineError(error).message);
    }
  }

  async #openAdapter() {
    const detail = await this.engine.request('open');
    this.dispatchEvent(new CustomEvent('adapter', { detail }));
    return detail.adapter;
  }

  /** Replaces the data set. @param {Record<string, unknown> & {kind: Data['kind']}} request @param {Transferable[]} [transfer] */
  async load(request, transfer) {
    const data = await this.engine.request('data', request, transfer);
    this.data = { ...data, kind: request.kind, name: TITLES[request.kind] ?? data.name };
    this.dispatchEvent(new CustomEvent('data'));
  }

  /** Trains a new model, which replaces the present one. @param {import('./settings.js').Settings} settings */
  async start(settings) {
    const data = this.data;
    if (!data) return;
    const before = this.phase;
    this.#enter('compiling');
    try {
      if (this.model) await this.#drop();
      const { parameters } = await this.engine.request('start', { settings });
      const { channels, blocks, latentDim } = settings;
      this.#setModel({ origin: 'trained', name: data.name, channels, blocks, latentDim, imageSize: data.size, parameters });
      this.#enter('training');
    } catch (error) {
      if (/** @type {Phase} */ (this.phase) === 'compiling') this.#enter(this.model ? before : 'ready');
      this.report(error);
    }
  }

  /** Pauses training after the present step. */
  async pause() {
    try {
      const { step } = await this.engine.request('pause');
      this.step = step;
      // Training may have ended in the meantime.
      if (this.phase !== 'training') return;
      this.#enter('paused');
      await this.#keepCopy();
    } catch (error) {
      this.report(error);
    }
  }

  /** Continues training. */
  async resume() {
    try {
      await this.engine.request('continue');
      if (this.phase === 'paused') this.#enter('training');
    } catch (error) {
      this.report(error);
    }
  }

  /**
   * Checks the kernels whose names contain `filter`. Rejects with the engine's error.
   * @param {string} filter
   * @returns {Promise<{report: string, passed: number, failed: number, notApplicable: number}>}
   */
  async check(filter) {
    this.#setChecking(true);
    try {
      return await this.engine.request('check', { filter });
    } finally {
      this.#setChecking(false);
    }
  }

  /** Drops the model. */
  async reset() {
    try {
      await this.#drop();
      this.#enter('ready');
    } catch (error) {
      this.report(error);
    }
  }

  /** Replaces the model by one from a file. Rejects with the engine's error. @param {string} name @param {ArrayBuffer} bytes */
  async openModel(name, bytes) {
    const { model, epoch } = await this.engine.request('load', { name, bytes }, [bytes]);
    this.step = this.#savedStep = 0;
    this.epoch = epoch ?? 0;
    this.#copy = null;
    this.#setModel({ ...model, origin: 'file', name });
    this.#enter('loaded');
  }

  /** Saves the weights as a file, those that were kept if the GPU is lost. Returns whether it could. */
  async save() {
    if (this.phase !== 'lost' && !(await this.#keepCopy())) return false;
    if (!this.#copy) return false;
    saveFile(this.#copy.bytes, FILE_NAME);
    this.#savedStep = this.#copy.step;
    this.dispatchEvent(new CustomEvent('weights'));
    return true;
  }

  /**
   * Shows an error of a request where it belongs: a lost device ends the session, others are shown in the page's notices, unless the
   * caller shows them itself.
   * @param {unknown} error @param {{local?: boolean}} [options]
   */
  report(error, { local = false } = {}) {
    const { kind, message } = asEngineError(error);
    if (kind === 'device-lost') this.#lose(message);
    // Reported once by the event `stopped`.
    else if (!local && !this.engine.stopped) this.#problem(kind, message);
  }

  async #drop() {
    await this.engine.request('reset');
    this.step = this.epoch = this.#savedStep = 0;
    this.#copy = null;
    this.#setModel(null);
  }

  /** Keeps a copy of the present weights in the page. Returns whether it could. */
  async #keepCopy() {
    const { step } = this;
    try {
      const { bytes } = await this.engine.request('weights');
      this.#copy = { bytes, step };
      return true;
    } catch (error) {
      this.report(error);
      return false;
    }
  }

  /** @param {string} message */
  #lose(message) {
    if (this.phase === 'lost' || this.phase === 'unavailable') return;
    this.#enter('lost');
    this.#problem('device-lost', message);
  }

  /** @param {Phase} phase */
  #enter(phase) {
    this.phase = phase;
    document.body.dataset.phase = phase;
    this.dispatchEvent(new CustomEvent('phase'));
  }

  /** @param {boolean} checking */
  #setChecking(checking) {
    this.checking = checking;
    this.dispatchEvent(new CustomEvent('checking'));
  }

  /** @param {Model | null} model */
  #setModel(model) {
    this.model = model;
    this.dispatchEvent(new CustomEvent('model'));
  }

  /** @param {string} kind @param {string} message */
  #problem(kind, message) {
    this.dispatchEvent(new CustomEvent('problem', { detail: { kind, message } }));
  }
}
