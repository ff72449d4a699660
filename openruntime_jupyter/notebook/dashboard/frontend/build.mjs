// Bundles the dashboard and copies Swagger UI. `node build.mjs` writes both; `node build.mjs --check` checks that the bundle is current.
import { build } from "esbuild";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

const made = await build({
  // page.js is the dashboard on a page of its own. It imports dashboard.js.
  entryPoints: { dashboard: "src/index.js", page: "src/page.ts" },
  external: ["./dashboard.js"],
  bundle: true,
  format: "esm",
  minify: true,
  target: "es2022",
  loader: { ".css": "text" },
  // Keeps uPlot's licence.
  legalComments: "inline",
  outdir: "../static",
  write: false,
});
// The API page is Swagger UI, copied unchanged.
const SWAGGER = "../../../server/openapi/swagger";
const copied = ["swagger-ui-bundle.js", "swagger-ui.css", "LICENSE", "NOTICE"].map((name) => ({
  path: `${SWAGGER}/${name}`,
  text: readFileSync(`node_modules/swagger-ui-dist/${name}`, "utf8"),
}));
let stale = false;
for (const file of [...made.outputFiles, ...copied]) {
  let before = null;
  try {
    before = readFileSync(file.path, "utf8");
  } catch {
    // not built yet
  }
  if (before === file.text) continue;
  if (process.argv.includes("--check")) {
    console.error(`${file.path} is out of date: run \`make frontend\``);
    stale = true;
  } else {
    mkdirSync(dirname(file.path), { recursive: true });
    writeFileSync(file.path, file.text);
    console.log(`${file.path}: ${file.text.length} bytes`);
  }
}
process.exit(stale ? 1 : 0);
