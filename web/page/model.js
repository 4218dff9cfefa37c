// @ts-check
/** The model file: download, upload, and the pretrained model beside the page. */

import { byId, setText, showText, takeFiles } from './dom.js';
import { asEngineError } from './client.js';
import { count, counted, imageSize } from './format.js';

const PRETRAINED = './pretrained/model.safetensors';
/** Largest file that is read; the largest model of the settings has less. */
const LARGEST = 1024 * 1024 * 1024;

/** The section with the model file. */
export class ModelSection {
  #session;
  #mayDiscard;

  /** @param {import('./session.js').Session} session @param {() => Promise<boolean>} mayDiscard asks whether an unsaved model may be dropped */
  constructor(session, mayDiscard) {
    this.#session = session;
    this.#mayDiscard = mayDiscard;
    byId('model-download').addEventListener('click', () => session.save());
    const input = /** @type {HTMLInputElement} */ (byId('model-file'));
    input.addEventListener('change', () => {
      const [file] = takeFiles(input);
      if (file) void this.open(file);
    });
    byId('model-pretrained').addEventListener('click', () => this.#openPretrained());
    for (const event of ['phase', 'model', 'weights']) session.on(event, () => this.#render());
    session.engine.on('step', ({ step }) => {
      if (step === 1) this.#render();
    });
    this.#render();
  }

  /** Shows the button for the pretrained model if it lies beside the page. */
  async findPretrained() {
    const found = await fetch(PRETRAINED, { method: 'HEAD' }).catch(() => null);
    byId('model-pretrained').hidden = !found?.ok;
  }

  /** Opens a model file. @param {File} file */
  async open(file) {
    await this.#open(file.name, async () => {
      if (file.size > LARGEST) throw new Error(`${file.name} is too large to be a model of vae-wgpu.`);
      return file.arrayBuffer();
    });
  }

  async #openPretrained() {
    await this.#open('pretrained model', async () => {
      const answer = await fetch(PRETRAINED);
      if (!answer.ok) throw new Error(`The pretrained model could not be fetched: the server answered ${answer.status}.`);
      return answer.arrayBuffer();
    });
  }

  /** @param {string} name @param {() => Promise<ArrayBuffer>} read */
  async #open(name, read) {
    if (!(await this.#mayDiscard())) return;
    showText(byId('model-error'));
    setText(byId('model-summary'), `Opening ${name}…`);
    try {
      await this.#session.openModel(name, await read());
    } catch (error) {
      showText(byId('model-error'), asEngineError(error).message);
      this.#session.report(error, { local: true });
    }
    this.#render();
  }

  #render() {
    const { model, canSave, phase, unsaved, step, epoch } = this.#session;
    const closed = phase === 'opening' || phase === 'unavailable' || phase === 'lost' || phase === 'compiling' || phase === 'training';
    /** @type {HTMLInputElement} */ (byId('model-file')).disabled = closed;
    /** @type {HTMLButtonElement} */ (byId('model-pretrained')).disabled = closed;
    /** @type {HTMLButtonElement} */ (byId('model-download')).disabled = !canSave;
    if (!model) return setText(byId('model-summary'), 'No model yet.');
    const { channels, blocks, latentDim, imageSize: size, parameters, name, origin } = model;
    const shape = `${counted(channels, 'channel')}, ${counted(blocks, 'block')} in each group, ${counted(latentDim, 'latent dimension')}, images of ${imageSize(size)}`;
    const made = origin === 'file' ? `From ${name}${epoch > 0 ? `, after ${counted(epoch, 'epoch')}` : ''}` : `Trained on ${name}`;
    const saved = origin === 'trained' && step > 0 && !['training', 'compiling'].includes(phase) ? (unsaved ? ' Not downloaded yet.' : ' Downloaded.') : '';
    setText(byId('model-summary'), `${made}: ${shape}${parameters ? `, ${count(parameters)} parameters` : ''}.${saved}`);
    return undefined;
  }
}
