// The interactive view of a run: its pictures, the details of the particle under the pointer, and its posterior.

/** The mass of each answer as a bar; the right ones are marked, the selected one is bold. */
function posterior(record) {
  const right = new Map();
  record.groups.forEach((group, i) => { if (group !== null) right.set(group, record.right[i]); });
  const rows = record.posterior.map(([answer, share], group) => ({ answer, share, right: record.groups.length ? right.get(group) : answer === record.answer && record.outcome ? record.outcome === "correct" : null }));
  const rest = 1 - rows.reduce((sum, each) => sum + each.share, 0);
  if (!rows.length) return "";
  if (rest > 0.0005) rows.push({ answer: null, share: rest });
  const bar = (each) => h("li", { class: `${answerClass(each.answer, each.right)}${each.answer !== null && each.answer === record.answer ? " selected" : ""}` },
    h("span", { class: "what" }, each.answer ?? "no answer", each.right === true ? h("span", { class: "sign", title: "right" }, " ✓") : ""),
    h("span", { class: "track" }, h("span", { class: "fill", "--share": `${100 * Math.min(1, each.share)}%` })), h("span", { class: "mass" }, mass(each.share)));
  const [large, small] = [rows.slice(0, 6), rows.slice(6)];
  return h("section", { class: "posterior", "aria-label": "Posterior over answers" }, h("h3", {}, "Posterior over answers"), h("ol", {}, large.map(bar)),
    small.length ? h("details", {}, h("summary", {}, `${plural(small.length, "answer")} more`), h("ol", {}, small.map(bar))) : "");
}

/**
 * The pictures of all panels, one below the other, or of one panel where all would be too tall. When they are drawn again
 * as a run goes on, the picked panel, the chosen particle and the focus stay.
 */
function drawPanels(shown, main, inspector) {
  const { panels, run, visible: before = [] } = shown;
  if (!panels.length) return main.append(h("p", { class: "note" }, "The run ended before its first round."));
  const on = listeners(shown, inspector);
  const all = panels.length > 1 && panels.reduce((sum, panel) => sum + panel.size, 0) <= 128;
  const stage = h("div", { class: "stage" });
  const focused = main.contains(document.activeElement) ? document.activeElement : null;
  const same = (panel) => (other) => other.sweep === panel.sweep && other.chain === panel.chain;
  const again = (panel) => panels.find(same(panel));
  const pick = (which) => {
    shown.drawn = which;
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", tab.dataset.which === `${which}`);
    const chosen = which === "all" ? panels : [panels[which]];
    stage.replaceChildren(...chosen.map((panel) => figure(panel, run, main.clientWidth, on)));
    shown.visible = chosen;
    const [panel, t, i, quiet] = shown.chosen ?? [];
    const kept = panel && !quiet && chosen.find(same(panel));
    if (kept && t < kept.columns.length) on.choose(kept, t, i, false, true);
    else on.choose(...winnerOf(run, chosen), true);
  };
  const tab = (which, text) => h("button", { type: "button", "data-which": which, onclick: () => pick(shown.picked = which) }, text);
  const tabs = h("div", { class: "choice", role: "group", "aria-label": "Sweeps and chains" }, panels.length > 1 ? [tab("all", "all"), panels.map((panel, i) => tab(i, panel.name))] : []);
  main.replaceChildren(h("div", { class: "bar" }, h("h3", {}, panels[0].whole ? "Trajectories" : "Genealogy"), panels.length > 1 ? tabs : ""), keyOf(panels), stage);
  pick(panels.length === 1 ? 0 : shown.picked ?? (all ? "all" : panels[0].live ? panels.length - 1 : 0)); // the latest of a run that goes on
  for (const old of before) {
    const now = again(old);
    if (now?.svg?.isConnected && old !== now) move(now, old);
    if (now && focused === old.svg) now.svg.focus({ preventScroll: true });
  }
  if (focused?.dataset.which) tabs.querySelector(`[data-which="${focused.dataset.which}"]`)?.focus({ preventScroll: true });
  shown.redraw = () => pick(shown.drawn);
  return undefined;
}

function figure(panel, run, width, on) {
  const words = [
    panel.name, panel.share !== undefined && panel.name ? `${percent(panel.share, 0)} of the final weight` : "",
    panel.columns.at(-1).log_evidence === null || panel.whole ? "" : `log evidence ${fixed(panel.columns.at(-1).log_evidence)}`,
    panel.reference ? `its reference is a particle of ${panel.reference.from}` : "",
    panel.whole ? "drawn whole, no selection between steps" : "",
  ].filter(Boolean);
  return h("figure", {}, words.length ? h("figcaption", {}, words.map((word, i) => (i || !panel.name ? `${i ? " · " : ""}${word}` : h("b", {}, word)))) : "",
    h("div", { class: "scroll" }, picture(panel, run, width, on)));
}

/** The key of the marks. */
function keyOf(panels) {
  const [panel] = panels;
  const item = (mark, text) => h("li", {}, s("svg", { viewBox: "-9 -9 18 18", width: 16, height: 16, "aria-hidden": "true" }, mark), text);
  const scale = Array.from({ length: 11 }, (_, i) => h("span", { class: `chip s${i}` }));
  const reference = h("li", {}, s("svg", { class: "lines", viewBox: "0 0 22 16", width: 22, height: 16, "aria-hidden": "true" }, s("path", { class: "reference", d: "M0,8H22" })), "reference");
  return h("ul", { class: "key" }, h("li", {}, h("span", { class: "scale" }, "score 0 ", scale, " 1")), item(s("g", { class: "mark going" }, s("circle", { r: 3, cx: -5 }), s("circle", { r: 5.5, cx: 3 })), "area: weight"),
    item(s("g", { class: "mark finished" }, s("rect", { x: -5, y: -5, width: 10, height: 10 })), "finished"), panel.whole ? "" : item(s("g", { class: "mark going died" }, s("circle", { r: 5 })), "no descendant"),
    item(s("g", { class: "mark dropped" }, s("path", { d: "M-4,-4L4,4M-4,4L4,-4" })), "dropped"),
    panels.some((each) => each.columns.some((column) => column.nodes.length > column.particles)) ? item(s("g", { class: "mark finished died" }, s("rect", { x: -4, y: -4, width: 8, height: 8 })), "not accepted") : "", panel.whole ? "" : item(s("line", { class: "resampling", x1: 0, x2: 0, y1: -9, y2: 9 }), "resampling"), panels.some((each) => each.reference) ? reference : "");
}

/** The place of the particle that gave the answer: [panel, round, particle]. */
function winnerOf({ record, trace }, panels) {
  for (const panel of panels) {
    const last = panel.columns.length - 1;
    const i = panel.columns[last].nodes.findIndex((node) => textOf(trace, node) === record.text);
    if (i >= 0) return [panel, last, i];
  }
  const [panel] = panels;
  const last = panel.columns.length - 1;
  return [panel, last, panel.columns[last].weights.indexOf(Math.max(...panel.columns[last].weights))];
}

const textOf = (trace, node) => pathOf(trace, node).map((each) => trace.nodes[each].text).join("");

function listeners(shown, inspector) {
  const { run } = shown;
  const settle = () => {
    const [panel, t, i, quiet] = shown.chosen ?? [];
    for (const each of shown.visible) light(each, each === panel ? t : null, i, !quiet);
    if (panel) inspect(inspector, run, panel, t, i);
  };
  const on = {
    over(event, panel, t, i) {
      for (const each of shown.visible) if (each !== panel) light(each, null);
      light(panel, t, i, true);
      inspect(inspector, run, panel, t, i);
      showTip(event, particleTip(run, panel, t, i));
    },
    out() {
      hideTip();
      settle();
    },
    choose(panel, t, i, quiet, kept) {
      const same = !kept && shown.chosen && shown.chosen[0] === panel && shown.chosen[1] === t && shown.chosen[2] === i;
      shown.chosen = t === null || (same && !quiet) ? [...winnerOf(run, shown.visible), true] : [panel, t, i, quiet];
      settle();
    },
    key(event, panel) {
      if (event.key === "Escape") return on.choose(panel, null);
      const [at, t, i] = shown.chosen?.[0] === panel ? shown.chosen : [panel, 0, panel.slots[0].indexOf(0)];
      const next = neighbour(at, t, i, event.key);
      if (!next) return undefined;
      event.preventDefault();
      hideTip();
      return on.choose(panel, ...next);
    },
  };
  return on;
}

/** Where an arrow key leads: to the ancestor, the first descendant, or up and down the column. */
function neighbour(panel, t, i, key) {
  if (key === "ArrowLeft") return t > 0 ? [t - 1, panel.columns[t].ancestors[i]] : null;
  if (key === "ArrowRight") {
    if (t === panel.columns.length - 1) return null;
    const kids = panel.children[t][i];
    return [t + 1, kids.length ? kids.reduce((best, kid) => (panel.leaves[t + 1][kid] > panel.leaves[t + 1][best] ? kid : best)) : panel.slots[t + 1].indexOf(Math.min(panel.slots[t][i], panel.slots[t + 1].length - 1))];
  }
  const step = { ArrowUp: -1, ArrowDown: 1 }[key];
  const slot = step && panel.slots[t].indexOf(panel.slots[t][i] + step);
  return step && slot >= 0 ? [t, slot] : null;
}

/** The numbers of a particle in words. */
function numbers(run, panel, t, i) {
  const column = panel.columns[t];
  const node = run.trace.nodes[column.nodes[i]];
  return [
    `score ${fixed(column.scores[i])}`, `weight ${mass(column.weights[i])}`, node ? plural(node.tokens, "token") : "", node?.thought_tokens ? `${count(node.thought_tokens)} thought` : "",
    node && node.logprob !== null ? `log p ${fixed(node.logprob)}` : "",
  ].filter(Boolean).map((text) => text.replaceAll(" ", "\u00a0"));
}

function fate(panel, t, i) {
  const column = panel.columns[t];
  const kids = panel.children[t][i].length;
  const last = t === panel.columns.length - 1;
  const why = { eos: "finished", answer: "finished: the answer is given", rejected: "not accepted: the answer before it stays", failed: `dropped: ${column.errors?.[i] ?? "a model failed"}` };
  const end = column.finished[i] ? why[column.finished[i]] ?? `ended by ${column.finished[i].replace("_", " ")}` : "";
  let next = "";
  if (!last && !panel.whole && i < column.particles) {
    if (kids === 0) next = "not resampled: its line ends here";
    else if (kids > 1) next = `copied ${kids} times`;
    else if (panel.columns[t + 1].resampled) next = "resampled once";
  }
  const gone = i < column.particles && !next.includes("ends here") && !panel.leaves[t][i] ? "its line dies out later" : "";
  return [end, moveOf(column, i), next, gone].filter(Boolean).join(" · ");
}

/** Whether a particle has taken the place of another answer in this round. */
function moveOf({ moves, particles, nodes }, i) {
  if (!moves || i >= particles) return "";
  if (moves.accepted[i]) return "accepted in the place of the answer before";
  if (moves.errors[i]) return `stays: its refinement failed: ${moves.errors[i]}`;
  return moves.nodes[i] === nodes[i] ? "stays" : "stays: its refinement was not accepted";
}

function particleTip(run, panel, t, i) {
  const node = run.trace.nodes[panel.columns[t].nodes[i]];
  return h("div", { class: "particle" }, h("p", { class: "text" }, node ? node.text.trim() : "(nothing yet)"), h("p", {}, numbers(run, panel, t, i).join(" · ")), h("p", { class: "faint" }, fate(panel, t, i)));
}

/** The text of a step as spans: what is thought is faint. Old traces do not tell. */
function wordsOf(node) {
  const spans = node.thoughts ?? [];
  if (!spans.length) return node.text.trim();
  const letters = [...node.text]; // offsets count characters, not halves of surrogate pairs
  const pieces = [];
  let place = 0;
  for (let i = 0; i + 1 < spans.length; i += 2) {
    const [start, end] = spans.slice(i, i + 2);
    pieces.push(letters.slice(place, start).join(""), h("span", { class: "thought", title: "thought" }, letters.slice(start, end).join("")));
    place = end;
  }
  return [...pieces, letters.slice(place).join("")];
}

/** Show the whole partial answer, step by step, each with its score, and the numbers of the round. */
function inspect(aside, run, panel, t, i) {
  const column = panel.columns[t];
  const path = pathOf(run.trace, column.nodes[i]);
  const answer = t === panel.columns.length - 1 ? panel.answers[i] : null;
  const steps = path.map((at) => {
    const node = run.trace.nodes[at];
    return h("li", { class: at === column.nodes[i] ? "last" : "" }, h("span", { class: `chip ${scoreClass(node.score)}`, title: "score of the step" }, node.score === null ? "" : fixed(node.score)), h("p", {}, wordsOf(node)));
  });
  const name = i < column.particles ? `${panel.whole ? "trajectory" : "particle"} ${i + 1}` : "proposal";
  const prompt = path.length ? run.trace.nodes[path[0]].prompt : null;
  const survivors = panel.columns[t + 1] ? new Set(panel.columns[t + 1].ancestors.slice(0, panel.columns[t + 1].particles)).size : null;
  const round = [
    `ESS ${fixed(column.ess, 1)} of ${column.particles}`, survivors === null ? "" : `${survivors} have children`,
    column.moves ? `${column.moves.accepted.filter(Boolean).length} moved` : `${column.finished.filter(Boolean).length} finished`,
    column.usage ? `${count(column.usage.generated_tokens)} generated${column.usage.thought_tokens ? ` (${count(column.usage.thought_tokens)} thought)` : ""} + ${count(column.usage.reward_tokens)} reward tokens` : "",
  ].filter(Boolean);
  const from = t && !panel.whole ? ` from ${column.ancestors[i] + 1}` : "";
  aside.replaceChildren(
    h("h3", {}, `${panel.name ? `${panel.name}, ` : ""}${name}`, h("span", {}, `${panel.whole ? "step" : "round"} ${t + 1}${from}`)),
    h("p", { class: "numbers" }, numbers(run, panel, t, i).join(" · ")), h("p", { class: "fate" }, fate(panel, t, i)),
    panel.reference?.particle === i ? h("p", { class: "fate" }, `the reference of this sweep, drawn from ${panel.reference.from}`) : "",
    answer && answer.answer !== null ? h("p", { class: "gives" }, "answers ", h("b", {}, answer.answer), answer.right === true ? " ✓ right" : answer.right === false ? " ✗ wrong" : "") : "",
    prompt ? h("details", { class: "messages" }, h("summary", {}, "prompt"), h("pre", {}, prompt)) : "",
    h("ol", { class: "steps" }, steps), panel.whole ? "" : h("p", { class: "round faint" }, `Round ${t + 1}: ${round.join(" · ")}`));
}
