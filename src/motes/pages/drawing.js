// A panel as a picture: a column for each round, a mark for each particle, lines of descent, and the answers they end in.

const MINIMUM_COLUMN = 30;

function frameOfPanel(panel, width) {
  const { columns, size } = panel;
  const pitch = Math.max(6, Math.min(18, 460 / size));
  const frame = { pitch, left: width < 560 ? 46 : 60, top: 34, names: width < 560 ? 118 : 150, ess: panel.whole ? 8 : 66, radius: Math.min(5, pitch * 0.42) };
  const room = width - frame.left - frame.names - 22;
  frame.step = columns.length > 1 ? Math.max(MINIMUM_COLUMN, Math.min(180, room / (columns.length - 0.5))) : 80;
  frame.tall = size * pitch;
  frame.x = (t) => frame.left + t * frame.step;
  frame.y = (t, i) => frame.top + (panel.slots[t][i] + 0.5) * pitch;
  frame.end = frame.x(columns.length - 1);
  frame.bars = frame.end + Math.max(40, Math.min(frame.step, 120));
  frame.width = frame.bars + 8 + frame.names;
  frame.height = frame.top + frame.tall + frame.ess;
  return frame;
}

/** The picture of a panel. `on`: its listeners, see `listeners`. */
function picture(panel, run, width, on) {
  const frame = frameOfPanel(panel, width);
  const svg = s("svg", {
    class: "genealogy", viewBox: `0 0 ${frame.width} ${frame.height}`, width: frame.width, height: frame.height, tabindex: 0, role: "group",
    "aria-label": `Genealogy ${panel.name}: ${plural(panel.size, "particle")}, ${plural(panel.columns.length, panel.whole ? "step" : "round")}. Arrow keys go from particle to particle.`,
  });
  svg.append(backdrop(panel, frame), lines(panel, frame), panel.live ? "" : ribbons(panel, run, frame), marks(panel, frame),
    s("g", { class: "lit" }), panel.whole ? "" : essChart(panel, frame, run));
  const particle = (event) => {
    const mark = event.target.closest?.(".mark");
    return mark && [Number(mark.dataset.round), Number(mark.dataset.particle)];
  };
  svg.addEventListener("pointerover", (event) => { const at = particle(event); if (at) on.over(event, panel, ...at); else on.out(panel); });
  svg.addEventListener("pointerleave", () => on.out(panel));
  svg.addEventListener("click", (event) => { const at = particle(event); on.choose(panel, ...(at ?? [null])); });
  svg.addEventListener("keydown", (event) => on.key(event, panel));
  panel.svg = svg;
  panel.frame = frame;
  return svg;
}

/** Animate the marks of a panel in the page: from their places in the panel's earlier picture, new ones from their parents. */
function move(panel, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const place = ({ frame }, t, i) => [frame.x(t), frame.y(t, i)];
  let moved = false;
  for (const mark of panel.svg.querySelectorAll(".mark")) {
    const [t, i] = [Number(mark.dataset.round), Number(mark.dataset.particle)];
    const old = t < before.columns.length && i < before.columns[t].nodes.length;
    const from = old ? place(before, t, i) : t ? place(panel, t - 1, panel.columns[t].ancestors[i]) : null;
    const to = place(panel, t, i);
    if (!from || (from[0] === to[0] && from[1] === to[1])) continue;
    moved ||= old;
    mark.animate([from, to].map(([x, y]) => ({ transform: `translate(${x}px,${y}px)` })), { duration: 350, easing: "ease-out" });
  }
  if (moved) for (const part of panel.svg.querySelectorAll(".lines, .answers")) part.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 500, easing: "ease-in" });
}

/** Numbers of the rounds, and where resampling took place. */
function backdrop(panel, frame) {
  const group = s("g", { class: "backdrop" });
  const every = frame.step < 22 ? 5 : 1;
  panel.columns.forEach((column, t) => {
    if (t % every === 0) group.append(s("text", { class: "tick", x: frame.x(t), y: 14, "text-anchor": "middle" }, t + 1));
    if (column.resampled && t) {
      const x = frame.x(t) - frame.step / 2;
      group.append(s("line", { class: "resampling", x1: x, x2: x, y1: 20, y2: frame.top + frame.tall + 4 }));
      group.append(frame.step > 64 ? s("text", { class: "resampling", x, y: 14, "text-anchor": "middle" }, "resampled") : s("path", { class: "resampling", d: `M${x - 3},14h6l-3,5z` }));
    }
  });
  group.append(s("text", { class: "tick", x: 0, y: 14 }, panel.whole ? "step" : "round"));
  return group;
}

function edge(panel, frame, t, i) {
  const from = panel.columns[t].ancestors[i];
  const [x0, y0, x1, y1] = [frame.x(t - 1), frame.y(t - 1, from), frame.x(t), frame.y(t, i)];
  const middle = (x0 + x1) / 2;
  return `M${x0},${y0}C${middle},${y0},${middle},${y1},${x1},${y1}`;
}

/** The lines of descent, one path for each kind: to particles without and with descendants at the end, to finished ones that only wait, and of the reference. */
function lines(panel, frame) {
  const paths = { dead: [], waiting: [], alive: [] };
  for (let t = 1; t < panel.columns.length; t++) {
    panel.columns[t].nodes.forEach((node, i) => {
      const waits = panel.columns[t - 1].nodes[panel.columns[t].ancestors[i]] === node;
      const kind = waits ? "waiting" : "alive";
      paths[panel.leaves[t][i] ? kind : "dead"].push(edge(panel, frame, t, i));
    });
  }
  if (panel.reference) {
    const line = lineage(panel, panel.columns.length - 1, panel.reference.particle).filter(([t]) => t > 0);
    paths.reference = line.map(([t, i]) => edge(panel, frame, t, i));
  }
  return s("g", { class: "lines" }, Object.entries(paths).map(([kind, parts]) => s("path", { class: kind, d: parts.join("") || "M0,0" })));
}

const scoreClass = (score) => (score === null || score === undefined ? "unscored" : `s${Math.round(10 * Math.max(0, Math.min(1, score)))}`);

/** The class of an answer, by whether it is right (null: not graded). */
const answerClass = (answer, right) => (answer === null ? "no-answer" : { true: "right", false: "wrong" }[right] ?? "ungraded");

/** The class of a particle's mark; a whole answer that does not have this step yet is "ahead", and hidden. */
function markClass(panel, t, i) {
  const column = panel.columns[t];
  const waits = t && panel.columns[t - 1].nodes[column.ancestors[i]] === column.nodes[i];
  if (column.finished[i] === "failed") return "dropped";
  if (column.finished[i]) return waits && t < panel.columns.length - 1 ? "finished waiting" : "finished";
  return panel.whole && waits ? "ahead" : "going";
}

/** The mark of a particle: its area is its weight; a circle goes on, a square has finished, a cross was dropped. */
function mark(panel, frame, t, i) {
  const column = panel.columns[t];
  const weight = column.weights[i] * column.particles;
  const r = Math.max(frame.radius * 0.34, Math.min(frame.radius * Math.sqrt(weight), frame.radius * 2.6));
  const at = `translate(${frame.x(t).toFixed(1)},${frame.y(t, i).toFixed(1)})`;
  const finished = column.finished[i];
  const names = ["mark", markClass(panel, t, i), scoreClass(column.scores[i]), panel.leaves[t][i] ? "" : "died"].filter(Boolean).join(" ");
  const a = finished === "failed" ? Math.max(r, frame.radius * 0.7) : r * 0.886;
  const shape = finished === "failed" ? s("path", { d: `M${-a},${-a}L${a},${a}M${-a},${a}L${a},${-a}` })
    : finished ? s("rect", { x: -a, y: -a, width: 2 * a, height: 2 * a }) : s("circle", { r });
  return s("g", { class: names, transform: at, "data-round": t, "data-particle": i }, s("rect", { class: "reach", x: -Math.min(12, frame.step / 2), y: -frame.pitch / 2, width: Math.min(24, frame.step), height: frame.pitch }), shape);
}

function marks(panel, frame) {
  return s("g", { class: "marks" }, panel.columns.flatMap((column, t) => column.nodes.map((_, i) => mark(panel, frame, t, i))));
}

/** Ribbons from the last column's particles to their answers, each as wide as the particle's weight. */
function ribbons(panel, run, frame) {
  const last = panel.columns.length - 1;
  const weights = panel.columns[last].weights;
  const groups = new Map();
  panel.answers.slice(0, panel.columns[last].particles).forEach(({ answer, group, right }, i) => {
    const key = group ?? (answer === null ? "none" : answer);
    if (!groups.has(key)) groups.set(key, { answer, right, members: [], mass: 0 });
    groups.get(key).members.push(i);
    groups.get(key).mass += weights[i];
  });
  const place = (each) => each.members.reduce((sum, i) => sum + panel.slots[last][i], 0) / each.members.length;
  const ordered = [...groups.values()].sort((a, b) => place(a) - place(b));
  const gap = ordered.length > 1 ? Math.min(4, (0.2 * frame.tall) / (ordered.length - 1)) : 0;
  const room = frame.tall - gap * (ordered.length - 1);
  const group = s("g", { class: "answers" });
  let top = frame.top;
  for (const each of ordered) {
    each.top = top;
    each.tall = room * each.mass;
    each.kind = answerClass(each.answer, each.right);
    if (each.answer !== null && each.answer === run.record.answer) each.kind += " selected";
    let from = top;
    const flow = [...each.members].sort((a, b) => panel.slots[last][a] - panel.slots[last][b]).map((i) => {
      const [y, thick, middle] = [frame.y(last, i), room * weights[i], (frame.end + frame.bars) / 2];
      const half = Math.min(thick, frame.pitch * 0.8) / 2;
      const d = `M${frame.end},${y - half}C${middle},${y - half},${middle},${from},${frame.bars},${from}v${thick}C${middle},${from + thick},${middle},${y + half},${frame.end},${y + half}Z`;
      from += thick;
      return d;
    });
    group.append(s("path", { class: `ribbon ${each.kind}`, d: flow.join("") }));
    group.append(s("rect", { class: `answer ${each.kind}`, x: frame.bars, y: top, width: 6, height: Math.max(0.75, each.tall) }));
    top += each.tall + gap;
  }
  group.append(names(ordered, frame));
  return group;
}

/** Names beside the answers; where there is no room for all, the smallest answers have none. */
function names(ordered, frame) {
  const gap = 15;
  const fits = Math.max(1, Math.floor((frame.tall + 10) / gap));
  const limit = [...ordered].sort((a, b) => b.mass - a.mass)[fits - 1]?.mass ?? 0;
  const named = ordered.filter((each) => each.mass >= limit).slice(0, fits);
  const tops = spread(named.map((each) => each.top + each.tall / 2), gap, Math.max(frame.top + frame.tall - 4, frame.top + gap * named.length - 8));
  const letters = frame.names > 140 ? 11 : 7;
  return s("g", { class: "names" }, named.map((each, i) => {
    const text = each.answer ?? "no answer";
    const cut = text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
    return s("g", { class: each.kind },
      s("path", { class: "leader", d: `M${frame.bars + 7},${each.top + each.tall / 2}L${frame.bars + 15},${tops[i]}` }),
      s("text", { x: frame.bars + 18, y: tops[i] + 4 }, s("tspan", { class: "what" }, cut), each.right === true ? s("tspan", { class: "sign", dx: 4 }, "✓") : "",
        s("tspan", { class: "mass", dx: 7 }, mass(each.mass))), s("title", {}, text));
  }));
}

/** Effective sample size under each column, out of N, and the threshold below which the method resamples. */
function essChart(panel, frame, run) {
  const [top, tall] = [frame.top + frame.tall + 16, 30];
  const group = s("g", { class: "ess" });
  const threshold = run.threshold;
  const wide = Math.min(16, frame.step * 0.5);
  panel.columns.forEach((column, t) => {
    const share = column.ess / column.particles;
    group.append(s("g", { class: "round", "data-round": t },
      s("rect", { class: "room", x: frame.x(t) - wide / 2, y: top, width: wide, height: tall }),
      s("rect", { class: "fill", x: frame.x(t) - wide / 2, y: top + tall * (1 - share), width: wide, height: tall * share }),
      s("title", {}, `round ${t + 1}: ESS ${fixed(column.ess, 1)} of ${column.particles}`)));
    if (frame.step >= 26) group.append(s("text", { class: "tick", x: frame.x(t), y: top + tall + 13, "text-anchor": "middle" }, fixed(column.ess, frame.step < 34 ? 0 : 1)));
  });
  group.append(s("text", { class: "tick", x: 0, y: top + tall + 13 }, "ESS"));
  if (threshold > 0 && threshold < 1) {
    const y = top + tall * (1 - threshold);
    group.append(s("line", { class: "threshold", x1: frame.left - 12, x2: frame.end + 12, y1: y, y2: y }), s("title", {}, `resampling below ${threshold} N`));
    group.append(s("text", { class: "tick", x: frame.end + 16, y: y + 4 }, `resampled below ${fixed(threshold * panel.columns[0].particles, 0)}`));
  }
  return group;
}

/** Light up the lineage of a particle, or nothing. `only`: dim everything else. */
function light(panel, t, i, only) {
  const group = panel.svg.querySelector(".lit");
  panel.svg.classList.toggle("dimmed", Boolean(only) && t !== null);
  if (t === null) return void group.replaceChildren();
  const line = lineage(panel, t, i);
  const d = line.filter(([round]) => round > 0).map(([round, each]) => edge(panel, panel.frame, round, each)).join("");
  const copies = line.map(([round, each]) => mark(panel, panel.frame, round, each));
  for (const copy of copies) copy.classList.replace("mark", "copy");
  const focus = s("circle", { class: "focus", cx: panel.frame.x(t), cy: panel.frame.y(t, i), r: panel.frame.radius + 4 });
  group.replaceChildren(s("path", { class: "line", d: d || "M0,0" }), ...copies, focus);
}
