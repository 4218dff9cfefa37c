/**
 * A test double of the worker: it speaks the same protocol, with plausible images and losses, and needs no GPU.
 * The folder in its address names the scenario. Tests reach it through `globalThis.double`.
 */

const scenario = self.location.pathname.split('/').at(-2);
const CLASSES = ['circle', 'square', 'ring', 'cross'];

const double = {
  /** Milliseconds between ticks, and steps in each. */
  pace: { delay: 8, steps: 4 },
  /** Milliseconds for a program to compile. */
  compileDelay: 4,
  programs: 24,
  checkDelay: 4,
  /** Requests so far, without their bytes. */
  requests: [],
  /** Errors for the next request of a type: `{type: {kind, message}}`. */
  failures: {},
  emit(event) {
    self.postMessage(event);
  },
  lose(message) {
    stopTraining();
    state.lost = true;
    self.postMessage({ event: 'lost', message });
  },
  crash() {
    setTimeout(() => {
      throw new Error('unreachable executed');
    });
  },
};
globalThis.double = double;

const state = { data: null, model: null, run: null, kept: null, lost: false, stopCheck: false };

/** A small generator of numbers in [0, 1) from a seed. */
function random(seed) {
  let a = (seed * 2654435761 + 12345) >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function scene(seed) {
  const next = random(seed + 1);
  return Array.from({ length: 8 }, () => next() * 2 - 1);
}

function hue(h, s, v) {
  const channel = (offset) => {
    const k = (offset + h * 6 + 12) % 6;
    return 255 * v * (1 - s * Math.max(0, Math.min(k, 4 - k, 1)));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Draws a scene of eight values from -1 to 1. A low quality is blurred and grey. */
function paint(values, { width, height, channels }, quality, rgba, at) {
  const [shape, x0, y0, size, ground, front, light, turn] = values;
  const kind = Math.min(3, Math.floor(((Math.tanh(shape) + 1) / 2) * 4));
  const radius = 0.38 + 0.18 * Math.tanh(size);
  const soft = 0.06 + 1.3 * (1 - quality) ** 2;
  const back = hue((ground + 1) / 2, 0.45, 0.55 + 0.25 * light);
  const fore = hue((front + 1) / 2 + 0.4, 0.75, 0.85);
  for (let i = 0; i < width * height; i += 1) {
    const px = ((i % width) + 0.5) / width * 2 - 1 - 0.4 * Math.tanh(x0);
    const py = (Math.floor(i / width) + 0.5) / height * 2 - 1 - 0.4 * Math.tanh(y0);
    const angle = turn;
    const [x, y] = [px * Math.cos(angle) + py * Math.sin(angle), py * Math.cos(angle) - px * Math.sin(angle)];
    const round = Math.hypot(x, y);
    const box = Math.max(Math.abs(x), Math.abs(y));
    const bars = Math.min(Math.max(Math.abs(x) - radius * 0.32, Math.abs(y) - radius), Math.max(Math.abs(y) - radius * 0.32, Math.abs(x) - radius));
    const distance = [round - radius, box - radius * 0.85, Math.abs(round - radius * 0.8) - radius * 0.24, bars][kind];
    const cover = Math.max(0, Math.min(1, 0.5 - distance / soft)) * (0.25 + 0.75 * quality);
    const shade = 1 - 0.12 * (py + 1);
    const grey = 0.35 * (1 - quality);
    const pixel = [0, 1, 2].map((c) => ((back[c] * (1 - cover) + fore[c] * cover) * shade) * (1 - grey) + 128 * grey);
    if (channels === 1) pixel.fill((pixel[0] + pixel[1] + pixel[2]) / 3);
    rgba.set([...pixel, 255], at + i * 4);
  }
}

const sizeOf = ([channels, height, width]) => ({ channels, height, width });

function pictures(scenes, quality, size) {
  const form = sizeOf(size);
  const rgba = new Uint8ClampedArray(scenes.length * form.width * form.height * 4);
  scenes.forEach((values, i) => paint(values, form, quality, rgba, i * form.width * form.height * 4));
  return { ...form, count: scenes.length, rgba };
}

const quality = () => (state.model?.trained ? 0.93 : 0.9 * (1 - Math.exp((-3 * (state.run?.step ?? 0)) / Math.max(1, state.run?.steps ?? 1))));
const held = (count) => Array.from({ length: count }, (_, i) => scene(90_000 + i));

/** The order of latent dimensions by KL: a fixed shuffle. */
function order() {
  const latent = state.model.latentDim;
  return Array.from({ length: latent }, (_, i) => i).sort((a, b) => random(a)() - random(b)());
}

function embed(values) {
  const z = new Array(state.model.latentDim).fill(0);
  order().slice(0, 8).forEach((dimension, i) => (z[dimension] = values[i] * 1.6));
  return z;
}

function unembed(z) {
  return order().slice(0, 8).map((dimension) => z[dimension] / 1.6).concat(Array(8).fill(0)).slice(0, 8);
}

function original(index) {
  if (state.data.own) {
    const { width, height, rgba } = state.data.own;
    const length = width * height * 4;
    const at = index % state.data.count;
    return { ...sizeOf(state.data.size), count: 1, rgba: new Uint8ClampedArray(rgba.slice(at * length, (at + 1) * length)) };
  }
  return pictures([scene(90_000 + index)], 1, state.data.size);
}

function blurred(picture) {
  const { width, height, rgba } = picture;
  const out = new Uint8ClampedArray(rgba.length);
  for (let i = 0; i < width * height; i += 1) {
    for (let c = 0; c < 4; c += 1) {
      let [sum, n] = [0, 0];
      for (let dy = -2; dy <= 2; dy += 1) {
        for (let dx = -2; dx <= 2; dx += 1) {
          const [x, y] = [(i % width) + dx, Math.floor(i / width) + dy];
          if (x < 0 || y < 0 || x >= width || y >= height) continue;
          sum += rgba[(y * width + x) * 4 + c];
          n += 1;
        }
      }
      out[i * 4 + c] = sum / n;
    }
  }
  return { ...picture, rgba: out };
}

function measure(step, steps) {
  const jitter = random(step);
  const fall = Math.exp(-step / (steps * 0.06)) + 0.35 * Math.exp(-step / (steps * 0.35));
  const mse = 0.052 + 0.3 * fall * (0.95 + 0.1 * jitter());
  const kl = 0.026 + 0.05 * Math.exp(-step / (steps * 0.1)) - 0.004 * Math.exp(-step / (steps * 0.5)) + 0.0008 * jitter();
  const recon = 0.5 * (Math.log(2 * Math.PI * mse) + 1) + 0.02 * (jitter() - 0.5);
  const total = recon + kl;
  return { recon, kl, total, mse, gradNorm: 0.3 + 2 * fall * (0.6 + 0.8 * jitter()), bitsPerDim: total / Math.LN2 + Math.log2(127.5) };
}

function sendPictures() {
  const { size } = state.data;
  const own = state.data.own && Array.from({ length: 16 }, (_, i) => original(i));
  const join = (list) => ({ ...list[0], count: list.length, rgba: new Uint8ClampedArray(list.flatMap((p) => [...p.rgba])) });
  self.postMessage({
    event: 'pictures',
    step: state.run.step,
    originals: own ? join(own) : pictures(held(16), 1, size),
    reconstructions: own ? join(own.map(blurred)) : pictures(held(16), quality(), size),
    samples: pictures(Array.from({ length: 16 }, (_, i) => scene(500 + i)), quality() * 0.9, size),
  });
}

function stopTraining() {
  clearTimeout(state.run?.timer);
  if (state.run) state.run.timer = 0;
}

function tick() {
  const { run } = state;
  for (let i = 0; i < double.pace.steps && run.step < run.steps; i += 1) {
    run.step += 1;
    const epoch = Math.ceil(run.step / run.stepsPerEpoch);
    self.postMessage({ event: 'step', step: run.step, steps: run.steps, epoch, ...measure(run.step, run.steps), imagesPerSecond: 2300 + 60 * random(run.step)() });
    if ([10, 30, 100, 300, 1000].includes(run.step)) sendPictures();
    if (run.step % run.stepsPerEpoch === 0) {
      const { total, mse, bitsPerDim } = measure(run.step, run.steps);
      const advice = epoch === 1 ? ['21 of 64 latent dimensions carry less than 0.1 nat: choose fewer latent dimensions, or train longer'] : [];
      self.postMessage({ event: 'epoch', epoch, valTotal: total + 0.01, valMse: mse + 0.002, bitsPerDim, activeDims: state.model.latentDim - 21, best: true, advice });
      sendPictures();
    }
  }
  if (run.step >= run.steps) {
    run.timer = 0;
    self.postMessage({ event: 'finished', epochs: run.settings.epochs, steps: run.steps });
  } else {
    run.timer = setTimeout(tick, double.pace.delay);
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const fail = (kind, message) => {
  throw { kind, message };
};
const stepsPerEpoch = ({ batchSize }) => Math.ceil((state.data.count - state.data.validation) / batchSize);
const parameters = ({ channels, blocks, latentDim }) => Math.round(channels ** 2 * (620 + 430 * (blocks - 1)) + channels * 8 * latentDim * 18);

function useData(fields) {
  state.data = fields;
  const preview = fields.own ? { ...sizeOf(fields.size), count: Math.min(64, fields.count), rgba: new Uint8ClampedArray(fields.own.rgba.slice(0, 64 * fields.size[1] * fields.size[2] * 4)) } : pictures(Array.from({ length: 64 }, (_, i) => scene(i)), 1, fields.size);
  const { name, count, validation, size, classes } = fields;
  return { name, count, validation, size, classes, preview };
}

const handlers = {
  open() {
    if (scenario === 'no-webgpu') fail('no-webgpu', 'this browser has no WebGPU');
    if (state.lost) [state.lost, state.model, state.run] = [false, null, null];
    if (scenario === 'no-adapter') fail('no-adapter', 'The browser offers WebGPU, but found no GPU that it can use.');
    const software = scenario === 'software';
    const adapter = software
      ? { name: 'SwiftShader', vendor: 'google', driver: '', backend: 'WebGPU', kind: 'software' }
      : { name: 'Apple M3', vendor: 'apple', driver: '', backend: 'WebGPU', kind: 'gpu' };
    return { adapter: { ...adapter, limits: { maxBufferSize: 2 ** 32, maxBindingSize: 2 ** 31 }, features: ['subgroups', 'timestamp-query'] }, version: '0.2.0' };
  },
  data({ kind, count, width, height, channels, rgba, bytes }) {
    if (kind === 'shapes') return useData({ name: 'shapes', count, validation: count / 10, size: [3, 32, 32], classes: CLASSES });
    if (kind === 'pictures') {
      const images = rgba.length / (width * height * 4);
      return useData({ name: 'pictures', count: images, validation: Math.max(1, Math.floor(images / 10)), size: [channels, height, width], classes: [], own: { width, height, rgba } });
    }
    const head = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
    if (head[0] !== 0x1f || head[1] !== 0x8b) fail('invalid', 'cannot use notes.bin: 5 bytes are not records of 3,073 bytes. Choose cifar-10-binary.tar.gz.');
    return useData({ name: 'CIFAR-10', count: 50_000, validation: 5_000, size: [3, 32, 32], classes: ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'] });
  },
  forecast({ settings }) {
    if (settings.batchSize > 512) fail('out-of-memory', `A batch of ${settings.batchSize} needs 5.2 GiB of GPU memory; the largest that fits is 512.`);
    if (settings.channels % 2) fail('invalid', 'invalid channels: expected an even number, found 7');
    return { parameters: parameters(settings), memoryBytes: settings.batchSize * settings.channels * settings.blocks * 71_000, dispatches: 61 + 36 * settings.blocks, stepFlops: settings.batchSize * settings.channels ** 2 * settings.blocks * 1.3e6, stepsPerEpoch: stepsPerEpoch(settings), fits: true };
  },
  async start({ settings }) {
    for (let done = 0; done <= double.programs; done += 1) {
      self.postMessage({ event: 'compiling', done, total: double.programs });
      await sleep(double.compileDelay);
    }
    state.model = { channels: settings.channels, blocks: settings.blocks, groups: 3, latentDim: settings.latentDim, likelihood: settings.likelihood, classes: 0, imageSize: state.data.size };
    const perEpoch = stepsPerEpoch(settings);
    state.run = { settings, step: 0, stepsPerEpoch: perEpoch, steps: perEpoch * settings.epochs, timer: 0 };
    state.run.timer = setTimeout(() => {
      sendPictures();
      tick();
    }, double.pace.delay);
    return { parameters: parameters(settings), stepsPerEpoch: perEpoch, steps: state.run.steps };
  },
  pause() {
    stopTraining();
    return { step: state.run.step };
  },
  continue() {
    state.run.timer = setTimeout(tick, double.pace.delay);
    return { step: state.run.step };
  },
  reset() {
    stopTraining();
    state.model = state.run = state.kept = null;
    return {};
  },
  reconstruct({ count }) {
    return { originals: pictures(held(count), 1, state.data.size), reconstructions: pictures(held(count), quality(), state.data.size) };
  },
  sample({ count, temperature, seed }) {
    const scenes = Array.from({ length: count }, (_, i) => scene(seed * 1000 + i).map((value) => value * temperature * 1.2));
    return { pictures: pictures(scenes, quality(), state.model.imageSize) };
  },
  encode({ index, rgba, width, height }) {
    const std = state.model && order().map((_, i, all) => (all.indexOf(i) < 8 ? 0.12 : 0.96));
    if (rgba) {
      const picture = { ...sizeOf(state.model.imageSize), width, height, count: 1, rgba: new Uint8ClampedArray(rgba) };
      return { mean: embed(scene(rgba[0])), std, picture, reconstruction: blurred(picture) };
    }
    const picture = original(index);
    return { mean: embed(scene(90_000 + index)), std, picture, reconstruction: blurred(picture) };
  },
  decode({ z }) {
    const latent = state.model.latentDim;
    const scenes = Array.from({ length: z.length / latent }, (_, i) => unembed([...z.slice(i * latent, (i + 1) * latent)]));
    return { pictures: pictures(scenes, quality(), state.model.imageSize) };
  },
  latent() {
    if (state.data.size[1] !== state.model.imageSize[1]) fail('invalid', 'the data set has pictures of another size than the model');
    const kl = new Array(state.model.latentDim).fill(0);
    order().forEach((dimension, i) => (kl[dimension] = i < 8 ? 3.4 * Math.exp(-i / 4) : 0.3 * Math.exp(-i / 9)));
    return { kl, order: order() };
  },
  weights() {
    if (state.run) state.kept = `weights after ${state.run.step} steps`;
    if (!state.kept) fail('invalid', 'there is no model: train or load one first');
    return { name: 'model.safetensors', bytes: new TextEncoder().encode(state.kept).buffer };
  },
  load({ name, bytes }) {
    const text = new TextDecoder().decode(bytes);
    if (!text.startsWith('weights')) fail('invalid', `cannot read ${name}: it is not a safetensors file. Choose model.safetensors from a run folder.`);
    stopTraining();
    [state.run, state.kept] = [null, text];
    const side = text.includes('64x64') ? 64 : 32;
    state.model = { channels: 32, blocks: 4, groups: 3, latentDim: 64, likelihood: 'optimal', classes: 0, imageSize: [3, side, side], trained: true };
    return { model: state.model, epoch: 25 };
  },
  async check({ filter }) {
    const passes = ['forward', 'backward_input', 'backward_weight'];
    const all = ['conv2d', 'conv_transpose2d', 'batch_norm', 'linear', 'elbo'].flatMap((op) => passes.flatMap((pass) => ['naive', 'tiled', 'register_tiled'].map((variant) => `${op}/odd sizes/${pass}/${variant}`)));
    const names = all.filter((name) => name.includes(filter));
    if (names.length === 0) fail('invalid', `no check has a name that contains "${filter}". Leave the field empty for all.`);
    state.stopCheck = false;
    const counts = { passed: 0, failed: 0, notApplicable: 0 };
    for (const [i, name] of names.entries()) {
      if (state.stopCheck) break;
      await sleep(double.checkDelay);
      const bad = scenario === 'check-fails' && name.startsWith('elbo') && name.endsWith('/tiled');
      const verdict = bad ? 'failed' : i % 9 === 8 ? 'not applicable' : 'ok';
      counts[{ ok: 'passed', failed: 'failed', 'not applicable': 'notApplicable' }[verdict]] += 1;
      self.postMessage({ event: 'check', done: i + 1, total: names.length, name, verdict, share: bad ? 241 : 40 });
    }
    return { report: `| | |\n|---|---|\n| version | 0.2.0 |\n| adapter | Apple M3 |\n\n${counts.passed} passed, ${counts.failed} failed, ${counts.notApplicable} not applicable\n`, ...counts };
  },
};

/** Requests wait for their turn, as in the worker; `stop-check` interrupts the one that runs. */
let turn = Promise.resolve();
self.addEventListener('message', ({ data: { id, type, ...fields } }) => {
  const bytes = fields.rgba?.length ?? fields.bytes?.byteLength ?? 0;
  const first = fields.rgba ? [...fields.rgba.slice(0, 4)] : undefined;
  double.requests.push({ type, ...fields, rgba: undefined, z: undefined, bytes, first });
  if (type === 'stop-check') {
    state.stopCheck = true;
    self.postMessage({ id, result: {} });
    return;
  }
  turn = turn.then(async () => {
    try {
      const failure = double.failures[type];
      delete double.failures[type];
      if (failure) throw failure;
      if (state.lost && type !== 'weights' && type !== 'open') fail('device-lost', 'The GPU was lost.');
      const result = await handlers[type](fields);
      self.postMessage({ id, result }, result.bytes ? [result.bytes] : []);
    } catch (error) {
      self.postMessage({ id, error: error.kind ? error : { kind: 'internal', message: String(error) } });
    }
  });
});
