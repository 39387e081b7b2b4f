// Takes the pictures of docs/page.md: node shots.mjs FOLDER, as `python -m tools.page_pictures` does. The numbers are those of `busy_hour` in tests/fakes/page_port.py.

import { join } from "node:path";

import { Port, launch } from "./browser.mjs";

const browser = await launch();
const port = await Port.start();
try {
  await port.arrange({ names: ["qwen3-embedding-0.6b.q8_0", "bge-m3.q8_0"], clients: [[4711, "python index.py", 1]] });
  for (const colorScheme of ["light", "dark"]) {
    const context = await browser.newContext({ colorScheme, viewport: { width: 900, height: 1080 } });
    const page = await context.newPage();
    await page.goto(await port.link());
    await page.locator("#state", { hasText: "Serving" }).waitFor();
    await page.screenshot({ path: join(process.argv[2], `page-${colorScheme}.png`) });
    await context.close();
  }
} finally {
  await browser.close();
  await port.stop();
}
