// @ts-check
/** Sliders along latent dimensions, those with the largest KL divergence first. */

import { byId, element, latestOnly, setText } from './dom.js';
import { fixed } from './format.js';
import { normals } from './latent.js';
import { drawGrid } from './mosaic.js';

/** Sliders that are shown at first, and added at a time. */
const SLIDERS = 12;
/** Range of a slider, in standard deviations of the prior. */
const REACH = 3;

/** The tool. */
export class Dials {
  #context;
  /** The held-out image that was encoded last. */
  #index = 0;
  /** The latent vector that the sliders start from. */
  #base = new Float32Array();
  /** The latent vector that is decoded. */
  #z = new Float32Array();
  #caption = '';
  /** Dimensions by KL divergence. @type {number[]} */
  #order = [];
  /** KL divergence of each dimension in nats, if it is known. @type {number[] | null} */
  #kl = null;
  #shown = SLIDERS;

  /** @param {import('./explore.js').Context} context */
  constructor(context) {
    this.#context = context;
    byId('dials-image').addEventListener('click', () => context.attempt(() => this.#encode(this.#index + 1)));
    byId('dials-random').addEventListener('click', () => this.setBase(normals(this.#order.length), 'A random latent vector'));
    byId('dials-reset').addEventListener('click', () => this.setBase(this.#base, this.#caption));
    byId('dials-more').addEventListener('click', () => {
      const first = this.#shown;
      this.#shown += SLIDERS;
      this.#build();
      /** @type {HTMLElement | undefined} */ (byId('dials-list').querySelectorAll('input')[first])?.focus();
    });
    byId('dials-list').addEventListener('input', (event) => {
      const input = /** @type {HTMLInputElement} */ (event.target);
      this.#z[Number(input.dataset.dimension)] = input.valueAsNumber;
      this.#showValue(input);
      void this.#decode();
    });
  }

  /** Reads the model again. */
  async refresh() {
    const { engine, model, held } = this.#context;
    const latent = model()?.latentDim ?? 0;
    const known = held() > 0;
    byId('dials-image').hidden = !known;
    const found = await engine.request('latent').catch((error) => {
      // A file need not have the divergences, and without images they cannot be measured.
      if (error.kind !== 'invalid') throw error;
      return { kl: null, order: Array.from({ length: latent }, (_, i) => i) };
    });
    [this.#kl, this.#order] = [found.kl, found.order];
    this.#shown = SLIDERS;
    this.#build();
    if (known) await this.#encode(this.#index);
    else this.setBase(new Float32Array(latent), 'The centre of the prior');
  }

  /** Starts from a latent vector. @param {ArrayLike<number>} mean @param {string} caption */
  setBase(mean, caption) {
    this.#base = Float32Array.from(mean);
    this.#z = Float32Array.from(mean);
    this.#caption = caption;
    setText(byId('dials-caption'), caption);
    for (const input of byId('dials-list').querySelectorAll('input')) {
      input.valueAsNumber = this.#z[Number(input.dataset.dimension)];
      this.#showValue(input);
    }
    void this.#decode();
  }

  /** Starts from a held-out image. @param {number} index */
  async #encode(index) {
    this.#index = index % this.#context.held();
    const { mean } = await this.#context.engine.request('encode', { index: this.#index });
    this.setBase(mean, `Held-out image ${this.#index + 1}`);
  }

  #decode = latestOnly(() => this.#context.attempt(async () => {
    const { pictures } = await this.#context.engine.request('decode', { z: this.#z.slice() });
    drawGrid(/** @type {HTMLCanvasElement} */ (byId('dials-canvas')), pictures, { label: `Decoded image, starting from: ${this.#caption}`, limit: 1 });
  }));

  #build() {
    const dimensions = this.#order.slice(0, this.#shown);
    const most = this.#kl?.[this.#order[0]] ?? 0;
    byId('dials-list').replaceChildren(...dimensions.map((dimension) => this.#slider(dimension, most)));
    byId('dials-more').hidden = this.#shown >= this.#order.length;
  }

  /** @param {number} dimension @param {number} most largest KL divergence of a dimension */
  #slider(dimension, most) {
    const id = `dial-${dimension}`;
    const kl = this.#kl?.[dimension];
    const label = element('label', { for: id }, `Dimension ${dimension + 1}`);
    const input = element('input', { type: 'range', id, min: String(-REACH), max: String(REACH), step: '0.05', 'data-dimension': String(dimension) });
    input.valueAsNumber = this.#z[dimension] ?? 0;
    const row = element('div', { class: 'dial' }, label);
    if (kl !== undefined) {
      const bar = element('span', { class: 'kl-bar', 'aria-hidden': 'true' });
      bar.style.setProperty('--share', String(most > 0 ? kl / most : 0));
      row.append(element('span', { class: 'kl' }, bar, `KL ${fixed(kl, 2)}`));
    }
    row.append(element('output', { for: id }), input);
    this.#showValue(input);
    return row;
  }

  /** @param {HTMLInputElement} input */
  #showValue(input) {
    const output = input.parentElement?.querySelector('output') ?? byId('dials-list').querySelector(`output[for=${input.id}]`);
    const value = this.#z[Number(input.dataset.dimension)] ?? 0;
    if (output) setText(/** @type {HTMLElement} */ (output), `${value > 0 ? '+' : ''}${fixed(value, 2)}`);
  }
}
