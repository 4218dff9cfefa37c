// @ts-check
/** Comparing the GPU programs with the CPU reference. */

import { byId, element, setText, showText } from './dom.js';
import { asEngineError } from './client.js';
import { count, counted } from './format.js';

/** Failures that are listed; the report has all. */
const LISTED = 8;
/** Milliseconds between two updates of the name. */
const PAUSE = 100;

/** Connects the section. @param {import('./session.js').Session} session */
export function connectCheck(session) {
  const { engine } = session;
  const run = /** @type {HTMLButtonElement} */ (byId('check-run'));
  let shown = 0;
  let failed = 0;
  /** Whether the last of the checks has run. */
  let complete = false;

  const render = () => {
    const { phase } = session;
    const free = !['opening', 'unavailable', 'compiling', 'training', 'lost'].includes(phase);
    run.hidden = session.checking;
    run.disabled = !free;
    run.title = phase === 'training' ? 'Pause training first' : '';
    byId('check-stop').hidden = !session.checking;
    byId('check-live').hidden = !session.checking;
  };

  engine.on('check', ({ done, total, name, verdict, share }) => {
    if (verdict === 'failed') {
      failed += 1;
      byId('check-failures').hidden = false;
      if (failed <= LISTED) byId('check-failures').append(element('li', {}, element('code', {}, name), ` ${Math.round(share)} % of the error limit`));
    }
    complete = done === total;
    const now = performance.now();
    if (now - shown < PAUSE && !complete) return;
    shown = now;
    /** @type {HTMLProgressElement} */ (byId('check-bar')).value = done / total;
    setText(byId('check-count'), `${count(done)} of ${count(total)}${failed > 0 ? `, ${failed} failed` : ''}`);
    setText(byId('check-name'), name);
  });

  byId('check-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    if (session.checking || run.disabled) return;
    failed = 0;
    complete = false;
    byId('check-failures').replaceChildren();
    byId('check-failures').hidden = true;
    byId('check-report').hidden = true;
    byId('check-bar').removeAttribute('value');
    setText(byId('check-count'), 'Starting…');
    setText(byId('check-name'), '');
    setText(byId('check-verdict'), '');
    showText(byId('check-error'));
    try {
      const filter = /** @type {HTMLInputElement} */ (byId('check-filter')).value.trim();
      const { report, passed, failed: bad, notApplicable } = await session.check(filter);
      const counts = `${counted(passed, 'check')} passed, ${count(bad)} failed, ${count(notApplicable)} not applicable.`;
      const whole = complete && filter === '' ? ' This GPU computes what it should.' : '';
      setText(byId('check-verdict'), counts + (bad > 0 ? ' Please copy the report into an issue of the project.' : whole));
      byId('check-verdict').className = bad === 0 ? 'good' : 'bad';
      /** @type {HTMLTextAreaElement} */ (byId('check-text')).value = report;
      byId('check-report').hidden = false;
    } catch (error) {
      showText(byId('check-error'), asEngineError(error).message);
      session.report(error, { local: true });
    }
  });

  byId('check-stop').addEventListener('click', () => engine.request('stop-check').catch((error) => session.report(error)));

  byId('check-copy').addEventListener('click', async () => {
    const text = /** @type {HTMLTextAreaElement} */ (byId('check-text'));
    try {
      await navigator.clipboard.writeText(text.value);
      setText(byId('check-copied'), 'Copied.');
    } catch {
      text.select();
      setText(byId('check-copied'), 'The browser does not allow it: the report is selected, copy it with the keyboard.');
    }
  });

  session.on('phase', render);
  session.on('checking', () => {
    // The button that had the focus gives way to the other one.
    const focused = [run, byId('check-stop'), document.body].includes(/** @type {HTMLElement} */ (document.activeElement));
    render();
    if (focused) (session.checking ? byId('check-stop') : run).focus();
  });
  render();
}
