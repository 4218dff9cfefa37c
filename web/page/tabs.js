// @ts-check
/** A row of tabs: arrow keys, Home and End move between them (WAI-ARIA Authoring Practices, "Tabs"). */

/**
 * Connects the tabs in `list`, each of which names its panel with `aria-controls`.
 * @param {HTMLElement} list
 * @param {(tab: string) => void} onSelect called with the id of a tab when it is selected
 * @returns {(tab: string) => void} selects a tab by its id
 */
export function connectTabs(list, onSelect) {
  const tabs = /** @type {HTMLElement[]} */ ([...list.querySelectorAll('[role=tab]')]);
  const panelOf = (/** @type {HTMLElement} */ tab) => document.getElementById(tab.getAttribute('aria-controls') ?? '');

  /** @param {HTMLElement} chosen */
  const select = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute('aria-selected', String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      panelOf(tab)?.toggleAttribute('hidden', tab !== chosen);
    }
    onSelect(chosen.id);
  };
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener('click', () => select(tab));
    tab.addEventListener('keydown', (event) => {
      const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      const to = moves[/** @type {keyof typeof moves} */ (event.key)];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      next.focus();
      select(next);
    });
  }
  return (id) => {
    const tab = tabs.find((candidate) => candidate.id === id);
    if (tab) select(tab);
  };
}
