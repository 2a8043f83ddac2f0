// A run as it goes: the trace grows with every chunk, and the pictures with it.

/** A run of which nothing is known yet. `posterior` stays null until it has ended. */
function begin(root, asked) {
  const record = { method: asked.motes.method, budget: asked.motes.particles, answer: null, posterior: null, answers: [], groups: [], right: [], text: "" };
  const trace = { nodes: [], rounds: [], final: { nodes: [], log_weights: [] } };
  const live = { run: { record, trace }, panels: [], chosen: null, said: "", text: h("div", { class: "said" }), facts: h("dl"), posterior: h("div"), pictures: h("div", { class: "pictures" }), inspector: h("aside", { class: "inspector", "aria-label": "The particle chosen" }) };
  live.head = h("h2", {}, "At work");
  root.replaceChildren(h("p", { class: "asked", title: asked.messages.at(-1).content }, asked.messages.at(-1).content),
    h("div", { class: "summary" }, h("div", { class: "facts" }, live.head, live.text, live.facts), live.posterior),
    h("div", { class: "viewer" }, live.pictures, live.inspector));
  root.hidden = false;
  return live;
}

/** Take in what a chunk tells. */
function takeIn(live, chunk) {
  const [choice] = chunk.choices;
  if (choice?.index === 0 && choice.delta?.content) say(live, choice.delta.content);
  const { progress, final } = chunk.motes ?? {};
  for (const [place, node] of Object.entries((progress ?? final)?.nodes ?? {})) live.run.trace.nodes[place] = node;
  if (progress) grow(live, progress);
  if (final) live.final = final;
  if (chunk.motes && !progress && !final) conclusion(live, chunk.motes);
}

/** What is certain of the answer. */
function say(live, text) {
  live.said += text;
  live.text.replaceChildren(...live.said.split(/\n\n+/).filter(Boolean).map((step) => h("p", {}, step)));
}

function grow(live, progress) {
  const { trace } = live.run;
  const { population } = progress;
  if (progress.apart || live.apart) trace.rounds = [population]; // answers drawn apart; the last one has their scores
  else trace.rounds.push(population);
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

/** The end: the answer, its posterior, what it cost. */
function conclusion(live, told) {
  const { record, trace } = live.run;
  Object.assign(record, { answer: told.answer, text: live.said, posterior: told.posterior.map(({ answer, mass: share }) => [answer, share]), answers: live.final?.answers ?? [] });
  if (live.final) trace.final = live.final.population;
  live.text.classList.add("whole");
  live.head.replaceChildren(told.answer === null ? "No answer was stated" : `Answer ${told.answer}`, told.answer === null ? "" : h("span", { class: "n" }, `${percent(told.confidence, 0)} of the posterior`));
  live.posterior.replaceChildren(...[posterior(record)].filter(Boolean));
  const { usage } = told;
  facts(live, [
    ["rounds", told.rounds], ["log evidence", told.log_evidence === null ? null : fixed(told.log_evidence)], ["of the answer", `${count(usage.visible_tokens)} tokens`], ["of all particles", count(usage.generated_tokens)],
    ["prefill", count(usage.prefill_tokens)], ["reward", count(usage.reward_tokens)], ["from caches", count(usage.prefill_tokens_cached + usage.reward_tokens_cached)], ["seed", told.seed],
    ["dropped", told.dropped || null], ["cut short by", told.stopped?.replace("_", " ")],
  ].filter(([, value]) => (value ?? null) !== null));
  if (trace.rounds.length) draw(live);
}
