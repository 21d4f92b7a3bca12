// Adds up what the suite found: node tally.mjs <expected-failures.yml> <results of a revision>...
//
// Prints each failure that was not expected, each that was expected and did not happen, the reasons of the
// others, and a closing line. Its exit code is that of the whole run.

import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const [expectedFile, ...revisions] = process.argv.slice(2);

// check -> reason: the comment above its group.
const expected = new Map();
let reason = '';
for (const line of readFileSync(expectedFile, 'utf8').split('\n')) {
  const comment = line.match(/^ {2}# (.*)/);
  const entry = line.match(/^ {2}- (\S+)/);
  if (comment) reason = comment[1];
  else if (entry) expected.set(entry[1], reason);
}

const counts = { passed: 0, failed: 0, skipped: 0 };
const reasons = new Map();
const failedAsExpected = new Set();
const passed = new Set();

function skip(why) {
  counts.skipped += 1;
  reasons.set(why, (reasons.get(why) ?? 0) + 1);
}

function take(revision, check, { status, errorMessage }) {
  if (status === 'SUCCESS') {
    counts.passed += 1;
    passed.add(check);
  } else if (status === 'SKIPPED') {
    skip('needs a capability that the server does not declare');
  } else if (status === 'FAILURE' || status === 'WARNING') {
    if (expected.has(check)) {
      failedAsExpected.add(check);
      skip(expected.get(check));
    } else {
      counts.failed += 1;
      console.log(`FAILED ${revision} ${check}: ${errorMessage}`);
    }
  }
}

for (const directory of revisions) {
  for (const scenario of readdirSync(directory)) {
    // server-<scenario>-<time>
    const name = scenario.replace(/^server-/, '').replace(/-\d{4}-\d\d-\d\dT[\d-]+Z$/, '');
    const checks = JSON.parse(readFileSync(join(directory, scenario, 'checks.json'), 'utf8'));
    for (const check of checks) take(basename(directory), `${name}:${check.id}`, check);
  }
}
for (const check of expected.keys()) {
  if (failedAsExpected.has(check)) continue;
  counts.failed += 1;
  const why = passed.has(check) ? 'it passes now' : 'no revision runs it';
  console.log(`FAILED ${basename(expectedFile)}: ${check} is not to be expected: ${why}`);
}
for (const [why, count] of reasons) console.log(`SKIPPED [${count}] conformance: ${why}`);
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(counts.failed === 0 && counts.passed > 0 ? 0 : 1);
