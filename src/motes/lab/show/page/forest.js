// A forest plot of paired differences to the chief method, with a row for each method and a panel for each budget.

const points = (share) => `${share > 0 ? "+" : share < 0 ? "−" : ""}${Math.abs(100 * share).toFixed(1)}`;

function forest(root) {
  const all = INDEX.differences.filter((each) => each.value[0] !== null);
  if (!all.length) return;
  const plot = h("div", { class: "plot" });
  root.append(
    h("div", { class: "bar" }, h("h2", {}, "Paired differences"), h("span", { class: "against" }, `to ${label(INDEX.chief)}, at the same budget and on the same problems`)),
    plot,
    h("p", { class: "faint" }, "Percentage points, with simultaneous 95 % intervals. A filled marker: 0 is outside the interval."),
  );
  let width = 0;
  const draw = () => {
    if (!plot.clientWidth || plot.clientWidth === width) return;
    width = plot.clientWidth;
    plot.replaceChildren(drawForest(all, width));
  };
  draw();
  new ResizeObserver(draw).observe(plot);
}

function drawForest(all, width) {
  const budgets = [...new Set(all.map((each) => each.budget))].sort((a, b) => a - b).slice(width >= 640 ? -5 : -2);
  const shown = all.filter((each) => budgets.includes(each.budget));
  const methods = Object.keys(INDEX.methods).filter((method) => shown.some((each) => each.method === method));
  const frame = { left: width >= 640 ? 190 : 110, top: 24, row: 24, gap: 22, bottom: 22 };
  const across = (width - frame.left - budgets.length * frame.gap) / budgets.length;
  const height = frame.top + methods.length * frame.row + frame.bottom;
  const ends = shown.flatMap((each) => each.value).filter((end) => end !== null);
  const most = Math.max(0.05, ...ends.map(Math.abs)) * 1.06;
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Paired differences; the numbers are in the table below" });
  methods.forEach((method, row) => {
    const y = frame.top + (row + 0.5) * frame.row;
    picture.append(s("text", { class: "tick", x: frame.left - 12, y: y + 4, "text-anchor": "end" }, label(method)));
    picture.append(s("line", { class: "rule", x1: frame.left, x2: width - frame.gap, y1: y, y2: y }));
  });
  budgets.forEach((budget, column) => {
    const start = frame.left + column * (across + frame.gap);
    const x = (share) => start + (across * (share + most)) / (2 * most);
    const floor = height - frame.bottom;
    picture.append(s("text", { class: "tick", x: x(0), y: 12, "text-anchor": "middle" }, `N = ${budget}`));
    picture.append(s("line", { class: "zero", x1: x(0), x2: x(0), y1: frame.top - 4, y2: floor }));
    const step = [0.02, 0.05, 0.1, 0.2, 0.5].find((size) => (across * size) / (2 * most) >= 46) ?? 0.5;
    for (let i = -Math.floor(most / step); i <= most / step; i++) {
      picture.append(s("text", { class: "tick", x: x(i * step), y: floor + 16, "text-anchor": "middle" }, i ? points(i * step).replace(".0", "") : "0"));
    }
    for (const each of shown.filter((one) => one.budget === budget)) {
      const [value, low, high] = each.value;
      const sure = low !== null && (low > 0 || high < 0);
      const y = frame.top + (methods.indexOf(each.method) + 0.5) * frame.row;
      const mark = s("g", { class: `difference${sure ? " sure" : ""}`, "data-method": each.method, "data-budget": budget, "--c": INDEX.methods[each.method].colour });
      if (low !== null) mark.append(s("line", { x1: x(low), x2: x(high), y1: y, y2: y }));
      mark.append(s("circle", { class: "reach", cx: x(value), cy: y, r: 11 }), s("circle", { cx: x(value), cy: y, r: 4.5 }));
      const words = low === null ? "" : ` (${points(low)} to ${points(high)})`;
      mark.addEventListener("pointerenter", (event) => showTip(event, h("div", {}, h("b", {}, `${label(each.method)}, N = ${budget}`), h("p", {}, `${points(value)}${words} points on ${plural(each.problems, "problem")}`))));
      mark.addEventListener("pointerleave", hideTip);
      picture.append(mark);
    }
  });
  return picture;
}
