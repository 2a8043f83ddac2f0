// Elements, and numbers as words. Text becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** An HTML element; attributes that begin with "on" are listeners, those with "--" style properties. */
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const percent = (share, digits = 1) => (share === null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(digits)} %`);
const count = (number) => Math.round(number).toLocaleString("en-US");
function fixed(number, digits = 2) {
  if (number === null || number === undefined) return "–";
  const text = number.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** 1k is 1,000; k, M and so on. */
function short(number) {
  const power = Math.max(0, Math.min(6, Math.floor(Math.log10(Math.max(number, 1)) / 3)));
  return `${Number((number / 1000 ** power).toPrecision(3))}${["", "k", "M", "G", "T", "P", "E"][power]}`;
}

/** A share in percent; small ones have a decimal. */
const mass = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : percent(share, share < 0.1 ? 1 : 0));

const tip = document.getElementById("tip");

/** Show something beside the pointer, or beside an element. */
function showTip(event, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const box = event.target.getBoundingClientRect();
  const x = event.clientX || box.right;
  const y = event.clientY || box.bottom;
  const left = x + 16 + tip.offsetWidth > innerWidth ? x - 16 - tip.offsetWidth : x + 16;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - tip.offsetHeight - 8))}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** Ascending values, moved apart as little as possible so that they differ by at least `gap`, none above `high`. */
function spread(values, gap, high) {
  const pools = [];
  values.forEach((value, i) => {
    pools.push([value - i * gap, 1]);
    while (pools.length > 1 && pools.at(-2)[0] > pools.at(-1)[0]) {
      const [b, m] = pools.pop();
      const [a, n] = pools.pop();
      pools.push([(a * n + b * m) / (n + m), n + m]);
    }
  });
  const last = (values.length - 1) * gap;
  return pools.flatMap(([mean, n]) => Array(n).fill(mean)).map((mean, i) => Math.min(mean + i * gap, high - last + i * gap));
}
