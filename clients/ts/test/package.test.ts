/** The published package, and its documentation. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, it } from "node:test";
import { Home, PACKAGE, ROOT, run } from "./support.js";

const home = new Home();
after(() => home.stop());

const read = (...path: string[]) => readFileSync(join(...path), "utf8");

it("holds the compiled modules, their types, the README and the licence, and nothing else", async () => {
  const { stdout } = await run("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: PACKAGE });
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }];
  const modules = readdirSync(join(PACKAGE, "src"))
    .filter((name) => name.endsWith(".ts"))
    .map((name) => basename(name, ".ts"));
  const compiled = [...modules, "gen/runed/v1/runed_pb"].flatMap((name) => [`dist/${name}.js`, `dist/${name}.d.ts`]);
  assert.deepEqual(files.map(({ path }) => path).sort(), [...compiled, "LICENSE", "README.md", "package.json"].sort());
});

it("names no place that packages come from, and has the licence and the version of the project", () => {
  const lock = read(PACKAGE, "package-lock.json");
  assert.ok(!lock.includes('"resolved"'));
  assert.ok(!lock.includes("/-/"), "the path of an archive");
  assert.equal(read(PACKAGE, "LICENSE"), read(ROOT, "LICENSE"));
  const version = /__version__ = "(.*)"/.exec(read(ROOT, "runed", "version.py"))?.[1];
  assert.equal((JSON.parse(read(PACKAGE, "package.json")) as { version: string }).version, version);
});

it("has the same examples in the documentation and the README, and they work", async () => {
  for (const [name, documents, output] of [
    ["example", [join(ROOT, "docs", "clients.md"), join(PACKAGE, "README.md")], ["384 2", "a 384", "b EMPTY_TEXT"]],
    ["stubs", [join(ROOT, "docs", "clients.md")], ["384 4"]],
  ] as const) {
    const source = read(PACKAGE, "test", `${name}.ts`);
    for (const document of documents) {
      assert.ok(read(document).includes(`\`\`\`ts\n${source}\`\`\``), `${document} differs from test/${name}.ts`);
    }
    const program = join(PACKAGE, "build", "test", `${name}.js`);
    const { stdout } = await run(process.execPath, [program], { env: { ...process.env, RUNED_HOME: home.path } });
    assert.deepEqual(stdout.trim().split("\n").sort(), output);
  }
});

it("searches a folder by the program of the documentation", async () => {
  const folder = mkdtempSync(join(tmpdir(), "runed-"));
  after(() => rmSync(folder, { recursive: true }));
  mkdirSync(join(folder, "drinks"));
  writeFileSync(
    join(folder, "drinks", "tea.md"),
    "Green tea is steeped at 80 degrees.\n\n\n\nBlack tea takes boiling water.\n",
  );
  writeFileSync(join(folder, "travel.md"), "The night train leaves at ten.");
  assert.ok(read(ROOT, "docs", "rag.md").includes(`\`\`\`js\n${read(PACKAGE, "test", "rag.ts")}\`\`\``));
  const program = [join(PACKAGE, "build", "test", "rag.js"), folder, "How hot is the water for green tea?"];
  const { stdout } = await run(process.execPath, program, { env: { ...process.env, RUNED_HOME: home.path } });
  assert.deepEqual(stdout.split("\n\n").slice(0, 2), [
    "Answer from these passages: How hot is the water for green tea?",
    "Green tea is steeped at 80 degrees.",
  ]);
});
