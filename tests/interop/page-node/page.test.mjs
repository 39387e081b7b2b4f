import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { Port, askNow, launch } from "./browser.mjs";

const SERVING = { status: "OK", phase: null, message: "", names: [], hour: true, clients: [[4711, "python index.py", 2], [0, "", 1]] };
const STATE = "#state";

let browser, port;

before(async () => {
  browser = await launch();
  port = await Port.start();
});
after(async () => {
  await browser?.close();
  await port?.stop();
});
beforeEach(() => port.arrange(SERVING));

/** Opens a link in a browser of its own, and fails the test if a script fails or the policy stops something. */
async function open(t, { at = port, options = {}, link = null } = {}) {
  const context = await browser.newContext(options);
  t.after(() => context.close());
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("dialog", (dialog) => { page.problems.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("console", (message) => { if (/Content Security Policy|TrustedHTML/.test(message.text())) page.problems.push(message.text()); });
  page.on("request", (request) => { if (!request.url().startsWith(at.url) && !request.url().startsWith("data:")) page.problems.push(request.url()); });
  const response = await page.goto(link ?? await at.link());
  return { context, page, response };
}

const told = (page, words) => page.locator(STATE, { hasText: words }).waitFor({ timeout: 30_000 });

test("a link opens the page, and leaves neither nonce nor key in the address", async (t) => {
  const { context, page } = await open(t);
  await told(page, "Serving");
  assert.equal(page.url(), `${port.url}/`);
  const [cookie] = await context.cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/"]);
  assert.equal(await page.evaluate(() => document.cookie), "");
  await page.reload();
  await told(page, "Serving");
  const second = await context.newPage();
  await second.goto(port.url);
  await told(second, "Serving");
  assert.deepEqual(page.problems, []);
});

test("the page shows what the daemon does", async (t) => {
  const { page } = await open(t);
  await told(page, "Serving");
  const text = await page.locator("main").innerText();
  for (const words of ["11 interactive, 13 bulk", "fake.f32", "190,400", "QUEUE_FULL", "TEXT_TOO_LONG", "2 in flight, of 2 connections", "python index.py (pid 4711, 2), unknown (1)", "640 MB"]) {
    assert.ok(text.includes(words), `${words} is missing in: ${text}`);
  }
  assert.equal(await page.locator("#charts svg").count(), 4);
  for (const path of await page.locator("#charts path").all()) assert.match(await path.getAttribute("d"), /^M\d+ [\d.]+H\d+L/);
  await page.getByText("The last hour in numbers").first().click();
  assert.equal(await page.locator("#numbers tbody tr").count(), 12);
  assert.deepEqual(page.problems, []);
});

test("a link that was used, or is late, leads to a page that says what to do", async (t) => {
  const used = await port.link();
  await open(t, { link: used });
  const again = await open(t, { link: used });
  assert.equal(again.response.status(), 401);
  assert.match(await again.page.innerText("body"), /Run runed open in a terminal/);
  const late = await port.link();
  await port.arrange({ pass: 60 });
  assert.equal((await open(t, { link: late })).response.status(), 401);
  assert.equal((await open(t, { link: port.url })).response.status(), 401);
});

test("the page says when its access has ended, and goes on with a new link in another tab", async (t) => {
  const { context, page } = await open(t);
  await told(page, "Serving");
  await port.arrange({ pass: 12 * 3600 });
  await askNow(page);
  await told(page, "Access ended");
  const second = await context.newPage();
  await second.goto(await port.link());
  await told(second, "Serving");
  await told(page, "Serving");
});

test("states are told in words and once each", async (t) => {
  const { page } = await open(t);
  await told(page, "Serving");
  await page.evaluate(() => {
    window.changes = [];
    new MutationObserver(() => window.changes.push(document.getElementById("state").innerText)).observe(document.getElementById("state"), { childList: true });
  });
  for (const [arranged, words] of [
    [{ status: "IDLE" }, "Suspended The engine is stopped"],
    [{ status: "DEGRADED", message: "the disk is full" }, "Degraded the disk is full"],
    [{ status: "LOADING", phase: "FETCHING_MODEL", message: "" }, "Starting the model is being fetched"],
    [{ status: "SHUTTING_DOWN", phase: null, message: "finishing" }, "Shutting down finishing"],
  ]) {
    await port.arrange(arranged);
    await askNow(page);
    await told(page, words);
    await askNow(page);
  }
  assert.equal(await page.evaluate(() => window.changes.length), 4);
  assert.equal(await page.locator(STATE).getAttribute("role"), "status");
});

test("the page says when the daemon is gone", async (t) => {
  const own = await Port.start("--no-token");
  t.after(() => own.stop());
  const { page } = await open(t, { at: own, link: own.url });
  await told(page, "Serving");
  await own.stop();
  await askNow(page);
  await told(page, "The daemon does not answer");
  assert.match(await page.innerText(STATE), /runed ensure.*Last answer: /s);
  assert.equal(await page.locator("main[data-stale]").count(), 1);
});

test("texts are compared by the keyboard alone", async (t) => {
  const { page } = await open(t);
  await told(page, "Serving");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  for (const id of ["first", "second"]) {
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), id);
    await page.keyboard.type("green tea");
  }
  await page.keyboard.press("Control+Enter");
  await page.locator("#result", { hasText: "Similarity 1.0000" }).waitFor();
  await page.keyboard.type(" and a lorry");
  await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.locator("#result", { hasText: /Similarity -?0\.\d{4}.*fake\.f32, 8 dimensions, 4 and 7 tokens/ }).waitFor();
  assert.equal(await page.locator("#result").getAttribute("aria-live"), "polite");
  assert.deepEqual(page.problems, []);
});

test("an error of the comparison is told with its reason", async (t) => {
  const { page } = await open(t);
  await page.getByLabel("First text").fill("fail:BACKEND_UNAVAILABLE");
  await page.getByLabel("Second text").fill("x");
  await page.getByRole("button", { name: "Compare" }).click();
  await page.locator("#result", { hasText: "BACKEND_UNAVAILABLE arranged to fail" }).waitFor();
  assert.ok(await page.getByRole("button", { name: "Compare" }).isEnabled());
});

test("names and messages are texts and never HTML", async (t) => {
  const evil = "<img src=x onerror=alert(1)>", script = "<script>alert(2)</script>";
  await port.arrange({ status: "DEGRADED", message: `${evil}${script}`, names: [script, evil], clients: [[1, script, 1]], failures: [evil, script] });
  const { page } = await open(t);
  await told(page, `Degraded ${evil}${script}`);
  assert.deepEqual(await page.locator("#models tbody th").allInnerTexts(), [script, evil]);
  assert.match(await page.innerText("#work caption"), /<script>alert\(2\)<\/script> \(pid 1, 1\)/);
  assert.deepEqual(await page.locator("#errors tbody th").allInnerTexts(), [evil, script]);
  assert.deepEqual(await page.locator("#model option").allInnerTexts(), ["the default model", script, evil]);
  await page.getByLabel("First text").fill(`fail:${evil}`);
  await page.getByLabel("Second text").fill(script);
  await page.getByLabel("Model", { exact: true }).selectOption(evil);
  await page.getByRole("button", { name: "Compare" }).click();
  await page.locator("#result", { hasText: `UNKNOWN_MODEL` }).filter({ hasText: evil }).waitFor();
  assert.equal(await page.locator("img, main script").count(), 0);
  assert.deepEqual(page.problems, []);
});

test("the policy stops a script and a request that are not the page's own", async (t) => {
  const { page } = await open(t);
  await told(page, "Serving");
  const stopped = await page.evaluate(async (other) => {
    const results = [];
    const script = document.createElement("script");
    try { script.textContent = "window.ran = true"; document.body.append(script); } catch { results.push("trusted types"); }
    try { document.body.innerHTML = "<b>x</b>"; } catch { results.push("trusted types"); }
    try { await fetch(other); } catch { results.push("fetch"); }
    return [results, window.ran ?? false];
  }, "http://127.0.0.1:9/");
  assert.deepEqual(stopped, [["trusted types", "trusted types", "fetch"], false]);
});

test("a hostile name of this machine, and a page of another port, see nothing", async (t) => {
  const { context, page } = await open(t);
  await told(page, "Serving");
  // A name that leads to this machine, as after DNS rebinding.
  const named = await launch(`--host-resolver-rules=MAP evil.example 127.0.0.1`);
  t.after(() => named.close());
  const link = new URL(await port.link());
  link.hostname = "evil.example";
  const rebound = await (await named.newPage()).goto(link.href);
  assert.equal(rebound.status(), 403);
  // Another port of this host gets the cookie, since browsers do not tell ports apart. It does not get the key.
  const other = await Port.start("--no-token");
  t.after(() => other.stop());
  const foreign = await context.newPage();
  await foreign.goto(other.url);
  const answers = await foreign.evaluate(async (target) => {
    const ask = (options) => fetch(`${target}/page/state`, { credentials: "include", ...options }).then((answer) => answer.status, () => "stopped");
    const opaque = await fetch(`${target}/page/state`, { credentials: "include", mode: "no-cors" }).then((answer) => answer.type, () => "stopped");
    return [await ask({}), await ask({ headers: { "X-Runed-Page": "x" } }), opaque, localStorage.getItem("runed-page")];
  }, port.url);
  assert.deepEqual(answers, ["stopped", "stopped", "stopped", null]);
  // The page is shown in no frame.
  const bare = await context.newPage();
  await bare.setContent(`<iframe src="${port.url}/"></iframe>`);
  await bare.waitForTimeout(500);
  const inner = bare.frames()[1];
  assert.ok(!(await inner?.content().catch(() => ""))?.includes("Compare two texts"));
});

for (const colorScheme of ["light", "dark"]) {
  test(`the ${colorScheme} scheme has contrasts that can be read`, async (t) => {
    const { page } = await open(t, { options: { colorScheme } });
    await told(page, "Serving");
    const ratios = await page.evaluate(() => {
      const luminance = (color) => {
        const [red, green, blue] = color.match(/[\d.]+/g).map((part) => part / 255)
          .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      };
      const behind = (element) => {
        for (; element; element = element.parentElement) {
          const color = getComputedStyle(element).backgroundColor;
          if (color !== "rgba(0, 0, 0, 0)") return color;
        }
        return "rgb(255, 255, 255)";
      };
      return ["h1", "h1 span", "#state strong", "dt", "dd", "figcaption", "caption", "td", ".hint", "label", "textarea", "button", "footer", ".axis span"]
        .map((selector) => {
          const element = document.querySelector(selector);
          const [one, two] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => b - a);
          return [selector, (one + 0.05) / (two + 0.05)];
        });
    });
    for (const [selector, ratio] of ratios) assert.ok(ratio >= 4.5, `${selector}: ${ratio}`);
    const back = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(back, colorScheme === "dark" ? "rgb(18, 20, 23)" : "rgb(255, 255, 255)");
  });
}

test("everything has a name for a screen reader", async (t) => {
  const { page } = await open(t);
  await told(page, "Serving");
  for (const [role, count] of [["heading", 7], ["region", 6], ["img", 4], ["textbox", 2], ["combobox", 1], ["button", 1]]) {
    const found = page.getByRole(role, { name: /\S/ });
    assert.equal(await found.count(), await page.getByRole(role).count(), role);
    assert.equal(await found.count(), count, role);
  }
  assert.match(await page.getByRole("img").first().getAttribute("aria-label"), /^Texts a second: last .*; highest of the hour /);
});

test("a narrow screen needs no scrolling to the side", async (t) => {
  const { page } = await open(t, { options: { viewport: { width: 320, height: 640 } } });
  await told(page, "Serving");
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 320));
});

test("a page that is not seen asks for nothing", async (t) => {
  const { page } = await open(t);
  await told(page, "Serving");
  await page.evaluate(() => {
    Object.defineProperty(document, "hidden", { get: () => window.unseen ?? false });
    window.unseen = true;
  });
  let asked = 0;
  await page.waitForTimeout(500);  // for a question that is under way
  page.on("request", () => { asked += 1; });
  await page.waitForTimeout(7000);
  assert.equal(asked, 0);
  await page.evaluate(() => { window.unseen = false; document.dispatchEvent(new Event("visibilitychange")); });
  await page.waitForRequest(/page\/state/, { timeout: 30_000 }).catch(() => assert.ok(asked));
});
