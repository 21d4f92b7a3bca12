// A Node.js context: runs the cells that it is handed, one after the other, with the same variables.
//
// Descriptor 3 is its control socket, a stream. A request is a line of JSON whose `cell` is a file, and whose `room`
// bounds the results. What goes back begins with a line of JSON:
//
//     {"result": [PART, ...]}            a value that the cell shows; the bytes of each of its forms follow. PART is
//                                        [TYPE, BYTES] or, if fewer follow than the form has, [TYPE, BYTES, ALL BYTES,
//                                        PATH], where PATH (or null) is a file that has all of them
//     {"done": CODE}                     the cell has ended, with what would be its exit code
//
// The first `done` says that requests are taken. What is printed is written before that line is.
//
// Cells are evaluated by the engine's own REPL mode, which the inspector offers: `await` may stand anywhere, and a
// cell has a value. `cell.js` makes of a cell what that mode takes.
'use strict';
const fs = require('node:fs');
const { Session } = require('node:inspector');
const Module = require('node:module');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const readline = require('node:readline');
const url = require('node:url');
const util = require('node:util');
const vm = require('node:vm');
const { translate } = require('./cell.js');

// Cells may put anything in the place of these.
const { Buffer, Error, JSON, Map, Object, Promise, Reflect, Set, String, Symbol, SyntaxError, TypeError } = globalThis;
const { process, setImmediate } = globalThis;

// Values within a value that are looked at before it is shown as text alone.
const MAX_JSON_VALUES = 500_000;
const MAX_JSON_DEPTH = 100;
// Forms of one result.
const MAX_FORMS = 16;
const MAX_TYPE_BYTES = 128;
// Forms that count as images, and the names of their files.
const IMAGES = { 'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif', 'image/webp': 'webp' };
// What other notebooks understand: a line that begins with `!` or `%`, or assigns what does.
const NOTEBOOK_LINE =
  /^[ \t]*(?:(?:(?:const|let|var)[ \t]+)?[\w$]+[ \t]*=[ \t]*)?(?:!|%%?)[ \t]*([\w$./~-]+)(?=[ \t]+[\w$"'./~<>|-]|[ \t]*$)/;
const NOTEBOOK_HINT =
  'hint: `!` and `%` lines are for Python contexts; in this one, ' +
  "`require('child_process').execSync('npm install NAME', { stdio: 'inherit' })` runs a command";
// Bytes that the results of the run may still take: one form, all but images, images.
let room = { form: 0, forms: 0, images: 0 };
// Number of forms that were kept in files.
let files = 0;

const control = new net.Socket({ fd: 3 });
const inspector = new Session();
inspector.connect();
const anchor = path.join(process.cwd(), 'cell.js');
// The outermost frame of each cell's stack; what is below it is not the cell's.
const ENTRY = 'bouvet:entry';

// The run under way: what fails it, and what it shows.
let current;
let constants = new Set();
// What cells and the inspector reach through the global object.
const reached = { enter: undefined, taken: undefined };

class Interrupted extends Error {}

// An import declaration that failed, and where it stands.
class ImportFailed extends Error {
  constructor(cause, loc) {
    super('', { cause });
    this.loc = loc;
  }
}

const isA = (kind, error) => util.types.isNativeError(error) && error instanceof kind;

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
  const { taken } = reached;
  reached.taken = undefined;
  return taken;
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

// Makes the names that a cell declares ordinary properties of the global object: `crypto` may be one with a getter.
function makeRoom(declared) {
  for (const name of declared) {
    const found = Reflect.getOwnPropertyDescriptor(globalThis, name);
    if (!found?.configurable || found.writable) continue;
    const value = found.get ? Reflect.get(globalThis, name) : found.value;
    Object.defineProperty(globalThis, name, { value, writable: true, enumerable: true, configurable: true });
  }
}

// Binds what an import declaration binds, to the values of now.
async function bind({ specifier, attributes, bindings, loc }) {
  const given = Object.keys(attributes).length ? { with: attributes, assert: attributes } : undefined;
  let loaded;
  try {
    loaded = await load(specifier, given);
  } catch (error) {
    throw new ImportFailed(error, loc);
  }
  for (const { local, name } of bindings) {
    if (name !== '*' && !(name in loaded)) {
      const missing = `The requested module '${specifier}' does not provide an export named '${name}'`;
      throw new ImportFailed(Object.assign(new SyntaxError(missing), { stack: `SyntaxError: ${missing}` }), loc);
    }
    globalThis[local] = name === '*' ? loaded : loaded[name];
  }
}

// `import.meta` of all cells.
async function makeMeta() {
  const { default: resolve } = await load('data:text/javascript,export default import.meta.resolve');
  const here = url.pathToFileURL(anchor).href;
  const meta = { dirname: path.dirname(anchor), filename: anchor, url: here };
  return { __proto__: null, ...meta, resolve: (specifier, parent = here) => resolve(specifier, parent) };
}

// Whether JSON has all of `value`. No code of the value's own runs.
function isPlain(value) {
  let left = MAX_JSON_VALUES;
  const above = new Set();
  const isData = (one) => one && one.enumerable && 'value' in one && look(one.value);
  const look = (value) => {
    if (value === null || typeof value === 'string' || typeof value === 'boolean') return --left >= 0;
    if (typeof value === 'number') return Number.isFinite(value) && --left >= 0;
    if (typeof value !== 'object' || util.types.isProxy(value)) return false;
    if (--left < 0 || above.size >= MAX_JSON_DEPTH || above.has(value)) return false;
    const prototype = Object.getPrototypeOf(value);
    const keys = Reflect.ownKeys(value);
    const isList = Array.isArray(value) && prototype === Array.prototype;
    if (!isList && prototype !== null && prototype !== Object.prototype) return false;
    const named = isList ? keys.slice(0, -1) : keys;
    if (isList && named.length !== value.length) return false;
    above.add(value);
    const isGood = named.every(
      (key) => typeof key === 'string' && isData(Reflect.getOwnPropertyDescriptor(value, key)),
    );
    above.delete(value);
    return isGood;
  };
  return look(value);
}

// Yields `value` and its prototypes. Stops at a proxy, whose traps could run code.
function* lineage(value) {
  while ((typeof value === 'object' && value !== null) || typeof value === 'function') {
    yield value;
    if (util.types.isProxy(value)) return;
    value = Object.getPrototypeOf(value);
  }
}

function isMadeOfProxies(value) {
  return [...lineage(value)].slice(1).some(util.types.isProxy);
}

// The method `name` of `value`, unless finding it would run code.
function method(value, name) {
  for (const one of lineage(value)) {
    const found = util.types.isProxy(one) ? undefined : Reflect.getOwnPropertyDescriptor(one, name);
    if (found) return typeof found.value === 'function' ? found.value : undefined;
  }
  return undefined;
}

// `value` as text. One that fails to describe itself is shown as a plain object.
function inspected(value, onError = complain) {
  if (isMadeOfProxies(value)) {
    return util.inspect(Object.defineProperties({}, Object.getOwnPropertyDescriptors(value)));
  }
  try {
    return util.inspect(value);
  } catch (error) {
    onError(error);
  }
  try {
    return util.inspect(value, { customInspect: false });
  } catch {
    return `[${typeof value}]`;
  }
}

// All that `value` can be shown as, by MIME type. Objects may say it themselves, as in other notebooks.
async function forms(value) {
  const own = method(value, Symbol.for('Jupyter.display'));
  if (own) {
    try {
      return Object.entries(await Reflect.apply(own, value, []));
    } catch (error) {
      complain(error);
    }
  }
  const data = [['text/plain', inspected(value)]];
  if (isPlain(value)) data.push(['application/json', value]);
  return data;
}

// The bytes of a form, by its type; of one that fails, none.
function* encoded([type, form]) {
  try {
    if (form instanceof Uint8Array) yield [type, Buffer.from(form)];
    else if (type === 'application/json' || type.endsWith('+json')) yield [type, Buffer.from(JSON.stringify(form))];
    else if (type.startsWith('image/') && type !== 'image/svg+xml') yield [type, Buffer.from(String(form), 'base64')];
    else yield [type, Buffer.from(String(form))];
  } catch (error) {
    complain(error);
  }
}

async function show(value) {
  const run = current;
  const parts = (await forms(value)).flatMap((form) => [...encoded(form)]);
  // What is shown between two runs would belong to neither.
  if (!run || run !== current || !parts.length) return;
  const known = parts.filter(([type]) => type.length <= MAX_TYPE_BYTES).slice(0, MAX_FORMS);
  const result = known.map(([type, bytes]) => fitted(type, bytes));
  const header = JSON.stringify({ result: result.map(([part]) => part) });
  control.write(Buffer.concat([Buffer.from(`${header}\n`), ...result.map(([, bytes]) => bytes)]));
}

// A form as its message has it, and its bytes: as many as there is room for, and else the path of a file.
function fitted(type, bytes) {
  const isImage = IMAGES[type] !== undefined;
  const limit = isImage ? room.images >> 1 : room.form < room.forms ? room.form : room.forms;
  const isText = type === 'text/plain';
  const sent = bytes.length <= limit ? bytes : bytes.subarray(0, isText ? limit : 0);
  room[isImage ? 'images' : 'forms'] -= sent.length;
  if (sent.length === bytes.length) return [[type, sent.length], sent];
  // Values have their text, too: a file of JSON that nobody asked for would only take room.
  const path = isText || type === 'application/json' ? null : kept(type, bytes);
  return [[type, sent.length, bytes.length, path], sent];
}

// The path of a new file that has `bytes`; none if it cannot be written.
function kept(type, bytes) {
  const directory = path.join(os.tmpdir(), `context-${process.pid}`);
  const file = path.join(directory, `result-${++files}.${IMAGES[type] ?? type.replace(/^.*[/+.]/, '')}`);
  try {
    fs.mkdirSync(directory, { recursive: true });
    fs.writeFileSync(file, bytes);
    return file;
  } catch {
    return null;
  }
}

// Shows a value before its run ends.
function display(value) {
  const shown = show(value);
  if (current) current.shown.push(shown);
}

// A stack without our frames: those of the files beside this one, and what starts a cell.
function trimmed(trace) {
  const isOurs = (frame) => {
    const file = frame?.getFileName();
    return typeof file === 'string' && path.dirname(file) === __dirname;
  };
  let end = trace.findIndex((frame) => frame.getFileName() === ENTRY);
  if (end < 0) end = trace.length;
  else while (end > 0 && (isOurs(trace[end - 1]) || trace[end - 1].getFileName() === 'node:inspector')) end -= 1;
  return trace.slice(0, end).filter((frame) => !isOurs(frame));
}

function hideOurFrames() {
  const { defaultPrepareStackTrace, setInternalPrepareStackTrace } = require('internal/errors');
  // Releases of Node.js that lack it show them.
  setInternalPrepareStackTrace?.((...all) => defaultPrepareStackTrace(...all.slice(0, -1), trimmed(all.at(-1))));
}

// The error as its reader wants it. What cells throw may be anything: no code of its own decides whether it is said.
function described(error, where) {
  try {
    return located(error, where);
  } catch {
    return 'Uncaught error that cannot be described';
  }
}

function located(error, { source = '', name, details } = {}) {
  const quiet = () => {};
  if (isA(ImportFailed, error)) {
    const { cause, loc } = error;
    return pointed(located(cause), source, { name, line: loc.line - 1, column: loc.column });
  }
  if (!util.types.isNativeError(error)) return `Uncaught ${inspected(error, quiet)}`;
  // A stack without frames is the message, which `inspect` would put in brackets.
  const stack = Reflect.getOwnPropertyDescriptor(error, 'stack')?.value;
  const isBare = typeof stack === 'string' && !stack.includes('\n    at ');
  const text = isBare ? stack : inspected(error, quiet);
  if (!isA(SyntaxError, error) || !details || text.includes(`${name}:`)) return text;
  return pointed(text, source, { name, line: details.lineNumber, column: details.columnNumber });
}

// `text` below the line of the cell that it is about.
function pointed(text, source, { name, line, column }) {
  return `${name}:${line + 1}\n${source.split('\n')[line] ?? ''}\n${' '.repeat(column)}^\n\n${text}`;
}

function print(text) {
  process.stderr.write(`${text}\n`);
}

// Prints an error that does not end the run, or that comes between two.
function complain(error) {
  print(described(error));
}

// The parser's error, where the engine would only report that a cell is not a module.
function misread({ message, loc }, source, name) {
  const text = `SyntaxError: ${message.replace(/ \(\d+:\d+\)$/, '')}`;
  return pointed(text, source, { name, line: loc.line - 1, column: loc.column });
}

// Prints what to do about an error that a habit from elsewhere leads to.
function advise(error, source, misunderstood) {
  if (typeof error !== 'object' || error === null || util.types.isProxy(error)) return;
  const message = Reflect.getOwnPropertyDescriptor(error, 'message')?.value;
  if (isForNotebooks(source, message, misunderstood)) print(NOTEBOOK_HINT);
  const isOfAnchor = typeof message === 'string' && message.includes(`'${anchor}'`) && !fs.existsSync(anchor);
  if (isOfAnchor) print('hint: code in a context is not a file, and `__filename` only says where it would be');
}

// Whether an error comes from a line for other notebooks. JavaScript takes `!ls` for an expression.
function isForNotebooks(source, message, misunderstood) {
  const lines = source.split('\n');
  if (misunderstood) return NOTEBOOK_LINE.test(lines[misunderstood.loc?.line - 1] ?? '');
  return lines.some((line) => message === `${NOTEBOOK_LINE.exec(line)?.[1]} is not defined`);
}

// Waits for what `work` does, or for what fails the run.
function race(work) {
  return Promise.race([work, current.failed]);
}

// Does what a cell asks for before the rest of it is evaluated.
async function prepare({ declared, imports, usesMeta }) {
  makeRoom(declared);
  if (usesMeta && !globalThis.__meta__) hide('__meta__', await race(makeMeta()));
  for (const one of imports) await race(bind(one));
}

// Sees the last value of a cell to its end: a promise is waited for. The value itself is never resolved with, since
// that would call its `then`.
async function finish(value) {
  if (util.types.isPromise(value)) {
    const settled = new Promise((resolve, reject) => {
      Promise.prototype.then.call(value, (end) => resolve((value = end) && undefined), reject);
    });
    await race(settled);
  }
  // Rejections that nobody handles are known only then.
  await race(new Promise(setImmediate));
  if (value !== undefined) display(value);
  await race(Promise.all(current.shown));
}

// The cell as the engine takes it; if the parser did not understand it, as it is, and why.
function translated(source) {
  try {
    return translate(source, constants);
  } catch (misunderstood) {
    return { text: source, constants, declared: [], imports: [], misunderstood };
  }
}

async function execute(source, name) {
  const { text, misunderstood, ...wants } = translated(source);
  constants = wants.constants;
  await prepare(wants);
  const { result, exceptionDetails: details } = await race(evaluate(text, name));
  if (!details) {
    await finish(take(result));
    return 0;
  }
  const error = take(details.exception);
  const isModule = misunderstood && /\b(import|export)\b/.test(source) && isA(SyntaxError, error);
  print(isModule ? misread(misunderstood, source, name) : described(error, { source, name, details }));
  advise(error, source, misunderstood);
  return 1;
}

// Runs a cell and shows its last value. Returns what would be its exit code.
async function run(source, name) {
  current = { shown: [] };
  current.failed = new Promise((_, reject) => (current.fail = reject));
  current.failed.catch(() => {});
  try {
    return await execute(source, name);
  } catch (error) {
    const isInterrupted = isA(Interrupted, error);
    print(isInterrupted ? 'Interrupted' : described(error, { source, name }));
    advise(error, source);
    return isInterrupted ? 130 : 1;
  } finally {
    current = undefined;
    ask('Runtime.releaseObjectGroup', { objectGroup: 'cell' });
  }
}

// Fails the run under way. Between runs there is none: the error is printed, and comes with the next result.
function fail(error) {
  if (current) current.fail(error);
  else if (!isA(Interrupted, error)) complain(error);
}

async function serve() {
  let number = 0;
  control.write('{"done": 0}\n');
  for await (const line of readline.createInterface({ input: control })) {
    const request = JSON.parse(line);
    const source = fs.readFileSync(request.cell, 'utf8');
    room = request.room;
    const code = await run(source, `cell-${++number}`);
    control.write(`{"done": ${code}}\n`);
  }
  process.reallyExit(0); // The service has gone.
}

// Gives cells `module`, `require` and the other names of a module.
function furnish() {
  const module = new Module(anchor);
  Object.assign(module, { id: '.', filename: anchor, paths: Module._nodeModulePaths(path.dirname(anchor)) });
  const require = Module.createRequire(anchor);
  require.main = process.mainModule = module;
  const known = { module, exports: module.exports, require, __filename: anchor, __dirname: path.dirname(anchor) };
  for (const [name, value] of Object.entries({ ...known, display })) hide(name, value);
}

// Assigning to a constant of the notebook.
const refusing = new Proxy({}, {
  get: (_, name) => globalThis[name],
  set() {
    throw new TypeError('Assignment to constant variable.');
  },
});

hideOurFrames();
const [globalId, reachedId] = ['globalThis', 'reached'].map((what) => {
  hide('__context__', what === 'reached' ? reached : globalThis);
  return ask('Runtime.evaluate', { expression: '__context__', objectGroup: 'context' }).result.objectId;
});
delete globalThis.__context__;
hide('__enter__', () => reached.enter());
hide('__constant__', refusing);
const entry = new vm.Script('__enter__()', { filename: ENTRY });
const loader = vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
const options = { filename: anchor, importModuleDynamically: loader };
const load = vm.runInThisContext('(specifier, options) => import(specifier, options)', options);
hide('__load', load);
furnish();
// Where there is an inspector, the console passes all of it on, which takes longer than to print it.
Object.assign(console, new console.Console({ stdout: process.stdout, stderr: process.stderr }));
process.argv.length = 1;
process.on('SIGINT', () => fail(new Interrupted()));
process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);
serve();
