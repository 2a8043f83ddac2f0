// Accuracy against cost: a line for each method, with 95 % intervals; names beside the ends of lines are the legend.

const AXES = [
  { name: "budget", title: "budget: trajectories drawn per problem", place: (cell) => cell.budget, words: short },
  { name: "tokens", title: "tokens that a run needs by itself per problem, both models", place: (cell) => cell.tokens, words: (x) => count(x) },
  { name: "FLOPs", title: "FLOPs per problem, both models", place: (cell) => cell.flops, words: short },
  { name: "seconds", title: `seconds per problem, median, ${INDEX.cells.every((cell) => cell.at_once === 1) ? "alone" : "while others shared the models"}`, place: (cell) => cell.seconds, words: (x) => Number(x.toPrecision(3)) + " s" },
  { name: "money", title: "money per 1,000 problems", place: (cell) => (cell.money === null ? null : 1000 * cell.money), words: (x) => Number(x.toPrecision(3)) },
].filter((axis) => INDEX.cells.every((cell) => axis.place(cell) > 0));

const hidden = new Set();

function curves(root) {
  const plot = h("div", { class: "plot" });
  const choose = (axis) => {
    for (const button of choice.children) button.setAttribute("aria-pressed", button.textContent === axis.name);
    plot.dataset.axis = axis.name;
    drawCurves(plot, axis);
  };
  const choice = h("div", { class: "choice", role: "group", "aria-label": "Horizontal axis" },
    AXES.map((axis) => h("button", { type: "button", onclick: () => choose(axis) }, axis.name)));
  root.append(h("div", { class: "bar" }, h("h2", {}, "Accuracy"), h("span", { class: "against" }, "against"), choice), plot);
  choose(AXES[0]);
  let width = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth && plot.clientWidth !== width) {
      width = plot.clientWidth;
      drawCurves(plot, AXES.find((axis) => axis.name === plot.dataset.axis));
    }
  }).observe(plot);
}

/** The geometry of the drawing: its frame, and functions that map a value to x and a share to y. */
function frameOf(plot, axis, cells) {
  const wide = plot.clientWidth >= 640;
  const frame = { wide, left: 46, top: 12, bottom: 44, right: wide ? 210 : 14, width: plot.clientWidth || 900 };
  frame.height = wide ? Math.min(430, Math.max(340, frame.width * 0.42)) : 300;
  const [low, high] = [Math.min, Math.max].map((end) => Math.log2(end(...INDEX.cells.map(axis.place))));
  const margin = high > low ? 0.035 * (high - low) : 1;
  const span = frame.width - frame.left - frame.right;
  const bounds = cells.flatMap((cell) => [...cell.accuracy.filter((end) => end !== null), ...(cell.method === "majority" ? [cell.oracle[0]] : [])]);
  const shares = bounds.filter((share) => share !== null);
  frame.bottomShare = Math.floor(10 * Math.min(0.9, ...shares)) / 10; // leaves room if everything is right
  frame.topShare = Math.min(1, Math.ceil(10 * Math.max(frame.bottomShare + 0.1, ...shares)) / 10);
  frame.x = (value) => frame.left + (span * (Math.log2(value) - low + margin)) / (high - low + 2 * margin);
  frame.y = (share) => frame.height - frame.bottom - ((frame.height - frame.bottom - frame.top) * (share - frame.bottomShare)) / (frame.topShare - frame.bottomShare);
  frame.ends = [low - margin, high + margin];
  return frame;
}

/** The ticks: all budgets; powers of two for tokens; 1, 2 and 5 times powers of ten for the other axes. */
function ticksOf(axis, frame) {
  if (axis.name === "budget") return [...new Set(INDEX.cells.map((cell) => cell.budget))];
  const [low, high] = frame.ends;
  const step = Math.max(1, Math.ceil((high - low) / (frame.wide ? 8 : 4)));
  if (axis.name === "tokens") {
    const powers = Array.from({ length: 60 }, (_, power) => power).filter((power) => power % step === 0);
    return powers.filter((power) => power >= low && power <= high).map((power) => 2 ** power);
  }
  const all = [];
  for (let power = -6; power < 24; power++) for (const factor of (high - low) < 14 ? [1, 2, 5] : [1]) all.push(factor * 10 ** power);
  const inRange = all.filter((value) => Math.log2(value) >= low && Math.log2(value) <= high);
  return inRange.filter((_, i) => i % Math.max(1, Math.ceil(inRange.length / (frame.wide ? 9 : 4))) === 0);
}

function grid(axis, frame) {
  const parts = [];
  for (let tenth = Math.round(10 * frame.bottomShare); tenth <= Math.round(10 * frame.topShare); tenth++) {
    const y = frame.y(tenth / 10);
    parts.push(s("line", { class: "rule", x1: frame.left, x2: frame.width - frame.right, y1: y, y2: y }));
    parts.push(s("text", { class: "tick", x: frame.left - 8, y: y + 4, "text-anchor": "end" }, `${10 * tenth} %`));
  }
  const floor = frame.height - frame.bottom;
  parts.push(s("line", { class: "axis", x1: frame.left, x2: frame.width - frame.right, y1: floor, y2: floor }));
  for (const tick of ticksOf(axis, frame)) {
    const x = frame.x(tick);
    parts.push(s("line", { class: "axis", x1: x, x2: x, y1: floor, y2: floor + 4 }));
    parts.push(s("text", { class: "tick", x, y: floor + 18, "text-anchor": "middle" }, axis.name === "tokens" ? binary(tick) : axis.words(tick)));
  }
  parts.push(s("text", { class: "title", x: (frame.left + frame.width - frame.right) / 2, y: frame.height - 6, "text-anchor": "middle" }, axis.title));
  return parts;
}

/** The largest distance between the pointer and the point whose numbers are shown. */
const REACH = 12;

const binary = (number) => (number >= 2 ** 20 ? `${number / 2 ** 20}M` : number >= 1024 ? `${number / 1024}k` : `${number}`);

function drawCurves(plot, axis) {
  const shown = INDEX.cells.filter((cell) => !hidden.has(cell.method));
  const frame = frameOf(plot, axis, shown.length ? shown : INDEX.cells);
  const picture = s("svg", {
    viewBox: `0 0 ${frame.width} ${frame.height}`, width: frame.width, height: frame.height, role: "img",
    "aria-label": `Accuracy against ${axis.title}; the numbers are in the table below`,
  }, grid(axis, frame));
  const methods = Object.keys(INDEX.methods);
  const lines = methods.map((method, place) => ({
    method, shift: axis.name === "budget" ? (place - (methods.length - 1) / 2) * 4 : 0, // budgets coincide: draw points side by side
    points: INDEX.cells.filter((cell) => cell.method === method && cell.accuracy[0] !== null).sort((a, b) => axis.place(a) - axis.place(b)),
  })).filter((line) => line.points.length);
  const visible = lines.filter((line) => !hidden.has(line.method));
  visible.sort((a, b) => (a.method === INDEX.chief) - (b.method === INDEX.chief));
  const oracle = oracleLine(picture, axis, frame);
  const curves = visible.map((line) => curve(line, axis, frame));
  picture.append(...curves.map(({ group }) => group));
  showNearest(picture, curves.flatMap(({ places }) => places));
  plot.replaceChildren(picture, ...legend(lines, oracle, picture, frame, axis, plot));
}

/** Draw the oracle of the independent samples as a dashed line; returns its last cell, or null if there is no line. */
function oracleLine(picture, axis, frame) {
  const cells = INDEX.cells.filter((cell) => cell.method === "majority" && cell.oracle[0] !== null);
  if (cells.length < 2 || hidden.has("majority")) return null;
  const d = cells.map((cell, i) => `${i ? "L" : "M"}${frame.x(axis.place(cell))},${frame.y(cell.oracle[0])}`).join("");
  picture.append(s("path", { class: "oracle", d }));
  return cells.at(-1);
}

function curve({ method, shift, points }, axis, frame) {
  const { colour, marker: sign } = INDEX.methods[method];
  const chief = method === INDEX.chief;
  const group = s("g", { class: `curve${chief ? " chief" : ""}`, "data-method": method, "--c": colour });
  const at = (cell, end) => [frame.x(axis.place(cell)) + shift, frame.y(cell.accuracy[end] ?? cell.accuracy[0])]; // no interval: no length
  const path = (cells, end) => cells.map((cell, i) => `${i ? "L" : "M"}${at(cell, end)}`).join("");
  if (chief && points.length > 1) {
    group.append(s("path", { class: "band", d: `${path(points, 1)}${path([...points].reverse(), 2).replace("M", "L")}Z` }));
  } else {
    for (const cell of points) {
      const x = at(cell, 0)[0];
      group.append(s("line", { class: "whisker", x1: x, x2: x, y1: at(cell, 1)[1], y2: at(cell, 2)[1] }));
    }
  }
  const dashes = INDEX.methods[method].dashes ?? "";
  if (points.length > 1) group.append(s("path", { class: "line", d: path(points, 0), "stroke-dasharray": dashes || "none" }));
  else group.append(s("line", { class: "level", x1: at(points[0], 0)[0], x2: frame.width - frame.right, y1: at(points[0], 0)[1], y2: at(points[0], 0)[1] }));
  const places = points.map((cell) => {
    const [x, y] = at(cell, 0);
    const mark = s("g", { class: "point", transform: `translate(${x},${y})`, "data-budget": cell.budget }, s("path", { d: marker(sign, chief ? 6 : 5) }));
    return { cell, x, y, mark };
  });
  group.append(...places.map(({ mark }) => mark));
  return { group, places };
}

/** Show the numbers of the point nearest to the pointer: points of several methods are too close to each other to aim at. */
function showNearest(picture, places) {
  let near = null;
  const change = (place, event) => {
    near?.mark.classList.remove("near");
    near = place;
    near?.mark.classList.add("near");
    if (near) showTip(event, cellTip(near.cell));
    else hideTip();
  };
  picture.addEventListener("pointermove", (event) => {
    const pointer = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    const distance = ({ x, y }) => Math.hypot(x - pointer.x, y - pointer.y);
    const nearest = places.reduce((best, place) => (best && distance(best) < distance(place) ? best : place), null);
    const inReach = nearest && distance(nearest) <= REACH ? nearest : null;
    if (inReach !== near) change(inReach, event);
  });
  picture.addEventListener("pointerleave", (event) => near && change(null, event));
}

function cellTip(cell) {
  const [value, low, high] = cell.accuracy;
  const facts = [`${count(cell.tokens)} tokens`, cell.flops === null ? "" : `${short(cell.flops)} FLOPs`, `${fixed(cell.seconds)} s`];
  return h("div", {}, h("b", {}, `${label(cell.method)}, N = ${cell.budget}`),
    h("p", {}, `${percent(value)} right, 95 % interval ${low === null ? "–" : `${percent(low)} – ${percent(high)}`}`),
    h("p", {}, `any answer right: ${percent(cell.oracle[0])}`), h("p", {}, facts.filter(Boolean).join(" · ")),
    h("p", { class: "faint" }, `per problem, of ${plural(cell.runs, "run")}`));
}

/** Names beside the ends of their lines. Each is a button that hides or shows its method, except that of the dashed line. */
function legend(lines, oracle, picture, frame, axis, plot) {
  const end = (line) => line.points.at(-1);
  const height = (line) => (line.oracle ? line.oracle.oracle[0] : end(line).accuracy[0]);
  const ordered = [...lines, ...(oracle ? [{ oracle }] : [])];
  ordered.sort((a, b) => hidden.has(a.method) - hidden.has(b.method) || height(b) - height(a));
  const tops = spread(ordered.map((line) => (hidden.has(line.method) ? frame.height : frame.y(height(line)))), 21, frame.height - 22);
  return ordered.map((line, i) => {
    const lead = (x, colour) => {
      const right = frame.width - frame.right;
      picture.append(s("path", { class: "leader", "--c": colour, d: `M${x},${frame.y(height(line))}L${right + 10},${tops[i]}` }));
    };
    if (line.oracle) {
      if (frame.wide) lead(frame.x(axis.place(oracle)), "var(--line)");
      return h("span", { class: "name dashed", "--c": "var(--faint)", "--top": `${tops[i]}px` }, h("span", {}, "any of N samples right"));
    }
    const { colour, marker: sign } = INDEX.methods[line.method];
    const off = hidden.has(line.method);
    if (!off && frame.wide) lead(line.points.length > 1 ? frame.x(axis.place(end(line))) + line.shift + 8 : frame.width - frame.right, colour);
    const emphasise = (on) => {
      for (const each of picture.querySelectorAll(".curve")) each.classList.toggle("dim", on && each.dataset.method !== line.method);
    };
    return h("button", {
      type: "button", class: "name", "aria-pressed": !off, "--c": colour, "--top": `${tops[i]}px`, title: off ? "show" : "hide",
      "data-method": line.method,
      onpointerenter: () => emphasise(true), onpointerleave: () => emphasise(false),
      onclick: () => {
        if (!hidden.delete(line.method)) hidden.add(line.method);
        drawCurves(plot, axis);
        plot.querySelector(`[data-method="${CSS.escape(line.method)}"].name`).focus();
      },
    }, s("svg", { viewBox: "-8 -8 16 16", width: 14, height: 14, "aria-hidden": "true" }, s("path", { d: marker(sign, 6) })),
      h("span", {}, label(line.method)), h("span", { class: "value" }, percent(end(line).accuracy[0], 0)));
  });
}

/** A marker with the shape of matplotlib's, as a path around the origin. */
function marker(sign, r) {
  const polygon = (n, turn = 0, stretch = 1) =>
    `M${Array.from({ length: n }, (_, i) => {
      const angle = (2 * Math.PI * i) / n - Math.PI / 2 + turn;
      return `${(r * Math.cos(angle) * stretch).toFixed(2)},${(r * Math.sin(angle)).toFixed(2)}`;
    }).join("L")}Z`;
  const cross = (turn) => {
    const [a, b] = [r, r / 3];
    const corners = [[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b], [b, a], [-b, a], [-b, b], [-a, b], [-a, -b], [-b, -b]];
    const [c, d] = [Math.cos(turn), Math.sin(turn)];
    return `M${corners.map(([x, y]) => `${(c * x - d * y).toFixed(2)},${(d * x + c * y).toFixed(2)}`).join("L")}Z`;
  };
  const star = () =>
    `M${Array.from({ length: 10 }, (_, i) => {
      const reach = (i % 2 ? 0.5 : 1.25) * r;
      const angle = (Math.PI * i) / 5 - Math.PI / 2;
      return `${(reach * Math.cos(angle)).toFixed(2)},${(reach * Math.sin(angle)).toFixed(2)}`;
    }).join("L")}Z`;
  const shapes = {
    D: () => polygon(4), d: () => polygon(4, 0, 0.6), s: () => polygon(4, Math.PI / 4), "^": () => polygon(3),
    v: () => polygon(3, Math.PI), "<": () => polygon(3, -Math.PI / 2), ">": () => polygon(3, Math.PI / 2), P: () => cross(0), X: () => cross(Math.PI / 4),
    p: () => polygon(5), h: () => polygon(6), H: () => polygon(6, Math.PI / 6), 8: () => polygon(8, Math.PI / 8), "*": star,
  };
  return (shapes[sign] ?? (() => polygon(24)))();
}
