// @ts-check
/** Looking inside a model: which tool is shown, and when it reads the model again. */

import { byId, showText } from './dom.js';
import { asEngineError } from './client.js';
import { imageSize } from './format.js';
import { Dials } from './dials.js';
import { Drawing } from './drawing.js';
import { OwnImage } from './own-image.js';
import { Path } from './path.js';
import { connectTabs } from './tabs.js';

/**
 * @typedef {object} Context what the tools need
 * @property {import('./client.js').Engine} engine
 * @property {() => import('./session.js').Model | null} model
 * @property {() => number} held number of held-out images that fit the model
 * @property {(work: () => Promise<void>) => Promise<void>} attempt runs `work` and shows its error
 */

/** The section with the tools. */
export class Explorer {
  #session;
  /** Tools that have not read the present model. @type {Set<string>} */
  #stale = new Set();
  #tab = 'tab-dials';

  /** @param {import('./session.js').Session} session */
  constructor(session) {
    this.#session = session;
    /** @type {Context} */
    const context = {
      engine: session.engine,
      model: () => session.model,
      held: () => (session.dataFits ? (session.data?.validation ?? 0) : 0),
      attempt: (work) => this.#attempt(work),
    };
    const dials = new Dials(context);
    this.own = new OwnImage(context, (mean) => {
      dials.setBase(mean, 'Your image');
      this.#stale.delete('tab-dials');
      select('tab-dials');
      byId('tab-dials').focus();
    });
    /** @type {Record<string, {refresh: () => Promise<void>}>} */
    this.tools = { 'tab-dials': dials, 'tab-path': new Path(context), 'tab-own': this.own, 'tab-draw': new Drawing(context) };
    const select = connectTabs(/** @type {HTMLElement} */ (document.querySelector('.tabs')), (tab) => {
      this.#tab = tab;
      this.#refresh();
    });
    session.on('phase', () => {
      if (['paused', 'finished', 'diverged', 'loaded'].includes(session.phase)) this.#reread();
      this.#render();
    });
    session.on('model', () => this.#render());
    session.on('data', () => this.#reread());
    // The first look while a model trains. Later epochs do not pull the image from under the visitor's hands.
    session.engine.on('epoch', ({ epoch }) => {
      if (epoch === 1) this.#reread();
    });
    this.#render();
  }

  #reread() {
    this.#stale = new Set(Object.keys(this.tools));
    this.#render();
    this.#refresh();
  }

  #refresh() {
    if (!this.#session.canExplore || !this.#stale.delete(this.#tab)) return;
    void this.#attempt(() => this.tools[this.#tab].refresh());
  }

  #render() {
    const { canExplore, dataFits, model, data } = this.#session;
    byId('explore-tools').hidden = !canExplore;
    byId('explore-empty').hidden = canExplore;
    if (!canExplore) showText(byId('explore-error'));
    const other = canExplore && model && !dataFits;
    const found = data ? `The images in use are ${imageSize(data.size)}. ` : '';
    showText(byId('explore-mismatch'), other ? `The model knows images of ${imageSize(model.imageSize)}. ${found}Choose images of the model’s size to start from them.` : '');
  }

  /** @param {() => Promise<void>} work */
  async #attempt(work) {
    showText(byId('explore-error'));
    try {
      await work();
    } catch (error) {
      showText(byId('explore-error'), this.#session.canExplore ? asEngineError(error).message : '');
      this.#session.report(error, { local: true });
    }
  }
}
