// One run: its result, its posterior, its genealogy, and the text of the particle that the user chooses.

let view = null; // the run shown: { run, panels, chosen: [panel, round, particle] }

async function showRun(root, place) {
  const problem = INDEX.problems.find((each) => each.runs?.includes(place));
  if (!problem) return false;
  const run = await runData(place);
  run.threshold = INDEX.settings?.[run.record.method]?.ess_threshold;
  const shown = { root, run, problem, place, panels: run.trace ? panelsOf(run) : [], chosen: null };
  view = shown;
  const inspector = h("aside", { class: "inspector", "aria-label": "The particle chosen" });
  const main = h("div", { class: "pictures" });
  root.replaceChildren(top(shown), questionOf(shown), h("div", { class: "summary" }, facts(shown), posterior(run.record)),
    run.trace ? h("div", { class: "viewer" }, main, inspector) : h("p", { class: "note" }, INDEX.traced
      ? "This run has no trace: its particles are not known."
      : "The evaluation kept no traces (--no-traces, or an early version): the particles of this run are not known."),
    ...(run.trace && shown.panels.length ? [] : [run.thoughts ? h("details", { class: "thoughts" }, h("summary", {}, "thoughts"), h("pre", {}, run.thoughts)) : "",
      h("pre", { class: "answer-text" }, run.content ?? run.record.text)]));
  if (run.trace) drawPanels(shown, main, inspector);
  return true;
}

/** Links back to the report, to neighbouring problems, and to the other runs of the same problem. */
function top({ problem, place }) {
  const neighbours = INDEX.problems.filter((each) => each.runs);
  const at = neighbours.indexOf(problem);
  const column = problem.runs.indexOf(place);
  const go = (step, text, name) => {
    const other = neighbours[at + step];
    const to = other && (other.runs[column] >= 0 ? other.runs[column] : other.runs.find((each) => each >= 0));
    return to === undefined ? h("span", { class: "step off" }, text) : h("a", { class: "step", href: `#run=${to}`, "aria-label": name, title: name }, text);
  };
  const strip = Object.keys(INDEX.methods).map((method) => h("span", { class: "siblings" }, h("span", { class: "who", title: label(method) }, method),
    COLUMNS.map((each, i) => each.method !== method ? "" : fill(runLink(problem, i, problem.outcomes[i]), { "aria-current": problem.runs[i] === place ? "true" : null }, []))));
  return h("nav", { class: "top", onpointerover: squareTip, onpointerleave: hideTip }, h("a", { class: "back", href: "#problems" }, "← report"),
    h("span", { class: "walk" }, go(-1, "‹", "the problem before"), h("span", { class: "id" }, problem.id), go(1, "›", "the next problem")), h("div", { class: "strip" }, strip));
}

function questionOf({ run, problem }) {
  const messages = run.trace?.messages ?? [];
  const others = messages.slice(0, -1);
  return h("div", { class: "asked" }, h("p", { class: "question" }, messages.at(-1)?.content ?? problem.question ?? `Problem ${problem.id}`),
    others.length ? h("details", { class: "messages" }, h("summary", {}, `${plural(others.length, "message")} before`), others.map((each) => h("pre", {}, `${each.role}: ${each.content}`))) : "");
}

function facts({ run: { record } }) {
  const letter = record.outcome[0];
  const used = record.usage;
  const list = [
    ["answer", record.answer ?? "none"], ["reference", record.reference ?? "–"], ["confidence", record.answer === null ? "–" : percent(record.confidence, 0)],
    ["log evidence", fixed(record.log_evidence)], ["generated", count(used.generated_tokens)], ["of it thought", used.thought_tokens ? count(used.thought_tokens) : null], ["prefill", count(used.prefill_tokens)],
    ["reward", count(used.reward_tokens)], ["from caches", count(used.prefill_tokens_cached + used.reward_tokens_cached)], ["seconds", fixed(record.seconds)], ["seed", record.seed],
  ].filter(([name, value]) => value !== null && (name !== "log evidence" || record.log_evidence !== null));
  return h("div", { class: "facts" },
    h("h2", {}, h("span", { class: "method", "--c": INDEX.methods[record.method].colour }, label(record.method)), h("span", { class: "n" }, `N = ${record.budget}`),
      h("span", { class: `badge ${letter}` }, square(letter), OUTCOMES[letter])),
    h("dl", {}, list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, `${value}`)))),
    record.error ? h("p", { class: "warning" }, record.error) : "");
}
