// Translates a cell into a script for the engine's REPL mode. Pure: reads and changes nothing but its arguments.
//
// A notebook has one variable per name, whatever declared it last. The engine keeps `let`, `const` and `var` apart
// and refuses most pairs of them. All declarations at the top level of a cell therefore become `var`, of the same
// length, so that lines and columns of errors stay those of the cell. Constants stay constant: assignments to them
// are found here, and throw when they run.
'use strict';
const { parse, tokenizer, tokTypes } = require('internal/deps/acorn/acorn/dist/acorn');
const { ancestor: walk } = require('internal/deps/acorn/acorn-walk/dist/walk');

const OPTIONS = {
  ecmaVersion: 'latest',
  sourceType: 'script',
  allowAwaitOutsideFunction: true,
  allowHashBang: true,
  allowImportExportEverywhere: true,
  locations: true,
};
// Global properties that cannot change. The engine reports their declaration as an error.
const FIXED = ['undefined', 'NaN', 'Infinity'];
const LINE_END = /[\n\r\u2028\u2029]/;

// The identifiers that a pattern binds or assigns, and whether each is both key and target, as in `{ x }`.
function* targets(node, isShorthand = false) {
  if (node === null) return;
  if (node.type === 'Identifier') yield { node, isShorthand };
  else if (node.type === 'AssignmentPattern') yield* targets(node.left, isShorthand);
  else if (node.type === 'RestElement') yield* targets(node.argument);
  else if (node.type === 'ArrayPattern') for (const one of node.elements) yield* targets(one);
  else if (node.type === 'ObjectPattern') {
    for (const one of node.properties) yield* targets(one.value ?? one, one.shorthand);
  }
}

function names(...patterns) {
  return patterns.flatMap((pattern) => [...targets(pattern)].map(({ node }) => node.name));
}

const isFunction = (node) => /Function/.test(node.type);

// The names that `var` declares in `root`, outside the functions in it.
function hoisted(root) {
  const found = [];
  walk(root, {
    VariableDeclaration(node, _, above) {
      if (node.kind !== 'var' || above.some((one) => one !== root && isFunction(one))) return;
      found.push(...names(...node.declarations.map(({ id }) => id)));
    },
  });
  return found;
}

// The names that the declarations among `statements` bind in their block.
function bound(statements) {
  return statements.flatMap((node) => {
    if (node.type === 'VariableDeclaration') {
      return node.kind === 'var' ? [] : names(...node.declarations.map(({ id }) => id));
    }
    return /^(Class|Function)Declaration$/.test(node.type) && node.id ? [node.id.name] : [];
  });
}

// The names that `node` has of its own, which hide those of the notebook.
function own(node) {
  if (isFunction(node)) {
    const itself = node.type === 'FunctionExpression' && node.id ? [node.id.name] : [];
    return [...itself, ...names(...node.params), ...hoisted(node)];
  }
  switch (node.type) {
    case 'BlockStatement':
    case 'StaticBlock':
      return bound(node.body);
    case 'SwitchStatement':
      return bound(node.cases.flatMap(({ consequent }) => consequent));
    case 'ForStatement':
      return node.init ? bound([node.init]) : [];
    case 'ForInStatement':
    case 'ForOfStatement':
      return bound([node.left]);
    case 'CatchClause':
      return node.param ? names(node.param) : [];
    case 'ClassDeclaration':
    case 'ClassExpression':
      return node.id ? [node.id.name] : [];
    default:
      return [];
  }
}

// The parsed cell, and its text: in parentheses if it is an object rather than a block, as in the REPL of Node.js.
function read(source) {
  let starts;
  try {
    starts = tokenizer(source, OPTIONS).getToken().type;
  } catch {
    starts = undefined;
  }
  if (starts !== tokTypes.braceL) return { text: source, tree: parse(source, OPTIONS) };
  const text = `(${source}\n)`;
  let tree;
  try {
    tree = parse(text, OPTIONS);
    if (tree.body.length === 1 && tree.body[0].expression?.type === 'ObjectExpression') return { text, tree };
  } catch {
    return { text: source, tree: parse(source, OPTIONS) };
  }
  try {
    return { text: source, tree: parse(source, OPTIONS) };
  } catch {
    return { text, tree };
  }
}

class Translation {
  constructor(text, tree, constants) {
    Object.assign(this, { text, tree, constants, edits: [], imports: [], declared: [] });
  }

  // Puts `text`, padded with what keeps lines and columns, in the place of what is there.
  replace(start, end, text) {
    const rest = this.text.slice(start + text.length, end);
    const blank = [...rest].map((one) => (LINE_END.test(one) ? one : ' '.repeat(one.length))).join('');
    this.edits.push({ start, end, text: text + blank });
  }

  insert(at, text) {
    this.edits.push({ start: at, end: at, text });
  }

  declare(declared, isConstant) {
    this.declared.push(...declared);
    for (const name of declared) isConstant ? this.constants.add(name) : this.constants.delete(name);
  }

  statement(node) {
    switch (node.type) {
      case 'ImportDeclaration':
        return this.import(node);
      case 'ExportAllDeclaration':
        return this.import({ ...node, specifiers: [] });
      case 'ExportNamedDeclaration':
        return this.export(node);
      case 'ExportDefaultDeclaration':
        return this.exportDefault(node);
      case 'VariableDeclaration':
        return this.variables(node);
      case 'ClassDeclaration':
        this.insert(node.start, `var ${node.id.name}=`);
        this.insert(node.end, ';');
        return this.declare([node.id.name], false);
      case 'FunctionDeclaration':
        return this.declare([node.id.name], false);
    }
  }

  variables({ start, kind, declarations }) {
    const declared = names(...declarations.map(({ id }) => id));
    if (kind === 'var' || !/^(let|const)$/.test(kind) || declared.some((name) => FIXED.includes(name))) return;
    this.replace(start, start + kind.length, 'var');
    for (const { id, init } of declarations) if (!init) this.insert(id.end, '=void 0');
    this.declare(declared, kind === 'const');
  }

  // Imports are evaluated before the rest of the cell, as in a module.
  import({ start, end, loc, specifiers, source, attributes = [] }) {
    this.replace(start, end, ';');
    const bindings = specifiers.map(({ type, local, imported }) => {
      const isNamespace = type === 'ImportNamespaceSpecifier';
      return { local: local.name, name: isNamespace ? '*' : (imported?.name ?? imported?.value ?? 'default') };
    });
    const pairs = attributes.map(({ key, value }) => [key.name ?? key.value, value.value]);
    const from = { specifier: source.value, attributes: Object.fromEntries(pairs) };
    this.imports.push({ ...from, bindings, loc: loc.start });
    this.declare(bindings.map(({ local }) => local), true);
  }

  // Nothing imports a cell: what it exports is declared.
  export(node) {
    if (node.source) return this.import({ ...node, specifiers: [] });
    if (!node.declaration) return this.replace(node.start, node.end, ';');
    this.replace(node.start, node.declaration.start, ';');
    this.statement(node.declaration);
  }

  exportDefault({ start, end, declaration }) {
    this.replace(start, declaration.start, ';');
    if (/Declaration$/.test(declaration.type) && declaration.id) return this.statement(declaration);
    this.insert(declaration.start, '(');
    this.insert(declaration.end, this.text[end - 1] === ';' ? ')' : ');');
  }

  expressions() {
    walk(this.tree, {
      ImportExpression: ({ start }) => this.replace(start, start + 'import'.length, '__load'),
      MetaProperty: ({ start, end, meta }) => {
        if (meta.name !== 'import') return;
        this.usesMeta = true;
        this.replace(start, end, '__meta__');
      },
      AssignmentExpression: ({ left }, _, above) => this.assigned(left, above),
      UpdateExpression: ({ argument }, _, above) => this.assigned(argument, above),
      ForInStatement: ({ left }, _, above) => this.assigned(left, above),
      ForOfStatement: ({ left }, _, above) => this.assigned(left, above),
    });
  }

  // Redirects assignments to constants of the notebook to where they fail.
  assigned(pattern, above) {
    for (const { node, isShorthand } of targets(pattern)) {
      const { start, end, name } = node;
      if (!this.constants.has(name) || above.some((one) => own(one).includes(name))) continue;
      this.edits.push({ start, end, text: `${isShorthand ? `${name}: ` : ''}__constant__.${name}` });
    }
  }

  result() {
    let { text } = this;
    for (const edit of this.edits.sort((one, other) => other.start - one.start)) {
      text = text.slice(0, edit.start) + edit.text + text.slice(edit.end);
    }
    const { imports, declared, constants, usesMeta = false } = this;
    return { text, imports, declared, constants, usesMeta };
  }
}

// Import attributes as Node.js 20 still takes them, which the parser does not.
const ASSERTION = /(\bfrom\s*|\bimport\s*)(["'])(.*?)\2(\s*)assert(?=\s*\{)/g;

// Returns the script for `source`, and the imports that it needs first. `constants` has the names of the
// notebook's constants; the result has those after this cell. Throws a SyntaxError that has `loc`.
function translate(source, constants) {
  const { text, tree } = read(source.replace(ASSERTION, '$1$2$3$2$4with  '));
  const translation = new Translation(text, tree, new Set(constants));
  translation.declare(hoisted(tree), false);
  for (const node of tree.body) translation.statement(node);
  translation.expressions();
  return translation.result();
}

module.exports = { translate };
