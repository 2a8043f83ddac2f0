// The data in the page: an index, and the record and trace of every run.

const INDEX = JSON.parse(document.getElementById("index").textContent);

const inflated = new Map();

/** The record and the trace of a run, inflated on the first call. */
function runData(place) {
  if (!inflated.has(place)) inflated.set(place, inflate(document.getElementById(`run-${place}`).textContent));
  return inflated.get(place);
}

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const label = (method) => INDEX.methods[method].label.join(" ");
const cellName = (column) => `${label(column.method)}, N = ${column.budget}${INDEX.seeds.length > 1 ? `, seed ${column.seed}` : ""}`;

/** Every (method, budget, seed), in the order of the letters in a problem's outcomes. */
const COLUMNS = INDEX.cells.flatMap(({ method, budget }) => INDEX.seeds.map((seed) => ({ method, budget, seed })));

/** The outcome that a letter stands for, and its sign: the shape must say as much as the colour. */
const OUTCOMES = { ...INDEX.outcomes, ".": "not run" };
const SIGNS = { c: "✓", w: "✗", n: "–", g: "?", f: "!", ".": "" };
