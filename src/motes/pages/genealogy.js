// From a trace to panels: the population of each sweep and chain round by round, in an order in which no two lines cross.

/** Weights from their logarithms, normalised; null is the logarithm of zero. */
function normalised(logs) {
  const top = Math.max(...logs.map((log) => log ?? -Infinity));
  const raw = logs.map((log) => (log === null || top === -Infinity ? 0 : Math.exp(log - top)));
  const sum = raw.reduce((a, b) => a + b, 0) || 1;
  return raw.map((weight) => weight / sum);
}

/** The nodes from the first step to this one. */
function pathOf(trace, node) {
  const path = [];
  for (let at = node; at !== null && at !== undefined; at = trace.nodes[at].parent) path.push(at);
  return path.reverse();
}

/** The answer of each final trajectory, by its last node: { answer, group, right }. */
function answersOf({ record, trace }) {
  const answers = new Map();
  const groups = (record.posterior ?? []).map(([answer]) => answer);
  trace.final.nodes.forEach((node, i) => {
    const group = record.groups.length ? record.groups[i] : groups.indexOf(record.answers[i]);
    const known = group !== null && group !== undefined && group >= 0;
    answers.set(node, { answer: (known ? groups[group] : null) ?? record.answers[i] ?? null, group: known ? group : null, right: record.right[i] ?? null });
  });
  return answers;
}

/** One panel for each sweep and chain of a run; a panel is live while the run has no posterior yet. */
function panelsOf({ record, trace }) {
  const byPart = new Map();
  for (const round of trace.rounds) {
    const name = `${round.sweep}/${round.chain}`;
    if (!byPart.has(name)) byPart.set(name, { sweep: round.sweep, chain: round.chain, rounds: [] });
    byPart.get(name).rounds.push(round);
  }
  const answers = answersOf({ record, trace });
  const parts = [...byPart.values()].sort((a, b) => a.sweep - b.sweep || a.chain - b.chain);
  const panels = parts.map((part) => ({ ...panelOf(part, trace), live: record.posterior === null }));
  const used = { from: 0 };
  for (const panel of panels) conclude(panel, trace, answers, used);
  const [sweeps, chains] = ["sweep", "chain"].map((part) => new Set(panels.map((panel) => panel[part])).size);
  panels.forEach((panel, i) => name(panel, sweeps, chains, record, panels.slice(0, i)));
  return panels;
}

function panelOf({ sweep, chain, rounds }, trace) {
  const whole = rounds[0].apart || (rounds.length === 1 && rounds[0].nodes.some((node) => pathOf(trace, node).length > 1));
  const columns = whole ? stepsOf(rounds[0], trace) : rounds.map((round) => columnOf(round, trace));
  return { sweep, chain, columns, whole, size: Math.max(...columns.map((column) => column.nodes.length)) };
}

/** A round as a column of particles. Behind them stand the proposals that were not accepted, beside what they were to replace. */
function columnOf(round, trace) {
  const column = {
    ...round, weights: normalised(round.log_weights), uniform: new Set(round.log_weights).size <= 1, particles: round.nodes.length,
  };
  const { nodes = [], accepted = [], errors = {} } = round.moves ?? {};
  const proposed = nodes.map((_, i) => i).filter((i) => nodes[i] !== null && !accepted[i] && nodes[i] !== round.nodes[i]);
  const behind = (name, values) => { column[name] = [...column[name], ...values]; };
  behind("ancestors", proposed.map((i) => round.ancestors[i]));
  behind("finished", proposed.map((i) => (errors[i] ? "failed" : "rejected")));
  behind("scores", proposed.map((i) => trace.nodes[nodes[i]].score ?? null));
  behind("weights", proposed.map(() => 0));
  behind("nodes", proposed.map((i) => nodes[i]));
  column.errors = { ...round.errors, ...Object.fromEntries(proposed.map((i, k) => [round.nodes.length + k, errors[i]]).filter(([, error]) => error)) };
  return column;
}

/** Trajectories drawn whole: a column for each of their steps. */
function stepsOf(round, trace) {
  const paths = round.nodes.map((node) => pathOf(trace, node));
  const depth = Math.max(1, ...paths.map((path) => path.length));
  return Array.from({ length: depth }, (_, t) => {
    const last = t === depth - 1;
    return {
      nodes: paths.map((path) => path[Math.min(t, path.length - 1)] ?? null),
      finished: paths.map((path, i) => (t >= path.length - 1 ? round.finished[i] : null)),
      scores: paths.map((path, i) => (t >= path.length - 1 ? round.scores[i] : trace.nodes[path[t]].score)),
      weights: last ? normalised(round.log_weights) : round.nodes.map(() => 1 / round.nodes.length),
      uniform: true, errors: last ? round.errors : {}, ancestors: round.nodes.map((_, i) => i),
      particles: round.nodes.length, ess: round.ess, resampled: false, log_evidence: round.log_evidence, usage: last ? round.usage : null,
    };
  });
}

/** Give a panel its answers and last weights, and its particles their descendants and places. */
function conclude(panel, trace, answers, used) {
  const last = panel.columns.at(-1);
  const { nodes, log_weights } = trace.final;
  const size = last.particles;
  for (let from = used.from; from + size <= nodes.length; from++) {
    if (!last.nodes.slice(0, size).every((node, i) => node === nodes[from + i])) continue;
    const slice = log_weights.slice(from, from + size);
    const all = normalised(log_weights);
    panel.share = slice.reduce((sum, _, i) => sum + all[from + i], 0);
    last.weights = [...normalised(slice), ...last.weights.slice(size)];
    used.from = from + size;
    break;
  }
  panel.answers = last.nodes.map((node) => answers.get(node) ?? { answer: null, group: null, right: null });
  descend(panel);
  arrange(panel);
}

/** children[t][i]: the particles of the next column that descend from i; leaves[t][i]: how many of the last column do. */
function descend(panel) {
  const { columns } = panel;
  panel.children = columns.map((column, t) => {
    const kids = column.nodes.map(() => []);
    columns[t + 1]?.ancestors.forEach((ancestor, i) => kids[ancestor]?.push(i));
    return kids;
  });
  panel.leaves = [];
  panel.rank = []; // the sum of the ranks of the last descendants' answers
  for (let t = columns.length - 1; t >= 0; t--) {
    const sum = (values, kids) => kids.reduce((total, kid) => total + values[kid], 0);
    const isLast = t === columns.length - 1;
    panel.leaves[t] = columns[t].nodes.map((_, i) => (isLast ? Number(i < columns[t].particles) : sum(panel.leaves[t + 1], panel.children[t][i])));
    panel.rank[t] = columns[t].nodes.map((_, i) => (isLast ? panel.answers[i].group ?? 99 : sum(panel.rank[t + 1], panel.children[t][i])));
  }
}

/** slots[t][i]: the row of each particle. Children stand in the order of their parents, so that lines never cross. */
function arrange(panel) {
  panel.slots = [];
  let families = [panel.columns[0].nodes.map((_, i) => i)];
  panel.columns.forEach((column, t) => {
    const order = families.flatMap((family) => siblings(panel, t, family));
    panel.slots[t] = [];
    order.forEach((i, slot) => { panel.slots[t][i] = slot; });
    families = order.map((i) => panel.children[t][i]);
  });
}

/** Siblings in the order of their descendants' answers. Particles without descendants fill the gaps, so that the others are level with theirs. */
function siblings(panel, t, family) {
  const [leaves, rank] = [panel.leaves[t], panel.rank[t]];
  const score = (i) => (panel.whole ? panel.columns.at(-1) : panel.columns[t]).scores[i] ?? 0;
  if (panel.live) return [...family].sort((a, b) => score(b) - score(a) || a - b); // so that no particle moves later
  const living = family.filter((i) => leaves[i]).sort((a, b) => rank[a] / leaves[a] - rank[b] / leaves[b] || score(b) - score(a) || a - b);
  const dead = family.filter((i) => !leaves[i]).sort((a, b) => score(b) - score(a) || a - b);
  const total = living.reduce((sum, i) => sum + leaves[i], 0);
  const order = [];
  let before = 0;
  while (living.length || dead.length) {
    const place = living.length ? ((before + leaves[living[0]] / 2) / total) * family.length : Infinity;
    if (living.length && (!dead.length || place <= order.length + 0.75)) {
      before += leaves[living[0]];
      order.push(living.shift());
    } else order.push(dead.shift());
  }
  return order;
}

/** Give a panel its name and, if it has one, its reference. */
function name(panel, sweeps, chains, record, earlier) {
  const method = record.method.split(":")[0];
  const sweep = method === "adaptive" ? "wave" : "sweep";
  const chain = method === "islands" ? "island" : "chain";
  panel.name = [sweeps > 1 ? `${sweep} ${panel.sweep + 1}` : "", chains > 1 ? `${chain} ${panel.chain + 1}` : ""].filter(Boolean).join(", ");
  const known = new Map(earlier.flatMap((other) => other.columns.at(-1).nodes.map((node) => [node, other])));
  const i = panel.columns.at(-1).nodes.findLastIndex((node) => known.has(node)); // beside copies of it, the last place
  if (i >= 0) panel.reference = { particle: i, from: known.get(panel.columns.at(-1).nodes[i]).name };
}

/** Every place of a particle's ancestors and descendants, itself among them: [[round, particle], …]. */
function lineage(panel, t, i) {
  const line = [];
  for (let at = i, round = t; round >= 0; round--) {
    line.push([round, at]);
    at = panel.columns[round].ancestors[at];
  }
  let below = [i];
  for (let round = t; round < panel.columns.length - 1; round++) {
    below = below.flatMap((each) => panel.children[round][each]);
    line.push(...below.map((each) => [round + 1, each]));
  }
  return line;
}
