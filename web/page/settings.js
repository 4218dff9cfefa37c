// @ts-check
/** The form of the settings: model sizes to choose from, checks of each value, and the forecast. */

import { byId, setText, showText } from './dom.js';
import { asEngineError } from './client.js';
import { bytes, count, work } from './format.js';

/** @typedef {{channels: number, blocks: number, latentDim: number, batchSize: number, epochs: number, learningRate: number, likelihood: string, seed: number}} Settings */

/** Sets of settings that work together. `large` is what the native program trains by default. */
const PRESETS = {
  tiny: { channels: 8, blocks: 1, latentDim: 32, batchSize: 32, epochs: 8, learningRate: 0.005, note: 'For a first try, and for phones.' },
  small: { channels: 16, blocks: 1, latentDim: 64, batchSize: 32, epochs: 12, learningRate: 0.005, note: 'For the GPU of a laptop.' },
  medium: { channels: 32, blocks: 2, latentDim: 64, batchSize: 64, epochs: 20, learningRate: 0.005, note: 'For a GPU with its own memory. Sharper.' },
  large: { channels: 32, blocks: 4, latentDim: 64, batchSize: 128, epochs: 25, learningRate: 0.01, note: 'The default of the native program, for a fast GPU.' },
};
/** @typedef {keyof typeof PRESETS} Preset */

/** The fields with a number, and what each accepts. */
const NUMBERS = /** @type {const} */ ({
  channels: 'an even number from 2 to 256',
  blocks: 'a whole number from 1 to 16',
  latentDim: 'a whole number from 1 to 1,024',
  batchSize: 'a whole number from 2 to 1,024',
  epochs: 'a whole number from 1 to 1,000',
  learningRate: 'a number from 0.00001 to 0.1',
  seed: 'a whole number from 0 to 4,294,967,295',
});
const NAMES = /** @type {(keyof typeof NUMBERS)[]} */ (Object.keys(NUMBERS));

/** Milliseconds without a change after which a forecast is made. */
const PAUSE = 250;

/** The settings form. Dispatches `change` when settings or forecast change. */
export class SettingsForm extends EventTarget {
  #session;
  #form = /** @type {HTMLFormElement} */ (byId('settings'));
  #timer = 0;
  /** Counts forecasts, to ignore the answers to all but the last. */
  #asked = 0;
  /** Whether the engine said that the settings fit. */
  fits = false;
  /** Number of steps of the run, from the last forecast. */
  steps = 0;

  /** @param {import('./session.js').Session} session */
  constructor(session) {
    super();
    this.#session = session;
    this.choose('small');
    this.#field('seed').value = '0';
    this.#form.addEventListener('submit', (event) => event.preventDefault());
    this.#form.addEventListener('input', (event) => {
      const input = /** @type {HTMLInputElement} */ (event.target);
      if (input.name === 'preset') this.choose(/** @type {Preset} */ (input.value));
      else this.#markPreset();
      this.#changed();
    });
    session.on('data', () => this.#changed());
    session.on('phase', () => this.#render());
    this.#render();
  }

  /** Fills in a set of settings. @param {Preset} name */
  choose(name) {
    const { note, ...values } = PRESETS[name];
    for (const [field, value] of Object.entries(values)) this.#field(field).value = String(value);
    this.#markPreset();
  }

  /** Returns the settings, or nothing if a value is not valid, which the form then explains. @returns {Settings | undefined} */
  read() {
    let valid = true;
    for (const name of NAMES) {
      const input = this.#field(name);
      const good = input.checkValidity();
      input.toggleAttribute('aria-invalid', false);
      if (!good) input.setAttribute('aria-invalid', 'true');
      showText(byId(`${input.id}-error`), good ? '' : `Enter ${NUMBERS[name]}.`);
      valid &&= good;
    }
    if (!valid) return undefined;
    const numbers = Object.fromEntries(NAMES.map((name) => [name, this.#field(name).valueAsNumber]));
    return /** @type {Settings} */ ({ ...numbers, likelihood: this.#field('likelihood').value });
  }

  /** Moves the focus to the first value that is not valid. */
  focusInvalid() {
    byId('settings-details').setAttribute('open', '');
    /** @type {HTMLElement | null} */ (this.#form.querySelector('[aria-invalid=true]'))?.focus();
  }

  /** @param {string} name @returns {HTMLInputElement} */
  #field(name) {
    return /** @type {HTMLInputElement} */ (this.#form.elements.namedItem(name));
  }

  /** Selects the model size that the values equal, or none. */
  #markPreset() {
    const same = (/** @type {Preset} */ name) => {
      const { note, ...values } = PRESETS[name];
      return Object.entries(values).every(([field, value]) => this.#field(field).valueAsNumber === value);
    };
    const found = /** @type {Preset[]} */ (Object.keys(PRESETS)).find(same);
    for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (this.#form.querySelectorAll('input[name=preset]'))) {
      radio.checked = radio.value === found;
    }
    setText(byId('preset-note'), found ? PRESETS[found].note : 'Your own settings.');
  }

  #changed() {
    this.fits = false;
    this.#asked += 1;
    clearTimeout(this.#timer);
    const settings = this.read();
    if (settings && this.#session.data && !this.#session.busy) this.#timer = window.setTimeout(() => this.#forecast(settings), PAUSE);
    if (!settings) this.#show(undefined);
    this.dispatchEvent(new Event('change'));
  }

  /** @param {Settings} settings */
  async #forecast(settings) {
    const asked = this.#asked;
    try {
      const forecast = await this.#session.engine.request('forecast', { settings });
      if (asked !== this.#asked) return;
      this.fits = true;
      this.steps = forecast.stepsPerEpoch * settings.epochs;
      this.#show(forecast);
      showText(byId('forecast-error'));
    } catch (error) {
      if (asked !== this.#asked) return;
      const { kind, message } = asEngineError(error);
      this.#show(undefined);
      showText(byId('forecast-error'), kind === 'out-of-memory' ? `${message} Choose a smaller batch size or fewer channels.` : message);
      this.#session.report(error, { local: true });
    }
    this.dispatchEvent(new Event('change'));
  }

  /** @param {{parameters: number, memoryBytes: number, stepFlops: number, dispatches: number, stepsPerEpoch: number} | undefined} forecast */
  #show(forecast) {
    const show = (/** @type {string} */ id, /** @type {string} */ text) => setText(byId(id), forecast ? text : '–');
    show('forecast-parameters', count(forecast?.parameters ?? 0));
    show('forecast-memory', bytes(forecast?.memoryBytes ?? 0));
    show('forecast-work', work(forecast?.stepFlops ?? 0));
    show('forecast-dispatches', count(forecast?.dispatches ?? 0));
    show('forecast-steps', `${count(this.steps)} (${count(forecast?.stepsPerEpoch ?? 0)} an epoch)`);
  }

  #render() {
    const { phase, busy, data } = this.#session;
    /** @type {HTMLFieldSetElement} */ (byId('settings-fields')).disabled = busy || phase === 'opening' || phase === 'lost';
    byId('settings-locked').hidden = !busy;
    // The settings may have had no forecast while a run was busy.
    if (!busy && data && !this.fits && phase !== 'lost') this.#changed();
  }
}
