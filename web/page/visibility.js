// @ts-check
/** The tab in the background: browsers slow it, and phones switch the screen off. */

import { duration } from './format.js';
import { notify } from './notices.js';

/** Seconds in the background that are worth a message. */
const LONG = 5;

/** Reports how long a training tab was hidden, and keeps the screen on while it trains. @param {import('./session.js').Session} session */
export function watchVisibility(session) {
  /** When the tab was hidden while it trained, in milliseconds. */
  let hidden = 0;
  let stepThen = 0;
  /** @type {WakeLockSentinel | null} */
  let lock = null;

  const keepAwake = async () => {
    const wanted = session.phase === 'training' && !document.hidden;
    if (!wanted) {
      const held = lock;
      lock = null;
      await held?.release();
    } else if (!lock || lock.released) {
      // Browsers refuse it to save power, or do not have it. Training works without.
      lock = (await navigator.wakeLock?.request('screen').catch(() => null)) ?? null;
    }
  };

  document.addEventListener('visibilitychange', () => {
    void keepAwake();
    if (document.hidden) {
      hidden = session.phase === 'training' ? performance.now() : 0;
      stepThen = session.step;
      return;
    }
    const seconds = (performance.now() - hidden) / 1000;
    if (hidden && seconds >= LONG) {
      const steps = session.step - stepThen;
      notify({
        key: 'hidden',
        tone: 'info',
        text: `This tab was in the background for ${duration(seconds)} and trained ${steps === 1 ? '1 step' : `${steps} steps`} there. Browsers slow hidden tabs: keep it in view, or in a window of its own.`,
      });
    }
    hidden = 0;
  });
  session.on('phase', () => void keepAwake());
}
