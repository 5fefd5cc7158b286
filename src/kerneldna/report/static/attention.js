
// What each child multiplies its parent's kernel by, position by position.

function drawAttentions() {
  const place = section("attention");
  if (!place) return;
  const learned = runs.flatMap((run, index) => (run.families.length ? [index] : []));
  const inside = html("div", {});
  place.box.append(inside);
  choose(place.whole, learned, (index) => {
    const { families } = runs[index];
    const all = families.flatMap((family) => family.children.flatMap((child) => child.values.flat()));
    const limit = Math.max(...all.map(Math.abs)) || 1;
    const digits = Math.min(Math.max(2, 1 - Math.floor(Math.log10(limit))), 6); // two that count, of the largest
    const colour = (value) => signed((value / limit + 1) / 2);
    const cards = families.map(({ parent, children }) => {
      const maps = children.map((child) => attentionMap(child, parent, { colour, digits }));
      return html("div", { class: "card" }, html("h3", {}, `Children of ${parent}`), html("div", { class: "maps" }, ...maps));
    });
    const ends = [-limit, limit].map((value) => withSign(value, digits));
    inside.replaceChildren(colourScale(...ends, (value) => signed(value)), html("div", { class: "families" }, ...cards));
  });
}

function attentionMap({ name, values }, parent, { colour, digits }) {
  const size = Math.max(values.length, values[0].length);
  const texts = size <= 3 ? values.flat().map((value) => (value === null ? "" : withSign(value, digits))) : [];
  const side = size <= 3 ? Math.max(40, roomFor(texts)) : Math.max(14, Math.floor(132 / size));
  const label = `Spatial attention of ${name}; arrow keys go through the positions`;
  const picture = svg("svg", { class: "heat", width: side * values[0].length + 2, height: side * values.length + 2, role: "img", "aria-label": label });
  cells(picture, values, {
    left: 1,
    top: 1,
    side,
    gap: side >= 20 ? 2 : 1,
    colour,
    write: (value) => (size <= 3 ? withSign(value, digits) : null),
    show: (row, column, x, y) => {
      const value = values[row][column];
      const place = `row ${row + 1}, column ${column + 1} of the kernel`;
      const factor = value === null ? "not a number" : `s = ${withSign(value, 4)}, kernel × ${(1 + value).toFixed(4)}`;
      tipAt(picture, x, y, html("b", {}, name), html("p", {}, place), html("p", {}, factor), html("p", {}, `parent: ${parent}`));
    },
  });
  return html("figure", {}, html("figcaption", {}, name), picture);
}

drawAttentions();
