// A Node.js context: runs the cells that it is handed, one after the other, with the same variables.
//
// Descriptor 3 is its control socket, a stream. A request is a line of JSON whose `cell` is a file. What goes back
// begins with a line of JSON:
//
//     {"result": [[TYPE, BYTES], ...]}   a value that the cell shows; the bytes of each of its forms follow
//     {"done": CODE}                     the cell has ended, with what would be its exit code
//
// The first `done` says that requests are taken. What is printed is written before that line is.
//
// Cells are evaluated by the engine's own REPL mode, which the inspector offers: variables may be declared again,
// and `await` may stand anywhere. It knows no `import`, which is therefore rewritten.
'use strict';
const fs = require('node:fs');
const { Session } = require('node:inspector');
const Module = require('node:module');
const net = require('node:net');
const path = require('node:path');
const readline = require('node:readline');
const util = require('node:util');
const vm = require('node:vm');
const { parse } = require('internal/deps/acorn/acorn/dist/acorn');
const { simple: walk } = require('internal/deps/acorn/acorn-walk/dist/walk');

const control = new net.Socket({ fd: 3 });
const inspector = new Session();
inspector.connect();
const anchor = path.join(process.cwd(), 'cell.js');

// Fails the run under way; between runs there is none to fail.
let fail = () => {};
// What cells and the inspector reach through the global object.
const reached = { enter: undefined, taken: undefined };

class Interrupted extends Error {}

function hide(name, value) {
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
}

// Asks the inspector for what it does at once.
function ask(method, parameters) {
  let answer;
  inspector.post(method, parameters, (error, result) => {
    if (error) throw new Error(error.message);
    answer = result;
  });
  return answer;
}

// The value that the inspector describes.
function take({ objectId, value, unserializableValue }) {
  const argument = objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value };
  ask('Runtime.callFunctionOn', {
    objectId: globalId,
    functionDeclaration: 'function (context, value) { context.taken = value }',
    arguments: [{ objectId: reachedId }, argument],
  });
  return reached.taken;
}

// Runs `source`; a promise of what the inspector says of it. SIGINT ends code that does not wait.
function evaluate(source, name) {
  const expression = `${source}\n//# sourceURL=${name}`;
  const parameters = { expression, replMode: true, awaitPromise: true, objectGroup: 'cell' };
  let settle;
  const answer = new Promise((resolve) => (settle = resolve));
  reached.enter = () => inspector.post('Runtime.evaluate', parameters, (_, result) => settle(result));
  try {
    entry.runInThisContext({ breakOnSigint: true });
  } catch (error) {
    throw error.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED' ? new Interrupted() : error;
  }
  return answer;
}

// `import x from 'y'` and `import('y')` as calls of our own, line by line where they were.
function withImports(source) {
  if (!/\bimport\b/.test(source)) return source;
  const options = { ecmaVersion: 'latest', allowAwaitOutsideFunction: true, allowHashBang: true };
  for (const sourceType of ['module', 'script']) {
    try {
      return rewritten(source, parse(source, { ...options, sourceType }));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }
  return source; // The engine says what is wrong with it.
}

function rewritten(source, tree) {
  const edits = [];
  walk(tree, {
    ImportExpression: ({ start }) => edits.push({ start, end: start + 'import'.length, text: '__import__' }),
    ImportDeclaration: (node) => edits.push({ start: node.start, end: node.end, text: declaration(node) }),
  });
  edits.sort((one, other) => other.start - one.start);
  for (const { start, end, text } of edits) {
    const lines = source.slice(start, end).split('\n').length - 1;
    source = source.slice(0, start) + text + '\n'.repeat(lines) + source.slice(end);
  }
  return source;
}

function declaration({ specifiers, source }) {
  const loaded = `await __import__(${JSON.stringify(source.value)});`;
  const named = [];
  let text = '';
  for (const { type, local, imported } of specifiers) {
    if (type === 'ImportNamespaceSpecifier') text += `const ${local.name} = ${loaded}`;
    else named.push(`${JSON.stringify(imported?.name ?? imported?.value ?? 'default')}: ${local.name}`);
  }
  if (named.length) text += `const { ${named.join(', ')} } = ${loaded}`;
  return text || loaded;
}

// Whether JSON says all of `value`.
function isPlain(value, above = []) {
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return true;
  if (typeof value === 'number') return Number.isFinite(value);
  if (typeof value !== 'object' || above.includes(value) || above.length > 100) return false;
  const within = [...above, value];
  if (Array.isArray(value)) return value.every((one) => isPlain(one, within));
  const prototype = Object.getPrototypeOf(value);
  if (prototype !== null && prototype !== Object.prototype) return false;
  return Object.values(value).every((one) => isPlain(one, within));
}

// All that `value` can be shown as, by MIME type. Objects may say it themselves, as in other notebooks.
async function forms(value) {
  const own = value?.[Symbol.for('Jupyter.display')];
  if (typeof own === 'function') return own.call(value);
  const data = { 'text/plain': util.inspect(value) };
  if (isPlain(value)) data['application/json'] = value;
  return data;
}

function encoded(type, form) {
  if (form instanceof Uint8Array) return Buffer.from(form);
  if (type === 'application/json' || type.endsWith('+json')) return Buffer.from(JSON.stringify(form));
  if (type.startsWith('image/') && type !== 'image/svg+xml') return Buffer.from(String(form), 'base64');
  return Buffer.from(String(form));
}

async function show(value) {
  const data = await forms(value);
  const parts = Object.entries(data).map(([type, form]) => [type, encoded(type, form)]);
  // What is shown between two runs would belong to neither.
  if (!isRunning || !parts.length) return;
  const header = JSON.stringify({ result: parts.map(([type, bytes]) => [type, bytes.length]) });
  control.write(Buffer.concat([Buffer.from(`${header}\n`), ...parts.map(([, bytes]) => bytes)]));
}

// Shows a value before its run ends.
function display(value) {
  shown.push(show(value));
}

// The error as its reader wants it: without our frames, and with the line that could not be understood.
function described(error, { source = '', name, details } = {}) {
  if (!util.types.isNativeError(error)) return `Uncaught ${util.inspect(error)}`;
  const frames = String(error.stack).split('\n');
  const isOurs = (line) => /node:(inspector|vm|internal)|evalmachine/.test(line) || line.includes(__filename);
  const kept = frames.filter((line) => !isOurs(line));
  Object.defineProperty(error, 'stack', { value: kept.join('\n'), configurable: true, writable: true });
  const text = kept.some((line) => line.startsWith('    at ')) ? util.inspect(error) : error.stack;
  if (!(error instanceof SyntaxError) || !details || text.includes(`${name}:`)) return text;
  const line = source.split('\n')[details.lineNumber] ?? '';
  return `${name}:${details.lineNumber + 1}\n${line}\n${' '.repeat(details.columnNumber)}^\n\n${text}`;
}

// Runs a cell and shows its last value. Returns what would be its exit code.
async function run(source, name) {
  const failed = new Promise((_, reject) => (fail = reject));
  failed.catch(() => {});
  try {
    const { result, exceptionDetails: details } = await Promise.race([evaluate(withImports(source), name), failed]);
    const value = take(details?.exception ?? result);
    if (details) {
      console.error(described(value, { source, name, details }));
      return 1;
    }
    // Rejections that nobody handles are known only then.
    await Promise.race([new Promise(setImmediate), failed]);
    if (value !== undefined) display(value);
    await Promise.race([Promise.all(shown), failed]);
    return 0;
  } catch (error) {
    const isInterrupted = error instanceof Interrupted;
    console.error(isInterrupted ? 'Interrupted' : described(error, { name }));
    return isInterrupted ? 130 : 1;
  } finally {
    fail = () => {};
    shown = [];
    ask('Runtime.releaseObjectGroup', { objectGroup: 'cell' });
  }
}

async function serve() {
  let number = 0;
  control.write('{"done": 0}\n');
  for await (const line of readline.createInterface({ input: control })) {
    const source = fs.readFileSync(JSON.parse(line).cell, 'utf8');
    isRunning = true;
    const code = await run(source, `cell-${++number}`);
    isRunning = false;
    control.write(`{"done": ${code}}\n`);
  }
  process.reallyExit(0); // The service has gone.
}

let isRunning = false;
let shown = [];
const [globalId, reachedId] = ['globalThis', 'reached'].map((what) => {
  hide('__context__', what === 'reached' ? reached : globalThis);
  return ask('Runtime.evaluate', { expression: '__context__', objectGroup: 'context' }).result.objectId;
});
delete globalThis.__context__;
hide('__enter__', () => reached.enter());
const entry = new vm.Script('__enter__()');
const loader = vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
const options = { filename: anchor, importModuleDynamically: loader };
hide('__import__', vm.runInThisContext('(specifier, options) => import(specifier, options)', options));
hide('display', display);
hide('require', Module.createRequire(anchor));
hide('module', new Module(anchor));
hide('exports', globalThis.module.exports);
process.argv.length = 1;
process.on('SIGINT', () => fail(new Interrupted()));
process.on('uncaughtException', (error) => fail(error));
process.on('unhandledRejection', (error) => fail(error));
serve();
