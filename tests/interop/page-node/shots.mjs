// Takes the pictures of docs/page.md: node shots.mjs FOLDER. The numbers are those of `busy_hour` in tests/fakes/page_port.py.

import { join } from "node:path";

import { Port, launch } from "./browser.mjs";

const browser = await launch();
const port = await Port.start();
try {
  for (const colorScheme of ["light", "dark"]) {
    const context = await browser.newContext({ colorScheme, viewport: { width: 900, height: 1180 } });
    const page = await context.newPage();
    await page.goto(await port.link());
    await page.locator("#state", { hasText: "Serving" }).waitFor();
    await page.getByLabel("First text").fill("How do I make green tea?");
    await page.getByLabel("Second text").fill("Green tea should be brewed at 80 °C.");
    await page.screenshot({ path: join(process.argv[2], `page-${colorScheme}.png`) });
    await context.close();
  }
} finally {
  await browser.close();
  await port.stop();
}
