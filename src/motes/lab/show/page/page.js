// The page: shows the report, or the run that the address names; opens all tables for printing.

const report = document.getElementById("report");
const runView = document.getElementById("run");
let scrolled = 0;

/** Show the run that the address names after its #, or else the report. */
async function route() {
  hideTip();
  const match = /^#run=(\d+)$/.exec(location.hash);
  if (!report.hidden) scrolled = scrollY;
  if (match && (report.hidden = true, runView.hidden = false, await showRun(runView, Number(match[1])))) {
    scrollTo(0, 0);
    return;
  }
  const wasHidden = report.hidden;
  runView.hidden = true;
  report.hidden = false;
  if (wasHidden) scrollTo(0, scrolled);
}

curves(document.getElementById("curves"));
forest(document.getElementById("differences"));
problems(document.getElementById("problems"));
addEventListener("hashchange", route);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !runView.hidden && !event.target.closest?.("svg")) location.hash = "#problems";
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width && !runView.hidden) view?.redraw?.();
  width = innerWidth;
});
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("#tables details")) details.open = true;
});
document.documentElement.dataset.ready = "true";
await route();
