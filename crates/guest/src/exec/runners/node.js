// Runs one program as `node main.js` in the current directory would, wherever its file is: `require`,
// `import` and relative paths start from the current directory. Programs with ES module syntax
// (`import`, `export`, top-level `await`) run as ES modules.
'use strict';
const Module = require('node:module');
const fs = require('node:fs');
const path = require('node:path');
const url = require('node:url');
const vm = require('node:vm');

const source = fs.readFileSync(process.argv[2], 'utf8');
const name = path.join(process.cwd(), 'main.js');
process.argv = [process.argv[0], name];

function hasModuleSyntax() {
  try {
    new vm.Script(Module.wrap(source.replace(/^#!.*/, '')), { filename: name });
    return false;
  } catch (error) {
    return /outside a module|Unexpected token 'export'|await is only valid|import\.meta/.test(error.message);
  }
}

function runScript() {
  const main = new Module(name, null);
  main.filename = name;
  main.paths = Module._nodeModulePaths(process.cwd());
  process.mainModule = main;
  Module._cache[name] = main;
  main._compile(source, name);
}

function runModule() {
  const main = url.pathToFileURL(path.join(process.cwd(), 'main.mjs')).href;
  const hooks = `
    export async function resolve(specifier, context, next) {
      if (specifier === ${JSON.stringify(main)}) return { url: specifier, format: 'module', shortCircuit: true };
      return next(specifier, context);
    }
    export async function load(url, context, next) {
      if (url === ${JSON.stringify(main)}) {
        return { format: 'module', source: ${JSON.stringify(source)}, shortCircuit: true };
      }
      return next(url, context);
    }`;
  Module.register(`data:text/javascript;base64,${Buffer.from(hooks).toString('base64')}`);
  import(main);
}

if (hasModuleSyntax()) runModule();
else runScript();
