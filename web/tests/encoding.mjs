// `node web/tests/encoding.mjs [BATCH]` measures how long the worker takes to encode and submit a training step of the default model: the
// time during which it cannot answer. The batch size does not change the number of dispatches.
import { start } from './harness.mjs';

const batchSize = Number(process.argv[2] ?? 2);
const host = await start();
try {
  const page = await host.browser.newPage();
  await page.goto(`${host.url}/bare.html`);
  await page.waitForFunction(() => window.request);
  const times = await page.evaluate(async (batchSize) => {
    const get = async (type, fields) => {
      const { result, error } = await window.request(type, fields);
      if (error) throw new Error(error.message);
      return result;
    };
    await get('open');
    await get('data', { kind: 'shapes', count: 100, seed: 0 });
    const settings = { batchSize };
    const { dispatches } = await get('forecast', { settings });
    await get('start', { settings });
    await get('pause');
    return { dispatches, times: await get('encoding-times', { steps: 7 }) };
  }, batchSize);
  const sorted = times.times.toSorted((a, b) => a - b);
  console.log(`${times.dispatches} dispatches: median ${sorted[3].toFixed(1)} ms, least ${sorted[0].toFixed(1)} ms of ${sorted.length} steps`);
} finally {
  await host.stop();
}
