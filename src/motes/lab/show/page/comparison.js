// A comparison's page: the curves of all evaluations over each other, and tables that open when it is printed.

curves(document.getElementById("curves"));
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("#tables details")) details.open = true;
});
document.documentElement.dataset.ready = "true";
