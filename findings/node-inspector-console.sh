#!/bin/bash
# Guess: a connected inspector session costs nothing while no domain of it is enabled.
# Found: from `session.connect()` on, each `console.log` also goes through the engine's own console, which captures a stack
# and keeps the message: 100,000 lines take about twice as long, though nothing reads them. A new `Console`
# writes to the same stream and is not slowed down.
# Versions: Node.js 20.20.2.
# Why it matters: sandboxes that run cells of notebooks by the inspector (`Runtime.evaluate` with `replMode`) print slowly.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-fund --no-audit node@20.20.2 >/dev/null
cat > print.js <<'JS'
const { Session } = require('node:inspector');

const session = new Session();
const fresh = new console.Console({ stdout: process.stdout, stderr: process.stderr });
const LINES = 100_000;

// The processor time of this process, in ms: other load of the machine does not count.
function time(log) {
  const start = process.cpuUsage();
  for (let n = 0; n < LINES; n += 1) log('line', n);
  const { user, system } = process.cpuUsage(start);
  return Math.round((user + system) / 1000);
}

time(console.log); // The compiler's first time.
const alone = time(console.log);
session.connect();
const connected = time(console.log);
const other = time(fresh.log);
console.error(`Node.js ${process.version}: ${alone} ms alone, ${connected} ms connected, ${other} ms by a new Console`);
process.exitCode = connected > 1.4 * alone && connected > 1.4 * other ? 0 : 1;
JS
./node_modules/node/bin/node print.js >/dev/null
# Seen: Node.js v20.20.2: 367 ms alone, 1015 ms connected, 280 ms by a new Console
