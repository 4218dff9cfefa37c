// The worker: receives requests of the page, runs the engine, and sends results and events. web/README.md describes the messages.
import init, { Engine } from './engine.js';

/** Numbers of steps after which pictures are sent, besides those at the end of an epoch: 0, 10, 30, 100, 300, ... */
const nextPictures = (step) => {
  let next = 10;
  while (next <= step) next = String(next).startsWith('1') ? next * 3 : (next / 3) * 10;
  return next;
};

/** How often an idle worker looks whether the device was lost, in milliseconds. */
const IDLE_MS = 1000;
/** Time for the browser to report that a device was lost. */
const LOSS_MS = 100;

let engine;
let training = false;
let picturesAt = 0;
/** Number of the last step whose results were sent. */
let lastStep = 0;
/** The request that the running checks answer. */
let checking;
let lossSent = false;

const requests = [];
let wake = () => {};

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

onmessage = ({ data }) => {
  requests.push(data);
  wake();
};

class Fault extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

const opened = () => {
  if (!engine) throw new Fault('invalid', 'the GPU is not open yet');
  return engine;
};

/** Sends the events of some steps. Training ends with the last one of a run. */
function send(events) {
  for (const event of events) {
    if (event.event === 'step') lastStep = event.step;
    if (event.event === 'finished' || event.event === 'diverged') training = false;
    postMessage(event);
  }
}

/** Sends pictures of the present model. */
async function sendPictures() {
  const event = await engine.progress();
  picturesAt = nextPictures(event.step);
  postMessage(event);
}

/** Stops training after the steps on the device, and returns the number of steps so far. */
async function pause() {
  training = false;
  if (!engine.lost()) send(await engine.settle());
  return { step: engine.step() };
}

/** A handler of each type of request. */
const handlers = {
  async open() {
    if (!navigator.gpu) throw new Fault('no-webgpu', 'this browser has no WebGPU');
    await init();
    if (engine && !engine.lost()) return engine.adapter();
    const previous = engine;
    engine = undefined;
    [training, lossSent] = [false, false];
    // wgpu does not pass these on. Without an adapter, Engine.open fails.
    const { vendor = '', architecture = '', description = '' } = (await navigator.gpu.requestAdapter())?.info ?? {};
    engine = await Engine.open(previous, vendor, description || `${vendor} ${architecture}`.trim() || 'unknown');
    return engine.adapter();
  },

  data({ kind, count, seed, name, bytes, rgba, ...about }) {
    const engine = opened();
    switch (kind) {
      case 'shapes':
        return engine.use_shapes(count, seed ?? 0);
      case 'pictures':
        return engine.use_pictures(JSON.stringify(about), rgba);
      case 'cifar':
        return engine.use_cifar(name, new Uint8Array(bytes));
      default:
        throw new Fault('invalid', `unknown kind of data: ${kind}`);
    }
  },

  forecast: ({ settings }) => opened().forecast(JSON.stringify(settings)),

  async start({ settings }) {
    training = false;
    const result = await opened().start(JSON.stringify(settings));
    [training, picturesAt, lastStep] = [true, 0, 0];
    return result;
  },

  pause: () => (opened(), pause()),

  continue() {
    opened().resume();
    const message = loss();
    if (message) throw new Fault('device-lost', message);
    training = true;
    return { step: engine.step() };
  },

  reset() {
    training = false;
    opened().reset();
    return {};
  },

  reconstruct: ({ count }) => opened().reconstruct(count),
  sample: ({ count, temperature, seed }) => opened().sample(count, temperature ?? 1, seed ?? 0),
  encode: ({ index, rgba, width, height }) =>
    rgba ? opened().encode_picture(rgba, width, height) : opened().encode_held_out(index),
  decode: ({ z }) => opened().decode(z),
  latent: () => opened().latent(),
  weights: () => opened().weights(),

  async load({ name, bytes }) {
    const result = await opened().load(name, new Uint8Array(bytes));
    training = false;
    return result;
  },

  async 'stop-check'() {
    await endChecks();
    return {};
  },

  // For tests and measurements.
  reference: ({ settings, steps }) => opened().reference(JSON.stringify(settings), steps),
  'encoding-times': ({ steps }) => opened().encoding_times(steps),
};

/** The buffers of a result, which are moved rather than copied. */
function buffers(value) {
  if (value instanceof ArrayBuffer) return [value];
  if (ArrayBuffer.isView(value)) return [value.buffer];
  return value && typeof value === 'object' ? Object.values(value).flatMap(buffers) : [];
}

const answer = (id, result) => postMessage({ id, result }, buffers(result));
const refuse = async (id, error) => postMessage({ id, error: await explained(error) });

/** An error as the page receives it. */
async function explained(error) {
  // The browser reports the loss of a device a moment after the error that it causes.
  if (engine && error?.kind === 'internal') await sleep(LOSS_MS);
  const lost = loss();
  if (lost) return { kind: 'device-lost', message: lost };
  return { kind: error?.kind ?? 'internal', message: error?.message ?? String(error) };
}

/** Why the device was lost, if it was. */
function loss() {
  try {
    return engine?.lost();
  } catch {
    // The engine has ended with a panic, of which the caller has the error.
    return undefined;
  }
}

/** Sends the loss of the device to the page, once. */
function reportLoss() {
  const message = loss();
  if (!message || lossSent) return;
  [lossSent, training] = [true, false];
  postMessage({ event: 'lost', message });
}

async function endChecks() {
  if (checking === undefined) return;
  const id = checking;
  checking = undefined;
  try {
    answer(id, engine.finish_checks());
  } catch (error) {
    await refuse(id, error);
  }
}

async function handle({ id, type, ...fields }) {
  try {
    if (type === 'check') {
      await endChecks();
      opened().start_checks(fields.filter ?? '', navigator.userAgent, new Date().toISOString());
      checking = id;
      return;
    }
    const handler = Object.hasOwn(handlers, type) ? handlers[type] : undefined;
    if (!handler) throw new Fault('invalid', `unknown request: ${type}`);
    answer(id, await handler(fields));
    // The time of a request does not count for the speed.
    if (training) engine.resume();
  } catch (error) {
    await refuse(id, error);
  }
}

/** A part of the work between requests: a check, or a step of training. */
async function work() {
  if (checking !== undefined) {
    const event = await engine.next_check();
    if (event) postMessage(event);
    else await endChecks();
    return;
  }
  const before = engine.step();
  if (before >= picturesAt) await sendPictures();
  const events = await engine.advance();
  const epoch = events.some(({ event }) => event === 'epoch');
  send(events);
  if (epoch) await sendPictures();
}

/** Handles requests, and works in between. */
async function run() {
  for (;;) {
    if (requests.length > 0) {
      await handle(requests.shift());
    } else if (training || checking !== undefined) {
      await work().catch(fail);
    } else {
      await Promise.race([sleep(IDLE_MS), new Promise((resolve) => (wake = resolve))]);
    }
    reportLoss();
  }
}

/** Ends work that has failed. The loss of a device is the event of `reportLoss`. */
async function fail(error) {
  const { kind, message } = await explained(error);
  if (checking !== undefined) await refuse(checking, error);
  else if (kind !== 'device-lost') postMessage({ event: 'diverged', step: lastStep, message });
  [training, checking] = [false, undefined];
}

run();
