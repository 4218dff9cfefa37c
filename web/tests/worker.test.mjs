// The worker in a browser, without the page: every request and event of web/page/worker.js.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { loseDevice, program, start } from './harness.mjs';

/** 90 of 100 shapes train, in 9 steps of an epoch. */
const SHAPES = { kind: 'shapes', count: 100, seed: 3 };
// Without pooling, a value at which rounding decides what a ReLU does has much weight in a model as small as this.
const SETTINGS = { channels: 4, blocks: 1, latentDim: 4, batchSize: 10, epochs: 3, learningRate: 0.002, head: 'pool', likelihood: 'optimal', seed: 1 };
const STEPS = 27;
/** Steps that are compared with the CPU reference. */
const COMPARED = 20;

let host, page, folder;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'vae-wgpu-web-'));
  host = await start();
  page = await open(host.url);
});

after(async () => {
  await host?.stop();
  if (folder) await rm(folder, { recursive: true });
});

/** Opens a page with a worker. */
async function open(url) {
  const page = await host.browser.newPage();
  await page.goto(`${url}/bare.html`);
  await page.waitForFunction(() => window.request);
  return page;
}

/** Sends a request. Byte arrays among the fields and in the result travel as numbers. */
async function ask(type, fields = {}, on = page) {
  const plain = JSON.stringify(fields, (_, value) => (ArrayBuffer.isView(value) ? { array: value.constructor.name, values: [...value] } : value));
  const text = await on.evaluate(
    async ([type, fields]) => {
      const revive = (_, value) => (value?.array ? window[value.array].from(value.values) : value);
      const answer = await window.request(type, JSON.parse(fields, revive));
      const flat = (_, value) => {
        if (value instanceof ArrayBuffer) return [...new Uint8Array(value)];
        return ArrayBuffer.isView(value) ? [...value] : value;
      };
      return JSON.stringify(answer, flat);
    },
    [type, plain],
  );
  return JSON.parse(text);
}

/** Sends a request that succeeds, and returns its result. */
async function get(type, fields, on) {
  const { result, error } = await ask(type, fields, on);
  assert.equal(error, undefined, `${type}: ${error?.message}`);
  return result;
}

/** Sends a request that fails with an error of this kind. */
async function refused(kind, message, type, fields, on) {
  const { error } = await ask(type, fields, on);
  assert.equal(error?.kind, kind, `${type}: ${JSON.stringify(error)}`);
  assert.match(error.message, message);
}

const events = (name) => page.evaluate((name) => window.events.filter(({ event }) => event === name), name);
/** Waits for an event with these fields. */
const event = (fields) =>
  page.evaluate((fields) => window.event((event) => Object.entries(fields).every(([name, value]) => event[name] === value)), fields);

/** A tar archive of files, packed with gzip. */
function archive(files) {
  const blocks = [];
  for (const [name, content] of Object.entries(files)) {
    const header = Buffer.alloc(512);
    header.write(name, 0);
    header.write('0000644\0', 100);
    header.write(content.length.toString(8).padStart(11, '0') + '\0', 124);
    header.write('        0', 148);
    header.write('ustar\x0000', 257);
    const sum = header.reduce((sum, byte) => sum + byte, 0);
    header.write(sum.toString(8).padStart(6, '0') + '\0 ', 148);
    blocks.push(header, content, Buffer.alloc(-content.length & 511));
  }
  return gzipSync(Buffer.concat([...blocks, Buffer.alloc(1024)]));
}

/** Records of CIFAR-10: the label, then the planes of a picture. */
const records = (count) => Buffer.concat(Array.from({ length: count }, (_, i) => Buffer.alloc(3073, i % 10)));

const close = (name, a, b, relative) =>
  assert.ok(Math.abs(a - b) <= relative * Math.abs(b), `${name}: ${a} instead of ${b}`);

test('pages that are not secure have no WebGPU', async () => {
  const insecure = await open(host.insecureUrl);
  await refused('no-webgpu', /no WebGPU/, 'open', {}, insecure);
  await refused('invalid', /not open/, 'data', SHAPES, insecure);
  await insecure.close();
});

test('a browser without adapter is an error', async () => {
  const without = await start({ adapter: false });
  try {
    const bare = await without.browser.newPage();
    await bare.goto(`${without.url}/bare.html`);
    await bare.waitForFunction(() => window.request);
    await refused('no-adapter', /graphics driver/, 'open', {}, bare);
  } finally {
    await without.stop();
  }
});

test('the device is described', async () => {
  const { adapter, version } = await get('open');
  assert.deepEqual([adapter.kind, adapter.vendor], ['software', 'google']);
  assert.match(adapter.name, /swiftshader/i);
  assert.ok(adapter.limits.maxBufferSize >= 2 ** 27 && adapter.limits.maxBindingSize >= 2 ** 27);
  assert.match(version, /^\d+\.\d+\.\d+$/);
});

test('requests out of order are errors', async () => {
  await refused('invalid', /no data set/, 'forecast', { settings: {} });
  await refused('invalid', /no data set/, 'start', { settings: {} });
  await refused('invalid', /no model/, 'sample', { count: 1, temperature: 1, seed: 0 });
  await refused('invalid', /no model/, 'weights');
  await refused('invalid', /no model is in training/, 'continue');
  await refused('invalid', /unknown request/, 'toString');
});

test('pictures of the visitor become a data set', async () => {
  const rgba = Uint8Array.from({ length: 20 * 16 * 16 * 4 }, (_, i) => [200, 100, 50, 255][i % 4]);
  const about = { kind: 'pictures', width: 16, height: 16, channels: 3 };
  const data = await get('data', { ...about, rgba, labels: Array(20).fill(1), names: ['cat', 'dog'] });
  assert.deepEqual([data.count, data.validation, data.size, data.classes], [20, 2, [3, 16, 16], ['cat', 'dog']]);
  assert.deepEqual([data.preview.count, data.preview.rgba.slice(0, 8)], [20, [200, 100, 50, 255, 200, 100, 50, 255]]);
  const grey = await get('data', { ...about, channels: 1, rgba });
  assert.deepEqual([grey.size, grey.classes, grey.preview.rgba.slice(0, 4)], [[1, 16, 16], [], [200, 200, 200, 255]]);
  await refused('invalid', /whole images/, 'data', { ...about, rgba: rgba.slice(1) });
  await refused('invalid', /too few/, 'data', { ...about, rgba: rgba.slice(0, 4 * 256 * 4) });
  await refused('invalid', /square/, 'data', { ...about, width: 8, height: 32, rgba });
  await refused('invalid', /label 0/, 'data', { ...about, rgba, labels: Array(20).fill(2), names: ['cat', 'dog'] });
});

test('CIFAR-10 is read from its archive and from one of its files', async () => {
  const names = ['data_batch_1', 'data_batch_2', 'data_batch_3', 'data_batch_4', 'data_batch_5', 'test_batch'];
  const files = Object.fromEntries(names.map((name) => [`cifar-10-batches-bin/${name}.bin`, records(10)]));
  const whole = new Uint8Array(archive(files));
  const data = await get('data', { kind: 'cifar', name: 'cifar.tar.gz', bytes: whole });
  assert.deepEqual([data.name, data.count, data.validation], ['CIFAR-10', 50, 5]);
  assert.deepEqual(data.preview.rgba.slice(4 * 1024, 4 * 1024 + 4), [1, 1, 1, 255]);
  const one = await get('data', { kind: 'cifar', name: 'data_batch_1.bin', bytes: new Uint8Array(records(20)) });
  assert.deepEqual([one.name, one.count], ['data_batch_1.bin', 20]);
  await refused('invalid', /truncated/, 'data', { kind: 'cifar', name: 'cifar.tar.gz', bytes: whole.slice(0, -20) });
  const other = new Uint8Array(archive({ 'notes.txt': Buffer.from('nothing') }));
  await refused('invalid', /neither CIFAR-10/, 'data', { kind: 'cifar', name: 'notes.tar.gz', bytes: other });
  await refused('invalid', /byte 0/, 'data', { kind: 'cifar', name: 'cat.jpeg', bytes: Uint8Array.of(0xff, 0xd8, 0xff) });
});

test('a run is forecast', async () => {
  const data = await get('data', SHAPES);
  assert.deepEqual([data.name, data.count, data.validation, data.size], ['shapes', 100, 10, [3, 32, 32]]);
  const forecast = await get('forecast', { settings: SETTINGS });
  assert.deepEqual([forecast.fits, forecast.stepsPerEpoch], [true, 9]);
  assert.ok(forecast.parameters > 1000 && forecast.memoryBytes > 1e6 && forecast.stepFlops > 1e6 && forecast.dispatches > 50);
  await refused('invalid', /channels/, 'forecast', { settings: { ...SETTINGS, channels: 5 } });
  await refused('invalid', /unknown field/, 'forecast', { settings: { ...SETTINGS, momentum: 0.9 } });
  await get('data', { kind: 'shapes', count: 5000, seed: 0 });
  await refused('out-of-memory', /largest batch that fits is \d+/, 'forecast', { settings: { channels: 128, batchSize: 4500 } });
});

test('training makes the steps of the CPU reference, also with a pause', async () => {
  await page.evaluate(() => (window.events.length = 0));
  await get('data', SHAPES);
  const started = await get('start', { settings: SETTINGS });
  assert.deepEqual([started.stepsPerEpoch, started.steps], [9, STEPS]);
  const compiling = await events('compiling');
  assert.ok(compiling.length > 20);
  assert.deepEqual(compiling.at(-1).done, compiling.at(-1).total);

  await event({ event: 'step', step: 4 });
  const { step } = await get('pause');
  const before = await events('step');
  assert.equal(before.at(-1).step, step, 'a pause waits for the steps on the device');
  const { reconstructions } = await get('reconstruct', { count: 3 });
  assert.deepEqual([reconstructions.count, reconstructions.rgba.length], [3, 3 * 32 * 32 * 4]);
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal((await events('step')).length, before.length, 'no step during the pause');
  assert.equal((await get('continue')).step, step);

  const finished = await event({ event: 'finished' });
  assert.deepEqual([finished.epochs, finished.steps], [3, STEPS]);
  const steps = await events('step');
  assert.deepEqual(steps.map(({ step }) => step), Array.from({ length: STEPS }, (_, i) => i + 1));
  assert.deepEqual([steps[8].epoch, steps[9].epoch], [1, 2]);
  assert.ok(steps.every(({ imagesPerSecond }) => imagesPerSecond > 0));
  const expected = await get('reference', { settings: SETTINGS, steps: COMPARED });
  for (const [i, want] of expected.entries()) {
    const got = steps[i];
    // The limits of the native comparison, `training_steps_agree_with_the_reference`.
    const relative = i === 0 ? 1e-5 : 1e-3;
    close(`total of step ${i + 1}`, got.total, want.total, relative);
    close(`recon of step ${i + 1}`, got.recon, want.recon, relative);
    close(`mse of step ${i + 1}`, got.mse, want.mse, relative);
    close(`kl of step ${i + 1}`, got.kl, want.kl, 10 * relative);
    close(`gradient norm of step ${i + 1}`, got.gradNorm, want.gradNorm, 10 * relative);
  }
});

test('epochs are validated, and pictures are sent on the way', async () => {
  const epochs = await events('epoch');
  assert.deepEqual(epochs.map(({ epoch }) => epoch), [1, 2, 3]);
  assert.ok(epochs.every(({ valTotal, valMse, bitsPerDim, advice }) => [valTotal, valMse, bitsPerDim].every(Number.isFinite) && Array.isArray(advice)));
  const pictures = await events('pictures');
  assert.deepEqual(pictures.map(({ step }) => step), [0, 9, 10, 18, 27]);
  assert.ok(pictures.every(({ originals, reconstructions, samples }) => originals.count === 10 && reconstructions.count === 10 && samples.count === 16));
});

test('the model can be explored', async () => {
  const { pictures } = await get('sample', { count: 20, temperature: 0.7, seed: 5 });
  assert.deepEqual([pictures.count, pictures.width, pictures.channels], [20, 32, 3]);
  assert.deepEqual((await get('sample', { count: 20, temperature: 0.7, seed: 5 })).pictures.rgba, pictures.rgba);
  const { originals, reconstructions } = await get('reconstruct', { count: 2 });
  const encoded = await get('encode', { index: 1 });
  const picture = 32 * 32 * 4;
  assert.deepEqual(encoded.picture.rgba, originals.rgba.slice(picture));
  assert.deepEqual(encoded.reconstruction.rgba, reconstructions.rgba.slice(picture));
  assert.equal(encoded.mean.length, 4);
  assert.ok(encoded.std.every((std) => std > 0));
  const decoded = await get('decode', { z: Float32Array.from(encoded.mean) });
  assert.deepEqual(decoded.pictures.rgba, encoded.reconstruction.rgba);
  const own = await get('encode', { rgba: Uint8Array.from(encoded.picture.rgba), width: 32, height: 32 });
  assert.deepEqual(own.mean, encoded.mean);
  const { kl, order } = await get('latent');
  assert.ok(kl.length === 4 && kl.every((kl) => kl >= 0) && order.every((dim, i) => i === 0 || kl[order[i - 1]] >= kl[dim]));
  await refused('invalid', /picture 10 of 10/, 'encode', { index: 10 });
  await refused('invalid', /takes 32x32/, 'encode', { rgba: new Uint8Array(4), width: 1, height: 1 });
  await refused('invalid', /multiple of 4/, 'decode', { z: new Float32Array(3) });
  await refused('invalid', /temperature/, 'sample', { count: 1, temperature: -1, seed: 0 });
});

test('weights go to the native program and back', async () => {
  const { name, bytes } = await get('weights');
  assert.equal(name, 'model.safetensors');
  const file = path.join(folder, name);
  await writeFile(file, Buffer.from(bytes));
  const samples = path.join(folder, 'samples.npy');
  await promisify(execFile)(program(), ['sample', file, '-n', '2', '--raw', '--prior', 'normal', '--device', 'cpu', '--out', samples]);
  // A native sample has the values of the page's, here as bytes.
  const npy = await readFile(samples);
  const values = new Float32Array(npy.buffer.slice(npy.byteOffset + npy.length - 2 * 3072 * 4, npy.byteOffset + npy.length));
  const { result } = await ask('sample', { count: 2, temperature: 1, seed: 0 });

  const { model, epoch } = await get('load', { name, bytes: Uint8Array.from(bytes) });
  assert.deepEqual([model.channels, model.blocks, model.latentDim, model.likelihood, model.imageSize], [4, 1, 4, 'optimal', [3, 32, 32]]);
  assert.ok(epoch >= 1 && epoch <= 3);
  assert.deepEqual((await get('weights')).bytes, bytes, 'weights that went through the device are the same bytes');
  const loaded = (await get('sample', { count: 2, temperature: 1, seed: 0 })).pictures.rgba;
  if (epoch === 3) assert.deepEqual(loaded, result.pictures.rgba);
  for (let i = 0; i < 2 * 1024; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = values[Math.floor(i / 1024) * 3072 + channel * 1024 + (i % 1024)];
      const byte = Math.round(Math.min(Math.max((value + 1) * 127.5, 0), 255));
      assert.ok(Math.abs(loaded[4 * i + channel] - byte) <= 1, `pixel ${i}: ${loaded[4 * i + channel]} instead of ${byte}`);
    }
  }
});

test('files that are no model are errors', async () => {
  await refused('invalid', /not a safetensors file/, 'load', { name: 'cat.jpeg', bytes: Uint8Array.of(1, 2, 3) });
  const { bytes } = await get('weights');
  await refused('invalid', /cut off or damaged/, 'load', { name: 'cut.safetensors', bytes: Uint8Array.from(bytes.slice(0, -1)) });
  assert.deepEqual((await get('weights')).bytes, bytes, 'the model before is still there');
});

test('kernels are checked', async () => {
  await page.evaluate(() => (window.events.length = 0));
  const { report, passed, failed, notApplicable } = await get('check', { filter: 'relu/odd' });
  assert.ok(passed >= 2 && failed === 0, report);
  assert.match(report, /^# vae-wgpu check report\n[^]*\| browser \| Mozilla[^]*relu\/odd/);
  const checks = await events('check');
  assert.equal(checks.length, passed + notApplicable);
  assert.ok(checks.every(({ verdict, share, total }) => verdict === 'ok' && share <= 100 && total === checks.length));
  await refused('invalid', /no check matches/, 'check', { filter: 'no such kernel' });
});

test('checks end early', async () => {
  await page.evaluate(() => {
    window.events.length = 0;
    window.report = window.request('check', { filter: 'batch_norm' });
  });
  await event({ event: 'check', done: 1 });
  await get('stop-check');
  const { result } = await page.evaluate(() => window.report);
  assert.ok(result.passed >= 1);
  assert.match(result.report, /ended early \| after \d+ of \d+ checks/);
});

test('a learning rate that is too high ends the run', async () => {
  await page.evaluate(() => (window.events.length = 0));
  await get('start', { settings: { ...SETTINGS, learningRate: 1e30 } });
  const { message, step } = await event({ event: 'diverged' });
  assert.match(message, /learning rate|diverged/);
  assert.ok(step >= 1);
  await get('reset');
  await refused('invalid', /no model/, 'weights');
});

test('a lost device keeps the weights', async () => {
  await page.evaluate(() => (window.events.length = 0));
  await get('start', { settings: SETTINGS });
  await event({ event: 'epoch', epoch: 1 });
  const { bytes } = await get('weights');
  await loseDevice(host.browser);
  const { message } = await event({ event: 'lost' });
  assert.ok(message.length > 0);
  await refused('device-lost', /./, 'sample', { count: 1, temperature: 1, seed: 0 });
  assert.deepEqual((await get('weights')).bytes, bytes);
  await get('open');
  assert.deepEqual((await get('weights')).bytes, bytes, 'weights survive opening the device again');
  await get('load', { name: 'model.safetensors', bytes: Uint8Array.from(bytes) });
  assert.equal((await get('reconstruct', { count: 1 })).reconstructions.count, 1);
});
