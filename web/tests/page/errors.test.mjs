/** What the page does when something fails: a sentence for the reader, and the model is kept. */

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { test } from 'node:test';
import { inWorker, look, open, phase, quick, ready, requests, trained } from './harness.mjs';

const text = (page, selector) => page.locator(selector).innerText();

/** Trains until the first epoch has ended. */
async function training(t) {
  const page = await ready(t);
  await quick(page, 40);
  await page.click('#train-button');
  await page.waitForFunction(() => document.querySelectorAll('#epoch-rows tr').length > 0);
  await page.waitForTimeout(100);
  return page;
}

test('without WebGPU the page says how to get it', async (t) => {
  const page = await open(t, 'no-webgpu');
  await page.waitForSelector('#support:visible');
  assert.equal(await text(page, '#support-title'), 'This browser cannot use the GPU yet');
  assert.match(await text(page, '#support-reason'), /^This browser has no WebGPU\.$/);
  const browsers = await page.locator('#support-list dt').allInnerTexts();
  assert.equal(browsers.length, 3);
  assert.match(browsers[0], /Chrome.*your browser/);
  assert.ok(await page.locator('#workbench').isHidden());
  await look(page, 'no-webgpu');
});

test('the advice for the visitor’s own browser comes first', async (t) => {
  const firefox = 'Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0';
  const safari = 'Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Mobile/15E148 Safari/604.1';
  for (const [userAgent, name] of [[firefox, /^Firefox/], [safari, /^Safari/]]) {
    const page = await open(t, 'no-webgpu', { userAgent });
    await page.waitForSelector('#support:visible');
    assert.match((await page.locator('#support-list dt').allInnerTexts())[0], name);
  }
});

test('a browser that finds no GPU has a message of its own', async (t) => {
  const page = await open(t, 'no-adapter');
  await page.waitForSelector('#support:visible');
  assert.equal(await text(page, '#support-title'), 'No GPU was found');
});

test('a worker that cannot be loaded is reported', async (t) => {
  const page = await open(t, 'no-worker');
  page.expected = /404/;
  await page.waitForSelector('#support:visible');
  assert.equal(await text(page, '#support-title'), 'The page could not start');
  assert.equal(await text(page, '#support-reason'), 'The engine has stopped: its script could not be loaded.');
  assert.ok(await page.locator('#support-advice').isHidden());
});

test('a lost GPU ends training, and the model can be downloaded', async (t) => {
  const page = await training(t);
  await inWorker(page, (double) => double.lose('The GPU was lost: the driver reset it.'));
  await phase(page, 'lost');
  assert.match(await text(page, '.notice'), /^The GPU was lost: the driver reset it. The best model so far is kept./);
  assert.equal(await text(page, '#train-button'), 'Open the GPU again');
  assert.ok(await page.locator('#explore-tools').isHidden());
  await look(page, 'lost');
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('.notice button:has-text("Download model")')]);
  assert.match(fs.readFileSync(await download.path(), 'utf8'), /^weights after \d+ steps$/);
});

test('a lost GPU opens again with the images and the model', async (t) => {
  const page = await training(t);
  await inWorker(page, (double) => double.lose('The GPU was lost.'));
  await phase(page, 'lost');
  await inWorker(page, (double) => (double.failures.open = { kind: 'no-adapter', message: 'the GPU is still busy' }));
  await page.click('#train-button');
  await page.waitForFunction(() => document.querySelector('.notice').textContent.startsWith('The GPU is still busy.'));
  await phase(page, 'lost');
  await page.click('.notice button:has-text("Open the GPU again")');
  await phase(page, 'loaded');
  assert.equal(await page.locator('.notice').count(), 0);
  assert.equal(await text(page, '#status'), 'The trained model is open again. Explore it below.');
  assert.match(await text(page, '#model-summary'), /^Trained on Built-in shapes.* Not downloaded yet\.$/);
  assert.ok(await page.locator('#explore-tools').isVisible());
  await page.click('#train-button');
  assert.ok(await page.locator('#discard').isVisible());
});

test('a worker that fails leaves the weights of the last epoch', async (t) => {
  const page = await training(t);
  await inWorker(page, (double) => double.crash());
  await phase(page, 'lost');
  assert.match(await text(page, '.notice'), /^The engine has stopped: .*unreachable executed.*The best model so far is kept. Download it, then reload the page/);
  assert.equal(await text(page, '#train-button'), 'Reload the page');
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#download-button')]);
  assert.match(fs.readFileSync(await download.path(), 'utf8'), /^weights after \d+ steps$/);
});

test('a lost GPU without a model opens again', async (t) => {
  const page = await ready(t);
  await inWorker(page, (double) => double.lose('The GPU was lost.'));
  await phase(page, 'lost');
  assert.match(await text(page, '.notice'), /^The GPU was lost.\s+Open the GPU again/);
  assert.ok(await page.locator('#model-download').isDisabled());
  await page.click('#train-button');
  await phase(page, 'ready');
  await page.click('#train-button');
  await phase(page, 'training');
});

test('a run that cannot start leaves the page as it was', async (t) => {
  const page = await ready(t);
  for (const [kind, message, want] of [
    ['out-of-memory', 'The GPU could not allocate 300 MiB.', /could not allocate 300 MiB. The GPU has too little memory for this: choose a smaller batch/],
    ['invalid', 'invalid batch size: expected at least 2, found 1', /Invalid batch size: expected at least 2, found 1\./],
    ['internal', 'A pipeline could not be compiled.', /A pipeline could not be compiled. Reload the page/],
  ]) {
    await inWorker(page, (double, failure) => (double.failures.start = failure), { kind, message });
    await page.click('#train-button');
    await page.waitForSelector(`.notice[data-key=${kind}]`);
    await phase(page, 'ready');
    assert.match(await text(page, `.notice[data-key=${kind}]`), want);
    assert.equal(await page.locator('.notice').count(), 1);
  }
  await look(page, 'start-failed');
  await page.click('#train-button');
  await phase(page, 'training');
  assert.equal(await page.locator('.notice').count(), 0);
});

test('a run that diverges is explained', async (t) => {
  const page = await training(t);
  await inWorker(page, (double) => {
    double.pace = { delay: 1e6, steps: 0 };
    double.emit({ event: 'diverged', step: 61, message: 'the loss is not a number. Choose a lower learning rate' });
  });
  await phase(page, 'diverged');
  assert.match(await text(page, '.notice'), /Training stopped at step 61: the loss is not a number. Choose a lower learning rate./);
  assert.equal(await text(page, '#train-button'), 'Train again');
  await look(page, 'diverged', { target: '#train' });
});

test('a failing request of a tool is shown beside it', async (t) => {
  const page = await trained(t);
  await inWorker(page, (double) => (double.failures.sample = { kind: 'internal', message: 'The images could not be read back.' }));
  await page.click('#tab-draw');
  await page.waitForSelector('#explore-error:visible');
  assert.equal(await text(page, '#explore-error'), 'The images could not be read back.');
  assert.equal(await page.locator('.notice').count(), 0);
  await page.click('#draw');
  await page.waitForSelector('#explore-error', { state: 'hidden' });
});

test('a pause that fails is reported, and a lost device found by a request ends the session', async (t) => {
  const page = await training(t);
  await inWorker(page, (double) => (double.failures.pause = { kind: 'device-lost', message: 'The GPU was lost.' }));
  await page.click('#train-button');
  await phase(page, 'lost');
  assert.equal((await requests(page, 'pause')).length, 1);
  assert.match(await text(page, '.notice'), /The best model so far is kept/);
});

test('a tab that was in the background says that it was slowed', async (t) => {
  const page = await ready(t);
  await quick(page, 40);
  await page.clock.install();
  await inWorker(page, (double) => (double.pace = { delay: 100, steps: 1 }));
  await page.click('#train-button');
  await phase(page, 'training');
  const show = (hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { configurable: true, get: () => value });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  await show(true);
  await page.clock.fastForward(75_000);
  await show(false);
  assert.match(await text(page, '.notice'), /This tab was in the background for 1:15 and trained \d+ steps? there. Browsers slow hidden tabs/);
  await look(page, 'background');
});
