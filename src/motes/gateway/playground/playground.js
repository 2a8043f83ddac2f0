// The form: models, methods and settings; start and stop a run.

const at = (id) => document.getElementById(id);
const [form, question, go, stop, run, status, trouble] = ["ask", "question", "go", "stop", "run", "status", "trouble"].map(at);
const modelsByName = new Map();
let running = null; // the request in flight: { live, abort }
let shown = null;

function showText(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

const option = (value) => h("option", { value }, value);

/** Load the models. If that needs a key, show the field for it. */
async function unlock() {
  try {
    const available = await models();
    modelsByName.clear();
    for (const model of available) modelsByName.set(model.id, model.motes);
    at("locked").hidden = true;
    at("model").replaceChildren(...[...modelsByName.keys()].map(option));
    showText(trouble, modelsByName.size ? "" : "This key gives access to no model.");
    showModel();
  } catch (error) {
    if (error.status !== 401) return showText(trouble, error.message);
    if (key) showText(trouble, "This key is not known.");
    at("locked").hidden = false;
    at("key").focus();
  }
}

/** Show the settings that the chosen model allows. */
function showModel() {
  const model = modelsByName.get(at("model").value);
  if (!model) return;
  at("method").replaceChildren(...model.methods.map(option));
  const bounds = (id, value, max) => Object.assign(at(id), { value, max });
  bounds("particles", model.particles, model.max_particles);
  at("deadline").max = model.max_deadline;
  at("deadline").placeholder = model.deadline;
  at("temperature").placeholder = model.temperature;
  const example = (text, i) => h("button", { type: "button", title: text, "aria-label": `example ${i + 1}: ${text}`, onclick: () => { question.value = text; question.focus(); } }, i + 1);
  at("examples").replaceChildren("examples", ...model.examples.map(example));
  at("examples").hidden = !model.examples.length;
  if (!question.value && model.examples.length) [question.value] = model.examples;
}

/** The request's body, from the form. */
function requestBody() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const motes = { method: at("method").value, particles: number("particles"), deadline: number("deadline"), progress: "particles" };
  return {
    model: at("model").value, messages: [{ role: "user", content: question.value }], temperature: number("temperature"), seed: number("seed"),
    stream: true, motes,
  };
}

async function ask() {
  running?.abort.abort();
  const body = requestBody();
  const mine = { live: begin(run, body), abort: new AbortController() };
  running = mine;
  shown = mine.live;
  showText(trouble, "");
  status.textContent = "The particles are at work.";
  stop.hidden = false;
  const began = performance.now();
  let ended = "";
  try {
    for await (const chunk of chunks(body, mine.abort.signal)) addChunk(mine.live, chunk);
    const { answer } = mine.live.run.record;
    ended = `${answer === null ? "No answer was stated" : `The answer is ${answer}`}, after ${fixed((performance.now() - began) / 1000, 1)} s.`;
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (!stopped && running === mine) showText(trouble, error.message);
    mine.live.head.textContent = stopped ? "Stopped" : "No answer";
    ended = stopped ? "Stopped: nothing more is computed." : "";
    if (error.status === 401) unlock();
  }
  if (running !== mine) return;
  running = null;
  stop.hidden = true;
  status.textContent = ended;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
at("model").addEventListener("change", showModel);
stop.addEventListener("click", () => running?.abort.abort());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort.abort();
});
const useKey = () => {
  key = at("key").value.trim();
  unlock();
};
at("unlock").addEventListener("click", useKey);
at("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  useKey();
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width && shown?.panels.length) draw(shown);
  width = innerWidth;
});
await unlock();
document.documentElement.dataset.ready = "true";
