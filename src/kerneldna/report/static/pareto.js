
// Accuracy against a cost the reader chooses, with the Pareto front of that choice.

const UNITS = {
  count: [["", 1], ["thousand", 1e3], ["million", 1e6], ["billion", 1e9]],
  bytes: [["bytes", 1], ["KiB", 2 ** 10], ["MiB", 2 ** 20], ["GiB", 2 ** 30]],
  plain: [["", 1]],
};
const NAMES = { macs: "multiply-accumulates", stored_bytes: "file", latency_ratio: "time, the first run's is 1" };

function drawPareto() {
  const place = section("pareto");
  if (!place) return;
  const known = (each) => runs.map((run) => run.values[each.field]).filter((value) => value !== null);
  const differs = (each) => Math.max(...known(each)) > 1.01 * Math.min(...known(each));
  let measure = data.measures.find(differs) ?? data.measures[0];
  const box = html("div", {});
  let again = () => {};
  const group = segments("Cost", data.measures.map((each) => [each.field, each.label]), measure.field, (field) => {
    leave();
    measure = data.measures.find((each) => each.field === field);
    again();
  });
  const head = html("div", { class: "head" });
  const title = place.whole.querySelector("h2");
  title.before(head);
  head.append(title, group);
  place.box.append(html("div", { class: "card" }, box));
  again = fit(box, (width) => box.replaceChildren(...paretoPicture(measure, width, box)));
}

/** Return the points that no other beats in both numbers, the cheapest first. */
function front(points, better) {
  const sign = better === "less" ? 1 : -1;
  const beats = (a, b) => sign * a.cost <= sign * b.cost && a.top1 >= b.top1 && (a.cost !== b.cost || a.top1 !== b.top1);
  return points.filter((point) => !points.some((other) => beats(other, point))).sort((a, b) => a.cost - b.cost || a.top1 - b.top1);
}

/** Return domain and kind of the axis: logarithmic where numbers are far apart. */
function costAxis(costs) {
  const [low, high] = [Math.min(...costs), Math.max(...costs)];
  if (low > 0 && high > 8 * low) return { domain: [low * (low / high) ** 0.08, high * (high / low) ** 0.08], logarithmic: true };
  const room = 0.09 * (high - low) || 0.3 * high || 1;
  return { domain: [low > 0 ? Math.max(low - room, 0) : low - room, high + room], logarithmic: false };
}

function paretoPicture(measure, width, box) {
  const height = Math.round(Math.max(300, Math.min(width * 0.5, 420)));
  const frame = { left: 46, right: width - 14, top: 26, bottom: height - 46 };
  const points = runs.filter((run) => run.values[measure.field] !== null).map((run) => ({ run, cost: run.values[measure.field], top1: run.top1 }));
  const axis = costAxis(points.map((point) => point.cost));
  const tops = points.flatMap(({ run }) => [run.top1 - (run.deviation ?? 0), run.top1 + (run.deviation ?? 0)]);
  const [low, high] = [Math.min(...tops), Math.max(...tops)];
  const room = 0.14 * (high - low) || 0.01;
  const x = scale(axis.domain, [frame.left, frame.right], axis.logarithmic);
  const y = scale([low - room, high + room], [frame.bottom, frame.top]);
  const label = `Accuracy against ${measure.label.toLowerCase()}; arrow keys go through the runs`;
  const picture = svg("svg", { class: "chart", width, height, role: "img", "aria-label": label });
  box.replaceChildren(picture); // texts have a width only on the page
  for (const [value, text] of written(ticks(100 * (low - room), 100 * (high + room), 6)))
    picture.append(
      svg("line", { class: "rule", x1: frame.left, x2: frame.right, y1: y(value / 100), y2: y(value / 100) }),
      svg("text", { x: frame.left - 8, y: y(value / 100) + 4, "text-anchor": "end" }, text),
    );
  costTicks(picture, measure, axis, x, frame, height);
  const best = front(points, measure.better);
  const corners = staircase(best, measure.better, x, y, frame);
  picture.append(svg("path", { class: "front", d: `M${corners.map((corner) => corner.join(" ")).join("L")}` }));
  for (const point of points) {
    Object.assign(point, { x: x(point.cost), y: y(point.top1), best: best.includes(point), reach: Math.abs(y(0) - y(point.run.deviation ?? 0)) });
    picture.append(...symbol(point, y));
  }
  labels(picture, points, corners, frame);
  pointAtRuns(picture, points, frame);
  return [picture];
}

function costTicks(picture, measure, axis, x, frame, height) {
  const units = UNITS[measure.unit];
  const [name, factor] = units.findLast(([, each]) => each <= axis.domain[1]) ?? units[0];
  const domain = axis.domain.map((value) => value / factor);
  const room = Math.floor((frame.right - frame.left) / 64);
  let marks = ticks(...domain, Math.min(8, room), axis.logarithmic);
  const tens = marks.filter((value) => /^(1e.*|10*|0\.0*1)$/.test(String(value)));
  if (axis.logarithmic && marks.length > room && tens.length > 1) marks = tens;
  while (marks.length > room) marks = marks.filter((_, place) => place % 2 === 0);
  for (const [value, text] of written(marks, !axis.logarithmic)) {
    const at = x(value * factor);
    picture.append(
      svg("line", { class: "rule", x1: at, x2: at, y1: frame.top, y2: frame.bottom }),
      svg("text", { x: at, y: frame.bottom + 20, "text-anchor": "middle" }, text),
    );
  }
  const what = NAMES[measure.field] ?? measure.label.toLowerCase();
  const unit = measure.unit === "count" && name ? `${name}s` : name;
  picture.append(
    svg("text", { x: (frame.left + frame.right) / 2, y: height - 6, "text-anchor": "middle" }, unit ? `${what}, ${unit}` : what),
    svg("text", { x: 0, y: 12 }, "accuracy, %"),
  );
}

/** Return the corners of the front, a staircase: what is on its far side is beaten. */
function staircase(best, better, x, y, frame) {
  const places = best.map((point) => [x(point.cost), y(point.top1)]);
  if (better === "more") places.reverse();
  const corners = [[places[0][0], frame.bottom], places[0]];
  for (const [across, up] of places.slice(1)) corners.push([across, corners.at(-1)[1]], [across, up]);
  return [...corners, [better === "less" ? frame.right : frame.left, corners.at(-1)[1]]];
}

/** Return the error bar and the mark of a run: the second ten runs are squares. */
function symbol({ run, x, y, best }, up) {
  const kind = `run-${run.colour}`;
  const bar = run.deviation
    ? [svg("path", { class: `bar ${kind}`, d: `M${x} ${up(run.top1 - run.deviation)}V${up(run.top1 + run.deviation)}m-4 0h8M${x - 4} ${up(run.top1 - run.deviation)}h8` })]
    : [];
  const look = { class: `point ${kind}${best ? " best" : ""}` };
  const mark = run.colour < 10 ? svg("circle", { ...look, cx: x, cy: y, r: 7 }) : svg("rect", { ...look, x: x - 6, y: y - 6, width: 12, height: 12, rx: 2 });
  return [...bar, mark];
}

/** Write names beside their points where they cover no point and no line; those on the front come first. */
function labels(picture, points, corners, frame) {
  const taken = points.map(({ x, y, reach }) => [x - 9, y - Math.max(9, reach), x + 9, y + Math.max(9, reach)]);
  corners.slice(1).forEach(([x, y], place) => {
    const [across, up] = corners[place];
    taken.push([Math.min(x, across) - 1, Math.min(y, up) - 1, Math.max(x, across) + 1, Math.max(y, up) + 1]);
  });
  const apart = (box) => taken.every((other) => box[2] < other[0] || other[2] < box[0] || box[3] < other[1] || other[3] < box[1]);
  for (const point of [...points].sort((a, b) => b.best - a.best)) {
    const { name } = point.run;
    const text = svg("text", { class: "label", y: 0 }, name.length > 28 ? `${name.slice(0, 27)}…` : name);
    picture.append(text);
    const [wide, tall] = [text.getComputedTextLength(), 14];
    const [above, below] = [-Math.max(9, point.reach) - tall - 2, Math.max(9, point.reach) + 2];
    const offers = [[13, -7], [-13 - wide, -7]];
    for (const side of [-13 - wide, 13]) offers.push([side, -2 - tall], [side, 3]); // beside it, off a line through the point
    for (const up of [above, below]) offers.push([-wide / 2, up], [0, up], [-wide, up]);
    const place = offers
      .map(([dx, dy]) => [point.x + dx, point.y + dy, point.x + dx + wide, point.y + dy + tall])
      .find((box) => box[0] >= frame.left && box[2] <= frame.right && box[1] >= frame.top - 8 && box[3] <= frame.bottom && apart(box));
    if (!place) {
      text.remove();
      continue;
    }
    taken.push(place);
    text.setAttribute("x", place[0]);
    text.setAttribute("y", place[1] + 11);
  }
}

function pointAtRuns(picture, points, frame) {
  const ring = svg("circle", { class: "ring", r: 10, "pointer-events": "none", visibility: "hidden" });
  picture.append(ring);
  const order = [...points].sort((a, b) => a.x - b.x);
  let at = -1;
  const show = () => {
    const point = order[at];
    for (const [name, value] of [["cx", point.x], ["cy", point.y], ["visibility", "visible"]]) ring.setAttribute(name, value);
    tipAt(picture, point.x + 6, point.y, html("b", {}, point.run.name), numbers(point));
    return true;
  };
  pointable(picture, {
    move: (x, y) => {
      const away = order.map((point) => Math.hypot(point.x - x, point.y - y));
      at = away.indexOf(Math.min(...away));
      if (away[at] < 40) return show();
      ring.setAttribute("visibility", "hidden");
      return false;
    },
    step: (dx) => {
      at = Math.max(0, Math.min(at + (dx || 0), order.length - 1));
      return show();
    },
    left: () => ring.setAttribute("visibility", "hidden"),
  });
}

/** Return all numbers of a run as a table. */
function numbers({ run, best }) {
  const rows = [[null, "Accuracy", percent(run.top1)]];
  if (run.deviation !== null) rows.push([null, `Deviation, ${run.seeds} seeds`, `± ${(100 * run.deviation).toFixed(2)}`]);
  else rows.push([null, "Seeds", "one"]);
  for (const each of data.measures) if (run.texts[each.field] !== null) rows.push([null, each.label, run.texts[each.field]]);
  if (best) rows.push([null, "On the Pareto front", ""]);
  return tipTable(rows);
}

drawPareto();
