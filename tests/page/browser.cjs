// A headless Chromium with one page, told what to do by one JSON object a line on stdin:
// {"open": url, "width", "height", "dark"}, {"run": expression}, {"shot": path},
// {"errors": true}. Answers each with one line: {"value"} or {"error"}. Ends with stdin.
// Found through NODE_PATH.

"use strict";

const readline = require("node:readline");
const { chromium } = require("playwright-core");

const PATIENCE = 10000;
let errors = [];

async function main() {
  const executablePath = process.env.CHROMIUM;
  // As root, Chromium has no sandbox; it sees pages of natsmux alone.
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
  let page;

  async function open({ open, width, height, dark }) {
    await page?.context().close();
    errors = [];
    const colorScheme = dark ? "dark" : "light";
    const context = await browser.newContext({ viewport: { width, height }, colorScheme });
    context.setDefaultTimeout(PATIENCE);
    page = await context.newPage();
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith(new URL(open).origin)) errors.push("asked " + request.url());
    });
    await page.goto(open, { waitUntil: "load" });
  }

  async function obey(order) {
    if (order.open) return open(order);
    if (order.run) return page.evaluate(order.run);
    if (order.shot) return void (await page.screenshot({ path: order.shot, fullPage: true }));
    return errors.splice(0);
  }

  for await (const line of readline.createInterface({ input: process.stdin })) {
    const answer = await obey(JSON.parse(line)).then(
      (value) => ({ value: value ?? null }),
      (error) => ({ error: String(error) }),
    );
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
  await browser.close();
}

main();
