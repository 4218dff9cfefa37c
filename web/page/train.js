// @ts-check
/** The stage: the buttons that control training, and what it shows while it runs. */

import { Chart } from './charts.js';
import { byId, element, setText } from './dom.js';
import { count, counted, duration, fixed, sentence } from './format.js';
import { clearGrid, drawGrid, firstOf } from './mosaic.js';
import { dismiss } from './notices.js';

/** Pictures in each of the three boards. */
const SHOWN = 16;
/** Milliseconds between two updates of the measurements. */
const PAUSE = 100;
/** Temperature of the samples of a model from a file, as in training. */
const TEMPERATURE = 1;

/** Names of the boards with pictures. */
const BOARDS = /** @type {const} */ (['originals', 'reconstructions', 'samples']);

/**
 * Connects the stage.
 * @param {import('./session.js').Session} session
 * @param {import('./settings.js').SettingsForm} form
 * @param {() => Promise<boolean>} mayDiscard asks whether an unsaved model may be dropped
 */
export function connectTraining(session, form, mayDiscard) {
  const main = /** @type {HTMLButtonElement} */ (byId('train-button'));
  const reset = /** @type {HTMLButtonElement} */ (byId('reset-button'));
  const download = /** @type {HTMLButtonElement} */ (byId('download-button'));
  const progress = /** @type {HTMLProgressElement} */ (byId('progress'));
  const { engine } = session;
  const chart = new Chart();
  /** Whether a request of a button is on its way. */
  let asking = false;
  let epochs = 0;
  let steps = 0;
  let batchSize = 1;
  /** Measurements of the last step. @type {any} */
  let latest = null;
  let timer = 0;

  main.addEventListener('click', () => once(act));
  reset.addEventListener('click', () => once(async () => {
    if (await mayDiscard()) await session.reset();
  }));
  download.addEventListener('click', () => session.save());

  /** Runs the action of a button, unless one is running. @param {() => Promise<void>} action */
  async function once(action) {
    if (asking) return;
    asking = true;
    render();
    try {
      await action();
    } finally {
      asking = false;
      render();
    }
  }

  async function act() {
    if (session.phase === 'training') return session.pause();
    if (session.phase === 'paused') return session.resume();
    if (session.phase === 'lost') return engine.stopped ? location.reload() : session.reopen();
    const settings = form.read();
    if (!settings) return form.focusInvalid();
    if (!(await mayDiscard())) return undefined;
    for (const key of ['diverged', 'invalid', 'out-of-memory', 'internal', 'hidden']) dismiss(key);
    clear();
    ({ epochs, batchSize } = settings);
    steps = form.steps;
    return session.start(settings);
  }

  /** Removes what an earlier run left. */
  function clear() {
    latest = null;
    chart.clear();
    byId('epoch-rows').replaceChildren();
    byId('epochs').hidden = true;
    byId('advice').hidden = true;
    for (const tile of byId('tiles').querySelectorAll('dd')) setText(tile, '–');
    showPreview();
  }

  function render() {
    const { phase, data } = session;
    const waits = session.checking || phase === 'opening' || phase === 'compiling' || (!session.busy && phase !== 'lost' && !(data && form.fits));
    const labels = { training: 'Pause', paused: 'Continue', compiling: 'Compiling…', finished: 'Train again', diverged: 'Train again', lost: engine.stopped ? 'Reload the page' : 'Open the GPU again' };
    setText(main, labels[/** @type {keyof typeof labels} */ (phase)] ?? 'Train');
    // A disabled button would lose the focus, so a button that only has to wait stays enabled and does nothing.
    const resting = phase === 'compiling' || asking;
    main.setAttribute('aria-disabled', String(resting));
    main.disabled = waits && !resting;
    reset.hidden = !['paused', 'finished', 'diverged', 'loaded'].includes(phase);
    download.hidden = !(session.canSave && ['paused', 'finished', 'diverged', 'lost'].includes(phase));
    setText(byId('status'), status());
    byId('hint').hidden = phase !== 'training';
    setText(byId('originals-note'), session.model ? 'Held-out images: the model does not train on them.' : 'Images to learn from.');
    setText(byId('caption-latent'), count(session.model?.latentDim ?? form.read()?.latentDim ?? 64));
    renderProgress();
  }

  /** Returns the state in a sentence. It changes seldom, because screen readers announce it. */
  function status() {
    if (session.checking) return 'The GPU is being checked.';
    switch (session.phase) {
      case 'opening':
        return 'Getting ready…';
      case 'ready':
        return session.data ? `Ready to learn from ${counted(session.data.count, 'image')}.` : 'Choose images first.';
      case 'compiling':
        return 'Compiling the GPU programs. This takes a moment.';
      case 'training':
        return `Training, epoch ${Math.max(1, session.epoch)} of ${epochs}.`;
      case 'paused':
        return 'Paused.';
      case 'finished':
        return `Finished: ${counted(epochs, 'epoch')}. Explore the model below.`;
      case 'diverged':
        return 'Training has stopped.';
      case 'loaded':
        return session.model?.origin === 'file' ? 'A model from a file is open. Explore it below.' : 'The trained model is open again. Explore it below.';
      case 'lost':
        return 'The GPU is no longer available.';
      default:
        return '';
    }
  }

  function renderProgress() {
    const { phase } = session;
    const [left, right] = [byId('progress-left'), byId('progress-right')];
    if (phase === 'compiling') return;
    const running = phase === 'training' || phase === 'paused';
    const done = running || phase === 'finished' || phase === 'diverged' || phase === 'lost' ? session.step : 0;
    progress.value = steps > 0 ? done / steps : 0;
    setText(left, done > 0 ? `Step ${count(done)} of ${count(steps)}` : phase === 'ready' && form.fits ? `${counted(form.steps, 'step')} to do` : '\u00a0');
    const rate = latest?.imagesPerSecond;
    setText(right, running && rate > 0 ? `${duration(((steps - done) * batchSize) / rate)} left` : '');
    const percent = Math.floor(progress.value * 100);
    document.title = running ? `${percent} %${phase === 'paused' ? ', paused' : ''} – vae-wgpu` : 'vae-wgpu: train an image model in this tab';
  }

  function renderStep() {
    timer = 0;
    if (latest) {
      setText(byId('tile-total'), fixed(latest.total, 4));
      setText(byId('tile-recon'), fixed(latest.recon, 4));
      setText(byId('tile-kl'), fixed(latest.kl, 4));
      setText(byId('tile-mse'), fixed(latest.mse, 4));
      setText(byId('tile-bits'), fixed(latest.bitsPerDim, 3));
      setText(byId('tile-rate'), count(latest.imagesPerSecond));
    }
    setText(byId('status'), status());
    renderProgress();
  }

  /** Shows images of the data set among the originals, until a model has held-out ones. */
  function showPreview() {
    const { data } = session;
    for (const board of BOARDS) clearGrid(byId(board), `${title(board)}: none yet`);
    if (data) drawGrid(byId('originals'), firstOf(data.preview, SHOWN), { label: `${Math.min(SHOWN, data.preview.count)} images of ${data.name}` });
  }

  /** @param {Partial<Record<typeof BOARDS[number], import('./client.js').Pictures>>} pictures @param {string} when */
  function showPictures(pictures, when) {
    for (const board of BOARDS) {
      const shown = pictures[board];
      if (shown) drawGrid(byId(board), firstOf(shown, SHOWN), { label: `${title(board)} ${when}: ${counted(Math.min(SHOWN, shown.count), 'image')}` });
    }
  }

  /** Fills the boards with pictures of a model from a file. */
  async function showLoaded() {
    try {
      const samples = await engine.request('sample', { count: SHOWN, temperature: TEMPERATURE, seed: 0 });
      const held = session.dataFits ? await engine.request('reconstruct', { count: SHOWN }) : {};
      if (session.phase === 'loaded') showPictures({ ...held, samples: samples.pictures }, 'of the opened model');
    } catch (error) {
      session.report(error);
    }
  }

  engine.on('compiling', ({ done, total }) => {
    progress.value = done / total;
    setText(byId('progress-left'), `${count(done)} of ${count(total)} programs`);
    setText(byId('progress-right'), '');
  });
  engine.on('step', (step) => {
    latest = step;
    ({ steps } = step);
    chart.push(step.step, step);
    timer ||= window.setTimeout(renderStep, PAUSE);
  });
  engine.on('epoch', (row) => {
    chart.pushHeld({ step: session.step, total: row.valTotal, mse: row.valMse });
    byId('epochs').hidden = false;
    for (const old of row.best ? byId('epoch-rows').querySelectorAll('.best') : []) old.classList.remove('best');
    const cells = [count(row.epoch), fixed(row.valTotal, 4), fixed(row.valMse, 4), fixed(row.bitsPerDim, 3), count(row.activeDims)];
    byId('epoch-rows').prepend(element('tr', row.best ? { class: 'best' } : {}, ...cells.map((cell) => element('td', {}, cell))));
    byId('advice').hidden = row.advice.length === 0;
    byId('advice').replaceChildren(...row.advice.map((/** @type {string} */ advice) => element('li', {}, sentence(advice))));
    renderStep();
  });
  engine.on('pictures', ({ step, ...pictures }) => showPictures(pictures, `after ${counted(step, 'step')}`));

  session.on('phase', () => {
    if (session.phase === 'ready') clear();
    if (session.phase === 'loaded') {
      clear();
      void showLoaded();
    }
    if (session.phase === 'finished') renderStep();
    render();
  });
  session.on('data', () => {
    if (!session.model) showPreview();
    else if (session.phase === 'loaded') void showLoaded();
    render();
  });
  session.on('model', render);
  session.on('checking', render);
  session.on('weights', render);
  form.addEventListener('change', render);
  render();
}

/** @param {string} board */
function title(board) {
  return board[0].toUpperCase() + board.slice(1);
}
