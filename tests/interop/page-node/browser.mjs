// A browser, and a port with the page to look at. The browser is that of the machine: Playwright's own is not downloaded.

import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

/** Starts the browser that `BROWSER_PATH` names. */
export const launch = (...args) =>
  chromium.launch({ executablePath: process.env.BROWSER_PATH, args: ["--no-sandbox", "--disable-gpu", ...args] });

/** A port with the page, served by `tests.fakes.page_port`. */
export class Port {
  static async start(...options) {
    const port = new Port();
    port.folder = await mkdtemp(join(tmpdir(), "rd-"));
    port.program = spawn(process.env.PYTHON, ["-m", "tests.fakes.page_port", port.folder, ...options],
      { cwd: process.env.ROOT, stdio: ["pipe", "pipe", "inherit"] });
    port.lines = createInterface({ input: port.program.stdout })[Symbol.asyncIterator]();
    port.url = (await port.answer()).url;
    return port;
  }

  async answer() {
    const { value, done } = await this.lines.next();
    if (done) throw new Error("the port has ended");
    return JSON.parse(value);
  }

  /** Arranges the daemon; see `tests.fakes.page_port`. */
  async arrange(wanted) {
    this.program.stdin.write(JSON.stringify(wanted) + "\n");
    return this.answer();
  }

  async link() {
    return (await this.arrange({ link: true })).link;
  }

  async stop() {
    const ended = new Promise((resolve) => this.program.once("exit", resolve));
    if (this.program.exitCode === null && this.program.signalCode === null) {
      this.program.kill("SIGKILL");
      await ended;
    }
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Lets a page ask the daemon now, instead of in some seconds. */
export const askNow = (page) => page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
