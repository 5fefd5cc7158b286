
// Heat maps: colours, cells, and which cell is pointed at.

const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const RED_BLUE = ["#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b"];

// what cells without a number are filled with
const hatch = svg("path", { d: "M-1 7L7 -1M-1 1L1 -1M5 7L7 5" });
const blank = svg("pattern", { id: "blank", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, hatch);
document.body.append(svg("svg", { class: "definitions", "aria-hidden": "true" }, svg("defs", {}, blank)));

/** Return the function from 0-1 to a colour between the given ones, with its channels. */
function ramp(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((place) => parseInt(stop.slice(place, place + 2), 16)));
  return (value) => {
    const at = Math.max(0, Math.min(value, 1)) * (parts.length - 1);
    const low = Math.min(Math.floor(at), parts.length - 2);
    return parts[low].map((channel, place) => Math.round(channel + (at - low) * (parts[low + 1][place] - channel)));
  };
}

const alike = ramp(VIRIDIS);
const signed = ramp(RED_BLUE);
const rgb = (channels) => `rgb(${channels.join(" ")})`;
const lightness = ([red, green, blue]) => (0.299 * red + 0.587 * green + 0.114 * blue) / 255;

/** Return a number with its sign, a true minus. */
function withSign(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return `${Number(text) === 0 ? "" : value < 0 ? "−" : "+"}${text}`;
}

const DIGIT = 6.4; // width of a digit or a sign in a cell, in pixels

/** Return how wide a cell is that has room for the longest of these texts. */
const roomFor = (texts) => Math.ceil(DIGIT * Math.max(0, ...texts.map((text) => text.length))) + 6;

/**
 * Draw the cells of a table of numbers into a picture, and let them be pointed at.
 * colour(value): channels; write(value): the number in a cell, left out where it has no room, or null for none; show(row, column, x, y): tell about a cell.
 */
function cells(picture, values, { left, top, side, gap, colour, write, show, hide = () => {} }) {
  const group = svg("g", {});
  const inner = side - gap;
  values.forEach((row, down) =>
    row.forEach((value, across) => {
      const [x, y] = [left + across * side, top + down * side];
      const box = { x, y, width: inner, height: inner, rx: gap > 1 ? 3 : 0 };
      if (value === null) {
        group.append(svg("rect", { ...box, class: "blank" }));
        return;
      }
      const channels = colour(value);
      group.append(svg("rect", { ...box, fill: rgb(channels) }));
      const text = write(value);
      if (text !== null && roomFor([text]) <= inner + 2) {
        const ink = lightness(channels) > 0.55 ? "dark" : "light";
        group.append(svg("text", { class: `number ${ink}`, x: x + inner / 2, y: y + inner / 2 + 4 }, text));
      }
    }),
  );
  const ring = svg("rect", { class: "ring", width: inner + 2, height: inner + 2, rx: gap > 1 ? 4 : 1, visibility: "hidden", "pointer-events": "none" });
  picture.append(group, ring);
  let [row, column] = [0, -1];
  const mark = () => {
    const [x, y] = [left + column * side, top + row * side];
    for (const [name, value] of [["x", x - 1], ["y", y - 1], ["visibility", "visible"]]) ring.setAttribute(name, value);
    show(row, column, x + inner / 2, y + inner / 2);
    return true;
  };
  const away = () => {
    ring.setAttribute("visibility", "hidden");
    hide();
  };
  pointable(picture, {
    move: (x, y) => {
      const [across, down] = [Math.floor((x - left) / side), Math.floor((y - top) / side)];
      if (values[down]?.[across] === undefined) {
        away();
        return false;
      }
      [row, column] = [down, across];
      return mark();
    },
    step: (dx, dy) => {
      column = Math.max(0, Math.min(column + dx, values[0].length - 1));
      row = Math.max(0, Math.min(row + dy, values.length - 1));
      return mark();
    },
    left: away,
  });
}

/** Return a colour scale with its ends written beside it. */
function colourScale(low, high, colour, ...more) {
  const steps = 48;
  const bar = svg("svg", { width: 144, height: 12, "aria-hidden": "true", "shape-rendering": "crispEdges" });
  for (let step = 0; step < steps; step++) bar.append(svg("rect", { x: 3 * step, width: 3, height: 12, fill: rgb(colour(step / (steps - 1))) }));
  return html("div", { class: "scale" }, low, bar, high, ...more);
}
