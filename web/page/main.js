// @ts-check
/** Builds the page: one session, and the sections that listen to it. */

import { connectCheck } from './check.js';
import { DataSection } from './data.js';
import { byId, setText } from './dom.js';
import { acceptDrops } from './drop.js';
import { Engine, asEngineError } from './client.js';
import { Explorer } from './explore.js';
import { ModelSection } from './model.js';
import { dismiss, notify } from './notices.js';
import { Session } from './session.js';
import { SettingsForm } from './settings.js';
import { showAdapter, showSupport } from './support.js';
import { connectTraining } from './train.js';
import { watchVisibility } from './visibility.js';

/** Built-in images that are loaded at first; fewer where a software driver computes. */
const SHAPES = { gpu: 10_000, software: 1_000 };

const engine = new Engine(new Worker(new URL('./worker.js', import.meta.url), { type: 'module' }));
const session = new Session(engine);

/** Asks before a trained model is dropped that was not downloaded. Returns whether it may be dropped. */
async function mayDiscard() {
  if (!session.unsaved) return true;
  const dialog = /** @type {HTMLDialogElement} */ (byId('discard'));
  dialog.returnValue = 'cancel';
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener('close', resolve, { once: true }));
  return dialog.returnValue === 'discard' || (dialog.returnValue === 'download' && (await session.save()));
}

const form = new SettingsForm(session);
const data = new DataSection(session);
const models = new ModelSection(session, mayDiscard);
const explorer = new Explorer(session);
connectTraining(session, form, mayDiscard);
connectCheck(session);
watchVisibility(session);

const advice = {
  'out-of-memory': 'The GPU has too little memory for this: choose a smaller batch size or fewer channels.',
  internal: 'Reload the page; if it happens again, please report it to the project.',
};
session.on('problem', ({ kind, message }) => {
  if (kind === 'device-lost') return reportLoss(message);
  return notify({ key: kind, text: [message, advice[/** @type {keyof typeof advice} */ (kind)] ?? ''].join(' ').trim() });
});

/** Says how to continue without a GPU. @param {string} message */
function reportLoss(message) {
  const again = engine.stopped
    ? { label: 'Reload the page', run: () => location.reload() }
    : { label: 'Open the GPU again', run: () => void session.reopen() };
  const kept = session.canSave ? ' The best model so far is kept.' : '';
  const actions = session.canSave ? [{ label: 'Download model', run: () => void session.save() }, again] : [again];
  const way = engine.stopped && session.canSave ? ' Download it, then reload the page and open it there.' : '';
  notify({ key: 'lost', text: message + kept + way, actions });
}
session.on('phase', () => {
  if (session.phase !== 'lost') dismiss('lost');
});

acceptDrops({
  model: (file) => idle(() => models.open(file)),
  cifar: (file) => idle(() => data.useCifar(file)),
  pictures: (files) => idle(() => data.usePictures(files)),
  own: (file) => explorer.own.use(file),
  unknown: () => notify({ key: 'drop', text: 'These files are no images, no CIFAR-10 archive and no model.safetensors. Drop one of those.' }),
});

/** Runs an action that replaces images or model, unless a run is using them. @param {() => Promise<void>} action */
function idle(action) {
  if (session.busy) notify({ key: 'drop', text: 'A model is being trained. Reset it before you drop other files.' });
  else if (['opening', 'unavailable', 'lost'].includes(session.phase)) notify({ key: 'drop', text: 'The GPU is not available, so the page cannot use these files.' });
  else void action();
}

window.addEventListener('beforeunload', (event) => {
  if (session.unsaved) event.preventDefault();
});

session.on('adapter', ({ adapter, version }) => {
  setText(byId('version'), ` ${version}`);
  void showAdapter(adapter);
});

try {
  const { kind } = await session.open();
  if (kind === 'software') form.choose('tiny');
  void models.findPretrained();
  await data.useShapes(SHAPES[kind]);
} catch (error) {
  showSupport(asEngineError(error));
}
