// Signing in to the real binary where tokens are on: EGRESSD_BIN names it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { PATIENCE, browser, open } from "./browser.js";

const TOKEN = "s3cret-token-of-acme";
let chrome;
let node;
let directory;
let url;

const freePort = () => new Promise((resolve) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

before(async () => {
  assert.ok(process.env.EGRESSD_BIN, "EGRESSD_BIN must name the egressd binary");
  directory = await mkdtemp(join(tmpdir(), "egressd-signin-"));
  const api = await freePort();
  url = `http://127.0.0.1:${api}`;
  await writeFile(join(directory, "public-ips.txt"), "127.0.0.41\n");
  await writeFile(join(directory, "egressd.toml"), `
[api]
listen = "127.0.0.1:${api}"
[[api.client]]
name = "acme-people"
token_sha256 = "${createHash("sha256").update(TOKEN).digest("hex")}"
tenant = "acme"
scopes = ["submit", "read"]
[metrics]
listen = "127.0.0.1:${await freePort()}"
[[egress.source]]
public = "127.0.0.41"
[store]
path = "${directory}/store"
key_file = "${directory}/key"
`);
  node = spawn(process.env.EGRESSD_BIN, ["serve", "--config", join(directory, "egressd.toml")], { stdio: "ignore" });
  for (const ends = Date.now() + PATIENCE; ;) {
    if (await fetch(`${url}/openapi.json`).then((answer) => answer.ok, () => false)) break;
    assert.equal(node.exitCode, null, "egressd ended before it answered");
    assert.ok(Date.now() < ends, "egressd does not answer");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  node?.kill("SIGTERM");
  if (node && node.exitCode === null) await new Promise((resolve) => node.on("exit", resolve));
  if (directory) await rm(directory, { recursive: true });
});

test("a wrong token is refused, the right one shows its tenant's sends, and sign-out forgets it", async () => {
  const headers = { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" };
  const body = JSON.stringify({ method: "GET", url: "http://192.168.7.7/of-acme" });
  const accepted = await fetch(`${url}/v1/sends`, { method: "POST", headers, body });
  assert.equal(accepted.status, 202, await accepted.clone().text());
  assert.equal((await fetch(`${url}/v1/sends`)).status, 401);

  const page = await open(chrome.context, url, "#/sends", { expected: /401|403|404|Failed to load resource/ });
  await page.getByLabel("Token").fill("wrong");
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByText("does not know this token").waitFor();
  await page.getByLabel("Token").fill(TOKEN);
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByText("of-acme").first().waitFor();
  assert.ok(!page.url().includes(TOKEN));
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
  assert.equal(await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie).then((kept) => kept.includes("s3cret")), false);
  page.check();
});
