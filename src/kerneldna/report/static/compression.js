
// What every budget of a compression would damage: the share kept against the damage predicted, the one that was made marked.

const LEAST_DAMAGE = 1e-5;
const deep = (damage) => Math.max(damage, LEAST_DAMAGE);

function budgetPicture(curve, width) {
  const height = Math.round(Math.max(230, Math.min(width * 0.42, 320)));
  const frame = { left: 62, right: width - 12, top: 14, bottom: height - 42 };
  const label = "predicted damage against the share kept; arrow keys go through the budgets";
  const picture = svg("svg", { class: "chart", width, height, role: "img", "aria-label": label });
  const points = [...curve.points].sort((a, b) => a.share - b.share);
  const damages = points.map(({ damage }) => deep(damage));
  const [low, high] = [Math.min(...damages) / 1.5, Math.max(...damages) * 1.5];
  const x = scale([0, 1], [frame.left, frame.right]);
  const y = scale([low, high], [frame.bottom, frame.top], true);
  const first = Math.ceil(Math.log10(low));
  const powers = Array.from({ length: Math.max(0, Math.floor(Math.log10(high)) - first + 1) }, (_, place) => Number(`1e${first + place}`));
  for (const [value, text] of written(powers, false))
    picture.append(
      svg("line", { class: value === 1 ? "cross" : "rule", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) }),
      svg("text", { x: frame.left - 8, y: y(value) + 4, "text-anchor": "end" }, text),
    );
  for (const share of width < 460 ? [0, 0.5, 1] : [0, 0.2, 0.4, 0.6, 0.8, 1])
    picture.append(svg("text", { x: x(share), y: frame.bottom + 20, "text-anchor": share === 1 ? "end" : "middle" }, `${Math.round(100 * share)} %`));
  picture.append(svg("text", { x: (frame.left + frame.right) / 2, y: height - 5, "text-anchor": "middle" }, `${curve.what} kept, of ${curve.whole}`));
  const path = points.map(({ share, damage }) => `${x(share).toFixed(1)} ${y(deep(damage)).toFixed(1)}`).join("L");
  picture.append(svg("path", { class: "line run-1", d: `M${path}` }));
  for (const { share, damage } of points) picture.append(svg("circle", { class: "mark run-1", cx: x(share), cy: y(deep(damage)), r: 3.5 }));
  if (curve.made) {
    const at = [x(curve.made.share), y(Math.max(low, Math.min(deep(curve.made.damage), high)))];
    picture.append(svg("circle", { class: "ring", cx: at[0], cy: at[1], r: 8 }));
  }
  const overlay = svg("g", { "pointer-events": "none" });
  picture.append(overlay);
  let at = -1;
  const show = (tall) => {
    const { share, damage, budget, parameters, macs } = points[at];
    overlay.replaceChildren(svg("line", { class: "cross", x1: x(share), x2: x(share), y1: frame.top, y2: frame.bottom }));
    const rows = [["Parameters", parameters], ["MACs", macs], ["Damage", damage.toFixed(5)]].map((row) => [null, ...row]);
    tipAt(picture, x(share), tall, html("b", {}, `Budget ${budget}`), tipTable(rows));
    return true;
  };
  pointable(picture, {
    move: (across, down) => {
      const distances = points.map(({ share }) => Math.abs(x(share) - across));
      at = distances.indexOf(Math.min(...distances));
      return distances[at] < 40 && show(down);
    },
    step: (dx) => {
      at = Math.max(0, Math.min(at + (dx || 0), points.length - 1));
      return show(frame.top);
    },
    left: () => overlay.replaceChildren(),
  });
  return picture;
}

function drawBudgets() {
  for (const card of document.querySelectorAll("#compression .curve")) {
    const { budgets } = runs[card.closest(".panel").dataset.run];
    const box = html("div", {});
    card.hidden = false;
    card.append(html("h3", {}, "Damage predicted for every budget"), box);
    fit(box, (width) => box.replaceChildren(budgetPicture(budgets, width)));
  }
}

drawBudgets();
choosePanels("compression");
