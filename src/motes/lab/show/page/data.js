// The data that the page carries: an index, and every run's inside.

const INDEX = JSON.parse(document.getElementById("index").textContent);

const inflated = new Map();

/** The record and the trace of a run, inflated when they are first asked for. */
function inside(place) {
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

/** Every (method, budget, seed), in the order of the letters of a problem's outcomes. */
const COLUMNS = INDEX.cells.flatMap(({ method, budget }) => INDEX.seeds.map((seed) => ({ method, budget, seed })));

/** What a letter stands for, and the mark that is drawn for it: shape tells as much as colour. */
const OUTCOMES = { ...INDEX.outcomes, ".": "not run" };
const SIGNS = { c: "✓", w: "✗", n: "–", g: "?", f: "!", ".": "" };
