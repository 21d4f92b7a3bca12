// Property: a cell does what the same text does as a script, where scripts allow it. Run by `cells_do_as_scripts_do`.
'use strict';
const assert = require('node:assert');
const vm = require('node:vm');
const { translate } = require(process.argv[2]);

const NAMES = ['a', 'b', 'c', 'd', 'e', 'f'];
const CASES = 400;
let state = 1;

function below(limit) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state >>> 8) % limit;
}

const pick = (list) => list[below(list.length)];

function value(known) {
  const name = known.length ? pick(known) : '0';
  return pick(['1', "'s'", `[${name}, 2]`, `{ k: ${name}, x: 7 }`, `() => ${name}`, `(class { m() { return ${name} } })`, name]);
}

function pattern(name) {
  return pick([`{ k: ${name} = 3 }`, `{ ${name} = 4 }`, `[${name}]`, `[, ...${name}]`, `{ x: [${name}] = [5] }`]);
}

// A statement that declares `name`.
function declaration(name, known) {
  const kind = pick(['let', 'const', 'var']);
  const source = "{ k: 1, x: 'yz', [Symbol.iterator]: function* () { yield 8; yield 9 } }";
  return pick([
    () => `${kind} ${name} = ${value(known)}`,
    () => `${kind} ${pattern(name)} = ${source}`,
    () => `${pick(['let', 'var'])} ${name}`,
    () => `class ${name} { static s = ${value(known)} }`,
    () => `function ${name}(x) { return x }`,
  ])();
}

// A statement that uses a name, as itself or hidden by another.
function use(name) {
  const target = pick([`${name} = 1`, `${name} += 1`, `({ ${name} } = { ${name}: 2 })`, `[${name} = 3] = []`, `${name}++`]);
  return pick([
    `${target}`,
    `try { ${target} } catch (error) { log.push(error.message) }`,
    `{ let ${name} = 0; ${target} }`,
    `(function (${name}) { ${target} })(1)`,
    `(() => { ${target}; var ${name} })()`,
    `for (let ${name} = 0; ${name} < 2; ${name}++) log.push(${name})`,
    `for (${name} of [1, 2]) log.push('of')`,
    `try { throw 1 } catch (${name}) { ${target} }`,
    `switch (1) { case 1: let ${name} = 5; ${target} }`,
    `log.push(String(${name}), typeof ${name}, ${name}?.name)`,
    `({ ${name} })`,
    `'value'`,
  ]);
}

function cell() {
  const known = [];
  const lines = [];
  for (const name of NAMES.slice(0, 1 + below(NAMES.length))) {
    lines.push(declaration(name, known));
    known.push(name);
    for (let left = below(3); left > 0; left -= 1) lines.push(use(pick(known)));
  }
  return lines.join(';\n');
}

// Runs the script: returns its value or error with its line, its log, and the values of `names`.
function outcome(source, names, filename) {
  const context = vm.createContext({ log: [] });
  const refuse = () => {
    throw vm.runInContext("new TypeError('Assignment to constant variable.')", context);
  };
  context.__constant__ = new Proxy({}, { get: (_, name) => vm.runInContext(name, context), set: refuse });
  const done = {};
  try {
    done.value = String(vm.runInContext(source, context, { filename }));
  } catch (error) {
    done.error = String(error);
    done.line = /cell:(\d+)/.exec(error.stack)?.[1];
  }
  done.log = [...context.log];
  for (const name of names) done[`name ${name}`] = vm.runInContext(`try { String(${name}) } catch { 'none' }`, context);
  return done;
}

for (let number = 0; number < CASES; number += 1) {
  const source = cell();
  const { text } = translate(source, new Set());
  assert.strictEqual(text.split('\n').length, source.split('\n').length);
  const expected = outcome(source, NAMES, 'cell');
  const found = outcome(text, NAMES, 'cell');
  // A name that an error kept from being declared is not there yet in a script, and undefined in a cell.
  for (const key of Object.keys(expected)) {
    if (key.startsWith('name ') && expected[key] === 'none' && found[key] === 'undefined') expected[key] = 'undefined';
  }
  assert.deepStrictEqual(found, expected, `case ${number}:\n${source}\n---\n${text}`);
}
