
// What every chart is drawn with: elements, scales, one tooltip, and what the pointer and the arrow keys do.
// Text reaches the page as text nodes only, so that no name of a run or layer is ever read as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;

/** Return a new HTML element; children are elements or text. */
function html(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return a new SVG element. */
function svg(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Return the function that carries numbers from a domain to pixels. */
function scale([low, high], [start, end], logarithmic = false) {
  const by = logarithmic ? Math.log : (value) => value;
  const span = by(high) - by(low) || 1;
  return (value) => start + ((by(value) - by(low)) / span) * (end - start);
}

/** Return about `count` round numbers between low and high. */
function ticks(low, high, count, logarithmic = false) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 2) return inside;
  }
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((digit) => digit * power >= rough * 0.999) * power;
  const first = Math.ceil(low / step - 1e-9);
  const length = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Return the numbers of an axis with their texts: of equally many digits after the point, or each of its own. */
function written(values, equally = true) {
  const own = (value) => (String(value).split(".")[1] ?? "").length;
  const most = Math.max(0, ...values.map(own));
  return values.map((value) => {
    const digits = equally ? most : own(value);
    const form = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return [value, value.toLocaleString("en-US", form).replace("-", "−")];
  });
}

const percent = (value) => `${(100 * value).toFixed(2)} %`;

/** Draw a chart at the width of its box, now and whenever that changes; returns the function that draws it anew. */
function fit(box, draw) {
  let width = 0;
  const again = () => draw(width);
  const check = () => {
    const now = Math.floor(box.clientWidth);
    if (now && now !== width) {
      width = now;
      again();
    }
  };
  check();
  // in the next frame: a chart that changes its own height would make the observer complain
  new ResizeObserver(() => requestAnimationFrame(check)).observe(box);
  return again;
}

const tip = html("div", { class: "tip", role: "status", hidden: "" });
document.body.append(tip);

/** Show the tooltip near a point of the window. */
function showTip(x, y, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  tip.style.left = tip.style.top = "0";
  const [width, height, gap, edge] = [tip.offsetWidth, tip.offsetHeight, 14, 8];
  const room = document.documentElement;
  let left = x + gap;
  if (left + width > room.clientWidth - edge) left = x - gap - width;
  let top = y + gap;
  if (top + height > room.clientHeight - edge) top = y - gap - height;
  tip.style.left = `${Math.max(edge, Math.min(left, room.clientWidth - edge - width)) + scrollX}px`;
  tip.style.top = `${Math.max(edge, top) + scrollY}px`;
}

/** Return a table for the tooltip, from rows of [class of a dot or null, text, text, ...]. */
function tipTable(rows, heads) {
  const body = rows.map(([dot, first, ...others]) =>
    html(
      "tr",
      {},
      html("td", dot === null ? { class: "what" } : {}, ...(dot === null ? [] : [html("span", { class: `dot ${dot}` })]), first),
      ...others.map((text) => html("td", {}, text)),
    ),
  );
  const head = heads ? [html("thead", {}, html("tr", {}, ...heads.map((text) => html("th", {}, text))))] : [];
  return html("table", {}, ...head, html("tbody", {}, ...body));
}

// What the pointer is on: a finger leaves the glass at once, so what it touched stays until the next touch elsewhere.
let pointed = null;

function leave() {
  pointed?.leave();
  pointed = null;
  tip.hidden = true;
}

document.addEventListener("pointerdown", (event) => {
  if (pointed && !pointed.target.contains(event.target)) leave();
});

/**
 * Let a picture be pointed at and stepped through.
 * move(x, y): the pointer is at a place of the picture; step(dx, dy): an arrow key; both show what is there
 * and return whether anything is. left(): take it away.
 */
function pointable(target, { move, step, left }) {
  const show = (shown) => {
    if (pointed?.target !== target) pointed?.leave();
    pointed = { target, leave: left };
    if (!shown) leave();
  };
  const point = (event) => {
    const box = target.getBoundingClientRect();
    show(move(event.clientX - box.left, event.clientY - box.top));
  };
  target.addEventListener("pointermove", point);
  target.addEventListener("pointerdown", point);
  target.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());
  target.addEventListener("blur", leave);
  target.setAttribute("tabindex", "0");
  target.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") leave();
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(step(...steps[event.key]));
  });
}

/** Show the tooltip beside a place of a picture. */
function tipAt(target, x, y, ...children) {
  const box = target.getBoundingClientRect();
  showTip(box.left + x, box.top + y, ...children);
}

/** Return the section of that name, now shown, with its empty box; null where the page has none. */
function section(name) {
  const found = document.getElementById(name);
  if (!found) return null;
  found.hidden = false;
  return { whole: found, box: found.querySelector(".drawn") };
}
