// The page of a comparison: the curves of all evaluations in one figure; opens all tables for printing.

curves(document.getElementById("curves"));
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("#tables details")) details.open = true;
});
document.documentElement.dataset.ready = "true";
