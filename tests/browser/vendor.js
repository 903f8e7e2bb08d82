// The two decoders that browsers lack, brotli and zstd, as the page embeds them: `npm run vendor` makes the files
// anew from the packages that package-lock.json pins. A test holds the files to what this makes.
//
// Why these: both are plain JavaScript. The page's policy forbids WebAssembly, and should go on to.

import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const ASSETS = new URL("../../src/inspector/assets/", import.meta.url);
const MODULES = new URL("./node_modules/", import.meta.url);
const path = (url) => fileURLToPath(url);

const MIT = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`;

const MADE = [
  {
    name: "vendor-brotli.js",
    packages: ["brotli", "base64-js"],
    notice: "Copyright (c) Devon Govett (brotli.js, MIT), Copyright 2013 Google Inc. (its decoder, Apache License 2.0),\nCopyright (c) 2014 Jameson Little (base64-js, MIT).",
    entry: 'export { BrotliDecompress } from "./brotli/dec/decode.js";',
    changes: [],
  },
  {
    name: "vendor-zstd.js",
    packages: ["fzstd"],
    notice: "Copyright (c) 2020 Arjun Barrett (fzstd, MIT). Changed here, for bodies that mean harm: a frame's window is at\nmost the 8 MiB of RFC 9659, and a block that goes on past its largest size is refused at once.",
    entry: 'export { Decompress } from "./fzstd/esm/index.mjs";',
    changes: [
      ["if (ws > 2145386496)", "if (ws > 8388608)"],
      ["for (var i = 0; i < ll; ++i) {", "if (oubt + ll + ml > buf.length) err(0);\n                for (var i = 0; i < ll; ++i) {"],
    ],
  },
];

/** `[name, text]` of each file. */
export async function vendored() {
  return Promise.all(MADE.map(async ({ name, packages, notice, entry, changes }) => {
    const from = await Promise.all(packages.map(async (one) => `${one} ${JSON.parse(await readFile(new URL(`${one}/package.json`, MODULES))).version}`));
    const changed = {
      name: "changes",
      setup: ({ onLoad }) => changes.length > 0 && onLoad({ filter: /index\.mjs$/ }, async ({ path: file }) => {
        let contents = await readFile(file, "utf8");
        for (const [text, instead] of changes) {
          if (contents.split(text).length !== 2) throw new Error(`${name}: ${text} does not stand there once`);
          contents = contents.replace(text, instead);
        }
        return { contents };
      }),
    };
    const { outputFiles } = await build({
      stdin: { contents: entry, resolveDir: path(MODULES) },
      bundle: true, format: "esm", platform: "browser", target: "es2022", charset: "utf8", legalComments: "none", minifySyntax: true, minifyWhitespace: true,
      write: false, plugins: [changed],
    });
    const head = `Made by tests/browser/vendor.js from ${from.join(" and ")}; not to be edited.\n\n${notice}\n\n${MIT}`;
    return [name, `${head.split("\n").map((line) => `// ${line}`.trimEnd()).join("\n")}\n${outputFiles[0].text}`];
  }));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [name, text] of await vendored()) await writeFile(new URL(name, ASSETS), text);
}
