// The list of problems, with filters: an outcome for each method, budget and seed, which opens the run.

const PAGE_SIZE = 100;
const outcomesOf = (problem) => [...problem.outcomes].filter((letter) => letter !== ".");

const SHOWN = [
  ["all", () => true],
  ["right by some, not by others", (problem) => outcomesOf(problem).includes("c") && outcomesOf(problem).some((letter) => letter !== "c")],
  ["right by none", (problem) => !outcomesOf(problem).includes("c")],
  ["right by all", (problem) => outcomesOf(problem).every((letter) => letter === "c")],
  ["undecided: no answer, or not graded", (problem) => /[ng]/.test(problem.outcomes)],
  ["failed", (problem) => problem.outcomes.includes("f")],
];

const filters = { shown: 0, wrong: "", right: "", text: "", limit: PAGE_SIZE };

/** Whether a problem has a run in the cell, given by its number, whose outcome satisfies the condition. */
const hasOutcome = (problem, cell, condition) =>
  INDEX.seeds.some((_, seed) => condition(problem.outcomes[cell * INDEX.seeds.length + seed]));

function matchingProblems() {
  const words = filters.text.trim().toLowerCase();
  return INDEX.problems.filter((problem) =>
    SHOWN[filters.shown][1](problem)
    && (filters.wrong === "" || hasOutcome(problem, Number(filters.wrong), (letter) => letter !== "c" && letter !== "."))
    && (filters.right === "" || hasOutcome(problem, Number(filters.right), (letter) => letter === "c"))
    && (!words || `${problem.id} ${problem.question ?? ""} ${problem.reference ?? ""}`.toLowerCase().includes(words)));
}

function problems(root) {
  const body = h("tbody");
  const summary = h("p", { class: "matches", "aria-live": "polite" });
  const more = h("button", { type: "button", class: "more", onclick: () => { filters.limit += PAGE_SIZE; draw(); } }, "show more");
  const draw = () => {
    const matches = matchingProblems();
    body.replaceChildren(...matches.slice(0, filters.limit).map(row));
    summary.textContent = `${plural(matches.length, "problem")} of ${INDEX.problems.length}`;
    more.hidden = matches.length <= filters.limit;
  };
  const cells = (first) => [h("option", { value: "" }, first), ...INDEX.cells.map((cell, i) => h("option", { value: i }, `${label(cell.method)}, N = ${cell.budget}`))];
  const select = (name, text, options) => h("label", {}, text, h("select", {
    id: `filter-${name}`, onchange: (event) => { filters[name] = name === "shown" ? Number(event.target.value) : event.target.value; filters.limit = PAGE_SIZE; draw(); },
  }, options));
  root.append(
    h("div", { class: "bar" }, h("h2", {}, "Problems"), summary),
    INDEX.note ? h("p", { class: "note", id: "embedded" }, INDEX.note) : "",
    h("div", { class: "filters" },
      select("shown", "show", SHOWN.map(([text], i) => h("option", { value: i }, text))),
      select("wrong", "not right by", cells("any")), select("right", "right by", cells("any")),
      h("label", {}, "with the words", h("input", { type: "search", id: "filter-text", oninput: (event) => { filters.text = event.target.value; filters.limit = PAGE_SIZE; draw(); } }))),
    h("ul", { class: "key", "aria-hidden": "true" }, Object.entries(OUTCOMES).map(([letter, text]) => h("li", {}, square(letter), text))),
    h("div", { class: "scroll" }, h("table", { class: "matrix", onkeydown: walk, onpointerover: squareTip, onpointerleave: hideTip }, heads(), body)), more);
  draw();
}

const square = (letter) => h("span", { class: `square ${letter === "." ? "none" : letter}` }, SIGNS[letter]);

function heads() {
  const groups = Object.keys(INDEX.methods).map((method) => [method, INDEX.cells.filter((cell) => cell.method === method).length * INDEX.seeds.length]);
  return h("thead", {},
    h("tr", {}, h("th", { scope: "col", rowspan: 2 }, "problem"), groups.filter(([, size]) => size).map(([method, size]) =>
      h("th", { scope: "colgroup", colspan: size, class: "group", "--c": INDEX.methods[method].colour, title: label(method) }, h("span", {}, method)))),
    h("tr", {}, INDEX.cells.map((cell, i) => h("th", { scope: "col", colspan: INDEX.seeds.length, class: `budget${first(i) ? " first" : ""}` }, cell.budget))));
}

const first = (cell) => cell === 0 || INDEX.cells[cell].method !== INDEX.cells[cell - 1].method;

function row(problem) {
  return h("tr", { "data-problem": problem.id },
    h("th", { scope: "row" }, h("span", { class: "id" }, problem.id), problem.level === null ? "" : h("span", { class: "level" }, `level ${problem.level}`),
      h("span", { class: "problem-text" }, problem.question ?? ""), problem.reference === null ? "" : h("span", { class: "reference" }, `answer ${problem.reference}`)),
    [...problem.outcomes].map((letter, i) => {
      const edge = i % INDEX.seeds.length === 0 && first(i / INDEX.seeds.length) ? "first" : "";
      return h("td", { class: edge }, runLink(problem, i, letter));
    }));
}

/** A square that opens its run; only a square if there is no run, or the page does not contain it. */
function runLink(problem, column, letter) {
  const text = `${cellName(COLUMNS[column])}: ${OUTCOMES[letter]}`;
  const place = problem.runs?.[column] ?? -1;
  const kind = `square ${letter === "." ? "none" : letter}`;
  if (place < 0) return h("span", { class: `${kind} closed`, "data-text": letter === "." ? text : `${text} (not in this page)` }, SIGNS[letter]);
  return h("a", { class: kind, href: `#run=${place}`, "data-text": text, "aria-label": `${problem.id}, ${text}` }, SIGNS[letter]);
}

function squareTip(event) {
  const text = event.target.dataset?.text;
  if (text) showTip(event, h("div", {}, text));
  else hideTip();
}

/** Arrow keys move the focus from run to run. */
function walk(event) {
  const cell = event.target.closest("td");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!cell || !step) return;
  const rows = [...event.currentTarget.tBodies[0].rows];
  const next = rows[rows.indexOf(cell.parentElement) + step[0]]?.cells[cell.cellIndex + step[1]];
  next?.querySelector("a")?.focus();
  event.preventDefault();
}
