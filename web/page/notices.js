// @ts-check
/** Messages about the whole page: what happened, and what to do. */

import { byId, element } from './dom.js';

/**
 * Shows a message. One with the same key is replaced.
 * @param {{key: string, tone?: 'error' | 'info', text: string, actions?: {label: string, run: () => void}[]}} notice
 */
export function notify({ key, tone = 'error', text, actions = [] }) {
  dismiss(key);
  const buttons = actions.map(({ label, run }) => {
    const button = element('button', { type: 'button', class: 'button' }, label);
    button.addEventListener('click', run);
    return button;
  });
  const close = element('button', { type: 'button', class: 'close', 'aria-label': 'Dismiss' }, '×');
  close.addEventListener('click', () => dismiss(key));
  const role = tone === 'error' ? 'alert' : 'status';
  const notice = element('div', { class: `notice ${tone}`, role, 'data-key': key }, element('p', {}, text), ...buttons, close);
  byId('notices').append(notice);
}

/** Removes the message with this key, if there is one. @param {string} key */
export function dismiss(key) {
  for (const notice of byId('notices').children) {
    if (notice.getAttribute('data-key') === key) notice.remove();
  }
}
