// A run in progress: the trace grows with every chunk, and the pictures with it.

/** A run that has just begun. Its `posterior` stays null until the run ends. */
function begin(root, body) {
  const question = body.messages.at(-1).content;
  const record = { method: body.motes.method, budget: body.motes.particles, answer: null, posterior: null, answers: [], groups: [], right: [], text: "" };
  const trace = { nodes: [], rounds: [], final: { nodes: [], log_weights: [] } };
  const live = { run: { record, trace }, panels: [], chosen: null, said: "", thought: "", thoughts: h("details", { class: "thoughts", hidden: true }), text: h("div", { class: "said" }), facts: h("dl"), posterior: h("div"), pictures: h("div", { class: "pictures" }), inspector: h("aside", { class: "inspector", "aria-label": "The particle chosen" }) };
  live.head = h("h2", {}, "At work");
  root.replaceChildren(h("p", { class: "asked", title: question }, question),
    h("div", { class: "summary" }, h("div", { class: "facts" }, live.head, live.thoughts, live.text, live.facts), live.posterior),
    h("div", { class: "viewer" }, live.pictures, live.inspector));
  root.hidden = false;
  return live;
}

/** Add a chunk to the run. */
function addChunk(live, chunk) {
  const [choice] = chunk.choices;
  const delta = (choice?.index === 0 && choice.delta) || {};
  if (delta.reasoning_content) appendThought(live, delta.reasoning_content);
  if (delta.content) appendText(live, delta.content);
  const { progress, final } = chunk.motes ?? {};
  for (const [place, node] of Object.entries((progress ?? final)?.nodes ?? {})) live.run.trace.nodes[place] = node;
  if (progress) addRound(live, progress);
  if (final) live.final = final;
  if (chunk.motes && !progress && !final) showResult(live, chunk.motes);
}

/** Append text that is certain to be in the answer. */
function appendText(live, text) {
  live.said += text;
  live.text.replaceChildren(...live.said.split(/\n\n+/).filter(Boolean).map((step) => h("p", {}, step)));
}

/** Append a thought of the answer; thoughts are folded. */
function appendThought(live, text) {
  live.thought += text;
  live.thoughts.hidden = false;
  live.thoughts.replaceChildren(h("summary", {}, "thoughts"), h("div", {}, live.thought));
}

function addRound(live, progress) {
  const { trace } = live.run;
  const { population } = progress;
  if (trace.rounds.at(-1)?.apart) trace.rounds.pop(); // whole answers as they are drawn: the latest are enough
  trace.rounds.push(population);
  live.apart = progress.apart;
  if (live.apart) population.apart = true;
  const tokens = live.apart ? trace.nodes.map((node) => node.tokens) : trace.rounds.map((round) => round.usage.generated_tokens);
  draw(live);
  facts(live, [
    [live.apart ? "step" : "round", live.apart ? progress.round : trace.rounds.length], live.apart ? null : ["ESS", `${fixed(progress.ess, 1)} of ${progress.particles}`],
    ["finished", `${progress.finished} of ${progress.particles}`], live.apart ? null : ["survivors", progress.survivors],
    ["generated", `${count(tokens.reduce((sum, each) => sum + each, 0))} tokens`],
  ].filter(Boolean));
}

function facts(live, list) {
  live.facts.replaceChildren(...list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, `${value}`))));
}

function draw(live) {
  live.panels = panelsOf(live.run);
  drawPanels(live, live.pictures, live.inspector);
}

/** Show the answer, its posterior and its cost. */
function showResult(live, summary) {
  const { record, trace } = live.run;
  Object.assign(record, { answer: summary.answer, text: live.said, posterior: summary.posterior.map(({ answer, mass: share }) => [answer, share]), answers: live.final?.answers ?? [] });
  if (live.final) trace.final = live.final.population;
  live.text.classList.add("whole");
  live.head.replaceChildren(summary.answer === null ? "No answer was stated" : `Answer ${summary.answer}`, summary.answer === null ? "" : h("span", { class: "n" }, `${percent(summary.confidence, 0)} of the posterior`));
  if (summary.note) live.head.after(h("p", { class: "warning" }, summary.note));
  live.posterior.replaceChildren(...[posterior(record)].filter(Boolean));
  const { usage } = summary;
  facts(live, [
    ["rounds", summary.rounds], ["log evidence", summary.log_evidence === null ? null : fixed(summary.log_evidence)], ["of the answer", `${count(usage.visible_tokens)} tokens`], ["of all particles", count(usage.generated_tokens)], ["of them thought", usage.thought_tokens ? count(usage.thought_tokens) : null],
    ["prefill", count(usage.prefill_tokens)], ["reward", count(usage.reward_tokens)], ["from caches", count(usage.prefill_tokens_cached + usage.reward_tokens_cached)], ["seed", summary.seed],
    ["dropped", summary.dropped || null], ["cut short by", summary.stopped?.replace("_", " ")],
  ].filter(([, value]) => (value ?? null) !== null));
  if (trace.rounds.length) draw(live);
}
