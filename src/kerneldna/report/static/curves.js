
// Training curves: one legend for both charts, a crosshair at an epoch with the values of all runs.

const CHARTS = [
  {
    title: "Loss",
    lines: [{ kind: "val_loss", name: "validation" }, { kind: "train_loss", name: "training", dashed: true }],
    write: (value) => value.toFixed(3),
    best: (a, b) => a - b,
  },
  { title: "Accuracy, %", lines: [{ kind: "top1", name: "validation" }], write: percent, best: (a, b) => b - a, percent: true },
];

function drawCurves() {
  const place = section("curves");
  if (!place) return;
  const drawn = runs.filter((run) => run.curves.epoch);
  const hidden = new Set();
  const grid = html("div", { class: "grid" });
  const charts = CHARTS.map((chart) => ({
    ...chart,
    lines: chart.lines.filter((line) => drawn.some((run) => run.curves[line.kind])),
  }))
    .filter((chart) => chart.lines.length)
    .map((chart) => curveCard(grid, chart, drawn, hidden));
  const focus = (run) => charts.forEach((chart) => chart.focus(run));
  place.box.append(curveLegend(drawn, hidden, () => charts.forEach((chart) => chart.draw()), focus), grid);
  charts.forEach((chart) => chart.start());
}

/** Return the legend: a click hides a run, pointing at it fades the others. */
function curveLegend(drawn, hidden, redraw, focus) {
  const buttons = drawn.map((run) => {
    const button = html("button", { type: "button", "aria-pressed": "true" }, html("span", { class: `dot run-${run.colour}` }), run.name);
    button.addEventListener("click", () => {
      hidden.has(run) ? hidden.delete(run) : hidden.add(run);
      update();
      focus(hidden.has(run) ? null : run);
    });
    for (const type of ["pointerenter", "focus"]) button.addEventListener(type, () => hidden.has(run) || focus(run));
    for (const type of ["pointerleave", "blur"]) button.addEventListener(type, () => focus(null));
    return button;
  });
  const all = html("button", { type: "button", class: "all" });
  all.addEventListener("click", () => {
    if (hidden.size) hidden.clear();
    else drawn.forEach((run) => hidden.add(run));
    update();
  });
  const label = () => {
    all.textContent = hidden.size ? "Show all" : "Hide all";
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(!hidden.has(drawn[place]))));
  };
  const update = () => (label(), redraw());
  label();
  const shown = drawn.length > 1 ? buttons : [];
  if (drawn.length > 3) shown.push(all);
  return html("ul", { class: "legend toggles", "aria-label": "Runs" }, ...shown.map((button) => html("li", {}, button)));
}

/** Add the card of one chart; returns what the legend does with it. */
function curveCard(grid, chart, drawn, hidden) {
  const box = html("div", {});
  const keys = chart.lines.map((line) => html("span", {}, html("i", line.dashed ? { class: "dashed" } : {}), line.name));
  const more = chart.lines.length > 1 ? [html("div", { class: "keys" }, ...keys)] : [];
  grid.append(html("div", { class: "card" }, html("div", { class: "over" }, html("h3", {}, chart.title), ...more), box));
  let again = () => {};
  let picture = null;
  const draw = (width) => {
    picture = drawChart(chart, drawn.filter((run) => !hidden.has(run)), width);
    box.replaceChildren(picture);
  };
  const focus = (run) => {
    picture.classList.toggle("focus", run !== null);
    for (const part of picture.querySelectorAll("[data-name]")) part.classList.toggle("on", part.run === run);
  };
  return { draw: () => again(), focus, start: () => (again = fit(box, draw)) };
}

/** Return the picture of one chart. */
function drawChart(chart, shown, width) {
  const height = Math.round(Math.max(230, Math.min(width * 0.58, 300)));
  const frame = { left: 46, right: width - 12, top: 10, bottom: height - 42 };
  const picture = svg("svg", { class: shown.length > 8 ? "chart many" : "chart", width, height, role: "img", "aria-label": `${chart.title} against epoch; arrow keys go through the epochs` });
  const has = shown.filter((run) => chart.lines.some((line) => run.curves[line.kind]));
  const epochs = [...new Set(has.flatMap((run) => run.curves.epoch))].sort((a, b) => a - b);
  if (!epochs.length) {
    picture.append(svg("text", { class: "none", x: width / 2, y: height / 2 }, "no run is shown"));
    return picture;
  }
  const drawn = has.flatMap((run) => [run.curves, ...run.seedCurves]);
  const values = drawn.flatMap((curves) => chart.lines.flatMap((line) => (curves[line.kind] ?? []).filter((value) => value !== null)));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.5;
  const one = epochs.length === 1 ? 0.5 : 0;
  const x = scale([epochs[0] - one, epochs.at(-1) + one], [frame.left, frame.right]);
  const y = scale([low - room, high + room], [frame.bottom, frame.top]);
  const factor = chart.percent ? 100 : 1;
  for (const [value, text] of written(ticks(factor * (low - room), factor * (high + room), 5))) {
    const at = y(value / factor);
    picture.append(
      svg("line", { class: "rule", x1: frame.left, x2: frame.right, y1: at, y2: at }),
      svg("text", { x: frame.left - 8, y: at + 4, "text-anchor": "end" }, text),
    );
  }
  const marks = ticks(epochs[0], epochs.at(-1), Math.min(8, Math.floor(width / 60))).filter(Number.isInteger);
  for (const value of marks) picture.append(svg("text", { x: x(value), y: frame.bottom + 20, "text-anchor": "middle" }, String(value)));
  picture.append(
    svg("text", { x: (frame.left + frame.right) / 2, y: height - 5, "text-anchor": "middle" }, "epoch"),
  );
  for (const run of has)
    for (const line of chart.lines) {
      for (const curves of run.seedCurves) picture.append(...curve(run, curves, line, x, y, "seed"));
      picture.append(...curve(run, run.curves, line, x, y, line.dashed ? "dashed" : ""));
    }
  crosshair(picture, chart, has, epochs, { x, y, frame });
  return picture;
}

/** Return one run's line, or its single point. */
function curve(run, curves, line, x, y, kind) {
  const points = (curves[line.kind] ?? []).map((value, place) => [curves.epoch[place], value]).filter(([, value]) => value !== null);
  if (!points.length || (kind === "seed" && line.dashed)) return [];
  const made =
    points.length > 1
      ? svg("path", { class: `line run-${run.colour} ${kind}`, d: `M${points.map(([epoch, value]) => `${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}` })
      : svg("circle", { class: `mark run-${run.colour}`, cx: x(points[0][0]), cy: y(points[0][1]), r: kind ? 3 : 4.5 });
  made.dataset.name = run.name;
  made.run = run;
  return [made];
}

/** Let the reader point at an epoch: a line, a mark on each curve, and the values of all runs, best first. */
function crosshair(picture, chart, shown, epochs, { x, y, frame }) {
  const overlay = svg("g", { "pointer-events": "none" });
  picture.append(overlay);
  let at = -1;
  const value = (run, line) => {
    const place = run.curves.epoch.indexOf(epochs[at]);
    return place < 0 ? null : (run.curves[line.kind]?.[place] ?? null);
  };
  const show = (tall) => {
    const across = x(epochs[at]);
    overlay.replaceChildren(svg("line", { class: "cross", x1: across, x2: across, y1: frame.top, y2: frame.bottom }));
    for (const run of shown)
      for (const line of chart.lines) {
        const found = value(run, line);
        if (found !== null) overlay.append(svg("circle", { class: `mark run-${run.colour}`, cx: across, cy: y(found), r: line.dashed ? 3 : 4 }));
      }
    const rows = shown.filter((run) => chart.lines.some((line) => value(run, line) !== null));
    const first = (run) => chart.lines.map((line) => value(run, line)).find((found) => found !== null);
    rows.sort((a, b) => chart.best(first(a), first(b)));
    const texts = rows.map((run) => [`run-${run.colour}`, run.name, ...chart.lines.map((line) => ((found) => (found === null ? "–" : chart.write(found)))(value(run, line)))]);
    const heads = chart.lines.length > 1 ? ["", ...chart.lines.map((line) => line.name)] : null;
    tipAt(picture, across, tall, html("b", {}, `Epoch ${epochs[at]}`), tipTable(texts, heads));
    return true;
  };
  pointable(picture, {
    move: (across, down) => {
      if (across < frame.left - 20) return false;
      const distances = epochs.map((epoch) => Math.abs(x(epoch) - across));
      at = distances.indexOf(Math.min(...distances));
      return show(down);
    },
    step: (dx) => {
      at = Math.max(0, Math.min(at + (dx || 0), epochs.length - 1));
      return show(frame.top);
    },
    left: () => overlay.replaceChildren(),
  });
}

drawCurves();
