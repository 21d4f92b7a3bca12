// Runs a program as `node main.js` in its working directory would, wherever its file is: `require`, `import` and relative
// paths start from the working directory. Programs with ES module syntax (`import`, `export`, top-level `await`) run as
// ES modules.
//
// `node --require node.js DIRECTORY/main.js` loads this first. Workers, forks and clusters inherit the option, and so a
// program that starts its own file (`__filename`, `import.meta.url`, `process.argv[1]`) runs there as it runs here.
// DIRECTORY is beside this file. It holds the program by the names `main.js` and `main.mjs`, and `node_modules`, a link to
// that of the working directory.
'use strict';
const Module = require('node:module');
const fs = require('node:fs');
const path = require('node:path');
const url = require('node:url');
const vm = require('node:vm');

// The working directory of a program that is run by this; undefined: it is another.
function startOf(file) {
  const directory = path.dirname(file);
  if (path.dirname(directory) !== __dirname || !/^main\.m?js$/.test(path.basename(file))) return undefined;
  return path.dirname(fs.readlinkSync(path.join(directory, 'node_modules')));
}

// Makes `path.dirname` of the program's own name the working directory, as `__dirname` is. Programs look there for the files
// beside them.
function moveBeside(file, start) {
  const { dirname } = path;
  path.dirname = (name) => (name === file ? start : dirname(name));
  Module.syncBuiltinESMExports();
}

function hasModuleSyntax(source) {
  try {
    new vm.Script(Module.wrap(source.replace(/^#!.*/, '')), { filename: 'main.js' });
    return false;
  } catch (error) {
    return /outside a module|Unexpected token 'export'|await is only valid|import\.meta/.test(error.message);
  }
}

// Errors are in `main.js` of the working directory; the file itself is the program's only under its own name.
function runScript(file, source, start) {
  const shown = path.join(start, 'main.js');
  const main = new Module(file, null);
  main.filename = file;
  main.paths = Module._nodeModulePaths(start);
  process.mainModule = main;
  Module._cache[file] = main;
  main.require = Module.createRequire(shown);
  const parameters = ['exports', 'require', 'module', '__filename', '__dirname'];
  const options = { filename: shown, importModuleDynamically: dynamicImport(main.require) };
  const program = compiled(source.replace(/^#!/, '//'), parameters, options);
  // Node.js itself calls the program, before anything else: no stack of an error has a frame of this file.
  process.nextTick(program.bind(main.exports), main.exports, main.require, main, file, start);
  process.nextTick(() => (main.loaded = true));
}

// The function, or an error whose stack has no frame of this file.
function compiled(...program) {
  try {
    return vm.compileFunction(...program);
  } catch (error) {
    error.stack = error.stack.split('\n').filter((line) => !line.includes(`(${__filename}:`)).join('\n');
    throw error;
  }
}

// Resolves `import()` of a script from the working directory.
function dynamicImport(require) {
  const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  if (loader) {
    hideWarningOf('vm.USE_MAIN_CONTEXT_DEFAULT_LOADER');
    return loader;
  }
  // Before Node.js 20.12.
  const isUrl = (specifier) => /^[a-z][a-z+.-]+:/.test(specifier) || Module.builtinModules.includes(specifier);
  return (specifier) => import(isUrl(specifier) ? specifier : url.pathToFileURL(require.resolve(specifier)).href);
}

// Programs do not know of this feature, which Node.js reports when it is used first.
function hideWarningOf(feature) {
  const { emitWarning } = process;
  process.emitWarning = function (warning, ...rest) {
    if (!String(warning).startsWith(feature)) return emitWarning.call(this, warning, ...rest);
    process.emitWarning = emitWarning;
  };
}

function runModule(file, start) {
  const [own, from] = [file, path.join(start, 'main.mjs')].map((name) => url.pathToFileURL(name).href);
  const hooks = `
    const isOwn = (url) => url?.replace(/[?#].*/, '') === ${JSON.stringify(own)};
    export function resolve(specifier, context, next) {
      if (isOwn(context.parentURL)) context = { ...context, parentURL: ${JSON.stringify(from)} };
      return next(specifier, context);
    }
    export async function load(url, context, next) {
      const loaded = await next(url, context);
      if (!isOwn(url) || !loaded.source) return loaded;
      const source = Buffer.from(loaded.source).toString();
      if (!source.includes('import.meta.dirname')) return loaded;
      const directory = ${JSON.stringify(`import.meta.dirname = ${JSON.stringify(start)};`)};
      return { ...loaded, source: directory + source.replace(/^#!/, '//') };
    }`;
  Module.register(`data:text/javascript;base64,${Buffer.from(hooks).toString('base64')}`);
  if (process.argv[1] === file.replace(/mjs$/, 'js')) process.argv[1] = file;
  return runMain.call(Module, file);
}

const { runMain } = Module;
Module.runMain = function (main = process.argv[1]) {
  const start = startOf(main);
  if (start === undefined) return runMain.call(this, main);
  const source = fs.readFileSync(main, 'utf8');
  const isScript = !main.endsWith('.mjs') && !hasModuleSyntax(source);
  const file = isScript ? main : main.replace(/\.js$/, '.mjs');
  moveBeside(file, start);
  return isScript ? runScript(file, source, start) : runModule(file, start);
};
